// Package routertest is the suite of hostile requests for the HTTP middlewares of clients/keyauthhttp, over any
// router. It runs for the Mux and for Require with http.ServeMux in clients/keyauthhttp, and for Require with chi
// and gin in test/routers, because those must not become dependencies of this module.
package routertest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

// Subject is a router with the middlewares in front of its handlers.
type Subject struct {
	// Mount puts routes into a router. If it is nil, the subject is a keyauthhttp.Mux.
	Mount func(t testing.TB, routes []Mounted) http.Handler
	// ServeMux is set if the router chooses routes as http.ServeMux does.
	ServeMux bool
	// Serves reports whether the router can have a pattern; nil means all.
	Serves func(pattern string) bool
}

// Route is a route of the suite.
type Route struct {
	// Pattern is one of http.ServeMux.
	Pattern     string
	Requirement keyauth.Requirement
	Handler     http.Handler
	WorkspaceID func(r *http.Request) string
	LongLived   bool
}

// Mounted is a route with the middlewares that must run before its handler, the first of them first.
type Mounted struct {
	Pattern     string
	Middlewares []func(http.Handler) http.Handler
	Handler     http.Handler
}

// Split returns the method of a pattern, which may be empty, and its path.
func Split(pattern string) (method, path string) {
	method, path, found := strings.Cut(pattern, " ")
	if !found {
		return "", pattern
	}
	return method, path
}

// Wrapped returns the handler behind its middlewares.
func (m Mounted) Wrapped() http.Handler {
	handler := m.Handler
	for _, middleware := range slices.Backward(m.Middlewares) {
		handler = middleware(handler)
	}
	return handler
}

// Run runs the suite.
func Run(t *testing.T, subject Subject) {
	t.Helper()
	t.Run("credentials", func(t *testing.T) { credentials(t, subject) })
	t.Run("routing", func(t *testing.T) { routing(t, subject) })
	t.Run("behaviour", func(t *testing.T) { behaviour(t, subject) })
	if subject.Mount != nil {
		t.Run("nested", func(t *testing.T) { nested(t, subject) })
	}
}

// handler returns the subject with routes.
func (s Subject) handler(t testing.TB, guard *keyauth.Guard, routes []Route) http.Handler {
	t.Helper()
	if s.Mount == nil {
		table := make(map[string]keyauthhttp.Route)
		for _, route := range routes {
			table[route.Pattern] = keyauthhttp.Route{
				Requirement: route.Requirement, Handler: route.Handler, WorkspaceID: route.WorkspaceID, LongLived: route.LongLived,
			}
		}
		mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: table})
		if err != nil {
			t.Fatal(err)
		}
		return mux
	}
	var mounted []Mounted
	for _, route := range routes {
		var options []keyauthhttp.Option
		if route.WorkspaceID != nil {
			options = append(options, keyauthhttp.WithWorkspaceID(route.WorkspaceID))
		}
		if route.LongLived {
			options = append(options, keyauthhttp.LongLived())
		}
		mounted = append(mounted, Mounted{
			Pattern: route.Pattern, Handler: route.Handler,
			Middlewares: []func(http.Handler) http.Handler{keyauthhttp.Require(guard, route.Requirement, options...)},
		})
	}
	return s.Mount(t, mounted)
}

// The workspace and member of the keys.
const (
	workspace = "acme"
	member    = "ann"
)

// patience bounds every wait. Only a wait that hangs reaches it.
const patience = time.Minute

// bench is a Validator with what it was asked.
type bench struct {
	fake      *keyauthtest.Validator
	validator *spy
	log       *safeBuffer
}

func newBench(t testing.TB) *bench {
	t.Helper()
	fake := keyauthtest.New(t)
	return &bench{fake: fake, validator: &spy{Watcher: fake}, log: new(safeBuffer)}
}

// key makes a key and returns the token.
func (b *bench) key(scopes ...string) string {
	return b.fake.CreateKey(keyauthtest.Key{WorkspaceID: workspace, MemberID: member, Scopes: scopes}).Token
}

func (b *bench) guard(t testing.TB) *keyauth.Guard {
	t.Helper()
	guard, err := keyauth.NewGuard(b.validator, keyauth.Config{Log: slog.New(slog.NewTextHandler(b.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// spy keeps the questions.
type spy struct {
	keyauth.Watcher

	mutex     sync.Mutex
	questions []keyauth.Question
}

// Validate implements keyauth.Validator.
func (s *spy) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	s.mutex.Lock()
	s.questions = append(s.questions, question)
	s.mutex.Unlock()
	return s.Watcher.Validate(ctx, question)
}

// asked returns the questions since the last call.
func (s *spy) asked() []keyauth.Question {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	questions := s.questions
	s.questions = nil
	return questions
}

// safeBuffer is a buffer that several goroutines may write to.
type safeBuffer struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

// Write implements io.Writer.
func (b *safeBuffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.Write(text)
}

// String returns what was written.
func (b *safeBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}

// serve starts a server and returns its address.
func serve(t testing.TB, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// response is an answer with its body.
type response struct {
	*http.Response
	body string
}

// send sends a request exactly as it is written, because clients clean paths and headers.
func send(t testing.TB, address, method, target, body string, headers ...string) response {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nobody needs it any more
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nConnection: close\r\n", method, target)
	if !slices.ContainsFunc(headers, func(header string) bool { return strings.HasPrefix(header, "Host:") }) {
		text.WriteString("Host: service.test\r\n")
	}
	for _, header := range headers {
		text.WriteString(header + "\r\n")
	}
	if body != "" {
		fmt.Fprintf(&text, "Content-Length: %d\r\n", len(body))
	}
	if _, err := io.WriteString(conn, text.String()+"\r\n"+body); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	received, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{answer, string(received)}
}

// Bearer returns the header for a token.
func Bearer(token string) string { return "Authorization: Bearer " + token }

// Says returns a handler that answers with a word, also in the header Ran.
func Says(word string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Ran", word)
		_, _ = io.WriteString(w, word)
	})
}
