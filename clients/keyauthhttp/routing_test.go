package keyauthhttp_test

import (
	"bufio"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
)

// requirements is a table whose patterns overlap in every way that http.ServeMux allows. Each
// scope is in it once, so the scope of a question identifies the route.
var requirements = map[string]keyauth.Requirement{
	"GET /v1/signatures":              keyauth.Scope("signatures:read"),
	"POST /v1/signatures":             keyauth.Scope("signatures:write"),
	"GET /v1/signatures/{id}":         keyauth.Scope("emails:read"),
	"DELETE /v1/signatures/{id}":      keyauth.Scope("signatures:delete"),
	"GET /v1/signatures/latest":       keyauth.Scope("teammates:read"),
	"HEAD /v1/signatures/head":        keyauth.Scope("teammates:write"),
	"/v1/any":                         keyauth.Scope("folders:read"),
	"/v1/folders/":                    keyauth.Scope("folders:write"),
	"GET /v1/files/{path...}":         keyauth.Scope("assets:read"),
	"GET /v1/files/private/{path...}": keyauth.Scope("assets:delete"),
	"GET admin.test/v1/signatures":    keyauth.Scope("integrations:read"),
	"/public/":                        keyauth.Public(),
	"GET /v1/exact/{$}":               keyauth.Scope("smart_fields:read"),
	"OPTIONS /v1/signatures/{rest}":   keyauth.Public(),
}

// routes makes routes of the requirements. Their handlers answer with their patterns.
func routes() map[string]keyauthhttp.Route {
	made := make(map[string]keyauthhttp.Route)
	for pattern, requirement := range requirements {
		made[pattern] = keyauthhttp.Route{Requirement: requirement, Handler: says(pattern)}
	}
	return made
}

func TestRequirementFollowsTheHandlerWhateverThePath(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: routes()})
	var scopes []string
	for _, requirement := range requirements {
		if requirement.Scope() != "" {
			scopes = append(scopes, requirement.Scope())
		}
	}
	token := bench.key(t, scopes...)

	for _, test := range []struct {
		method, target string
		headers        []string
		// pattern is the route that must decide and run. If it is empty, no question may be
		// asked.
		pattern string
		// status is the answer if no route runs, with its location and allow.
		status          int
		location, allow string
	}{
		{method: "GET", target: "/v1/signatures", pattern: "GET /v1/signatures"},
		{method: "HEAD", target: "/v1/signatures", pattern: "GET /v1/signatures"},
		{method: "POST", target: "/v1/signatures", pattern: "POST /v1/signatures"},
		{method: "GET", target: "/v1/signatures/1", pattern: "GET /v1/signatures/{id}"},
		{method: "HEAD", target: "/v1/signatures/1", pattern: "GET /v1/signatures/{id}"},
		{method: "DELETE", target: "/v1/signatures/1", pattern: "DELETE /v1/signatures/{id}"},
		{method: "DELETE", target: "/v1/signatures/latest", pattern: "DELETE /v1/signatures/{id}"},
		{method: "GET", target: "/v1/signatures?x=/../../public/", pattern: "GET /v1/signatures"},
		{method: "GET", target: "http://elsewhere.test/v1/signatures", pattern: "GET /v1/signatures"},

		// The most specific pattern wins, and only its requirement counts.
		{method: "GET", target: "/v1/signatures/latest", pattern: "GET /v1/signatures/latest"},
		{method: "GET", target: "/v1/signatures/head", pattern: "GET /v1/signatures/{id}"},
		{method: "HEAD", target: "/v1/signatures/head", pattern: "HEAD /v1/signatures/head"},
		{method: "GET", target: "/v1/files/a/b", pattern: "GET /v1/files/{path...}"},
		{method: "GET", target: "/v1/files/private/b", pattern: "GET /v1/files/private/{path...}"},
		{method: "PUT", target: "/v1/files/private/b", status: 405, allow: "GET, HEAD"},
		{method: "GET", target: "/v1/signatures", headers: []string{"Host: admin.test"}, pattern: "GET admin.test/v1/signatures"},
		{method: "GET", target: "/v1/signatures", headers: []string{"Host: admin.test:80"}, pattern: "GET admin.test/v1/signatures"},
		{method: "GET", target: "http://admin.test/v1/signatures", pattern: "GET admin.test/v1/signatures"},
		{method: "GET", target: "/v1/signatures", headers: []string{"X-Forwarded-Host: admin.test", "Forwarded: host=admin.test"}, pattern: "GET /v1/signatures"},
		{method: "POST", target: "/v1/signatures", headers: []string{"Host: admin.test"}, pattern: "POST /v1/signatures"},
		{method: "GET", target: "/v1/exact/", pattern: "GET /v1/exact/{$}"},
		{method: "GET", target: "/public/", pattern: "/public/"},
		{method: "GET", target: "/public/a/b", pattern: "/public/"},

		// No method is public by itself.
		{method: "OPTIONS", target: "/v1/signatures", status: 405, allow: "GET, HEAD, POST"},
		{method: "OPTIONS", target: "/v1/any", pattern: "/v1/any"},
		{method: "OPTIONS", target: "/v1/signatures/1", pattern: "OPTIONS /v1/signatures/{rest}"},
		{method: "TRACE", target: "/v1/any", pattern: "/v1/any"},
		{method: "PROPFIND", target: "/v1/any", pattern: "/v1/any"},
		{method: "TRACE", target: "/v1/signatures", status: 405, allow: "GET, HEAD, POST"},
		{method: "get", target: "/v1/signatures", status: 405, allow: "GET, HEAD, POST"},
		{method: "PUT", target: "/v1/signatures", status: 405, allow: "GET, HEAD, POST"},
		{method: "HEAD", target: "/v1/none", status: 404},

		// Ways to ask for another method are ignored.
		{method: "GET", target: "/v1/signatures?_method=POST", headers: []string{"X-HTTP-Method-Override: POST", "X-HTTP-Method: POST", "X-Method-Override: POST"}, pattern: "GET /v1/signatures"},
		{method: "POST", target: "/v1/signatures", headers: []string{"X-HTTP-Method-Override: GET"}, pattern: "POST /v1/signatures"},
		{method: "PUT", target: "/v1/signatures", headers: []string{"X-HTTP-Method-Override: GET"}, status: 405, allow: "GET, HEAD, POST"},
		{method: "GET", target: "/public/", headers: []string{"X-Original-URL: /v1/signatures", "X-Rewrite-URL: /v1/signatures"}, pattern: "/public/"},

		// A path that is not clean is redirected to the clean one, and decided there.
		{method: "GET", target: "//v1/signatures", status: 307, location: "/v1/signatures"},
		{method: "GET", target: "/v1//signatures", status: 307, location: "/v1/signatures"},
		{method: "GET", target: "/v1/./signatures", status: 307, location: "/v1/signatures"},
		{method: "POST", target: "/public/../v1/signatures", status: 307, location: "/v1/signatures"},
		{method: "GET", target: "/public//../v1/signatures?a=b", status: 307, location: "/v1/signatures?a=b"},
		{method: "GET", target: "/v1/signatures/../../public/", status: 307, location: "/public/"},
		{method: "GET", target: "/v1/folders", status: 307, location: "/v1/folders/"},
		{method: "GET", target: "/v1/exact", status: 307, location: "/v1/exact/"},
		{method: "GET", target: "//elsewhere.test/%2e%2e", status: 404},
		{method: "GET", target: "/v1//none", status: 404},
		{method: "GET", target: "//elsewhere.test", status: 404},

		// An escaped character is part of a name: it neither separates names nor leads upwards.
		{method: "GET", target: "/v1%2fsignatures", status: 404},
		{method: "GET", target: "/v1/signatures%2flatest", status: 404},
		{method: "GET", target: "/v1/signatures%2f", status: 404},
		{method: "GET", target: "/v1/signatures/a%2flatest", pattern: "GET /v1/signatures/{id}"},
		{method: "GET", target: "/v1/signatures/..%2f..%2fpublic", pattern: "GET /v1/signatures/{id}"},
		{method: "GET", target: "/v1/signatures/%2e%2e", pattern: "GET /v1/signatures/{id}"},
		{method: "GET", target: "/public/%2e%2e/v1/signatures", pattern: "/public/"},
		{method: "GET", target: "/public%2f..%2fv1/signatures", status: 404},
		{method: "GET", target: "/%76%31/signatures/l%61test", pattern: "GET /v1/signatures/latest"},
		{method: "GET", target: "/v1/signatures/latest%00", pattern: "GET /v1/signatures/{id}"},
		{method: "GET", target: "/v1/signatures/latest;x=1", pattern: "GET /v1/signatures/{id}"},
		{method: "GET", target: "/v1/SIGNATURES", status: 404},
		{method: "GET", target: "/v1/signatures/", status: 404},
		{method: "GET", target: "/", status: 404},

		// http.ServeMux does not clean the path of a CONNECT, so CONNECT is not served.
		{method: "CONNECT", target: "/public/../v1/any", status: 405},
		{method: "CONNECT", target: "/public/", status: 405},
		{method: "CONNECT", target: "service.test:443", status: 405},
		{method: "CONNECT", target: "/v1/folders", status: 405},
		{method: "GET", target: "*", status: 404},
	} {
		t.Run(test.method+" "+test.target+" "+strings.Join(test.headers, " "), func(t *testing.T) {
			for _, authorized := range []bool{true, false} {
				headers := slices.Clone(test.headers)
				if authorized {
					headers = append(headers, bearer(token))
				}
				bench.validator.asked()
				got := send(t, address, test.method, test.target, headers...)
				asked := bench.validator.asked()
				ran := got.Header.Get("Ran")
				requirement := requirements[test.pattern]

				switch {
				case test.pattern == "":
					if got.StatusCode != test.status || ran != "" || len(asked) != 0 {
						t.Errorf("got %d, ran %q, asked %v; want %d and nothing", got.StatusCode, ran, asked, test.status)
					}
					if got.Header.Get("Location") != test.location || got.Header.Get("Allow") != test.allow {
						t.Errorf("Location: %q, Allow: %q", got.Header.Get("Location"), got.Header.Get("Allow"))
					}
					if strings.Contains(got.body, token) {
						t.Error("the token comes back")
					}
				case requirement.IsPublic():
					if ran != test.pattern || len(asked) != 0 {
						t.Errorf("got %d, ran %q, asked %v", got.StatusCode, ran, asked)
					}
				case authorized:
					if ran != test.pattern || len(asked) != 1 || asked[0].Requirement != requirement {
						t.Errorf("got %d, ran %q, asked %v", got.StatusCode, ran, asked)
					}
				default:
					if got.StatusCode != http.StatusUnauthorized || ran != "" {
						t.Errorf("without a token: %d, ran %q", got.StatusCode, ran)
					}
				}
			}
		})
	}
}

func TestRedirectIsDecidedAgainWhenFollowed(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: routes()})
	for target, status := range map[string]int{"/public/../v1/any": 401, "/v1/folders": 401, "/v1//../public/": 200} {
		got := send(t, address, "GET", target)
		if got.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("%s: %d", target, got.StatusCode)
		}
		if got = send(t, address, "GET", got.Header.Get("Location")); got.StatusCode != status {
			t.Errorf("%s, followed: %d", target, got.StatusCode)
		}
	}
}

// net/http answers OPTIONS * before any handler. The answer tells nothing.
func TestOptionsStarIsAnsweredByTheServer(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/": {Requirement: read, Handler: says("all")}}})
	got := send(t, address, "OPTIONS", "*")
	if got.body != "" || got.Header.Get("Allow") != "" || got.Header.Get("Ran") != "" {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

// FuzzRouting sends any request. A handler may run only if its own requirement was asked for
// with the one right token, or if the route is public.
func FuzzRouting(f *testing.F) {
	asking := new(recorder)
	guard, err := keyauth.NewGuard(asking, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	ran := make(map[string]int)
	table := routes()
	for pattern, route := range table {
		route.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ran[pattern]++
			for name := range r.Header {
				if strings.EqualFold(name, "Authorization") {
					panic("the handler can see the token")
				}
			}
			if r.Pattern != pattern {
				panic("the pattern is not the handler's")
			}
		})
		table[pattern] = route
	}
	mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: table})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		request.RemoteAddr = "192.0.2.1:1234"
		clear(ran)
		asking.questions = nil
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, request)
		io.Copy(io.Discard, answer.Body)
		if len(ran) > 1 || len(asking.questions) > 1 {
			t.Fatalf("%v ran, and %v was asked", ran, asking.questions)
		}
		for pattern := range maps.Keys(ran) {
			requirement := requirements[pattern]
			if requirement.IsPublic() != (len(asking.questions) == 0) {
				t.Fatalf("%q ran, and %v was asked", pattern, asking.questions)
			}
			if !requirement.IsPublic() && (asking.questions[0].Requirement != requirement || asking.questions[0].Token != fuzzToken) {
				t.Fatalf("%q ran, and %v was asked", pattern, asking.questions)
			}
		}
		if len(ran) == 0 && answer.Code < 300 {
			t.Fatalf("nothing ran, and the answer is %d", answer.Code)
		}
	})
}
