package keyauthhttp_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
)

// An existing service: one line a route.
func ExampleRequire() {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	protect, err := keyauthhttp.New(guard)
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthy)
	mux.Handle("GET /v1/signatures", protect.Require(keyauth.Scope("signatures:read"))(http.HandlerFunc(listSignatures)))
	mux.Handle("GET /me", protect.Me())

	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/v1/signatures", nil))
	fmt.Println(answer.Code, answer.Header().Get("WWW-Authenticate"))
	// Output:
	// 401 Bearer realm="api"
}

// The product's own pages use the same routes with the cookie of their session.
func ExampleWithAuthenticator() {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	protect, err := keyauthhttp.New(guard, keyauthhttp.WithAuthenticator(func(r *http.Request) (keyauth.Principal, bool, error) {
		cookie, err := r.Cookie("session")
		if err != nil || cookie.Value != "of ann" { // in a product: its table of sessions
			return keyauth.Principal{}, false, nil //nolint:nilerr // there is no session
		}
		return keyauth.Principal{
			WorkspaceID: "acme", MemberID: "ann", Role: "manager", Scopes: []string{"signatures:read"}, Credential: "session",
		}, true, nil
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	list := protect.Require(keyauth.Scope("signatures:read"))(http.HandlerFunc(listSignatures))
	// A cookie comes with requests of other sites, too: refuse those first.
	handler := http.NewCrossOriginProtection().Handler(list)

	request := httptest.NewRequest(http.MethodGet, "/v1/signatures", nil)
	request.AddCookie(&http.Cookie{Name: "session", Value: "of ann"})
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, request)
	fmt.Print(answer.Code, " ", answer.Body)
	// Output:
	// 200 the signatures of acme
}
