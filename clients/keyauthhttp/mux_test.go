package keyauthhttp_test

import (
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

var (
	read   = keyauth.Scope("signatures:read")
	write  = keyauth.Scope("signatures:write")
	public = keyauth.Public()
)

func TestForbiddenAnswersNameTheReason(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Realm: "Scribe API", Routes: map[string]keyauthhttp.Route{
		"GET /v1/signatures": {Requirement: read, Handler: says("list")},
		"GET /v1/me":         {Requirement: keyauth.IdentityOnly(), Handler: says("me")},
	}})
	made, err := bench.Keys.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspace, MemberId: member, Name: "elsewhere", Scopes: []string{"signatures:read"}, AllowedCidrs: []string{"192.0.2.0/24"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/v1/signatures", "/v1/me"} {
		got := send(t, address, "GET", target, bearer(made.GetToken()), "X-Forwarded-For: 192.0.2.1")
		// RFC 6750 has no error code for this, because another scope would not help.
		if got.StatusCode != http.StatusForbidden || got.Header.Get("WWW-Authenticate") != "" || !strings.Contains(got.body, `"code":"address_not_allowed"`) {
			t.Errorf("%s: address: %d %q %s", target, got.StatusCode, got.Header.Get("WWW-Authenticate"), got.body)
		}
	}

	token := bench.key(t, "signatures:read")
	bench.PutMember(t, workspace, member, "member")
	got := send(t, address, "GET", "/v1/signatures", bearer(token))
	if got.StatusCode != http.StatusForbidden || got.Header.Get("WWW-Authenticate") != `Bearer realm="Scribe API", error="insufficient_scope", scope="signatures:read"` ||
		!strings.Contains(got.body, `"code":"scope_beyond_role"`) {
		t.Errorf("role: %d %q %s", got.StatusCode, got.Header.Get("WWW-Authenticate"), got.body)
	}
}

func TestAddressComesFromTrustedProxies(t *testing.T) {
	bench := newBench(t)
	config := keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"GET /v1/me": {Requirement: keyauth.IdentityOnly(), Handler: says("me")}}}
	plain := serve(t, newMux(t, bench.guard(t, keyauth.Config{}), config))
	trusting := serve(t, newMux(t, bench.guard(t, keyauth.Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}), config))
	token := bench.key(t, "assets:read")
	for _, test := range []struct {
		name, address string
		headers       []string
		want          string
	}{
		{"no proxy", plain, nil, "127.0.0.1"},
		{"a header from anybody", plain, []string{"X-Forwarded-For: 192.0.2.7"}, "127.0.0.1"},
		{"a proxy", trusting, []string{"X-Forwarded-For: 192.0.2.7"}, "192.0.2.7"},
		{"two headers", trusting, []string{"X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 192.0.2.7, 127.0.0.9"}, "192.0.2.7"},
		{"junk from a proxy", trusting, []string{"X-Forwarded-For: 192.0.2.7, unknown"}, "invalid IP"},
	} {
		bench.validator.asked()
		send(t, test.address, "GET", "/v1/me", append(test.headers, bearer(token))...)
		if asked := bench.validator.asked(); len(asked) != 1 || asked[0].ClientAddress.String() != test.want {
			t.Errorf("%s: asked %d times, for %v, want %s", test.name, len(asked), asked[0].ClientAddress, test.want)
		}
	}

	// Text in place of the connection's address that is no address: unknown.
	for _, remote := range []string{"", "@", "192.0.2.1", "[::1]", "/run/service.sock", "192.0.2.1:x"} {
		bench.validator.asked()
		request := httptest.NewRequest(http.MethodGet, "/v1/me", nil)
		request.RemoteAddr = remote
		request.Header.Set("Authorization", "Bearer "+token)
		newMux(t, bench.guard(t, keyauth.Config{}), config).ServeHTTP(httptest.NewRecorder(), request)
		if asked := bench.validator.asked(); len(asked) != 1 || asked[0].ClientAddress.IsValid() {
			t.Errorf("RemoteAddr %q: asked for %v", remote, asked)
		}
	}
}

// Each failure on the way to an answer. None may pass, and none may be a 401 or 403, which
// speak of the token.
func TestFailuresNeverPassNorBlameTheToken(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /v1/signatures": {Requirement: read, Handler: says("list")},
		"GET /v1/unknown":    {Requirement: keyauth.Scope("signatures:juggle"), Handler: says("unknown")},
	}})
	token := bench.key(t, "signatures:read")
	returns := func(answer keyauth.Answer, err error) func(context.Context) (keyauth.Answer, error) {
		return func(context.Context) (keyauth.Answer, error) { return answer, err }
	}
	const unavailable, internal = `"code":"unavailable"`, `"code":"internal_error"`
	for _, test := range []struct {
		name, target string
		fault        func(context.Context) (keyauth.Answer, error)
		status       int
		code         string
	}{
		{"unknown scope", "/v1/unknown", nil, 500, internal},
		{"unavailable", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.Unavailable, "secret")), 503, unavailable},
		{"too busy", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.ResourceExhausted, "secret")), 503, unavailable},
		{"deadline", "/v1/signatures", returns(keyauth.Answer{}, context.DeadlineExceeded), 503, unavailable},
		{"internal", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.Internal, "secret")), 500, internal},
		{"asked wrongly", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.InvalidArgument, "secret")), 500, internal},
		{"this service is not let in", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.PermissionDenied, "secret")), 500, internal},
		{"this service is not known", "/v1/signatures", returns(keyauth.Answer{}, status.Error(codes.Unauthenticated, "secret")), 500, internal},
		{"any error", "/v1/signatures", returns(keyauth.Answer{}, errors.New("secret")), 500, internal},
		{"zero answer", "/v1/signatures", returns(keyauth.Answer{}, nil), 500, internal},
		{"newer decision", "/v1/signatures", returns(keyauth.Answer{Decision: 99}, nil), 500, internal},
		{"allowed, nobody", "/v1/signatures", returns(keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED}, nil), 500, internal},
		{"panic", "/v1/signatures", func(context.Context) (keyauth.Answer, error) { panic("secret") }, 500, internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			bench.validator.breakDown(test.fault)
			got := send(t, address, "GET", test.target, bearer(token))
			if got.StatusCode != test.status || !strings.Contains(got.body, test.code) || got.Header.Get("Ran") != "" {
				t.Errorf("got %d %s, want %d %s", got.StatusCode, got.body, test.status, test.code)
			}
			if retry := got.Header.Get("Retry-After"); (retry == "1") != (test.status == 503) {
				t.Errorf("Retry-After: %q", retry)
			}
			if got.Header.Get("WWW-Authenticate") != "" {
				t.Error("it asks for another token, and none would help")
			}
			if strings.Contains(got.body, "secret") {
				t.Error("the presenter is told of the inside")
			}
		})
	}

	t.Run("keysvc is gone", func(t *testing.T) {
		bench.validator.breakDown(nil)
		bench.Stop()
		mux := newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/": {Requirement: read, Handler: says("all")}}})
		request := httptest.NewRequest(http.MethodGet, "/", nil)
		request.Header.Set("Authorization", "Bearer "+token)
		recorder := httptest.NewRecorder()
		mux.ServeHTTP(recorder, request)
		if recorder.Code != 503 || recorder.Header().Get("Ran") != "" {
			t.Errorf("got %d", recorder.Code)
		}
	})
}

func TestCancelledRequestsAreAnsweredUnavailable(t *testing.T) {
	bench := newBench(t)
	mux := newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/": {Requirement: read, Handler: says("all")}}})
	ctx, cancel := context.WithCancel(t.Context())
	bench.validator.breakDown(func(ctx context.Context) (keyauth.Answer, error) {
		cancel()
		<-ctx.Done()
		return keyauth.Answer{}, ctx.Err()
	})
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	request.Header.Set("Authorization", "Bearer "+bench.key(t, "signatures:read"))
	recorder := httptest.NewRecorder()
	mux.ServeHTTP(recorder, request)
	if recorder.Code != 503 || recorder.Header().Get("Retry-After") != "1" || recorder.Header().Get("Ran") != "" {
		t.Errorf("got %d %s", recorder.Code, recorder.Body)
	}
}

func TestHandlerSeesThePrincipalAndNoToken(t *testing.T) {
	bench := newBench(t)
	keyID, token := bench.CreateKey(t, workspace, member, "signatures:read")
	var seen *http.Request
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r })
	mux := newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /v1/signatures/{id}": {Requirement: read, Handler: handler},
		"GET /healthz":            {Requirement: public, Handler: handler},
	}})
	newRequest := func(target string) *http.Request {
		request := httptest.NewRequest(http.MethodGet, target, nil)
		request.Header["Authorization"] = []string{"Bearer " + token}
		request.Header["X-Other"] = []string{"kept"}
		return request
	}

	request := newRequest("/v1/signatures/a%2Fb?x=1")
	mux.ServeHTTP(httptest.NewRecorder(), request)
	if seen == nil {
		t.Fatal("the handler did not run")
	}
	principal, ok := keyauth.PrincipalFrom(seen.Context())
	if want := (keyauth.Principal{KeyID: keyID, WorkspaceID: workspace, MemberID: member, Role: "admin"}); !ok || !reflect.DeepEqual(principal, want) {
		t.Errorf("principal: %+v", principal)
	}
	if seen.PathValue("id") != "a/b" || seen.Pattern != "GET /v1/signatures/{id}" || seen.URL.RawQuery != "x=1" || seen.Header.Get("X-Other") != "kept" {
		t.Errorf("the request is not what was sent: %q %q %q %v", seen.PathValue("id"), seen.Pattern, seen.URL.RawQuery, seen.Header)
	}
	seen.Header.Set("X-Other", "changed")
	if request.Header.Get("Authorization") == "" || request.Header.Get("X-Other") != "kept" {
		t.Error("the caller's own request was changed")
	}

	// However the header is spelled, and on public routes, too.
	spelled := newRequest("/healthz")
	spelled.Header["authorization"] = []string{"Bearer " + token}
	spelled.Header.Set("X-Forwarded-Authorization", token)
	spelled.Header.Set("Grpcgateway-Authorization", "Bearer "+token)
	for _, request := range []*http.Request{request, newRequest("/healthz"), spelled} {
		seen = nil
		mux.ServeHTTP(httptest.NewRecorder(), request)
		for name, values := range seen.Header {
			if strings.EqualFold(name, "Authorization") || strings.Contains(strings.Join(values, ""), token) {
				t.Errorf("%s: the handler can see the token in %s", request.URL, name)
			}
		}
	}
	if _, ok := keyauth.PrincipalFrom(seen.Context()); ok {
		t.Error("a public route has a principal")
	}
}

func TestKeyOfAnotherWorkspaceIsUnknown(t *testing.T) {
	bench := newBench(t)
	bench.PutMember(t, "other", "bob", "admin")
	token := bench.key(t, "signatures:read")
	address := bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /v1/workspaces/{workspace}/signatures": {
			Requirement: read, Handler: says("list"),
			WorkspaceID: func(r *http.Request) string {
				if r.Header.Get("Authorization") != "" {
					t.Error("the function can see the token")
				}
				return r.PathValue("workspace")
			},
		},
	}})
	for _, test := range []struct {
		id            string
		status, asked int
	}{
		{"acme", 200, 1},
		{"%61cme", 200, 1},
		{"other", 401, 1},
		{"nobody", 401, 1},
		{"ACME", 401, 1},
		{strings.Repeat("w", 128), 401, 1},
		{strings.Repeat("w", 129), 404, 0},
		{"acme%00", 404, 0},
		{"acme%2f..%2fother", 404, 0},
		{"%20", 404, 0},
		{"%ff", 404, 0},
		{"", 404, 0},
	} {
		bench.validator.asked()
		got := send(t, address, "GET", "/v1/workspaces/"+test.id+"/signatures", bearer(token))
		if asked := bench.validator.asked(); got.StatusCode != test.status || len(asked) != test.asked {
			t.Errorf("%q: %d after %d questions, want %d after %d", test.id, got.StatusCode, len(asked), test.status, test.asked)
		}
	}
	// A function that returns no workspace does not open the route to every workspace.
	address = bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /": {Requirement: read, Handler: says("all"), WorkspaceID: func(r *http.Request) string { return r.PathValue("misspelled") }},
	}})
	if got := send(t, address, "GET", "/", bearer(token)); got.StatusCode != http.StatusNotFound {
		t.Errorf("no workspace: %d", got.StatusCode)
	}
}

func TestBodyOfTheServiceIsUsed(t *testing.T) {
	bench := newBench(t)
	token := bench.key(t, "assets:read")
	var problem keyauthhttp.Problem
	address := bench.serve(t, keyauthhttp.Config{
		Routes: map[string]keyauthhttp.Route{"GET /v1/signatures": {Requirement: read, Handler: says("list")}},
		Body: func(r *http.Request, given keyauthhttp.Problem) (string, []byte) {
			if r.Header.Get("Authorization") != "" {
				t.Error("the body's function can see the token")
			}
			problem = given
			return "text/plain; charset=utf-8", []byte("no: " + given.Code)
		},
	})
	for _, test := range []struct {
		method, target, body string
		status               int
		refused              bool
	}{
		{"GET", "/v1/signatures", "no: scope_not_granted", 403, true},
		{"HEAD", "/v1/signatures", "", 403, true},
		{"POST", "/v1/signatures", "no: method_not_allowed", 405, false},
		{"GET", "/v2", "no: not_found", 404, false},
	} {
		got := send(t, address, test.method, test.target, bearer(token))
		if got.StatusCode != test.status || got.body != test.body || got.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s %s: %d %q %q", test.method, test.target, got.StatusCode, got.Header.Get("Content-Type"), got.body)
		}
		if problem.Status != test.status || (problem.Refusal != nil) != test.refused || problem.Message == "" || problem.Type == "" {
			t.Errorf("%s %s: %+v", test.method, test.target, problem)
		}
		if test.refused && got.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s %s: the challenge is missing", test.method, test.target)
		}
	}
	// A recorder sends whatever is written to it, so the Mux itself must leave out the body.
	recorder := httptest.NewRecorder()
	newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"GET /": {Requirement: read, Handler: says("all")}}}).
		ServeHTTP(recorder, httptest.NewRequest(http.MethodHead, "/", nil))
	if recorder.Code != 401 || recorder.Body.Len() != 0 {
		t.Errorf("HEAD: %d %s", recorder.Code, recorder.Body)
	}
}

func TestNewMuxNamesEveryWrongRoute(t *testing.T) {
	bench := newBench(t)
	guard := bench.guard(t, keyauth.Config{})
	good := keyauthhttp.Route{Requirement: read, Handler: says("x")}
	routes := func(pattern string, route keyauthhttp.Route) keyauthhttp.Config {
		return keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{pattern: route}}
	}
	for _, test := range []struct {
		name   string
		guard  *keyauth.Guard
		config keyauthhttp.Config
		want   []string
	}{
		{"no guard", nil, routes("GET /a", good), []string{"guard: is nil"}},
		{"no routes", guard, keyauthhttp.Config{}, []string{"Routes: are empty"}},
		{"nothing said", guard, routes("GET /a", keyauthhttp.Route{Handler: says("x")}), []string{`Routes["GET /a"]: its Requirement is "nothing said"; allowed are`}},
		{"malformed scope", guard, routes("GET /a", keyauthhttp.Route{Requirement: keyauth.Scope("signatures"), Handler: says("x")}), []string{`its Requirement is "signatures"`}},
		{"no handler", guard, routes("GET /a", keyauthhttp.Route{Requirement: read}), []string{"its Handler is nil"}},
		{"nil function", guard, routes("GET /a", keyauthhttp.Route{Requirement: read, Handler: http.HandlerFunc(nil)}), []string{"its Handler is nil"}},
		{"empty pattern", guard, routes("", good), []string{`Routes[""]: its pattern`}},
		{"no slash", guard, routes("GET", good), []string{`Routes["GET"]: its pattern`}},
		{"unclean path", guard, routes("GET /a/../b", good), []string{"its pattern", "unclean path"}},
		{"bad wildcard", guard, routes("GET /{a-b}", good), []string{"its pattern", "bad wildcard"}},
		{"CONNECT", guard, routes("CONNECT /a", good), []string{"CONNECT, which is not served"}},
		{"workspace of a public route", guard, routes("GET /a", keyauthhttp.Route{Requirement: public, Handler: says("x"), WorkspaceID: func(*http.Request) string { return "acme" }}), []string{"as it is public"}},
		{"long-lived public route", guard, routes("GET /a", keyauthhttp.Route{Requirement: public, Handler: says("x"), LongLived: true}), []string{"as it is public"}},
		{"realm", guard, keyauthhttp.Config{Realm: `a", error="x`, Routes: routes("GET /a", good).Routes}, []string{"Realm: is "}},
		{"realm with a line break", guard, keyauthhttp.Config{Realm: "a\r\nX: y", Routes: routes("GET /a", good).Routes}, []string{"Realm: is "}},
		{
			"conflict", guard,
			keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/a/{x}": good, "/{y}/b": good}},
			[]string{`Routes["/{y}/b"]: its pattern`, "conflicts"},
		},
		{
			"the same twice", guard,
			keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"GET /a/{x}": good, "GET /a/{y}": good}},
			[]string{`Routes["GET /a/{y}"]: its pattern`, "conflicts"},
		},
		{"all at once", nil, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"GET /a": {}, "x": good}}, []string{"guard", `Routes["GET /a"]`, `Routes["x"]`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			mux, err := keyauthhttp.NewMux(test.guard, test.config)
			if err == nil || mux != nil {
				t.Fatal("there is no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestHandlerGetsTheServersOwnWriter(t *testing.T) {
	bench := newBench(t)
	token := bench.key(t, "signatures:read")
	var given, received http.ResponseWriter
	mux := newMux(t, bench.guard(t, keyauth.Config{}), keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /events": {Requirement: read, LongLived: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			received = w
			io.WriteString(w, "one\n")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
		})},
		"GET /raw": {Requirement: read, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\n\r\n")
		})},
	}})
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given = w
		mux.ServeHTTP(w, r)
	}))
	events, err := open(t, t.Context(), "http://"+address+"/events", token)
	if err != nil {
		t.Fatal(err)
	}
	if line := make([]byte, 4); readAll(events.Body, line) != nil || string(line) != "one\n" {
		t.Errorf("flushed: %q", line)
	}
	if given != received {
		t.Errorf("the handler got a %T, not the server's %T", received, given)
	}
	events.Body.Close()
	if got := send(t, address, "GET", "/raw", bearer(token)); got.StatusCode != 299 {
		t.Errorf("hijacked: %d", got.StatusCode)
	}
}

// The server removes the files of a multipart form when a handler has returned. They must be
// removed although the handler has another request than the server.
func TestUploadsAreRemoved(t *testing.T) {
	bench := newBench(t)
	token := bench.key(t, "signatures:write")
	var name string
	address := bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"POST /upload": {Requirement: write, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			file, _, err := r.FormFile("file")
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			if onDisk, ok := file.(*os.File); ok {
				name = onDisk.Name()
			}
		})},
	}})
	var body strings.Builder
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", "big")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(make([]byte, 43<<20)) // 32 MiB and 10 MiB are kept in memory
	form.Close()
	if got := sendBody(t, address, "POST", "/upload", body.String(), bearer(token), "Content-Type: "+form.FormDataContentType()); got.StatusCode != http.StatusOK {
		t.Fatalf("got %d", got.StatusCode)
	}
	if name == "" {
		t.Fatal("the upload was not written to a file: nothing was tested")
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", name, err)
	}
}

func open(t *testing.T, ctx context.Context, target, token string) (*http.Response, error) {
	t.Helper()
	parsed, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	request := (&http.Request{Method: http.MethodGet, URL: parsed, Header: http.Header{"Authorization": {"Bearer " + token}}}).WithContext(ctx)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return transport.RoundTrip(request)
}

func readAll(from io.Reader, into []byte) error {
	_, err := io.ReadFull(from, into)
	return err
}
