package transport_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// reports keeps what a Config is told.
type reports struct {
	mu   sync.Mutex
	last error
	all  []error
}

func (r *reports) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = err
	r.all = append(r.all, err)
}

func (r *reports) newest() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// listen serves gRPC health on an address of loopback or a socket.
func listen(t *testing.T, network, address string, options ...grpc.ServerOption) net.Addr {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(listener) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return listener.Addr()
}

func serveTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	if config.MinVersion == 0 {
		config.MinVersion = tls.VersionTLS13
	}
	return listen(t, "tcp", "127.0.0.1:0", grpc.Creds(credentials.NewTLS(config))).String()
}

// check makes a call over a connection of its own.
func check(t *testing.T, target string, config transport.Config, options ...grpc.DialOption) error {
	t.Helper()
	creds, err := transport.New(config)
	if err != nil {
		return err
	}
	options = append(options, grpc.WithTransportCredentials(creds))
	if path, isUnix := strings.CutPrefix(target, "unix://"); isUnix {
		target = "passthrough:///localhost"
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dial(ctx, creds, "unix", path)
		}))
	} else {
		address := target
		target = "passthrough:///" + address
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dial(ctx, creds, "tcp", address)
		}))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func dial(ctx context.Context, creds *transport.Credentials, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		creds.Report(err)
	}
	return conn, err
}

// answerer listens and answers each connection with a function, as a program that is not keysvc.
func answerer(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			answer(conn)
			conn.Close()
		}
	})
	t.Cleanup(func() { listener.Close(); all.Wait() })
	return listener.Addr().String()
}

// Each case is a real handshake.
func TestFailedHandshakesAreSaidInASentence(t *testing.T) {
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	ca := ours.file(t)
	cert, key := files(t, ours.issue(t, client()))
	otherCert, otherKey := files(t, other.issue(t, client()))
	expiredCert, expiredKey := files(t, ours.issue(t, expired(client())))
	serverCert, serverKey := files(t, ours.issue(t, server("127.0.0.1")))
	one := ours.issue(t, server("keysvc.test"))
	plain := func(template *x509.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ours.issue(t, template)}}
	}
	mutual := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{one}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()}
	}
	old := plain(server("keysvc.test"))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	workloadID := "spiffe://example.org/keysvc"
	authorityOfServer := workload(t, workloadID)
	authorityOfServer.IsCA, authorityOfServer.BasicConstraintsValid = true, true
	named := transport.TLS{CAFile: ca, ServerName: "keysvc.test"}
	mine := named
	mine.CertFile, mine.KeyFile = cert, key
	for _, test := range []struct {
		name   string
		server *tls.Config
		client transport.TLS
		want   string // "" for success
	}{
		{"right", plain(server("keysvc.test")), named, ""},
		{"right with a client certificate", mutual(), mine, ""},
		{"right SPIFFE id", plain(workload(t, workloadID)), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, ""},
		{
			"unknown authority", &tls.Config{Certificates: []tls.Certificate{other.issue(t, server("keysvc.test"))}}, named,
			"the server's certificate is of an unknown authority (CN=other)",
		},
		{"authorities of the system", plain(server("keysvc.test")), transport.TLS{ServerName: "keysvc.test"}, "the server's certificate is of an unknown authority (CN=ours)"},
		{"expired", plain(expired(server("keysvc.test"))), named, "the server's certificate is valid from "},
		{"another name", plain(server("a.test", "b.test")), named, "the server's certificate is for a.test, b.test, and not for keysvc.test"},
		{"no name", plain(server()), named, "the server's certificate is for no name, and not for keysvc.test"},
		{"not for servers", plain(client()), transport.TLS{CAFile: ca, ServerName: "client.test"}, "the server's certificate is not one for servers"},
		{"TLS 1.2", old, named, "the server does not speak TLS 1.3"},
		{"another SPIFFE id", plain(workload(t, "spiffe://example.org/web")), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, "the server is spiffe://example.org/web, and not " + workloadID},
		{"two SPIFFE ids", plain(workload(t, workloadID, "spiffe://example.org/web")), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, "the server is spiffe://example.org/keysvc and spiffe://example.org/web, and not " + workloadID},
		{"no SPIFFE id", plain(server("keysvc.test")), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, "the server's certificate has no SPIFFE id"},
		{"SPIFFE id of an authority", plain(authorityOfServer), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, "the server's certificate is that of an authority"},
		{
			"SPIFFE id of an unknown authority", &tls.Config{Certificates: []tls.Certificate{other.issue(t, workload(t, workloadID))}},
			transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID},
			"the server's certificate is of an unknown authority (CN=other)",
		},
		{"SPIFFE id, expired", plain(expired(workload(t, workloadID))), transport.TLS{CAFile: ca, ServerSPIFFEID: workloadID}, "the server's certificate is valid from "},
		{"no client certificate", mutual(), named, "the server asks for a client certificate, and there is none"},
		{
			"client certificate of an unknown authority", mutual(),
			transport.TLS{CAFile: ca, ServerName: "keysvc.test", CertFile: otherCert, KeyFile: otherKey},
			"the server does not trust the authority of this client's certificate (CN=other)",
		},
		{
			"expired client certificate", mutual(),
			transport.TLS{CAFile: ca, ServerName: "keysvc.test", CertFile: expiredCert, KeyFile: expiredKey},
			"this client's certificate has expired at ",
		},
		{
			"client certificate that is not for clients", mutual(),
			transport.TLS{CAFile: ca, ServerName: "keysvc.test", CertFile: serverCert, KeyFile: serverKey},
			"the server refuses this client's certificate (bad certificate)",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var told reports
			err := check(t, serveTLS(t, test.server), transport.Config{TLS: &test.client, Report: told.report})
			judge(t, err, &told, test.want)
		})
	}
}

// judge checks the error of a call, and what was reported.
func judge(t *testing.T, err error, told *reports, want string) {
	t.Helper()
	newest := told.newest()
	if want == "" {
		if err != nil || newest != nil {
			t.Fatalf("failed: %v, %v", err, newest)
		}
		return
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the call ended with %v", err)
	}
	var failure *transport.Error
	if !errors.As(newest, &failure) || !strings.HasPrefix(failure.Error(), want) {
		t.Fatalf("reported %v, want %q", newest, want)
	}
	if strings.Contains(failure.Error(), "x509") || strings.Contains(failure.Error(), "tls:") {
		t.Errorf("%q is not for people", failure)
	}
}

func TestOtherServersAreSaidInASentence(t *testing.T) {
	ours := newAuthority(t, "ours")
	named := &transport.TLS{CAFile: ours.file(t), ServerName: "keysvc.test"}
	read := func(conn net.Conn) { conn.Read(make([]byte, 1024)) }
	for _, test := range []struct {
		name    string
		address string
		client  *transport.TLS
		want    string
	}{
		{"plaintext, right", listen(t, "tcp", "127.0.0.1:0").String(), nil, ""},
		{"plaintext to TLS", serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ours.issue(t, server("keysvc.test"))}}), nil, "the server "},
		{"an alert to plaintext", answerer(t, func(conn net.Conn) { read(conn); conn.Write([]byte{0x15, 3, 1, 0, 2, 2, 10}) }), nil, "the server speaks TLS, and this client does not"},
		{"TLS to plaintext", listen(t, "tcp", "127.0.0.1:0").String(), named, "the server does not speak TLS, and this client does"},
		{"TLS to a server that hangs up", answerer(t, read), named, "the server closed the connection during the TLS handshake"},
		{"plaintext to a server that hangs up", answerer(t, read), nil, "the server closed the connection without a word"},
		{"HTTP/1", answerer(t, func(conn net.Conn) { read(conn); conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }), nil, "the server answers in HTTP/1"},
		{"nothing listens", unused(t), nil, "connection refused: nothing listens there"},
		{"nothing listens, TLS", unused(t), named, "connection refused: nothing listens there"},
		{"no such name", "keysvc.invalid:7480", named, "the name keysvc.invalid cannot be looked up: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			var told reports
			err := check(t, test.address, transport.Config{TLS: test.client, Report: told.report})
			judge(t, err, &told, test.want)
		})
	}
}

// unused returns an address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestOwnerOfASocketIsChecked(t *testing.T) {
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	path := filepath.Join(folder, "s")
	listen(t, "unix", path)
	root := os.Geteuid() == 0
	for _, test := range []struct {
		name, path, owner string
		chown             int
		want              string
	}{
		{"own", path, "", -1, ""},
		{"named", path, "", -1, ""},
		{"another is expected", path, "4000000000", -1, "the socket belongs to uid "},
		{"the file is another's", path, "", 4242, "the socket belongs to uid 4242, and not to "},
		{"the process is another's", path, "4242", 4242, "the process behind the socket belongs to uid 0, and not to uid 4242"},
		{"no such socket", filepath.Join(folder, "none"), "", -1, "no such file or directory: keysvc is not running"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.chown >= 0 {
				if !root {
					t.Skip("only the super-user can give a file away")
				}
				if err := os.Chown(test.path, test.chown, -1); err != nil {
					t.Fatal(err)
				}
				defer os.Chown(test.path, 0, -1)
			}
			var told reports
			err := check(t, "unix://"+test.path, transport.Config{SocketOwner: test.owner, Report: told.report})
			judge(t, err, &told, test.want)
		})
	}
	if _, err := transport.New(transport.Config{SocketOwner: "no such user"}); err == nil || !strings.Contains(err.Error(), "no user") {
		t.Errorf("an unknown owner: %v", err)
	}
	if _, err := transport.New(transport.Config{SocketOwner: "root"}); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestWrongSettingsAreRefused(t *testing.T) {
	ours := newAuthority(t, "ours")
	ca := ours.file(t)
	cert, key := files(t, ours.issue(t, client()))
	_, otherKey := files(t, ours.issue(t, client()))
	for _, test := range []struct {
		name   string
		config transport.TLS
		want   string
	}{
		{"no such CA file", transport.TLS{CAFile: "/nowhere/ca.pem"}, "the file /nowhere/ca.pem cannot be read: no such file"},
		{"no certificate", transport.TLS{CAFile: key}, "has no certificate in PEM"},
		{"no key", transport.TLS{CertFile: cert}, "one of them is missing"},
		{"no certificate for the key", transport.TLS{KeyFile: key}, "one of them is missing"},
		{"another key", transport.TLS{CertFile: cert, KeyFile: otherKey}, "are not a certificate and its key"},
		{"swapped", transport.TLS{CertFile: key, KeyFile: cert}, "are not a certificate and its key"},
		{"name and id", transport.TLS{CAFile: ca, ServerName: "a", ServerSPIFFEID: "spiffe://a/b"}, "exactly one of them"},
		{"id without a CA", transport.TLS{ServerSPIFFEID: "spiffe://a/b"}, "needs a CA file"},
		{"id that is a name", transport.TLS{CAFile: ca, ServerSPIFFEID: "keysvc.test"}, "is no SPIFFE id"},
		{"id of a trust domain", transport.TLS{CAFile: ca, ServerSPIFFEID: "spiffe://example.org"}, "is no SPIFFE id"},
		{"id with a query", transport.TLS{CAFile: ca, ServerSPIFFEID: "spiffe://example.org/a?b"}, "is no SPIFFE id"},
		{"id with capitals", transport.TLS{CAFile: ca, ServerSPIFFEID: "spiffe://Example.org/a"}, "is no SPIFFE id"},
		{"id with a port", transport.TLS{CAFile: ca, ServerSPIFFEID: "spiffe://example.org:1/a"}, "is no SPIFFE id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := transport.New(transport.Config{TLS: &test.config})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "BEGIN") {
				t.Error("the error shows a file")
			}
		})
	}
}

func TestPlaintextStaysOnTheMachine(t *testing.T) {
	var address string
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, candidate := range interfaces {
		if network, is := candidate.(*net.IPNet); is && !network.IP.IsLoopback() && network.IP.To4() != nil {
			address = network.IP.String()
		}
	}
	if address == "" {
		t.Skip("this machine has loopback addresses only")
	}
	creds, err := transport.New(transport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer far.Close()
	_, _, err = creds.ClientHandshake(t.Context(), "keysvc.test", &elsewhere{Conn: near, address: &net.TCPAddr{IP: net.ParseIP(address), Port: 1}})
	if err == nil || !strings.HasPrefix(err.Error(), "the address is not on this machine") {
		t.Fatalf("error %v", err)
	}
}

// elsewhere is a connection to an address.
type elsewhere struct {
	net.Conn
	address net.Addr
}

func (e *elsewhere) RemoteAddr() net.Addr { return e.address }

// The first handshake uses the first certificate. After a change of the files the next one uses
// the second; after a change to nonsense it still does.
func TestFilesAreReadAgainForEachHandshake(t *testing.T) {
	ours, next := newAuthority(t, "ours"), newAuthority(t, "next")
	var mu sync.Mutex
	var served, seen *x509.Certificate
	current := ours.issue(t, server("keysvc.test"))
	address := serveTLS(t, &tls.Config{
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			served = current.Leaf
			return &current, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			seen = state.PeerCertificates[0]
			return nil
		},
	})
	first, second := ours.issue(t, client()), next.issue(t, client())
	ca := ours.file(t)
	cert, key := files(t, first)
	var stale []error
	var told reports
	creds, err := transport.New(transport.Config{
		TLS:    &transport.TLS{CAFile: ca, CertFile: cert, KeyFile: key, ServerName: "keysvc.test"},
		Report: told.report, Stale: func(err error) { mu.Lock(); defer mu.Unlock(); stale = append(stale, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string, want tls.Certificate, failures int) {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if !seen.Equal(want.Leaf) || !served.Equal(current.Leaf) {
			t.Fatalf("%s: the server saw the certificate of %s", what, seen.Issuer)
		}
		if len(stale) != failures {
			t.Fatalf("%s: %d files could not be used: %v", what, len(stale), stale)
		}
	}
	replace := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expect("at first", first, 0)
	newCert, newKey := texts(t, second)
	replace(cert, newCert)
	expect("certificate without its key", first, 1)
	replace(key, newKey)
	expect("renewed", second, 1)
	replace(key, []byte("nonsense"))
	expect("nonsense", second, 2)
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	expect("removed", second, 3)
	replace(cert, newCert)
	replace(key, newKey)
	mu.Lock()
	current = next.issue(t, server("keysvc.test"))
	mu.Unlock()
	text, err := os.ReadFile(next.file(t))
	if err != nil {
		t.Fatal(err)
	}
	replace(ca, text)
	expect("another authority", second, 3)
}

func TestTokenComesFromItsFileAndGoesOverSafeConnectionsOnly(t *testing.T) {
	ours := newAuthority(t, "ours")
	var mu sync.Mutex
	var got []string
	seen := grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		values := metadata.ValueFromIncomingContext(ctx, "authorization")
		if _, has := peer.FromContext(ctx); !has {
			t.Error("no peer")
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, strings.Join(values, ","))
		return handler(ctx, request)
	})
	secure := listen(t, "tcp", "127.0.0.1:0", seen, grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ours.issue(t, server("keysvc.test"))},
	}))).String()
	open := listen(t, "tcp", "127.0.0.1:0", seen).String()
	file := write(t, "token", []byte("first\n"))
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	stale := 0
	bearer, err := transport.NewBearer(file, func(error) { stale++ }, clock)
	if err != nil {
		t.Fatal(err)
	}
	config := transport.Config{TLS: &transport.TLS{CAFile: ours.file(t), ServerName: "keysvc.test"}}
	expect := func(want string) {
		t.Helper()
		if err := check(t, secure, config, grpc.WithPerRPCCredentials(bearer)); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if got[len(got)-1] != want {
			t.Fatalf("the server got %q, want %q", got, want)
		}
	}
	replace := func(text string, later time.Duration) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(later)
	}
	expect("Bearer first")
	replace("second", 0)
	expect("Bearer first") // the file is not read for each call
	replace("second", time.Second)
	expect("Bearer second")
	replace("two words", time.Second)
	expect("Bearer second")
	replace("", time.Second)
	expect("Bearer second")
	if stale != 2 {
		t.Errorf("%d files could not be used", stale)
	}
	before := len(got)
	if err := check(t, open, transport.Config{}, grpc.WithPerRPCCredentials(bearer)); err == nil || strings.Contains(err.Error(), "second") {
		t.Errorf("over plaintext: %v", err)
	}
	if len(got) != before {
		t.Error("the token went over plaintext")
	}
	for _, wrong := range []string{"", "\n", "a b", "a\nb", "ä", strings.Repeat("x", 20_000)} {
		_, err := transport.NewBearer(write(t, "wrong", []byte(wrong)), nil, nil)
		if err == nil || wrong != "" && len(wrong) > 2 && strings.Contains(err.Error(), wrong) {
			t.Errorf("%.10q: %v", wrong, err)
		}
	}
}
