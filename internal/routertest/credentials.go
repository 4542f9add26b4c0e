package routertest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

var (
	read   = keyauth.Scope("signatures:read")
	write  = keyauth.Scope("signatures:write")
	public = keyauth.Public()
)

const (
	keyNeeded   = `{"error":{"type":"authentication_error","code":"key_invalid","message":"an API key is required: send it as a bearer token in the authorization header"}}` + "\n"
	keyNotValid = `{"error":{"type":"authentication_error","code":"key_invalid","message":"the API key is not valid"}}` + "\n"
)

// credentials sends every form of a credential to plain routes.
func credentials(t *testing.T, subject Subject) {
	t.Helper()
	bench := newBench(t)
	routes := []Route{
		{Pattern: "GET /v1/signatures", Requirement: read, Handler: Says("list")},
		{Pattern: "HEAD /v1/signatures", Requirement: read, Handler: Says("list")},
		{Pattern: "POST /v1/signatures", Requirement: write, Handler: Says("create")},
		{Pattern: "GET /v1/me", Requirement: keyauth.IdentityOnly(), Handler: Says("me")},
		{Pattern: "GET /healthz", Requirement: public, Handler: Says("healthy")},
	}
	address := serve(t, subject.handler(t, bench.guard(t), routes))
	good := bench.key("signatures:read")
	ended := bench.fake.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}})
	bench.fake.RevokeKey(ended.Principal.KeyID)
	revoked := ended.Token
	typo := good[:len(good)-1] + "0"
	if typo == good {
		typo = good[:len(good)-1] + "1"
	}
	const bare, invalid = `Bearer realm="api"`, `Bearer realm="api", error="invalid_token"`

	for _, test := range []struct {
		name, method, target string
		headers              []string
		body                 string
		status               int
		challenge, answer    string
		// asked is how many questions reach the validator.
		asked int
	}{
		{"allowed", "GET", "/v1/signatures", []string{Bearer(good)}, "", 200, "", "list", 1},
		{"any scheme case", "GET", "/v1/signatures", []string{"authorization: bEARER " + good}, "", 200, "", "list", 1},
		{"identity only", "GET", "/v1/me", []string{Bearer(good)}, "", 200, "", "me", 1},
		{"HEAD of a GET", "HEAD", "/v1/signatures", []string{Bearer(good)}, "", 200, "", "", 1},
		{"public", "GET", "/healthz", nil, "", 200, "", "healthy", 0},
		{"public with a bad token", "GET", "/healthz", []string{Bearer("junk")}, "", 200, "", "healthy", 0},

		{"none", "GET", "/v1/signatures", nil, "", 401, bare, keyNeeded, 0},
		{"none, HEAD", "HEAD", "/v1/signatures", nil, "", 401, bare, "", 0},
		{"empty header", "GET", "/v1/signatures", []string{"Authorization:"}, "", 401, bare, keyNeeded, 0},
		{"no token", "GET", "/v1/signatures", []string{"Authorization: Bearer"}, "", 401, bare, keyNeeded, 0},
		{"basic", "GET", "/v1/signatures", []string{"Authorization: Basic YTpi"}, "", 401, bare, keyNeeded, 0},
		{"no scheme", "GET", "/v1/signatures", []string{"Authorization: " + good}, "", 401, bare, keyNeeded, 0},
		{"twice", "GET", "/v1/signatures", []string{Bearer(good), Bearer(good)}, "", 401, invalid, keyNotValid, 0},
		{"good and junk", "GET", "/v1/signatures", []string{Bearer(good), Bearer("junk")}, "", 401, invalid, keyNotValid, 0},
		{"joined by a comma", "GET", "/v1/signatures", []string{Bearer(good + ", Bearer " + good)}, "", 401, invalid, keyNotValid, 0},
		{"binary", "GET", "/v1/signatures", []string{Bearer("\x80\xff\xfe")}, "", 401, invalid, keyNotValid, 0},
		{"two words", "GET", "/v1/signatures", []string{Bearer(good + " x")}, "", 401, invalid, keyNotValid, 0},
		{"typo", "GET", "/v1/signatures", []string{Bearer(typo)}, "", 401, invalid, keyNotValid, 1},
		{"unknown", "GET", "/v1/signatures", []string{Bearer("junk")}, "", 401, invalid, keyNotValid, 1},
		{"revoked", "GET", "/v1/signatures", []string{Bearer(revoked)}, "", 401, invalid, keyNotValid, 1},
		{"revoked, identity only", "GET", "/v1/me", []string{Bearer(revoked)}, "", 401, invalid, keyNotValid, 1},

		{"in the query", "GET", "/v1/signatures?access_token=" + good, nil, "", 401, bare, keyNeeded, 0},
		{"in a form", "POST", "/v1/signatures", []string{"Content-Type: application/x-www-form-urlencoded"}, "access_token=" + good, 401, bare, keyNeeded, 0},
		{"in other headers", "GET", "/v1/signatures", []string{
			"Proxy-Authorization: Bearer " + good, "X-API-Key: " + good, "Cookie: access_token=" + good, "X-Authorization: Bearer " + good,
		}, "", 401, bare, keyNeeded, 0},

		{
			"scope lacking", "POST", "/v1/signatures",
			[]string{Bearer(good)},
			"x", 403,
			`Bearer realm="api", error="insufficient_scope", scope="signatures:write"`,
			`{"error":{"type":"permission_error","code":"scope_not_granted","message":"the API key may not do this: it needs the scope signatures:write"}}` + "\n", 1,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			bench.validator.asked()
			got := send(t, address, test.method, test.target, test.body, test.headers...)
			if got.StatusCode != test.status || got.body != test.answer {
				t.Errorf("got %d %s, want %d %s", got.StatusCode, got.body, test.status, test.answer)
			}
			if challenge := strings.Join(got.Header.Values("WWW-Authenticate"), "; "); challenge != test.challenge {
				t.Errorf("WWW-Authenticate: %s, want %s", challenge, test.challenge)
			}
			if asked := bench.validator.asked(); len(asked) != test.asked {
				t.Errorf("%d questions were asked, want %d", len(asked), test.asked)
			}
			if test.status != http.StatusOK {
				if got.Header.Get("Ran") != "" {
					t.Errorf("the handler ran")
				}
				if got.Header.Get("Content-Type") != "application/json" {
					t.Errorf("Content-Type: %q", got.Header.Get("Content-Type"))
				}
			}
			for _, token := range []string{good, revoked, typo} {
				if strings.Contains(got.body, token) || strings.Contains(bench.log.String(), token) {
					t.Error("a token is in the body or the log")
				}
			}
		})
	}
}
