package keyauthhttp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// serveBoth serves a handler over HTTP/1.1 or HTTP/2. It returns the address and a client.
func serveBoth(t *testing.T, protocol string, handler http.Handler) (address string, client *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.EnableHTTP2 = protocol == "HTTP/2.0"
	server.StartTLS()
	t.Cleanup(server.Close)
	client = server.Client()
	if transport := client.Transport.(*http.Transport); protocol == "HTTP/1.1" {
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return server.URL, client
}

// The request ends whatever its handler is doing, and the presenter does not take the answer
// for complete.
func TestLongLivedRequestEndsWithItsKey(t *testing.T) {
	bench := newBench(t)
	behaviours := map[string]func(w http.ResponseWriter, r *http.Request){
		"waits for its context": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"writes": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, "data\n"); err != nil {
					return
				}
				if err := http.NewResponseController(w).Flush(); err != nil {
					return
				}
			}
		},
		"reads": func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) },
	}
	changes := []struct {
		name string
		make func(t *testing.T, keyID string)
		code codes.Code
	}{
		{"revoked", func(t *testing.T, keyID string) {
			if _, err := bench.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: keyID}); err != nil {
				t.Fatal(err)
			}
		}, codes.Unauthenticated},
		{"beyond the role", func(t *testing.T, _ string) { bench.PutMember(t, workspace, member, "member") }, codes.PermissionDenied},
		{"nothing is known", func(*testing.T, string) {
			bench.validator.breakDown(func(context.Context) (keyauth.Answer, error) {
				return keyauth.Answer{}, status.Error(codes.Unavailable, "down")
			})
		}, codes.Unavailable},
	}
	for behaviour, behave := range behaviours {
		for _, change := range changes {
			for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
				t.Run(behaviour+"/"+change.name+"/"+protocol, func(t *testing.T) {
					bench.validator.breakDown(nil)
					bench.PutMember(t, workspace, member, "admin")
					keyID, token := bench.CreateKey(t, workspace, member, "signatures:read")
					ended := make(chan error, 1)
					handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						// Tell HTTP/1.1 that reading goes on beside writing.
						_ = http.NewResponseController(w).EnableFullDuplex()
						io.WriteString(w, "hello\n")
						http.NewResponseController(w).Flush()
						behave(w, r)
						ended <- context.Cause(r.Context())
					})
					address, client := serveBoth(t, protocol, newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{
						Routes: map[string]keyauthhttp.Route{"POST /events": {Requirement: read, LongLived: true, Handler: handler}},
					}))
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					body, sending := io.Pipe()
					defer sending.Close()
					request, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/events", body)
					if err != nil {
						t.Fatal(err)
					}
					request.Header.Set("Authorization", "Bearer "+token)
					answer, err := client.Do(request)
					if err != nil {
						t.Fatal(err)
					}
					defer answer.Body.Close()
					hello := make([]byte, 6)
					if _, err := io.ReadFull(answer.Body, hello); err != nil || string(hello) != "hello\n" || answer.Proto != protocol {
						t.Fatalf("%s: %q %v", answer.Proto, hello, err)
					}

					change.make(t, keyID)
					bench.validator.change()
					if _, err := io.Copy(io.Discard, answer.Body); err == nil || ctx.Err() != nil {
						t.Errorf("the stream ended as if it was complete, or not at all: %v", ctx.Err())
					}
					var refusal *keyauth.RefusalError
					if err := <-ended; !errors.As(err, &refusal) || refusal.Code != change.code {
						t.Errorf("the handler's context ended with %v, want %v", err, change.code)
					}
				})
			}
		}
	}
}

// A request that is not long-lived is decided once.
func TestNearCacheEndsLongLivedRequestsOnly(t *testing.T) {
	bench := newBench(t)
	near, err := keyclient.New(bench.Address, keyclient.Config{AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	guard, err := keyauth.NewGuard(near, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello\n")
		http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	address, client := serveBoth(t, "HTTP/1.1", newMux(t, guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /long":  {Requirement: read, LongLived: true, Handler: handler},
		"GET /short": {Requirement: read, Handler: handler},
	}}))
	keyID, token := bench.CreateKey(t, workspace, member, "signatures:read")
	open := func(path string) *http.Response {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answer.Body.Close() })
		if hello := make([]byte, 6); answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, answer.StatusCode)
		} else if _, err := io.ReadFull(answer.Body, hello); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	long, short := open("/long"), open("/short")
	began := time.Now()
	if _, err := bench.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: keyID}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, long.Body); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("the long-lived request ended with %v after %s", err, time.Since(began))
	}
	close(release)
	if _, err := io.Copy(io.Discard, short.Body); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

// goleak finds a goroutine that is left.
func TestWatchEndsWithHandlerAndPresenter(t *testing.T) {
	bench := newBench(t)
	token := bench.key(t, "signatures:read")
	left := make(chan error, 1)
	config := keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /short": {Requirement: read, LongLived: true, Handler: says("short")},
		"GET /panic": {Requirement: read, LongLived: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		})},
		"GET /long": {Requirement: read, LongLived: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			left <- context.Cause(r.Context())
		})},
	}}
	address, client := serveBoth(t, "HTTP/1.1", newMux(t, bench.guard(t, keyauth.Config{}), config))
	get := func(ctx context.Context, path string) (*http.Response, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		return client.Do(request)
	}
	// Several requests on one connection: the deadline of one does not affect the next.
	for range 3 {
		answer, err := get(t.Context(), "/short")
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "short" {
			t.Errorf("%q %v", body, err)
		}
		answer.Body.Close()
	}
	if answer, err := get(t.Context(), "/panic"); err == nil {
		answer.Body.Close()
		t.Errorf("a handler that panics: %d", answer.StatusCode)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer, err := get(ctx, "/long")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the presenter left: %v", err)
	}
	answer.Body.Close()

	// Without a Watcher, a long-lived request is like any other.
	guard, err := keyauth.NewGuard(struct{ keyauth.Validator }{bench.validator}, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	bench.validator.asked()
	if got := send(t, serve(t, newMux(t, guard, config)), "GET", "/short", bearer(token)); got.body != "short" {
		t.Errorf("got %d", got.StatusCode)
	}
	if asked := bench.validator.asked(); len(asked) != 1 {
		t.Errorf("%d questions", len(asked))
	}
}

// slowDeadlines is an http.ResponseWriter whose deadlines are set only when the test allows it.
type slowDeadlines struct {
	nowhere
	release chan struct{}
	set     int
}

// SetWriteDeadline is called by http.ResponseController.
func (s *slowDeadlines) SetWriteDeadline(time.Time) error {
	<-s.release
	s.set++
	return nil
}

// revoking is a Watcher whose keys are revoked at once.
type revoking struct{ always }

// Watch implements keyauth.Watcher.
func (revoking) Watch(context.Context, keyauth.Question) (keyauth.Answer, error) {
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_REVOKED}, nil
}

// The server may use a ResponseWriter for another request once its handler has returned.
func TestRevokeAfterTheHandlerDoesNotTouchTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, err := keyauth.NewGuard(revoking{}, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		var handled atomic.Bool
		mux := newMux(t, guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
			"GET /": {Requirement: read, LongLived: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				handled.Store(true)
			})},
		}})
		writer := &slowDeadlines{nowhere: nowhere{make(http.Header)}, release: make(chan struct{})}
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		request.Header.Set("Authorization", "Bearer "+fuzzToken)
		served := make(chan struct{})
		go func() {
			defer close(served)
			mux.ServeHTTP(writer, request)
		}()
		synctest.Wait()
		select {
		case <-served:
			t.Error("the Mux gave the ResponseWriter back while it was used")
		default:
		}
		if !handled.Load() {
			t.Error("the handler has not returned: nothing was tested")
		}
		close(writer.release)
		<-served
		if writer.set != 1 {
			t.Errorf("the deadline was set %d times", writer.set)
		}
	})
}
