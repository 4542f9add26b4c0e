package keyauthhttp_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

// TestAnswersTellTheEndOfTheToken, if the service wants that, and to whoever may pass alone.
func TestAnswersTellTheEndOfTheToken(t *testing.T) {
	t.Parallel()
	const header = "Example-Authentication-Token-Expiration"
	now := time.Date(2027, time.March, 1, 12, 0, 0, 999_000_000, time.UTC)
	validator := keyauthtest.New(t)
	validator.SetClock(func() time.Time { return now })
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}, Lifetime: 7 * 24 * time.Hour})
	guard, err := keyauth.NewGuard(validator, keyauth.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		option, target, token, want string
	}{
		"admitted":     {strings.ToLower(header), "/read", key.Token, "Mon, 08 Mar 2027 12:00:00 GMT"},
		"off":          {"", "/read", key.Token, ""},
		"public":       {header, "/public", key.Token, ""},
		"not a token":  {header, "/read", "wrong", ""},
		"another need": {header, "/write", key.Token, ""},
		"no path":      {header, "/nowhere", key.Token, ""},
	} {
		mux := newMux(t, guard, keyauthhttp.Config{ExpirationHeader: test.option, Routes: map[string]keyauthhttp.Route{
			"GET /read":   {Requirement: keyauth.Scope("signatures:read"), Handler: says("read")},
			"GET /write":  {Requirement: keyauth.Scope("signatures:write"), Handler: says("write")},
			"GET /public": {Requirement: keyauth.Public(), Handler: says("public")},
		}})
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.target, nil)
		request.Header.Set("Authorization", "Bearer "+test.token)
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, request)
		if got := answer.Header().Get(header); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	// A validator that does not know the end: no header.
	plain, err := keyauth.NewGuard(new(recorder), keyauth.Config{})
	if err != nil {
		t.Fatal(err)
	}
	mux := newMux(t, plain, keyauthhttp.Config{ExpirationHeader: header, Routes: map[string]keyauthhttp.Route{
		"GET /read": {Requirement: keyauth.IdentityOnly(), Handler: says("read")},
	}})
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/read", nil)
	request.Header.Set("Authorization", "Bearer "+fuzzToken)
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, request)
	if answer.Code != http.StatusOK || answer.Header().Get(header) != "" {
		t.Errorf("%d, %v", answer.Code, answer.Header())
	}
	for _, wrong := range []string{"a b", "a:b", "ä", "a\r\nb"} {
		_, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{ExpirationHeader: wrong, Routes: map[string]keyauthhttp.Route{
			"GET /read": {Requirement: keyauth.IdentityOnly(), Handler: says("read")},
		}})
		if err == nil || !strings.Contains(err.Error(), "ExpirationHeader") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}
