package workload_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
	source "github.com/scribe-mail/keysvc/internal/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent serves the Workload API on a unix socket, as a SPIRE agent does.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	address string

	mu      sync.Mutex
	says    *workload.X509SVIDResponse // nil for a workload that has no entry
	changed chan struct{}
	silent  chan struct{} // closed by the first call that gets no answer, see refusals
	// refusals is after how many calls one gets no answer, if silent is not nil.
	refusals int
}

func newAgent(t *testing.T, says *workload.X509SVIDResponse) *agent {
	t.Helper()
	a := &agent{address: filepath.Join(t.TempDir(), "agent.sock"), says: says, changed: make(chan struct{})}
	stop := a.serve(t)
	t.Cleanup(stop)
	return a
}

// serve listens until the function that it returns is called.
func (a *agent) serve(t *testing.T) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", a.address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	return func() { server.Stop(); <-done }
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if got := md.Get("workload.spiffe.io"); len(got) != 1 || got[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		a.mu.Lock()
		says, changed := a.says, a.changed
		isSilent := a.silent != nil && a.refusals == 0
		a.refusals--
		a.mu.Unlock()
		if isSilent {
			close(a.silent)
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		if says == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(says); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *agent) say(says *workload.X509SVIDResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.says = says
	close(a.changed)
	a.changed = make(chan struct{})
}

// answer is an SVID of prod.test with its bundle, and the bundles of federated domains.
func answer(t *testing.T, own *tls.Certificate, bundle *certificatestest.Authority, federated map[string]*certificatestest.Authority) *workload.X509SVIDResponse {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	response := &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{
			SpiffeId: own.Leaf.URIs[0].String(), X509Svid: bytes.Join(own.Certificate, nil), X509SvidKey: key, Bundle: bundle.Certificate.Raw,
		}},
		FederatedBundles: map[string][]byte{},
	}
	for domain, authority := range federated {
		response.FederatedBundles["spiffe://"+domain] = authority.Certificate.Raw
	}
	return response
}

func open(t *testing.T, a *agent, options source.Options) *source.Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	opened, err := source.Open(ctx, "unix://"+a.address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened
}

func issue(t *testing.T, authority *certificatestest.Authority, id string) *tls.Certificate {
	t.Helper()
	return authority.Issue(t, certificatestest.URI(t, id))
}

// shake connects a client over TLS and returns the server's certificate as the client saw it.
func shake(t *testing.T, from certificates.Source, client *tls.Certificate) (*x509.Certificate, error) {
	t.Helper()
	var server *x509.Certificate
	config := certificates.Config(certificates.Verifier{Source: from}, false)
	near, far := net.Pipe()
	defer func() { _, _ = near.Close(), far.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		connection := tls.Client(far, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*client}})
		if connection.HandshakeContext(context.Background()) == nil {
			server = connection.ConnectionState().PeerCertificates[0]
			_, _ = connection.Read(make([]byte, 1)) // the server's alert, or the end
		}
	}()
	err := tls.Server(near, config).HandshakeContext(context.Background())
	_ = near.Close()
	<-done
	return server, err
}

func TestHandshakesFollowTheWorkloadAPI(t *testing.T) {
	t.Parallel()
	old, next, stage := certificatestest.NewAuthority(t, "old"), certificatestest.NewAuthority(t, "next"), certificatestest.NewAuthority(t, "stage")
	own := issue(t, old, "spiffe://prod.test/keysvc")
	a := newAgent(t, answer(t, own, old, map[string]*certificatestest.Authority{"stage.test": stage}))
	updates := make(chan struct{}, 8)
	s := open(t, a, source.Options{Changed: func() { updates <- struct{}{} }})

	mailer, foreign := issue(t, old, "spiffe://prod.test/mailer"), issue(t, stage, "spiffe://stage.test/mailer")
	crossed := issue(t, stage, "spiffe://prod.test/mailer")
	server, err := shake(t, s, mailer)
	if err != nil || !server.Equal(own.Leaf) {
		t.Fatalf("the server presented %v (%v)", server, err)
	}
	if _, err := shake(t, s, foreign); err != nil {
		t.Errorf("a caller of a federated domain: %v", err)
	}
	if _, err := shake(t, s, crossed); err == nil {
		t.Error("an authority of one domain has vouched for a caller of another")
	}

	// The SVID and the bundle are rotated, and the federation ends.
	rotated := issue(t, next, "spiffe://prod.test/keysvc")
	a.say(answer(t, rotated, next, nil))
	await(t, updates)
	server, err = shake(t, s, issue(t, next, "spiffe://prod.test/mailer"))
	if err != nil || !server.Equal(rotated.Leaf) {
		t.Errorf("after the rotation the server presented %v (%v)", server, err)
	}
	for name, client := range map[string]*tls.Certificate{"of the old authority": mailer, "of the domain that is no longer federated": foreign} {
		if _, err := shake(t, s, client); err == nil {
			t.Errorf("a caller %s is let in", name)
		}
		// A connection that is open is judged with the same verifier.
		if _, err := (certificates.Verifier{Source: s}).VerifyCertificate([]*x509.Certificate{client.Leaf}); err == nil {
			t.Errorf("a connection of a caller %s stays open", name)
		}
	}
}

func TestWhatTheWorkloadAPISaidLastStaysWhileItIsAway(t *testing.T) {
	t.Parallel()
	authority := certificatestest.NewAuthority(t, "prod")
	first := issue(t, authority, "spiffe://prod.test/keysvc")
	a := &agent{address: filepath.Join(t.TempDir(), "agent.sock"), says: answer(t, first, authority, nil), changed: make(chan struct{})}
	stop := a.serve(t)
	updates := make(chan struct{}, 8)
	log := &lines{warned: make(chan struct{}, 100)}
	s := open(t, a, source.Options{Changed: func() { updates <- struct{}{} }, Log: slog.New(slog.NewTextHandler(log, nil))})
	stop()
	await(t, log.warned)
	if server, err := shake(t, s, issue(t, authority, "spiffe://prod.test/mailer")); err != nil || !server.Equal(first.Leaf) {
		t.Errorf("without the agent: %v, %v", server, err)
	}
	second := issue(t, authority, "spiffe://prod.test/keysvc")
	a.says = answer(t, second, authority, nil)
	t.Cleanup(a.serve(t))
	await(t, updates)
	if !s.Own().Leaf.Equal(second.Leaf) {
		t.Error("after the agent's return the old SVID is in use")
	}
}

// The agent refuses the first call and leaves the second one without an answer: what is told is the
// refusal, and not that the second call ended with Open.
func TestOpenEndsIfTheProcessHasNoIdentity(t *testing.T) {
	t.Parallel()
	a := &agent{
		address: filepath.Join(t.TempDir(), "agent.sock"), changed: make(chan struct{}),
		silent: make(chan struct{}), refusals: 1,
	}
	t.Cleanup(a.serve(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-a.silent; cancel() }()
	opened, err := source.Open(ctx, "unix://"+a.address, source.Options{})
	if err == nil {
		opened.Close()
		t.Fatal("it opened")
	}
	if !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("the error does not say why: %v", err)
	}
}

func TestAddressesOffThisMachineAreRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "/run/agent.sock", "unix:agent.sock", "unix://agent.sock", "unix:///", "tcp://10.0.0.1:80", "unix:///a?b"} {
		if err := source.CheckAddress(address); err == nil {
			t.Errorf("%q is allowed", address)
		}
	}
	if err := source.CheckAddress("unix:///run/spire/agent.sock"); err != nil {
		t.Error(err)
	}
}

// lines is a log that says when a warning has come.
type lines struct{ warned chan struct{} }

func (l *lines) Write(text []byte) (int, error) {
	if bytes.Contains(text, []byte("WARN")) {
		l.warned <- struct{}{}
	}
	return len(text), nil
}

func await(t *testing.T, happened <-chan struct{}) {
	t.Helper()
	select {
	case <-happened:
	case <-time.After(20 * time.Second):
		t.Fatal("it has not happened")
	}
}
