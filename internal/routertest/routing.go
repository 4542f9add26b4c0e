package routertest

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Requirements is a table whose patterns overlap in every way that http.ServeMux allows. Each
// scope is in it once, so the scope of a question identifies the route.
var Requirements = map[string]keyauth.Requirement{
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

// hostile are requests for the routes of Requirements.
var hostile = []struct {
	method, target string
	headers        []string
	// pattern is the route that must decide and run. If it is empty, no question may be asked.
	pattern string
	// status is the answer of a Mux if no route runs, with its location and allow.
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
}

// plain reports whether every router takes a path as http.ServeMux does: nothing is escaped, and no host, redirect
// or method is special.
func plain(method, target string, headers []string) bool {
	return strings.HasPrefix(target, "/") && !strings.ContainsAny(target, "%;") && slices.Contains([]string{"GET", "POST", "DELETE"}, method) &&
		!slices.ContainsFunc(headers, func(header string) bool { return strings.HasPrefix(header, "Host:") })
}

// routing sends every hostile request with and without a token. The requirement that counts must be that of the
// handler that runs, whatever the router makes of the path.
func routing(t *testing.T, subject Subject) {
	t.Helper()
	bench := newBench(t)
	served := make(map[string]bool)
	var routes []Route
	var scopes []string
	for pattern, requirement := range Requirements {
		if subject.Serves != nil && !subject.Serves(pattern) {
			continue
		}
		served[pattern] = true
		routes = append(routes, Route{Pattern: pattern, Requirement: requirement, Handler: Says(pattern)})
		if requirement.Scope() != "" {
			scopes = append(scopes, requirement.Scope())
		}
	}
	address := serve(t, subject.handler(t, bench.guard(t), routes))
	token := bench.key(scopes...)
	for _, test := range hostile {
		t.Run(test.method+" "+test.target+" "+strings.Join(test.headers, " "), func(t *testing.T) {
			for _, authorized := range []bool{true, false} {
				headers := slices.Clone(test.headers)
				if authorized {
					headers = append(headers, Bearer(token))
				}
				bench.validator.asked()
				got := send(t, address, test.method, test.target, "", headers...)
				asked := bench.validator.asked()
				ran := got.Header.Get("Ran")

				// These hold for every router.
				requirement := Requirements[ran]
				switch {
				case ran == "":
					if got.StatusCode < 300 && got.body != "" || len(asked) != 0 {
						t.Errorf("authorized %t: got %d %q, and asked %v", authorized, got.StatusCode, got.body, asked)
					}
				case requirement.IsPublic():
					if len(asked) != 0 {
						t.Errorf("asked %v for a public route", asked)
					}
				case !authorized:
					t.Errorf("%s ran without a token", ran)
				case len(asked) != 1 || asked[0].Requirement.Scope() != requirement.Scope():
					t.Errorf("%s ran, and %v was asked", ran, asked)
				}
				if strings.Contains(got.body, token) {
					t.Error("the token comes back")
				}
				path, _, _ := strings.Cut(test.target, "?")
				if ran != "" && (test.method == "CONNECT" || strings.Contains(path, "/../") || strings.Contains(path, "/./")) {
					t.Errorf("%s ran, and may take the path for another", ran)
				}

				// These hold for routers that take the request as http.ServeMux does.
				exact := subject.Mount == nil || subject.ServeMux && test.pattern != ""
				expected := Requirements[test.pattern]
				if !exact && (!served[test.pattern] || !plain(test.method, test.target, test.headers)) {
					continue
				}
				switch {
				case test.pattern == "":
					if got.StatusCode != test.status || ran != "" {
						t.Errorf("got %d, ran %q; want %d and nothing", got.StatusCode, ran, test.status)
					}
					if got.Header.Get("Location") != test.location || got.Header.Get("Allow") != test.allow {
						t.Errorf("Location: %q, Allow: %q", got.Header.Get("Location"), got.Header.Get("Allow"))
					}
				case authorized || expected.IsPublic():
					if ran != test.pattern {
						t.Errorf("got %d, ran %q", got.StatusCode, ran)
					}
				case got.StatusCode != http.StatusUnauthorized || ran != "":
					t.Errorf("without a token: %d, ran %q", got.StatusCode, ran)
				}
			}
		})
	}
}
