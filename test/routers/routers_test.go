// Package routers_test runs the suite of hostile requests of clients/keyauthhttp against Require under chi and gin,
// and holds their examples of docs/protect-your-service.md. The routers must not become dependencies of
// the root module.
package routers_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/internal/routertest"
)

func TestHostileRequestsToChi(t *testing.T) {
	rest := regexp.MustCompile(`\{\w+\.\.\.\}`)
	routertest.Run(t, routertest.Subject{
		// chi has no hosts in patterns.
		Serves: func(pattern string) bool { return !strings.Contains(pattern, "admin.test") },
		Mount: func(_ testing.TB, routes []routertest.Mounted) http.Handler {
			router := chi.NewRouter()
			for _, route := range routes {
				method, path := routertest.Split(route.Pattern)
				path = strings.ReplaceAll(rest.ReplaceAllString(path, "*"), "{$}", "")
				if method != "" {
					router.With(route.Middlewares...).Method(method, path, route.Handler)
					continue
				}
				if strings.HasSuffix(path, "/") {
					path += "*"
				}
				router.With(route.Middlewares...).Handle(path, route.Handler)
			}
			return router
		},
	})
}

// TestHostileRequestsToGin: both ways in which gin reads paths.
func TestHostileRequestsToGin(t *testing.T) {
	for name, raw := range map[string]bool{"decoded paths": false, "raw paths": true} {
		t.Run(name, func(t *testing.T) { hostileGin(t, raw) })
	}
}

func hostileGin(t *testing.T, raw bool) {
	t.Helper()
	gin.SetMode(gin.ReleaseMode)
	wildcard := regexp.MustCompile(`\{(\w+)(\.\.\.)?\}`)
	routertest.Run(t, routertest.Subject{
		// gin has no hosts in patterns, and no path beside one that takes all.
		Serves: func(pattern string) bool {
			return !strings.Contains(pattern, "admin.test") && !strings.Contains(pattern, "/private/")
		},
		Mount: func(_ testing.TB, routes []routertest.Mounted) http.Handler {
			router := gin.New()
			router.UseRawPath = raw
			for _, route := range routes {
				method, path := routertest.Split(route.Pattern)
				path = wildcard.ReplaceAllStringFunc(strings.ReplaceAll(path, "{$}", ""), func(found string) string {
					parts := wildcard.FindStringSubmatch(found)
					if parts[2] != "" {
						return "*" + parts[1]
					}
					return ":" + parts[1]
				})
				var handlers []gin.HandlerFunc
				for _, middleware := range route.Middlewares {
					handlers = append(handlers, ginMiddleware(middleware))
				}
				handlers = append(handlers, gin.WrapH(route.Handler))
				if method == "" {
					if strings.HasSuffix(path, "/") {
						path += "*rest"
					}
					router.Any(path, handlers...)
					continue
				}
				router.Handle(method, path, handlers...)
			}
			return router
		},
	})
}

// TestMiddlewareAtTheTopSeesNoPathValues: the workspace is not known before chi has chosen a route, so the request is
// refused rather than admitted for any workspace.
func TestMiddlewareAtTheTopSeesNoPathValues(t *testing.T) {
	guard, token := newGuard(t)
	ofPath := keyauthhttp.WithWorkspaceID(func(r *http.Request) string { return chi.URLParam(r, "workspace") })
	protect := keyauthhttp.Require(guard, keyauth.IdentityOnly(), ofPath)
	top, inside := chi.NewRouter(), chi.NewRouter()
	top.Use(protect)
	top.Get("/of/{workspace}", ok)
	inside.With(protect).Get("/of/{workspace}", ok)
	for name, test := range map[string]struct {
		router http.Handler
		want   int
	}{"at the top": {top, http.StatusNotFound}, "at the route": {inside, http.StatusOK}} {
		if got := get(t, test.router, "/of/acme", token); got.Code != test.want {
			t.Errorf("%s: %d, want %d", name, got.Code, test.want)
		}
	}
}
