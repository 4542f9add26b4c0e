package keyauthhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/routertest"
)

func TestHostileRequestsToAMux(t *testing.T) { routertest.Run(t, routertest.Subject{}) }

func TestHostileRequestsToServeMux(t *testing.T) {
	routertest.Run(t, routertest.Subject{ServeMux: true, Mount: func(_ testing.TB, routes []routertest.Mounted) http.Handler {
		mux := http.NewServeMux()
		for _, route := range routes {
			mux.Handle(route.Pattern, route.Wrapped())
		}
		return mux
	}})
}

func TestRequireIsWrongAtTheStart(t *testing.T) {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for want, build := range map[string]func(){
		"guard: is nil":              func() { keyauthhttp.Require(nil, read) },
		`"nothing said"`:             func() { keyauthhttp.Require(guard, keyauth.Requirement{}) },
		`is "signatures"; allowed`:   func() { keyauthhttp.Require(guard, keyauth.Scope("signatures")) },
		"LongLived has no effect":    func() { keyauthhttp.Require(guard, public, keyauthhttp.LongLived()) },
		"Realm: is":                  func() { keyauthhttp.Require(guard, read, keyauthhttp.WithRealm("a\"b")) },
		"ExpirationHeader: is":       func() { keyauthhttp.Require(guard, read, keyauthhttp.WithExpirationHeader("a b")) },
		"WithBody: is nil":           func() { keyauthhttp.Require(guard, read, keyauthhttp.WithBody(nil)) },
		"WithWorkspaceID: is nil":    func() { keyauthhttp.Require(guard, read, keyauthhttp.WithWorkspaceID(nil)) },
		"WithPreflights: is nil":     func() { keyauthhttp.Require(guard, read, keyauthhttp.WithPreflights(http.HandlerFunc(nil))) },
		"WithAuthenticator: is nil":  func() { keyauthhttp.Require(guard, read, keyauthhttp.WithAuthenticator(nil)) },
		"an Option is nil":           func() { keyauthhttp.Require(guard, read, nil) },
		"the next handler is nil":    func() { keyauthhttp.Require(guard, read)(http.HandlerFunc(nil)) },
		"the Protector has no guard": func() { new(keyauthhttp.Protector).Require(read) },
	} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, want) {
					t.Errorf("%q is not in: %s", want, said)
				}
			}()
			build()
		}()
	}
}

// detailed is a Validator that knows one key, and its details if it is asked for them.
type detailed struct{ end time.Time }

// Validate implements keyauth.Validator.
func (d detailed) Validate(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
	principal := &keyauth.Principal{KeyID: "key", WorkspaceID: "acme", MemberID: "ann", Role: "admin"}
	if question.WithDetails {
		principal.KeyName, principal.Scopes, principal.ExpireTime = "deploy", []string{"assets:read", "signatures:read"}, d.end
	}
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: principal}, nil
}

func TestMeTellsOfTheKey(t *testing.T) {
	end := time.Date(2027, time.March, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
	guard, err := keyauth.NewGuard(detailed{end: end}, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	protect := keyauthhttp.Must(keyauthhttp.New(guard, keyauthhttp.WithAuthenticator(func(r *http.Request) (keyauth.Principal, bool, error) {
		_, err := r.Cookie("session")
		return keyauth.Principal{WorkspaceID: "acme", MemberID: "bob", Role: "member", Credential: "session"}, err == nil, nil
	})))
	want := `{"key_id":"key","name":"deploy","workspace_id":"acme","member_id":"ann","role":"admin","scopes":["assets:read","signatures:read"],"expire_time":"2027-03-01T11:00:00Z"}` + "\n"
	for name, handler := range map[string]http.Handler{
		"alone":    protect.Me(),
		"function": keyauthhttp.Me(guard),
		"inside":   protect.Require(keyauth.IdentityOnly())(protect.Me()),
		"in a mux": newMux(t, guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/me": {Requirement: keyauth.IdentityOnly(), Handler: keyauthhttp.Me(guard)}}}),
	} {
		address := serve(t, handler)
		got := send(t, address, "GET", "/me", bearer("token"))
		if got.StatusCode != http.StatusOK || got.body != want || got.Header.Get("Cache-Control") != "no-store" || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %s, want %s", name, got.StatusCode, got.Header, got.body, want)
		}
		if got := send(t, address, "HEAD", "/me", bearer("token")); got.StatusCode != http.StatusOK || got.body != "" {
			t.Errorf("%s, HEAD: %d %s", name, got.StatusCode, got.body)
		}
		if got := send(t, address, "POST", "/me", bearer("token")); got.StatusCode != http.StatusMethodNotAllowed || got.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s, POST: %d %s", name, got.StatusCode, got.body)
		}
		if got := send(t, address, "GET", "/me"); got.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s, no key: %d", name, got.StatusCode)
		}
	}
	got := send(t, serve(t, protect.Me()), "GET", "/me", "Cookie: session=1")
	if want := `{"workspace_id":"acme","member_id":"bob","role":"member","scopes":[],"expire_time":null,"credential":"session"}` + "\n"; got.body != want {
		t.Errorf("session: %d %s", got.StatusCode, got.body)
	}
}

func TestSessionsBesideKeys(t *testing.T) {
	bench := newBench(t)
	token := bench.key(t, "signatures:read")
	var down bool
	authenticate := func(r *http.Request) (keyauth.Principal, bool, error) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the authenticator sees the token")
		}
		if down {
			return keyauth.Principal{}, false, status.Error(codes.Unavailable, "down")
		}
		_, err := r.Cookie("session")
		return keyauth.Principal{WorkspaceID: "acme", MemberID: "bob", Scopes: []string{"signatures:read"}, Credential: "session"}, err == nil, nil
	}
	guard := bench.guard(t, keyauth.Config{})
	says := func(w http.ResponseWriter, r *http.Request) {
		principal, _ := keyauth.PrincipalFrom(r.Context())
		io.WriteString(w, principal.MemberID+" by "+principal.Credential)
	}
	mux := newMux(t, guard, keyauthhttp.Config{Authenticate: authenticate, Routes: map[string]keyauthhttp.Route{
		"/read": {Requirement: read, Handler: http.HandlerFunc(says), LongLived: true}, "/write": {Requirement: write, Handler: http.HandlerFunc(says)},
	}})
	protect := keyauthhttp.Must(keyauthhttp.New(guard, keyauthhttp.WithAuthenticator(authenticate)))
	plain := http.NewServeMux()
	plain.Handle("/read", protect.Require(keyauth.IdentityOnly())(protect.Require(read, keyauthhttp.LongLived())(http.HandlerFunc(says))))
	plain.Handle("/write", protect.Require(write)(http.HandlerFunc(says)))
	for name, handler := range map[string]http.Handler{"mux": mux, "require": plain} {
		address := serve(t, handler)
		for _, test := range []struct {
			name, target string
			headers      []string
			down         bool
			status       int
			body         string
		}{
			{"session", "/read", []string{"Cookie: session=1"}, false, 200, "bob by session"},
			{"key", "/read", []string{bearer(token)}, false, 200, "ann by "},
			{"both", "/read", []string{"Cookie: session=1", bearer(token)}, false, 401, ""},
			{"session and basic", "/read", []string{"Cookie: session=1", "Authorization: Basic YTpi"}, false, 401, ""},
			{"none", "/read", nil, false, 401, ""},
			{"session, scope lacks", "/write", []string{"Cookie: session=1"}, false, 403, ""},
			{"sessions are down", "/read", []string{bearer(token)}, true, 503, ""},
		} {
			down = test.down
			got := send(t, address, "GET", test.target, test.headers...)
			if got.StatusCode != test.status || test.body != "" && got.body != test.body {
				t.Errorf("%s, %s: %d %s", name, test.name, got.StatusCode, got.body)
			}
		}
	}
}

// TestRefusalsOfMiddlewaresOfOnesOwn have the realm and body of the Protector; without any they have the defaults.
func TestRefusalsOfMiddlewaresOfOnesOwn(t *testing.T) {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	protect := keyauthhttp.Must(keyauthhttp.New(guard, keyauthhttp.WithRealm("mine")))
	refusal := &keyauth.RefusalError{Code: codes.Unauthenticated, TokenMissing: true}
	for _, test := range []struct {
		write     func(http.ResponseWriter, *http.Request, error)
		err       error
		status    int
		challenge string
	}{
		{protect.WriteRefusal, refusal, 401, `Bearer realm="mine"`},
		{keyauthhttp.WriteRefusal, refusal, 401, `Bearer realm="api"`},
		{keyauthhttp.WriteRefusal, fmt.Errorf("wrapped: %w", refusal), 401, `Bearer realm="api"`},
		{keyauthhttp.WriteRefusal, errors.New("secret"), 500, ""},
		{keyauthhttp.WriteRefusal, nil, 500, ""},
	} {
		answer := httptest.NewRecorder()
		test.write(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil), test.err)
		if answer.Code != test.status || answer.Header().Get("WWW-Authenticate") != test.challenge || strings.Contains(answer.Body.String(), "secret") {
			t.Errorf("%v: %d %v %s", test.err, answer.Code, answer.Header(), answer.Body)
		}
	}
}

// TestTokenInTheContextIsNotPrinted: an inner Require needs it there.
func TestTokenInTheContextIsNotPrinted(t *testing.T) {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var printed string
	handler := keyauthhttp.Require(guard, public)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		printed = fmt.Sprintf("%v %+v %#v %s", r.Context(), r.Context(), r.Context(), r.Context())
	}))
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	request.Header.Set("Authorization", "Bearer secret-of-mine")
	handler.ServeHTTP(httptest.NewRecorder(), request)
	if printed == "" || strings.Contains(printed, "secret-of-mine") {
		t.Errorf("the context prints as %s", printed)
	}
}
