package keycredentials

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "scribe_ksk1_secret"

func fixed(token string) Source {
	return SourceFunc(func(context.Context) (string, error) { return token, nil })
}

func TestFile(t *testing.T) {
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
	source := newFile(path, func() time.Time { return now })
	expect := func(want string) {
		t.Helper()
		if got, err := source.Token(t.Context()); err != nil || got != want {
			t.Fatalf("Token = %q, %v; want %q", got, err, want)
		}
	}
	if token, err := source.Token(t.Context()); !errors.Is(err, os.ErrNotExist) || token != "" {
		t.Fatalf("Token = %q, %v", token, err)
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
	write("third")
	now = now.Add(-time.Hour)
	expect("third")
	write(strings.Repeat("x", maxTokenBytes+3))
	now = now.Add(fileInterval)
	expect("third")
}

func TestEnvironment(t *testing.T) {
	source := Environment("KEYCREDENTIALS_TEST")
	if _, err := source.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "KEYCREDENTIALS_TEST") {
		t.Fatalf("Token: %v", err)
	}
	t.Setenv("KEYCREDENTIALS_TEST", "x")
	if token, err := source.Token(t.Context()); err != nil || token != "x" {
		t.Fatalf("Token = %q, %v", token, err)
	}
}

func TestHeader(t *testing.T) {
	for _, token := range []string{"", " ", "a b", "a\n", "a\r\nX: y", "a\x00", "\u00e4", strings.Repeat("a", maxTokenBytes+1)} {
		if value, err := header(t.Context(), fixed(token)); !errors.Is(err, errToken) || value != "" {
			t.Errorf("header of %q = %q, %v", token, value, err)
		}
	}
	if value, err := header(t.Context(), fixed(secret)); err != nil || value != "Bearer "+secret {
		t.Errorf("header = %q, %v", value, err)
	}
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

func TestPerRPC(t *testing.T) {
	// httptest makes a certificate for us.
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
			// Per call, as a connection with credentials that want TLS is refused already.
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

func TestPlaintextElsewhere(t *testing.T) {
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

func TestHTTP(t *testing.T) {
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
			if test.header != "" {
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

func TestHTTPRefuses(t *testing.T) {
	for _, hosts := range [][]string{nil, {""}, {"https://api.example.com"}, {"*"}, {"*.example.com"}, {"user@example.com"}} {
		if tripper, err := HTTP(nil, fixed(secret), hosts); err == nil || tripper != nil {
			t.Errorf("HTTP with hosts %q: no error", hosts)
		}
	}
	if _, err := HTTP(nil, nil, []string{"example.com"}); err == nil {
		t.Error("HTTP without a source: no error")
	}
}
