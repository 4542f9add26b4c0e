package routertest

import (
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// behaviour checks what a handler is promised.
func behaviour(t *testing.T, subject Subject) {
	t.Helper()
	bench := newBench(t)
	key := bench.fake.CreateKey(keyauthtest.Key{WorkspaceID: workspace, MemberID: member, Scopes: []string{"signatures:read", "signatures:write"}})
	var upload string
	ended := make(chan error, 1)
	routes := []Route{
		{Pattern: "GET /see", Requirement: read, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			principal, ok := keyauth.PrincipalFrom(r.Context())
			if !ok || principal.KeyID != key.Principal.KeyID || principal.WorkspaceID != workspace {
				t.Errorf("the principal is %+v", principal)
			}
			for name, values := range r.Header {
				if strings.Contains(strings.Join(values, ""), key.Token) {
					t.Errorf("the handler can see the token in %s", name)
				}
			}
			if r.Header.Get("X-Other") != "kept" {
				t.Error("another header is gone")
			}
			w.Header().Set("Ran", "see")
		})},
		{Pattern: "GET /open", Requirement: public, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := keyauth.PrincipalFrom(r.Context()); ok || r.Header.Get("Authorization") != "" {
				t.Error("a public route has a principal or sees the token")
			}
			w.Header().Set("Ran", "open")
		})},
		{Pattern: "POST /upload", Requirement: write, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			file, _, err := r.FormFile("file")
			if err != nil {
				t.Error(err)
				return
			}
			if onDisk, ok := file.(*os.File); ok {
				upload = onDisk.Name()
			}
			_ = file.Close()
		})},
		{Pattern: "GET /events", Requirement: read, LongLived: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello\n")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
			ended <- context.Cause(r.Context())
		})},
		{Pattern: "GET /own", Requirement: read, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			keyauthhttp.WriteRefusal(w, r, &keyauth.RefusalError{
				Code: codes.PermissionDenied, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, Scope: "assets:delete",
			})
		})},
		{Pattern: "GET /lacking", Requirement: keyauth.Scope("assets:delete"), Handler: Says("lacking")},
		{Pattern: "GET /of/{workspace}/x", Requirement: read, Handler: Says("of"), WorkspaceID: func(r *http.Request) string {
			if r.Header.Get("Authorization") != "" {
				t.Error("the function for the workspace sees the token")
			}
			return r.PathValue("workspace")
		}},
	}
	address := serve(t, subject.handler(t, bench.guard(t), routes))

	if got := send(t, address, "GET", "/see", "", Bearer(key.Token), "X-Other: kept", "X-Forwarded-Authorization: "+key.Token, "Grpcgateway-Authorization: Bearer "+key.Token); got.Header.Get("Ran") != "see" {
		t.Errorf("see: %d %s", got.StatusCode, got.body)
	}
	if got := send(t, address, "GET", "/open", "", Bearer(key.Token)); got.Header.Get("Ran") != "open" {
		t.Errorf("open: %d %s", got.StatusCode, got.body)
	}

	// A refusal of a handler is the same as one of the middleware.
	own, lacking := send(t, address, "GET", "/own", "", Bearer(key.Token)), send(t, address, "GET", "/lacking", "", Bearer(key.Token))
	own.Header.Del("Date")
	lacking.Header.Del("Date")
	if own.StatusCode != http.StatusForbidden || own.StatusCode != lacking.StatusCode || own.body != lacking.body || !sameHeader(own.Header, lacking.Header) {
		t.Errorf("a handler's refusal is %d %v %s, the middleware's %d %v %s", own.StatusCode, own.Header, own.body, lacking.StatusCode, lacking.Header, lacking.body)
	}

	for id, status := range map[string]int{workspace: 200, "other": 401, strings.Repeat("w", 129): 404, "%20": 404, "acme%00": 404} {
		if got := send(t, address, "GET", "/of/"+id+"/x", "", Bearer(key.Token)); got.StatusCode != status {
			t.Errorf("workspace %q: %d, want %d", id, got.StatusCode, status)
		}
	}

	var body strings.Builder
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", "big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(make([]byte, 43<<20)); err != nil { // 32 MiB and 10 MiB are kept in memory
		t.Fatal(err)
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	if got := send(t, address, "POST", "/upload", body.String(), Bearer(key.Token), "Content-Type: "+form.FormDataContentType()); got.StatusCode != http.StatusOK {
		t.Errorf("upload: %d %s", got.StatusCode, got.body)
	}
	if _, err := os.Stat(upload); upload == "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the upload %q is still there: %v", upload, err)
	}

	// The long-lived request ends with its key.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/events", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key.Token)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	events, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close() //nolint:errcheck // it has ended
	if _, err := io.ReadFull(events.Body, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	bench.fake.RevokeKey(key.Principal.KeyID)
	if _, err := io.Copy(io.Discard, events.Body); err == nil {
		t.Error("the answer of a revoked key ended as if it was complete")
	}
	var refusal *keyauth.RefusalError
	if err := <-ended; !errors.As(err, &refusal) || refusal.Code != codes.Unauthenticated {
		t.Errorf("the handler's context ended with %v", err)
	}
}

func sameHeader(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if strings.Join(a[name], "\n") != strings.Join(b[name], "\n") {
			return false
		}
	}
	return true
}

// nested checks middlewares inside middlewares, and preflights, for subjects that take middlewares.
func nested(t *testing.T, subject Subject) {
	t.Helper()
	bench := newBench(t)
	guard := bench.guard(t)
	reader, other := bench.key("signatures:read"), bench.key("assets:read")
	identity := keyauthhttp.Require(guard, keyauth.IdentityOnly(), keyauthhttp.WithRealm("outer"))
	adds := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+reader)
			next.ServeHTTP(w, r)
		})
	}
	sees := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := keyauth.PrincipalFrom(r.Context()); !ok || r.Header.Get("Authorization") != "" {
			t.Error("the innermost handler has no principal, or sees the token")
		}
		w.Header().Set("Ran", "x")
	})
	cors := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := keyauth.PrincipalFrom(r.Context()); ok || r.Header.Get("Authorization") != "" {
			t.Error("a preflight has a principal or a token")
		}
		w.Header().Set("Ran", "cors")
		w.WriteHeader(http.StatusNoContent)
	})
	type chain = []func(http.Handler) http.Handler
	scope := keyauthhttp.Require(guard, read)
	address := serve(t, subject.Mount(t, []Mounted{
		{Pattern: "GET /both", Middlewares: chain{identity, scope}, Handler: sees},
		{Pattern: "GET /public/outside", Middlewares: chain{keyauthhttp.Require(guard, public), scope}, Handler: sees},
		{Pattern: "GET /public/inside", Middlewares: chain{identity, keyauthhttp.Require(guard, public)}, Handler: sees},
		{Pattern: "GET /adds", Middlewares: chain{identity, adds, scope}, Handler: sees},
		{Pattern: "OPTIONS /decided", Middlewares: chain{scope}, Handler: cors},
		{Pattern: "OPTIONS /passed", Middlewares: chain{keyauthhttp.Require(guard, read, keyauthhttp.PassPreflights())}, Handler: cors},
		{Pattern: "OPTIONS /given", Middlewares: chain{keyauthhttp.Require(guard, read, keyauthhttp.WithPreflights(cors))}, Handler: sees},
	}))
	preflight := []string{"Origin: https://elsewhere.test", "Access-Control-Request-Method: GET"}
	for _, test := range []struct {
		name, method, target, token string
		headers                     []string
		status, asked               int
	}{
		{"both", "GET", "/both", reader, nil, 200, 2},
		{"the inner refuses", "GET", "/both", other, nil, 403, 2},
		{"the outer refuses", "GET", "/both", "junk", nil, 401, 1},
		{"no token", "GET", "/both", "", nil, 401, 0},
		{"public outside", "GET", "/public/outside", reader, nil, 200, 1},
		{"public outside, no token", "GET", "/public/outside", "", nil, 401, 0},
		{"public inside", "GET", "/public/inside", other, nil, 200, 1},
		{"public inside, no token", "GET", "/public/inside", "", nil, 401, 0},
		{"a token is added between", "GET", "/adds", other, nil, 401, 1},
		{"preflight, default", "OPTIONS", "/decided", "", preflight, 401, 0},
		{"preflight, passed", "OPTIONS", "/passed", "", preflight, 204, 0},
		{"preflight, given", "OPTIONS", "/given", "", preflight, 204, 0},
		{"no origin", "OPTIONS", "/passed", "", preflight[1:], 401, 0},
		{"no method", "OPTIONS", "/given", "", preflight[:1], 401, 0},
		{"a preflight with a token is none", "OPTIONS", "/given", other, preflight, 403, 1},
		{"a preflight with a bad token is none", "OPTIONS", "/passed", "junk", preflight, 401, 1},
	} {
		headers := test.headers
		if test.token != "" {
			headers = append(slices.Clip(headers), Bearer(test.token))
		}
		bench.validator.asked()
		got := send(t, address, test.method, test.target, "", headers...)
		if asked := bench.validator.asked(); got.StatusCode != test.status || len(asked) != test.asked || (got.Header.Get("Ran") != "") != (test.status < 300) {
			t.Errorf("%s: %d after %d questions, ran %q; want %d after %d", test.name, got.StatusCode, len(asked), got.Header.Get("Ran"), test.status, test.asked)
		}
	}
	if got := send(t, address, "GET", "/both", "", Bearer(other)); got.Header.Get("WWW-Authenticate") != `Bearer realm="api", error="insufficient_scope", scope="signatures:read"` {
		t.Errorf("the challenge is %s", got.Header.Get("WWW-Authenticate"))
	}
}
