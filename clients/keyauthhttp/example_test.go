package keyauthhttp_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyclient"
)

func listSignatures(w http.ResponseWriter, r *http.Request) {
	principal, _ := keyauth.PrincipalFrom(r.Context())
	fmt.Fprintf(w, "the signatures of %s\n", principal.WorkspaceID)
}

func createSignature(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }

func healthy(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }

// A service with two protected routes and a public one.
func ExampleNewMux() {
	keysvc, err := keyclient.New("127.0.0.1:7480", keyclient.Config{AllowPlaintext: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	guard, err := keyauth.NewGuard(keysvc, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{
		Routes: map[string]keyauthhttp.Route{
			"GET /v1/signatures":  {Requirement: keyauth.Scope("signatures:read"), Handler: http.HandlerFunc(listSignatures)},
			"POST /v1/signatures": {Requirement: keyauth.Scope("signatures:write"), Handler: http.HandlerFunc(createSignature)},
			"GET /healthz":        {Requirement: keyauth.Public(), Handler: http.HandlerFunc(healthy)},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// In a service: http.Server{Handler: mux}.
	for _, target := range []string{"/healthz", "/v1/signatures", "/v2/signatures"} {
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, target, nil))
		fmt.Printf("%d %q\n%s", answer.Code, answer.Header().Get("WWW-Authenticate"), answer.Body)
	}
	// Output:
	// 200 ""
	// ok
	// 401 "Bearer realm=\"api\""
	// {"error":{"type":"authentication_error","code":"key_invalid","message":"an API key is required: send it as a bearer token in the authorization header"}}
	// 404 ""
	// {"error":{"type":"not_found","code":"not_found","message":"there is nothing at this path"}}
}

// NewMux finds a route without a requirement when the service starts.
func ExampleNewMux_nothingSaid() {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = keyauthhttp.NewMux(guard, keyauthhttp.Config{
		Routes: map[string]keyauthhttp.Route{
			"GET /v1/signatures": {Handler: http.HandlerFunc(listSignatures)},
		},
	})
	fmt.Println(err)
	// Output:
	// keyauthhttp: Routes["GET /v1/signatures"]: its Requirement is "nothing said"; allowed are keyauth.Scope with resource:action, keyauth.AllOf and keyauth.AnyOf with several, keyauth.IdentityOnly and keyauth.Public
}

// A body of the service's own. The Mux still sets status, WWW-Authenticate and Retry-After.
func ExampleConfig_body() {
	guard, err := keyauth.NewGuard(new(recorder), keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{
		Realm: "Scribe",
		Body: func(_ *http.Request, problem keyauthhttp.Problem) (contentType string, body []byte) {
			return "application/problem+json", fmt.Appendf(nil, `{"status":%d,"title":%q}`, problem.Status, problem.Message)
		},
		Routes: map[string]keyauthhttp.Route{
			"GET /v1/workspaces/{workspace_id}/signatures": {
				Requirement: keyauth.Scope("signatures:read"),
				Handler:     http.HandlerFunc(listSignatures),
				WorkspaceID: func(r *http.Request) string { return r.PathValue("workspace_id") },
			},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	request := httptest.NewRequest(http.MethodGet, "/v1/workspaces/acme/signatures", nil)
	request.Header.Set("Authorization", "Bearer wrong")
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, request)
	fmt.Println(answer.Code, answer.Header().Get("WWW-Authenticate"))
	fmt.Println(answer.Body)
	// Output:
	// 401 Bearer realm="Scribe", error="invalid_token"
	// {"status":401,"title":"the API key is not valid"}
}
