package cli_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// whoIs is a server that says what callers present.
type whoIs struct {
	keysvcv1.UnimplementedCallerServiceServer
	answer *keysvcv1.WhoAmIResponse
}

func (w *whoIs) WhoAmI(ctx context.Context, _ *keysvcv1.WhoAmIRequest) (*keysvcv1.WhoAmIResponse, error) {
	if w.answer != nil {
		return w.answer, nil
	}
	return &keysvcv1.WhoAmIResponse{Name: "caller", Credential: strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ",")}, nil
}

func serveWho(t *testing.T, network, address string, who *whoIs, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	keysvcv1.RegisterCallerServiceServer(server, who)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

// writeCertificates writes ca.pem, and cert.pem and key.pem that are for keysvc.test and for
// clients, into a folder.
func writeCertificates(t *testing.T, folder string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"keysvc.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyText, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, text := range map[string][]byte{"ca.pem": certificate, "cert.pem": certificate, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyText}), "token": []byte("caller-token\n")} {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The same settings as flags, as variables and in a context.
func TestCommandSpeaksTLS(t *testing.T) {
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name) }
	certificate := writeCertificates(t, folder)
	pool := x509.NewCertPool()
	text, err := os.ReadFile(file("ca.pem"))
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	addr := serveWho(t, "tcp", "127.0.0.1:0", &whoIs{}, grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})))
	const want = "{\n  \"name\": \"caller\",\n  \"source\": \"\",\n  \"credential\": \"Bearer caller-token\",\n"
	settings := map[string]string{
		"tls-ca": file("ca.pem"), "tls-cert": file("cert.pem"), "tls-key": file("key.pem"), "tls-server-name": "keysvc.test", "caller-token-file": file("token"),
	}
	flags := []string{"--addr", addr}
	env := map[string]string{"HOME": folder}
	for name, value := range settings {
		flags = append(flags, "--"+name, value)
		env["KEYSVC_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = value
	}
	home := command{env: map[string]string{"HOME": folder}}
	if r := home.run(t, append([]string{"context", "set", "prod", "--use"}, flags...)...); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	for name, r := range map[string]result{
		"flags":     command{}.run(t, append([]string{"whoami", "-o", "json"}, flags...)...),
		"variables": command{addr: addr, env: env}.run(t, "whoami", "-o", "json"),
		"context":   home.run(t, "whoami", "-o", "json"),
	} {
		if r.status != 0 || !strings.HasPrefix(r.stdout, want) || r.stderr != "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	cannot := "error: cannot reach keysvc at " + addr + ": "
	for _, test := range []struct {
		name   string
		flags  []string
		status int
		want   string
	}{
		{"plaintext to TLS", nil, 8, cannot + "the server "},
		{"no client certificate", []string{"--tls-ca", file("ca.pem"), "--tls-server-name", "keysvc.test"}, 8, cannot + "the server asks for a client certificate, and there is none"},
		{"wrong name", []string{"--tls-ca", file("ca.pem")}, 8, cannot + "the server's certificate is for keysvc.test, and not for 127.0.0.1"},
		{"unknown authority", []string{"--tls-server-name", "keysvc.test"}, 8, cannot + "the server's certificate is of an unknown authority (CN=test)"},
		{"no such file", []string{"--tls-ca", "/nowhere/ca.pem"}, 2, "error: --tls-ca: the file /nowhere/ca.pem cannot be read: no such file or directory"},
		{"no token file", []string{"--tls-ca", file("ca.pem"), "--caller-token-file", "/nowhere"}, 2, "error: --caller-token-file: the file /nowhere cannot be read"},
		{"token in plaintext", []string{"--caller-token-file", file("token")}, 2, "error: --caller-token-file: the caller token would go to " + addr + " (--addr) in plaintext"},
		{"certificate without key", []string{"--tls-cert", file("cert.pem")}, 2, "error: a client certificate needs both"},
		{"name and SPIFFE id", []string{"--tls-ca", file("ca.pem"), "--tls-server-name", "a", "--tls-server-spiffe-id", "spiffe://a/b"}, 2, "error: server name and SPIFFE id"},
	} {
		r := command{}.run(t, append([]string{"whoami", "--addr", addr}, test.flags...)...)
		if r.status != test.status || !strings.HasPrefix(r.stderr, test.want) || r.stdout != "" || strings.Contains(r.stderr, "caller-token\n") {
			t.Errorf("%s: %+v, want %s", test.name, r, test.want)
		}
	}
	r := command{}.run(t, "whoami", "--addr", "unix:///nowhere", "--tls-ca", file("ca.pem"))
	if r.status != 2 || !strings.Contains(r.stderr, "--tls-ca is given, but unix:///nowhere is a unix socket, which has no TLS") {
		t.Errorf("%+v", r)
	}
}

// The name of the variable for a caller token cannot be taken for that of validate.
func TestCallerTokenIsNotTheTokenToValidate(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serveWho(t, "unix", socket, &whoIs{})
	c := command{addr: "unix://" + socket, env: map[string]string{"KEYSVC_TOKEN": "a-key"}}
	if r := c.run(t, "whoami", "-o", "json"); r.status != 0 || strings.Contains(r.stdout, "Bearer") {
		t.Errorf("%+v", r)
	}
}

func TestCommandFindsTheSocketOfTheFolder(t *testing.T) {
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	t.Chdir(folder)
	if err := os.Mkdir("keysvc-data", 0o700); err != nil {
		t.Fatal(err)
	}
	serveWho(t, "unix", "keysvc-data/keysvc.sock", &whoIs{})
	command{}.run(t, "whoami", "-o", "name").want(t, 0, "caller\n", "")
	r := command{env: map[string]string{"KEYSVC_SOCKET_OWNER": "4000000000"}}.run(t, "whoami")
	if r.status != 8 || !strings.Contains(r.stderr, "the socket belongs to uid ") || !strings.Contains(r.stderr, "nothing was sent") {
		t.Errorf("%+v", r)
	}
	r = command{}.run(t, "whoami", "--socket-owner", "no such user")
	if r.status != 2 || !strings.Contains(r.stderr, `there is no user "no such user"`) {
		t.Errorf("%+v", r)
	}
}

func TestWhoAmIShowsRightsAndTheirReason(t *testing.T) {
	addr := serveWho(t, "tcp", "127.0.0.1:0", &whoIs{answer: &keysvcv1.WhoAmIResponse{
		Name: "backend", Source: "spiffe", Credential: "certificate 1f", Rule: "callers.yaml:7", NotAfter: timestamppb.New(now.Add(3 * time.Hour)),
		Rights: []*keysvcv1.CallerRight{
			{Right: "read", AllWorkspaces: true}, {Right: "issue", WorkspaceIds: []string{"acme", "beta"}}, {Right: "revoke"},
		},
	}})
	c := command{addr: addr}
	c.run(t, "whoami").want(t, 0, `Name         backend
Proved by    a client certificate with a SPIFFE id
Credential   certificate 1f
Valid until  2026-11-23 09:02 UTC, in 3 hours
Server       `+addr+`
Because of   callers.yaml:7

RIGHT   WORKSPACES
read    all
issue   acme, beta
revoke  none
`, "")
	c.run(t, "whoami", "-o", "name").want(t, 0, "backend\n", "")
	none := serveWho(t, "tcp", "127.0.0.1:0", &whoIs{answer: &keysvcv1.WhoAmIResponse{Name: "x\x1b[31m", Source: "new"}})
	command{addr: none}.run(t, "whoami").want(t, 0, "Name         x\\x1b[31m\nProved by    new\nValid until  no end\nServer       "+none+"\nRights       none\n", "")
}
