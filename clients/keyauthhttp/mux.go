// Package keyauthhttp protects a service that speaks HTTP with keysvc. It is the
// middleware to the keyauth.Guard whose interceptors protect services that speak gRPC,
// with the same guarantees.
//
// A Mux is made of one table of routes, each with a pattern of net/http, what a request
// needs, and the handler. So no pattern lacks a requirement and no requirement a pattern,
// and since what is checked lies around the handler itself, the requirement that counts
// is always the one that was written beside the handler that runs: whatever the path
// looks like (//, .., %2f), whatever the method (HEAD needs what GET needs, OPTIONS is
// not public by itself), whatever X-HTTP-Method-Override says, which is ignored.
//
// The token is read from the Authorization header and nowhere else (RFC 6750 section
// 2.1): not from the query, nor from the body.
package keyauthhttp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Config says what a Mux serves.
type Config struct {
	// Routes are what is served, by patterns of http.ServeMux such as
	// "GET /v1/signatures/{id}". At least one is required. The most specific pattern wins.
	// A pattern with a host is no protection: the presenter chooses the Host header.
	// CONNECT cannot be served.
	Routes map[string]Route
	// Realm is the realm in WWW-Authenticate, in printable ASCII without " and \.
	// Default: "api", as RFC 6750 section 3 does not allow a challenge that says nothing.
	Realm string
	// Body makes the body of the answers that the Mux gives in place of a handler; status
	// and headers are the Mux's. Default: application/json with
	// {"error":{"type":…,"code":…,"message":…}}. The request is without its Authorization.
	// Answers to HEAD go out without the body.
	Body func(r *http.Request, problem Problem) (contentType string, body []byte)
}

// Route is what is served under one pattern.
type Route struct {
	// Requirement is what a request needs. Required: say keyauth.Public() where that is
	// meant.
	Requirement keyauth.Requirement
	// Handler serves the requests that may pass. Required. It finds the principal with
	// keyauth.PrincipalFrom, and never sees the Authorization header, on public routes
	// neither. It gets the server's own http.ResponseWriter.
	Handler http.Handler
	// WorkspaceID returns the workspace of the resource that a request is about, for
	// example r.PathValue("workspace_id"). The key of another workspace is then answered
	// with 401, as an unknown key is. What cannot be the id of a workspace, the empty text
	// included, is answered with 404. It must not return anything but what the handler
	// itself goes by. Without it, keys of all workspaces pass; the handler must limit what
	// it touches by the principal's. Not for public routes.
	WorkspaceID func(r *http.Request) string
	// LongLived says that the handler keeps requests open, to stream events for example.
	// With a Validator that is a keyauth.Watcher, such a request ends when its key may no
	// longer do what it needs: its context is cancelled with a *keyauth.RefusalError as the
	// cause, and from then on nothing can be read from the presenter or written to them.
	// That ends when the handler returns, so for a hijacked connection the handler must
	// stay. Not for public routes.
	LongLived bool
}

// Mux is an http.Handler that decides on each request before a handler sees it. Its
// answers are
//
//   - 401 with WWW-Authenticate: Bearer, and error="invalid_token" if there was an
//     Authorization header;
//   - 403, with error="insufficient_scope" and the scope if a scope is what is lacking;
//   - 503 with Retry-After if keysvc could not be asked or the request was cancelled;
//   - 500 if the service asked keysvc wrongly;
//   - 404 and 405 where no pattern fits, and 307 where http.ServeMux redirects to a clean
//     path or one with a slash at its end.
//
// The last need no token. They tell everybody which paths exist, which is no secret of a
// public API, and so a flood of requests to nowhere is not passed on to keysvc. Nothing of
// a handler runs for them, and a redirect is decided anew when it is followed.
type Mux struct {
	guard  *keyauth.Guard
	routes *http.ServeMux
	realm  string
	body   func(r *http.Request, problem Problem) (contentType string, body []byte)
}

// NewMux returns a Mux. The error names every route that is wrong: a requirement that
// cannot be met, no handler, a pattern that http.ServeMux does not take or that conflicts
// with another one.
func NewMux(guard *keyauth.Guard, config Config) (*Mux, error) {
	mux := &Mux{guard: guard, routes: http.NewServeMux(), realm: config.Realm, body: config.Body}
	if mux.realm == "" {
		mux.realm = "api"
	}
	if mux.body == nil {
		mux.body = jsonBody
	}
	var wrong []error
	if guard == nil {
		wrong = append(wrong, errors.New("keyauthhttp: guard: is nil; make one with keyauth.NewGuard"))
	}
	if strings.ContainsFunc(mux.realm, func(char rune) bool { return char < ' ' || char > '~' || char == '"' || char == '\\' }) {
		wrong = append(wrong, fmt.Errorf(`keyauthhttp: Realm: is %q; allowed is printable ASCII without " and \`, mux.realm))
	}
	if len(config.Routes) == 0 {
		wrong = append(wrong, errors.New("keyauthhttp: Routes: are empty; at least one is required"))
	}
	for _, pattern := range slices.Sorted(maps.Keys(config.Routes)) {
		if err := mux.add(pattern, config.Routes[pattern]); err != nil {
			wrong = append(wrong, fmt.Errorf("keyauthhttp: Routes[%q]: %w", pattern, err))
		}
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return mux, nil
}

// add registers a route.
func (m *Mux) add(pattern string, route Route) (err error) {
	switch function, ok := route.Handler.(http.HandlerFunc); {
	case !route.Requirement.IsValid():
		return fmt.Errorf("its Requirement is %q; allowed are keyauth.Scope with resource:action, keyauth.IdentityOnly and keyauth.Public",
			route.Requirement)
	case route.Handler == nil || ok && function == nil:
		return errors.New("its Handler is nil; one is required")
	case route.Requirement.IsPublic() && (route.WorkspaceID != nil || route.LongLived):
		return errors.New("its WorkspaceID and LongLived mean nothing, as it is public; leave them out")
	case len(strings.Fields(pattern)) > 1 && strings.Fields(pattern)[0] == http.MethodConnect:
		return errors.New("its pattern is for CONNECT, which is not served")
	}
	defer func() {
		if refused := recover(); refused != nil {
			err = fmt.Errorf("its pattern is refused: %v", refused)
		}
	}()
	m.routes.Handle(pattern, m.guarded(pattern, route))
	return nil
}

// ServeHTTP implements http.Handler. It panics if a handler does.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect {
		// http.ServeMux does not clean the path of a CONNECT: /public/../v1 would be a
		// public path to it, and perhaps not to the handler.
		m.answer(w, r, Problem{Status: http.StatusMethodNotAllowed})
		return
	}
	if handler, pattern := m.routes.Handler(r); pattern == "" {
		m.unmatched(w, r, handler)
		return
	}
	m.routes.ServeHTTP(w, r)
}

// guarded returns the handler of a route with the decision in front of it.
func (m *Mux) guarded(pattern string, route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := keyauth.Request{
			Name:          pattern,
			Requirement:   route.Requirement,
			Authorization: r.Header.Values("Authorization"),
			Peer:          peerAddress(r.RemoteAddr),
			UnixSocket:    isUnixSocket(r),
			Forwarded:     r.Header.Values("X-Forwarded-For"),
		}
		if route.WorkspaceID != nil {
			request.WorkspaceID = route.WorkspaceID(withoutAuthorization(r.Context(), r))
			if !validID(request.WorkspaceID) {
				// To keysvc it would be a question badly asked, which is no fault of this
				// service; and empty would mean any workspace.
				m.answer(w, r, Problem{Status: http.StatusNotFound})
				return
			}
		}
		ctx, err := m.guard.Admit(r.Context(), request)
		if err != nil {
			m.refuse(w, r, err)
			return
		}
		if route.LongLived {
			var stop func()
			ctx, stop = m.watched(ctx, w, request)
			defer stop()
		}
		admitted := withoutAuthorization(ctx, r)
		route.Handler.ServeHTTP(w, admitted)
		if admitted.MultipartForm != nil && r.MultipartForm == nil {
			// The server removes the files of an upload, but sees its own request only.
			_ = admitted.MultipartForm.RemoveAll() // as the server does: there is nobody to tell
		}
	})
}

// withoutAuthorization returns a request without the headers that may hold the token:
// Authorization, and what gateways and proxies make of it (X-Forwarded-Authorization). The
// names of headers are canonical if net/http has read them, but requests come from
// elsewhere too.
func withoutAuthorization(ctx context.Context, r *http.Request) *http.Request {
	// Not Clone: in its copy of the trailers, those that follow the body would be missing.
	stripped := r.WithContext(ctx)
	stripped.Header = r.Header.Clone()
	maps.DeleteFunc(stripped.Header, func(name string, _ []string) bool {
		return strings.HasSuffix(strings.ToLower(name), "authorization")
	})
	return stripped
}

// isUnixSocket reports whether a request came over a unix socket. The server's own address
// says so: RemoteAddr is a header's text as soon as another middleware has put it there.
func isUnixSocket(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && strings.HasPrefix(local.Network(), "unix")
}

// peerAddress returns the address of a connection; the zero Addr for a unix socket, and
// for what another middleware may have made of it.
func peerAddress(remote string) netip.Addr {
	withPort, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return withPort.Addr()
}

// validID says whether text can be the id of a workspace: 1 to 128 characters of
// A-Z a-z 0-9 . _ : @ and -.
func validID(text string) bool {
	for _, char := range []byte(text) {
		letter := char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z'
		if !letter && (char < '0' || char > '9') && strings.IndexByte("._:@-", char) < 0 {
			return false
		}
	}
	return text != "" && len(text) <= 128
}
