// Package keyauthhttp protects an HTTP service with keysvc. It is the middleware for a
// keyauth.Guard, and promises what the Guard's gRPC interceptors promise.
//
// A service that has a router keeps it, and puts Require in front of each route. A new service
// can take a Mux in its place, which does not let a route without a requirement start.
//
// A Mux is made from one table of routes. Each route has a pattern of net/http, a requirement
// and a handler, so no pattern lacks a requirement. The check is part of the handler, so the
// requirement that counts is always that of the handler that runs, whatever the path looks like
// (//, .., %2f), and whatever the method is. HEAD needs what GET needs, OPTIONS
// is not public by itself, and X-HTTP-Method-Override is ignored.
//
// The token is read from the Authorization header alone (RFC 6750 section 2.1), never from the
// query or the body.
package keyauthhttp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Config is what a Mux serves.
type Config struct {
	// Routes are the routes by their patterns of http.ServeMux, such as "GET
	// /v1/signatures/{id}". At least one is required. The most specific pattern wins. A host in
	// a pattern does not protect anything, because the presenter chooses the Host header.
	// CONNECT cannot be served.
	Routes map[string]Route
	// WorkspaceID is the WorkspaceID of each route that needs a key and has none of its own. A
	// service that may validate in some workspaces only, by the callers file of keysvc, needs one
	// for every such route: it must name one of them in each validation, and without a name each
	// request is answered with 500. Default: keys of all workspaces pass.
	WorkspaceID func(r *http.Request) string
	// Realm is the realm in WWW-Authenticate, in printable ASCII without " and \. Default:
	// "api", because RFC 6750 section 3 does not allow a challenge without a parameter.
	Realm string
	// ExpirationHeader is the name of a header that answers to admitted requests get, such as
	// "Example-Authentication-Token-Expiration": when the token stops working, as an HTTP date (RFC 9110
	// section 5.6.7), so that programs can warn of the end of their key. There is no header on public
	// routes, nor if the Validator does not know the time: see keyauth.Answer.ExpireTime. Default: no
	// header.
	ExpirationHeader string
	// Body makes the body of an answer that the Mux gives in place of a handler; status and
	// headers are the Mux's. The request that it gets has no Authorization header. Answers to
	// HEAD are sent without the body. Default: application/json with
	// {"error":{"type":…,"code":…,"message":…}}.
	Body func(r *http.Request, problem Problem) (contentType string, body []byte)
	// Preflights answers CORS preflights, which browsers send without Authorization: OPTIONS with
	// Origin and Access-Control-Request-Method, whatever the path. No decision is made on them.
	// Default: a preflight is routed and decided as every other request, so it mostly gets 405.
	Preflights http.Handler
	// Authenticate accepts other credentials than tokens, such as the cookie of a session: see
	// WithAuthenticator. Default: tokens only.
	Authenticate func(r *http.Request) (keyauth.Principal, bool, error)
}

// Route is one entry of a routing table.
type Route struct {
	// Requirement is what a request needs. Required: for a public route, keyauth.Public().
	Requirement keyauth.Requirement
	// Handler serves the requests that may pass. Required. It gets the principal from
	// keyauth.PrincipalFrom and the server's own http.ResponseWriter. It never sees the
	// Authorization header, even on public routes.
	Handler http.Handler
	// WorkspaceID returns the workspace of the resource that a request is about, for example
	// r.PathValue("workspace_id"). It must return the value that the handler itself uses. A key
	// of another workspace is then answered with 401, as an unknown key is. Text that cannot be
	// the id of a workspace, such as the empty text, is answered with 404. If this WorkspaceID and
	// that of Config are nil, keys of all workspaces pass, and the handler must limit what it touches by the
	// principal's workspace. It must be nil on public routes.
	WorkspaceID func(r *http.Request) string
	// LongLived is set for a handler that keeps requests open, for example to stream events. If
	// the Validator is a keyauth.Watcher, such a request ends when its key may no longer do
	// what it needs: its context is cancelled with a *keyauth.RefusalError as the cause, and
	// reading from and writing to the presenter fail from then on. The watch ends when the
	// handler returns, so the handler of a hijacked connection must not return early. It must
	// not be set on public routes.
	LongLived bool
}

// Mux is an http.Handler that decides on each request before a handler sees it. It answers
//
//   - 401 with WWW-Authenticate: Bearer, and with error="invalid_token" if there was an
//     Authorization header;
//   - 403, with error="insufficient_scope" and the scope if another scope would help;
//   - 503 with Retry-After if keysvc could not be asked, or if something other than the
//     presenter cancelled the request;
//   - 500 if the service asked keysvc wrongly;
//   - 404 and 405 if no pattern matches, and 307 if http.ServeMux redirects to a clean path or
//     to one with a slash at its end.
//
// 404, 405 and 307 need no token. So everybody can find out which paths exist; in a public API
// that is no secret. A flood of requests for other paths does not reach keysvc. No
// handler runs for them, and a redirect is decided again when it is followed.
type Mux struct {
	protector  *Protector
	routes     *http.ServeMux
	preflights http.Handler
}

// NewMux returns a Mux. The error names every route that is wrong: its requirement cannot be
// met, it has no handler, or its pattern is malformed or conflicts with another.
func NewMux(guard *keyauth.Guard, config Config) (*Mux, error) {
	var wrong []error
	base := settings{realm: config.Realm, expiration: config.ExpirationHeader, body: config.Body, authenticate: config.Authenticate}
	made, err := base.with(nil)
	if err != nil {
		wrong = append(wrong, err)
	}
	if guard == nil {
		wrong = append(wrong, errors.New("keyauthhttp: guard: is nil; make one with keyauth.NewGuard"))
	}
	mux := &Mux{protector: &Protector{guard: guard, settings: made}, routes: http.NewServeMux(), preflights: config.Preflights}
	if config.Preflights != nil && isNil(config.Preflights) {
		wrong = append(wrong, errors.New("keyauthhttp: Preflights: is a nil function; leave it out, or give a handler"))
	}
	if len(config.Routes) == 0 {
		wrong = append(wrong, errors.New("keyauthhttp: Routes: are empty; at least one is required"))
	}
	for _, pattern := range slices.Sorted(maps.Keys(config.Routes)) {
		route := config.Routes[pattern]
		if route.WorkspaceID == nil && !route.Requirement.IsPublic() {
			route.WorkspaceID = config.WorkspaceID
		}
		if err := mux.add(pattern, route); err != nil {
			wrong = append(wrong, fmt.Errorf("keyauthhttp: Routes[%q]: %w", pattern, err))
		}
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return mux, nil
}

// WriteRefusal answers a request as the Mux does: see the function WriteRefusal. It is for middlewares of one's
// own that run in front of the Mux.
func (m *Mux) WriteRefusal(w http.ResponseWriter, r *http.Request, err error) {
	m.protector.WriteRefusal(w, r, err)
}

// add registers a route.
func (m *Mux) add(pattern string, route Route) (err error) {
	switch {
	case !route.Requirement.IsValid():
		return badRequirement(route.Requirement)
	case isNil(route.Handler):
		return errors.New("its Handler is nil; one is required")
	case route.Requirement.IsPublic() && (route.WorkspaceID != nil || route.LongLived):
		return errors.New("its WorkspaceID and LongLived have no effect, as it is public; leave them out")
	case len(strings.Fields(pattern)) > 1 && strings.Fields(pattern)[0] == http.MethodConnect:
		return errors.New("its pattern is for CONNECT, which is not served")
	}
	defer func() {
		if refused := recover(); refused != nil {
			err = fmt.Errorf("its pattern is refused: %v", refused)
		}
	}()
	made := m.protector.settings
	made.name, made.workspaceID, made.longLived = pattern, route.WorkspaceID, route.LongLived
	m.routes.Handle(pattern, &protected{guard: m.protector.guard, settings: made, requirement: route.Requirement, next: route.Handler})
	return nil
}

// ServeHTTP implements http.Handler. It panics if a handler does.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		// http.ServeMux does not clean the path of a CONNECT: it would take /public/../v1 for a
		// public path, and the handler perhaps not.
		m.protector.settings.answer(w, r, Problem{Status: http.StatusMethodNotAllowed})
		return
	case m.preflights != nil && isPreflight(r):
		m.preflights.ServeHTTP(w, withoutAuthorization(r.Context(), r))
		return
	}
	if handler, pattern := m.routes.Handler(r); pattern == "" {
		m.unmatched(w, r, handler)
		return
	}
	m.routes.ServeHTTP(w, r)
}

// withoutAuthorization returns a request without the headers that may hold the token:
// Authorization, and what gateways and proxies make of it (X-Forwarded-Authorization). net/http
// makes the names of headers canonical, but a request may come from other code.
func withoutAuthorization(ctx context.Context, r *http.Request) *http.Request {
	// Not Clone: its copy of the trailers would lack the trailers that follow the body.
	stripped := r.WithContext(ctx)
	stripped.Header = r.Header.Clone()
	maps.DeleteFunc(stripped.Header, func(name string, _ []string) bool {
		return strings.HasSuffix(strings.ToLower(name), "authorization")
	})
	return stripped
}
