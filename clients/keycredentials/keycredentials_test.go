package keycredentials

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secret is a well-formed token.
var secret = func() string {
	id, err := token.NewID(rand.Reader)
	if err != nil {
		panic(err)
	}
	made, err := token.New("scribe", id, rand.Reader)
	if err != nil {
		panic(err)
	}
	return made.Reveal()
}()

func fixed(text string) Source {
	return SourceFunc(func(context.Context) (string, error) { return text, nil })
}

func TestFileIsReadAgainAfterASecond(t *testing.T) {
	now := time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	source := SourceFunc(newFile(path, func() time.Time { return now }).token)
	expect := func(want string) {
		t.Helper()
		if got, err := source.Token(t.Context()); err != nil || got != want {
			t.Fatalf("Token = %q, %v; want %q", got, err, want)
		}
	}
	if text, err := source.Token(t.Context()); !errors.Is(err, os.ErrNotExist) || text != "" {
		t.Fatalf("Token = %q, %v", text, err)
	}
	write("first\n")
	expect("first")
	write("second\r\n")
	expect("first")
	now = now.Add(fileInterval)
	expect("second")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(fileInterval)
	expect("second")
	write("")
	now = now.Add(fileInterval)
	expect("second")
	write(secret[:len(secret)-1])
	now = now.Add(fileInterval)
	expect("second")
	write("third")
	now = now.Add(-time.Hour)
	expect("third")
	// Written in place, with the same length and the same file time.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("fifth"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(fileInterval)
	expect("fifth")
	write(strings.Repeat("x", maxTokenBytes+3))
	now = now.Add(fileInterval)
	expect("fifth")
	write(secret)
	now = now.Add(fileInterval)
	expect(secret)
}

func TestFileRefusesWhatHoldsNoToken(t *testing.T) {
	directory := t.TempDir()
	pipe := filepath.Join(directory, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct{ path, want string }{
		{filepath.Join(directory, "missing"), "no such file"},
		{directory, "is not a regular file"},
		{pipe, "is not a regular file"},
		{write("empty", "\n"), "is empty"},
		{write("two lines", secret+"\n\n"), "at byte " + strconv.Itoa(len(secret))},
		{write("spaces", " "+secret), "at byte 0"},
		{write("long", strings.Repeat("x", maxTokenBytes+1)), "allowed are up to 4096"},
		{write("overlong", strings.Repeat("x", 1<<20)), "a token has up to 4096"},
		{write("damaged", secret[:len(secret)-2]), "checksum"},
	} {
		value, err := authorization(t.Context(), File(test.path))
		if value != "" || err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.path) {
			t.Errorf("%s: %q, %v; want %q", test.path, value, err, test.want)
		}
		if err != nil && token.In(err.Error()) {
			t.Errorf("%s: the error holds the token", test.path)
		}
	}
}

func TestPrintingShowsNoToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	source := File(path)
	if _, err := authorization(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	tripper, err := HTTP(nil, source, []string{"api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []any{source, PerRPC(source), tripper, &source} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if strings.Contains(fmt.Sprintf(format, value), secret) {
				t.Errorf("%T shows the token with %s", value, format)
			}
		}
	}
}

func TestEnvironmentIsReadForEachCall(t *testing.T) {
	source := Environment("KEYCREDENTIALS_TEST")
	if _, err := source.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "KEYCREDENTIALS_TEST") {
		t.Fatalf("Token: %v", err)
	}
	t.Setenv("KEYCREDENTIALS_TEST", "x")
	if text, err := source.Token(t.Context()); err != nil || text != "x" {
		t.Fatalf("Token = %q, %v", text, err)
	}
}

func TestAuthorizationRefusesWhatCannotBeSent(t *testing.T) {
	for _, text := range []string{
		"", " ", "a b", "a\n", "a\r\nX: y", "a\x00", "a,b", "\u00e4", "\xff", strings.Repeat("a", maxTokenBytes+1),
		secret[:len(secret)-1], secret + "0", "Bearer " + secret,
	} {
		value, err := authorization(t.Context(), fixed(text))
		if err == nil || value != "" {
			t.Errorf("authorization with %q = %q, %v", text, value, err)
		} else if len(text) > 8 && strings.Contains(err.Error(), text) || token.In(err.Error()) {
			t.Errorf("authorization with %q: the error holds it: %v", text, err)
		}
	}
	for _, text := range []string{secret, "x", "a.b-c_d~e+f/g==", strings.Repeat("a", maxTokenBytes)} {
		if value, err := authorization(t.Context(), fixed(text)); err != nil || value != "Bearer "+text {
			t.Errorf("authorization = %q, %v", value, err)
		}
	}
	failing := SourceFunc(func(context.Context) (string, error) { return secret, errors.New("cannot renew " + secret) })
	if value, err := authorization(t.Context(), failing); err == nil || value != "" || strings.Contains(err.Error(), secret) {
		t.Errorf("authorization = %q, %v", value, err)
	}
	if value, err := authorization(t.Context(), nil); err == nil || value != "" {
		t.Errorf("authorization = %q, %v", value, err)
	}
}

// Whatever a source returns, the header has one line, one scheme and one token.
func FuzzAuthorization(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		value, err := authorization(t.Context(), fixed(text))
		if err != nil {
			if value != "" {
				t.Fatalf("an error, and %q", value)
			}
			return
		}
		if value != "Bearer "+text || strings.ContainsAny(text, " ,;\t\r\n\x00\"") || len(text) > maxTokenBytes {
			t.Fatalf("sent %q", value)
		}
	})
}

// health records the authorization of calls.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	seen []string
}

func (h *health) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	h.seen = append(h.seen, metadata.ValueFromIncomingContext(ctx, "authorization")...)
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func TestPerRPCSendsTheToken(t *testing.T) {
	// httptest makes a certificate.
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	certificate := certified.TLS.Certificates[0]
	roots := certified.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	certified.Close()
	overTLS := credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS13})
	tests := []struct {
		name, network, address string
		server                 credentials.TransportCredentials
		client                 credentials.TransportCredentials
		options                []Option
		sent                   bool
	}{
		{"TLS", "tcp", "127.0.0.1:0", credentials.NewServerTLSFromCert(&certificate), overTLS, nil, true},
		{"TLSWithOption", "tcp", "127.0.0.1:0", credentials.NewServerTLSFromCert(&certificate), overTLS, []Option{AllowPlaintextLoopback()}, true},
		{"Plaintext", "tcp", "127.0.0.1:0", insecure.NewCredentials(), insecure.NewCredentials(), nil, false},
		{"PlaintextLoopback", "tcp", "127.0.0.1:0", insecure.NewCredentials(), insecure.NewCredentials(), []Option{AllowPlaintextLoopback()}, true},
		{"Unix", "unix", filepath.Join(t.TempDir(), "s"), insecure.NewCredentials(), insecure.NewCredentials(), []Option{AllowPlaintextLoopback()}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			listener, err := net.Listen(test.network, test.address)
			if err != nil {
				t.Fatal(err)
			}
			server, recorded := grpc.NewServer(grpc.Creds(test.server)), &health{}
			grpc_health_v1.RegisterHealthServer(server, recorded)
			go server.Serve(listener)
			defer server.Stop()
			target := listener.Addr().String()
			if test.network == "unix" {
				target = "unix://" + target
			}
			// With per-call credentials, because grpc already refuses a connection whose
			// credentials require TLS.
			conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(test.client))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{},
				grpc.PerRPCCredentials(PerRPC(fixed(secret), test.options...)))
			if (err == nil) != test.sent || (len(recorded.seen) == 1 && recorded.seen[0] == "Bearer "+secret) != test.sent {
				t.Fatalf("sent %d: %v", len(recorded.seen), err)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Fatal("the token is in the error")
			}
		})
	}
}

// movedConn is a connection with another remote address.
type movedConn struct {
	net.Conn
	remote net.Addr
}

func (c movedConn) RemoteAddr() net.Addr { return c.remote }

// anonymous are credentials that do not tell how secure a connection is.
type anonymous struct {
	credentials.TransportCredentials
}

type anonymousInfo struct{}

func (anonymousInfo) AuthType() string { return "anonymous" }

func (anonymous) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "anonymous"}
}

func (a anonymous) Clone() credentials.TransportCredentials { return a }

func (anonymous) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, anonymousInfo{}, nil
}

// AllowPlaintextLoopback is set, or grpc would allow the call. Nothing reaches the server.
func TestPerRPCRefusesUnsafeCalls(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, recorded := grpc.NewServer(), &health{}
	grpc_health_v1.RegisterHealthServer(server, recorded)
	go server.Serve(listener)
	defer server.Stop()
	here := listener.Addr()
	elsewhere := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}
	plain := []Option{AllowPlaintextLoopback()}
	for _, test := range []struct {
		name, target string
		remote       net.Addr
		client       credentials.TransportCredentials
		source       Source
		options      []Option
		context      func(context.Context) context.Context
		want         codes.Code
	}{
		{name: "it works", target: here.String(), remote: here, options: plain, want: codes.OK},
		{name: "localhost", target: "localhost:80", remote: here, options: plain, want: codes.OK},
		{name: "another machine", target: "192.0.2.1:80", remote: elsewhere, options: plain, want: codes.Internal},
		{name: "a name that leads elsewhere", target: "localhost:80", remote: elsewhere, options: plain, want: codes.Internal},
		{name: "a proxy on this machine", target: "api.example.com:80", remote: here, options: plain, want: codes.Internal},
		{
			name: "within a call from this machine", target: "localhost:80", remote: elsewhere, options: plain, want: codes.Internal,
			context: func(ctx context.Context) context.Context { return peer.NewContext(ctx, &peer.Peer{Addr: here}) },
		},
		{name: "not allowed", target: here.String(), remote: here, want: codes.Unauthenticated},
		{name: "security not known", target: here.String(), remote: here, client: anonymous{}, want: codes.Internal},
		{
			name: "authorized already", target: here.String(), remote: here, options: plain, want: codes.Internal,
			context: func(ctx context.Context) context.Context {
				return metadata.AppendToOutgoingContext(ctx, "Authorization", "Bearer other")
			},
		},
		{name: "no token", target: here.String(), remote: here, options: plain, source: fixed(""), want: codes.Unavailable},
		{name: "bad token", target: here.String(), remote: here, options: plain, source: fixed(secret + "\r\nx: y"), want: codes.Unavailable},
		{
			name: "source fails", target: here.String(), remote: here, options: plain, want: codes.Unavailable,
			source: SourceFunc(func(context.Context) (string, error) { return secret, errors.New("broken") }),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			recorded.seen = nil
			if test.client == nil {
				test.client = insecure.NewCredentials()
			}
			if test.source == nil {
				test.source = fixed(secret)
			}
			conn, err := grpc.NewClient("passthrough:///"+test.target, grpc.WithTransportCredentials(test.client),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, "tcp", here.String())
					return movedConn{conn, test.remote}, err
				}))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx := t.Context()
			if test.context != nil {
				ctx = test.context(ctx)
			}
			_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{},
				grpc.PerRPCCredentials(PerRPC(test.source, test.options...)))
			if status.Code(err) != test.want {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			if sent := len(recorded.seen) > 0; sent != (test.want == codes.OK) {
				t.Fatalf("sent: %t", sent)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Fatal("the token is in the error")
			}
		})
	}
	// With credentials for a whole connection, grpc refuses when it dials.
	if conn, err := grpc.NewClient(here.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(PerRPC(fixed(secret)))); err == nil {
		conn.Close()
		t.Fatal("dialled without TLS")
	}
}

// The source waits; the error is the context's.
func TestPerRPCEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(credentials.NewContextWithRequestInfo(t.Context(), credentials.RequestInfo{
		AuthInfo: credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}},
	}))
	waiting := SourceFunc(func(ctx context.Context) (string, error) {
		cancel()
		<-ctx.Done()
		return "", ctx.Err()
	})
	if _, err := PerRPC(waiting).GetRequestMetadata(ctx); status.Code(err) != codes.Canceled {
		t.Fatalf("error %v", err)
	}
}

func TestPlaintextToOtherMachinesIsRefused(t *testing.T) {
	for address, local := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true, "192.0.2.1:1": false, "[2001:db8::1]:1": false} {
		parsed, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if isLoopback(parsed) != local {
			t.Errorf("isLoopback(%s) = %t", address, !local)
		}
	}
}

func TestHTTPSendsTheTokenToNamedHosts(t *testing.T) {
	var seen []string
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Values("Authorization")...)
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
		}
	})
	secure, plain := httptest.NewTLSServer(handler), httptest.NewServer(handler)
	defer secure.Close()
	defer plain.Close()
	secureHost, plainHost := strings.TrimPrefix(secure.URL, "https://"), strings.TrimPrefix(plain.URL, "http://")
	tests := []struct {
		name, url string
		hosts     []string
		options   []Option
		header    string
		sent      int
		fails     bool
	}{
		{"TLS", secure.URL, []string{secureHost}, nil, "", 1, false},
		{"Plain", plain.URL, []string{plainHost}, nil, "", 0, true},
		{"PlainLoopback", plain.URL, []string{plainHost}, []Option{AllowPlaintextLoopback()}, "", 1, false},
		{"OtherHost", secure.URL, []string{"api.example.com"}, nil, "", 0, true},
		{"HostWithoutPort", secure.URL, []string{"127.0.0.1"}, nil, "", 0, true},
		{"RedirectElsewhere", secure.URL + "/?to=" + plain.URL, []string{secureHost}, []Option{AllowPlaintextLoopback()}, "", 1, true},
		{"RedirectToPlain", secure.URL + "/?to=" + plain.URL, []string{secureHost, plainHost}, nil, "", 1, true},
		{"RedirectHere", secure.URL + "/?to=/there", []string{secureHost}, nil, "", 2, false},
		{"AuthorizedAlready", secure.URL, []string{secureHost}, nil, "Basic x", 0, true},
		{"AuthorizedInOtherCase", secure.URL, []string{secureHost}, nil, "authorization", 0, true},
		{"UserInURL", strings.Replace(secure.URL, "https://", "https://user:pass@", 1), []string{secureHost}, nil, "", 0, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seen = nil
			tripper, err := HTTP(secure.Client().Transport, fixed(secret), test.hosts, test.options...)
			if err != nil {
				t.Fatal(err)
			}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, test.url, strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			switch test.header {
			case "":
			case "authorization":
				request.Header["authorization"] = []string{"Basic x"}
			default:
				request.Header.Set("Authorization", test.header)
			}
			before := len(request.Header)
			response, err := (&http.Client{Transport: tripper}).Do(request)
			if err == nil {
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			if (err != nil) != test.fails || len(seen) != test.sent {
				t.Fatalf("sent %d times, %v; want %d", len(seen), err, test.sent)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Fatal("the token is in the error")
			}
			if len(request.Header) != before {
				t.Fatal("the request was changed")
			}
		})
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestHTTPRefusesUnsafeRequests(t *testing.T) {
	for _, hosts := range [][]string{
		nil,
		{""},
		{"https://api.example.com"},
		{"*"},
		{"*.example.com"},
		{"user@example.com"},
		{"api.example.com/v1"},
		{"api.example.com?"},
		{"api.example.com#"},
		{"api.example.com:"},
		{":443"},
		{"api.example.com:https"},
		{"api example.com"},
		{"\u00e4.example.com"},
		{"api%2eexample.com"},
		{"::1"},
		{"api.example.com", ""},
	} {
		if tripper, err := HTTP(nil, fixed(secret), hosts); err == nil || tripper != nil {
			t.Errorf("HTTP with hosts %q: no error", hosts)
		}
	}
	if _, err := HTTP(nil, nil, []string{"example.com"}); err == nil {
		t.Error("HTTP without a source: no error")
	}
}

// An accepted host is one that a URL can have, and no other host gets the token.
func FuzzHost(f *testing.F) {
	f.Fuzz(func(t *testing.T, listed, requested string) {
		tripper, err := HTTP(http.DefaultTransport, fixed(secret), []string{listed}, AllowPlaintextLoopback())
		if err != nil {
			return
		}
		own, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+listed+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorized, err := tripper.authorize(own); err != nil || authorized.Header.Get("Authorization") != "Bearer "+secret {
			t.Fatalf("the host itself: %v", err)
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, requested, nil)
		if err != nil {
			return
		}
		authorized, err := tripper.authorize(request)
		if err != nil {
			return
		}
		if !strings.EqualFold(authorized.URL.Host, listed) {
			t.Fatalf("a key for %q is sent to %q", listed, requested)
		}
		address, err := netip.ParseAddr(authorized.URL.Hostname())
		if authorized.URL.Scheme != "https" && (err != nil || !address.Unmap().IsLoopback()) {
			t.Fatalf("sent in plaintext to %q", requested)
		}
		if len(request.Header) != 0 {
			t.Fatal("the request was changed")
		}
	})
}

func BenchmarkAuthorization(b *testing.B) {
	path := filepath.Join(b.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		b.Fatal(err)
	}
	source := File(path)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := authorization(b.Context(), source); err != nil {
			b.Fatal(err)
		}
	}
}
