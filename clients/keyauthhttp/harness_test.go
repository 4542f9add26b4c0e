package keyauthhttp_test

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

	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait. Only a wait that hangs reaches it.
const patience = time.Minute

// The workspace and member of the keys in these tests.
const (
	workspace = "acme"
	member    = "ann"
)

// bench is a real keysvc with a client.
type bench struct {
	*servertest.Keysvc
	validator *spy
	log       *safeBuffer
}

func newBench(t testing.TB) *bench {
	t.Helper()
	keysvc := servertest.Start(t, servertest.Options{})
	client, err := keyclient.New(keysvc.Address, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true, ValidationTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	keysvc.PutMember(t, workspace, member, "admin")
	return &bench{Keysvc: keysvc, validator: &spy{Validator: client, changed: make(chan struct{})}, log: new(safeBuffer)}
}

// key makes a key and returns the token.
func (b *bench) key(t testing.TB, scopes ...string) string {
	t.Helper()
	_, token := b.CreateKey(t, workspace, member, scopes...)
	return token
}

func (b *bench) guard(t testing.TB, config keyauth.Config) *keyauth.Guard {
	t.Helper()
	config.Log = slog.New(slog.NewTextHandler(b.log, nil))
	guard, err := keyauth.NewGuard(b.validator, config)
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// serve starts an HTTP server and returns its address.
func (b *bench) serve(t testing.TB, config keyauthhttp.Config) string {
	t.Helper()
	return serve(t, newMux(t, b.guard(t, keyauth.Config{}), config))
}

func serve(t testing.TB, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func newMux(t testing.TB, guard *keyauth.Guard, config keyauthhttp.Config) *keyauthhttp.Mux {
	t.Helper()
	mux, err := keyauthhttp.NewMux(guard, config)
	if err != nil {
		t.Fatal(err)
	}
	return mux
}

// spy is a Watcher in front of another Validator. It counts the questions.
type spy struct {
	keyauth.Validator

	mutex     sync.Mutex
	questions []keyauth.Question
	// fault runs in place of asking; nil means to ask.
	fault func(ctx context.Context) (keyauth.Answer, error)
	// changed is closed to make watches ask again, and then replaced.
	changed chan struct{}
}

// Validate implements keyauth.Validator.
func (s *spy) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	s.mutex.Lock()
	s.questions = append(s.questions, question)
	fault := s.fault
	s.mutex.Unlock()
	if fault != nil {
		return fault(ctx)
	}
	return s.Validator.Validate(ctx, question)
}

// Watch implements keyauth.Watcher.
func (s *spy) Watch(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	for {
		s.mutex.Lock()
		changed := s.changed
		s.mutex.Unlock()
		answer, err := s.Validate(ctx, question)
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			return answer, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return keyauth.Answer{}, ctx.Err()
		}
	}
}

// change makes watches ask again.
func (s *spy) change() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// asked returns the questions since the last call.
func (s *spy) asked() []keyauth.Question {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	questions := s.questions
	s.questions = nil
	return questions
}

func (s *spy) breakDown(fault func(ctx context.Context) (keyauth.Answer, error)) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.fault = fault
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

func (b *safeBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}

// response is an answer with its body.
type response struct {
	*http.Response
	body string
}

// send sends a request exactly as it is written, because clients clean paths and headers.
func send(t testing.TB, address, method, target string, headers ...string) response {
	t.Helper()
	return sendBody(t, address, method, target, "", headers...)
}

func sendBody(t testing.TB, address, method, target, body string, headers ...string) response {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
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
	defer answer.Body.Close()
	received, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{answer, string(received)}
}

// bearer returns the header for a token.
func bearer(token string) string { return "Authorization: Bearer " + token }

// says returns a handler that answers with a word and with the pattern that chose it.
func says(word string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Ran", word)
		io.WriteString(w, word)
	})
}
