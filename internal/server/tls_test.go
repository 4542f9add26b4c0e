package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
	"github.com/scribe-mail/keysvc/internal/config"
)

// secured is a server with TLS on loopback, and the folder of its files.
type secured struct {
	*bench
	folder, address string
	prod, servers   *certificatestest.Authority
}

// startTLS starts a server with the authority prod for the trust domain prod.test. more is added to
// its callers file.
func startTLS(t *testing.T, bearers bool, more string) *secured {
	t.Helper()
	s := &secured{folder: t.TempDir(), prod: certificatestest.NewAuthority(t, "prod"), servers: certificatestest.NewAuthority(t, "servers")}
	s.write(t, "prod.crt", s.prod.PEM())
	cert, key := certificatestest.Write(t, s.folder, "server", s.servers.Issue(t, certificatestest.Loopback))
	s.write(t, "callers.yaml", []byte(`version: 1
trust_domains:
  - {name: prod.test, bundle: prod.crt}
`+more+`
  - name: mailer
    spiffe: [spiffe://prod.test/mailer]
    rights: [validate]
`))
	s.bench = start(t, options{clock: &testClock{now: time.Now()}, settings: func(settings *config.Settings) {
		settings.TLSServerCert, settings.TLSServerKey, settings.Callers = cert, key, filepath.Join(s.folder, "callers.yaml")
		settings.TLSBearers = bearers
	}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(listener) }()
	t.Cleanup(func() {
		s.stop(t, patience)
		if err := <-served; err != nil {
			t.Errorf("serving TLS ended with %v", err)
		}
	})
	return s
}

func (s *secured) write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.folder, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// client returns a client with a certificate; nil for none.
func (s *secured) client(t *testing.T, certificate *tls.Certificate) keysvcv1.PolicyServiceClient {
	t.Helper()
	return keysvcv1.NewPolicyServiceClient(s.connect(t, certificate))
}

// connect returns a connection with a certificate; nil for none.
func (s *secured) connect(t *testing.T, certificate *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{RootCAs: s.servers.Pool(), MinVersion: tls.VersionTLS13}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes a call that every known caller may make.
func ask(ctx context.Context, client keysvcv1.PolicyServiceClient) error {
	_, err := client.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	return err
}

// becomes waits until a call ends with success, or without.
func becomes(t *testing.T, client keysvcv1.PolicyServiceClient, good bool) time.Duration {
	t.Helper()
	began, ctx := time.Now(), testContext(t)
	for (ask(ctx, client) == nil) != good {
		if ctx.Err() != nil {
			t.Fatalf("calls still succeed: %v", !good)
		}
	}
	return time.Since(began)
}

func TestTrustAndCertificatesAreReplacedWhileClientsAreConnected(t *testing.T) {
	t.Parallel()
	s := startTLS(t, false, "callers:")
	mailer := s.client(t, s.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	if err := ask(testContext(t), mailer); err != nil {
		t.Fatal(err)
	}
	// A caller of the domain that the file does not name, and one of a stranger, are not let in.
	for name, certificate := range map[string]*tls.Certificate{
		"not in the callers file": s.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/other")),
		"of a stranger":           certificatestest.NewAuthority(t, "stranger").Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")),
		"none":                    nil,
	} {
		if err := ask(testContext(t), s.client(t, certificate)); err == nil {
			t.Errorf("a certificate %s is let in", name)
		}
	}

	// The authority is taken out of the bundle: the connection that is open ends.
	next := certificatestest.NewAuthority(t, "next")
	s.write(t, "prod.crt", next.PEM())
	if took := becomes(t, mailer, false); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	becomes(t, s.client(t, next.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer"))), true)

	// Half a bundle leaves the old one in use; a new server certificate is used all the same.
	s.write(t, "prod.crt", s.prod.PEM()[:200])
	renewed := s.servers.Issue(t, certificatestest.Loopback)
	certificatestest.Write(t, s.folder, "server", renewed)
	ctx := testContext(t)
	for serial := ""; serial != renewed.Leaf.SerialNumber.String(); {
		if ctx.Err() != nil {
			t.Fatal("the new certificate is not used")
		}
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: s.servers.Pool(), NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}}
		conn, err := dialer.DialContext(ctx, "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		over, _ := conn.(*tls.Conn)
		serial = over.ConnectionState().PeerCertificates[0].SerialNumber.String()
		_ = conn.Close()
	}
	becomes(t, s.client(t, next.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer"))), true)
	// The status says that a file is not used as it is.
	conn := s.connect(t, next.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	current, err := keysvcv1.NewStatusServiceClient(conn).GetStatus(testContext(t), &keysvcv1.GetStatusRequest{})
	if err != nil || !slices.ContainsFunc(current.GetProblems(), func(p *keysvcv1.StatusProblem) bool { return p.GetProblemId() == "file-refused" }) {
		t.Errorf("the status has %v, %v, and not file-refused", current.GetProblems(), err)
	}
}

// TestStatusShowsTheEndsOfCertificates: the server's, and that of the authority of clients that ends last.
func TestStatusShowsTheEndsOfCertificates(t *testing.T) {
	t.Parallel()
	s := startTLS(t, false, "callers:")
	conn := s.connect(t, s.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	status, err := keysvcv1.NewStatusServiceClient(conn).GetStatus(testContext(t), &keysvcv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var uses []string
	for _, each := range status.GetCertificates() {
		uses = append(uses, each.GetUse().String()+" "+each.GetTrustDomain())
		if !each.GetStartTime().AsTime().Before(each.GetExpireTime().AsTime()) {
			t.Errorf("%v holds at no time", each)
		}
	}
	if want := []string{"CERTIFICATE_USE_SERVER ", "CERTIFICATE_USE_CLIENT_AUTHORITY prod.test"}; !slices.Equal(uses, want) {
		t.Errorf("the certificates are %q, want %q", uses, want)
	}
}

func TestTokensOfAnIssuerAreTakenOverTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "keys.json"), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	s := startTLS(t, true, `issuers:
  - {name: cluster, url: "https://cluster.test", audience: keysvc, algorithms: [ES256], jwks: `+filepath.Join(folder, "keys.json")+`}
callers:
  - name: worker
    oidc: [{issuer: cluster, subject: "system:serviceaccount:mail:worker"}]
    rights: [validate]`)
	client := s.client(t, nil)
	with := func(token string) context.Context {
		return metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+token)
	}
	signed := func(subject string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "one"))
		if err != nil {
			t.Fatal(err)
		}
		claims, err := json.Marshal(map[string]any{"iss": "https://cluster.test", "aud": "keysvc", "sub": subject, "exp": time.Now().Add(time.Hour).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		token, err := signer.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		text, err := token.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if err := ask(with(signed("system:serviceaccount:mail:worker")), client); err != nil {
		t.Error(err)
	}
	for name, ctx := range map[string]context.Context{
		"no token":        testContext(t),
		"another subject": with(signed("system:serviceaccount:mail:other")),
		"no JWT":          with("nonsense"),
	} {
		if err := ask(ctx, client); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A certificate that does not hold is refused also where none is needed.
	stranger := certificatestest.NewAuthority(t, "stranger").Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer"))
	if err := ask(with(signed("system:serviceaccount:mail:worker")), s.client(t, stranger)); err == nil {
		t.Error("a certificate of a stranger is let in")
	}
}
