package routers_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

func newGuard(t *testing.T) (guard *keyauth.Guard, token string) {
	t.Helper()
	validator := keyauthtest.New(t)
	guard, err := keyauth.NewGuard(validator, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return guard, validator.CreateKey(keyauthtest.Key{WorkspaceID: "acme", Scopes: []string{"signatures:read"}}).Token
}

func ok(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

func get(t *testing.T, handler http.Handler, target, token string) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, request)
	return answer
}

func getNote(w http.ResponseWriter, r *http.Request) {
	principal, _ := keyauth.PrincipalFrom(r.Context())
	_, _ = fmt.Fprintf(w, "note %s of %s\n", r.PathValue("id"), principal.WorkspaceID)
}

func deleteNote(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

func healthy(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// begin chi
func chiRouter(protect *keyauthhttp.Protector) http.Handler {
	router := chi.NewRouter()
	router.Get("/healthz", healthy)
	router.With(protect.Require(keyauth.Scope("signatures:read"))).Get("/v1/notes/{id}", getNote)
	router.With(protect.Require(keyauth.Scope("signatures:delete"))).Delete("/v1/notes/{id}", deleteNote)
	router.Method(http.MethodGet, "/me", protect.Me())
	return router
}

// end chi

// begin gin
func ginRouter(protect *keyauthhttp.Protector) http.Handler {
	router := gin.New()
	router.GET("/healthz", gin.WrapF(healthy))
	router.GET("/v1/notes/:id", ginMiddleware(protect.Require(keyauth.Scope("signatures:read"))), ginNote)
	router.DELETE("/v1/notes/:id", ginMiddleware(protect.Require(keyauth.Scope("signatures:delete"))), gin.WrapF(deleteNote))
	router.GET("/me", gin.WrapH(protect.Me()))
	return router
}

func ginNote(c *gin.Context) {
	principal, _ := keyauth.PrincipalFrom(c.Request.Context())
	c.String(http.StatusOK, "note %s of %s\n", c.Param("id"), principal.WorkspaceID)
}

// ginMiddleware makes gin's form of a middleware. Path parameters become path values of the request, so that
// WithWorkspaceID can read them with r.PathValue.
func ginMiddleware(middleware func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		for _, param := range c.Params {
			c.Request.SetPathValue(param.Key, param.Value)
		}
		c.Request.Pattern = c.FullPath() // the name of the route in the log
		admitted := false
		middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			admitted = true
			c.Request = r // it has the principal, and lacks the token
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
		if !admitted {
			c.Abort() // the answer was written
		}
	}
}

// end gin

// TestExamplesOfTheDocumentation runs the routers that docs/protect-your-service.md quotes.
func TestExamplesOfTheDocumentation(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	guard, token := newGuard(t)
	protect, err := keyauthhttp.New(guard)
	if err != nil {
		t.Fatal(err)
	}
	for name, router := range map[string]http.Handler{"chi": chiRouter(protect), "gin": ginRouter(protect)} {
		if got := get(t, router, "/healthz", ""); got.Code != http.StatusOK {
			t.Errorf("%s: healthz: %d", name, got.Code)
		}
		if got := get(t, router, "/v1/notes/1", ""); got.Code != http.StatusUnauthorized || got.Header().Get("WWW-Authenticate") != `Bearer realm="api"` {
			t.Errorf("%s: without a key: %d", name, got.Code)
		}
		if got := get(t, router, "/v1/notes/1", token); got.Code != http.StatusOK || got.Body.String() != "note 1 of acme\n" {
			t.Errorf("%s: with a key: %d %s", name, got.Code, got.Body)
		}
		if got := get(t, router, "/me", token); got.Code != http.StatusOK || !json.Valid(got.Body.Bytes()) {
			t.Errorf("%s: me: %d %s", name, got.Code, got.Body)
		}
		request := httptest.NewRequestWithContext(t.Context(), http.MethodDelete, "/v1/notes/1", http.NoBody)
		request.Header.Set("Authorization", "Bearer "+token)
		answer := httptest.NewRecorder()
		router.ServeHTTP(answer, request)
		if answer.Code != http.StatusForbidden || !json.Valid(answer.Body.Bytes()) {
			t.Errorf("%s: another scope: %d %s", name, answer.Code, answer.Body)
		}
	}
}
