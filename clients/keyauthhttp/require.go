package keyauthhttp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Protector makes middlewares for any router that takes a func(http.Handler) http.Handler. Its middlewares share a
// Guard and options. Make it with New; nothing can be protected with the zero Protector, so its Require panics.
type Protector struct {
	guard    *keyauth.Guard
	settings settings
}

// settings are what a middleware does. They do not change once it is made.
type settings struct {
	workspaceID func(r *http.Request) string
	realm       string
	// expiration is the header of WithExpirationHeader in its canonical form.
	expiration string
	body       func(r *http.Request, problem Problem) (contentType string, body []byte)
	longLived  bool
	// passPreflights is set by PassPreflights; preflights is the handler of WithPreflights.
	passPreflights bool
	preflights     http.Handler
	authenticate   func(r *http.Request) (keyauth.Principal, bool, error)
	name           string
	// details asks for the details of the principal.
	details bool
	// wrong are the options that cannot be met.
	wrong []error
}

// Option is a choice for a Protector, or for one route of it.
type Option func(*settings)

// WithWorkspaceID is Route.WorkspaceID: the function returns the workspace of the resource that a request is
// about, and a key of another workspace is refused. A middleware that runs before its router has chosen a route,
// such as one of chi's Use at the top, does not see the router's path values yet: the function then returns "", and
// the answer is 404. It is not asked on public routes. Default: keys of all workspaces pass.
func WithWorkspaceID(workspaceID func(r *http.Request) string) Option {
	return func(s *settings) {
		if s.workspaceID = workspaceID; workspaceID == nil {
			s.wrong = append(s.wrong, errors.New("keyauthhttp: WithWorkspaceID: is nil; leave it out if keys of all workspaces may pass"))
		}
	}
}

// WithRealm is Config.Realm. Default: "api".
func WithRealm(realm string) Option {
	return func(s *settings) { s.realm = realm }
}

// WithExpirationHeader is Config.ExpirationHeader. Default: no header.
func WithExpirationHeader(name string) Option {
	return func(s *settings) { s.expiration = name }
}

// WithBody is Config.Body. Default: JSON, as with the Mux.
func WithBody(body func(r *http.Request, problem Problem) (contentType string, content []byte)) Option {
	return func(s *settings) {
		if s.body = body; body == nil {
			s.wrong = append(s.wrong, errors.New("keyauthhttp: WithBody: is nil; leave it out for the default"))
		}
	}
}

// LongLived is Route.LongLived: the request ends when its key does. It must not be given for public routes.
func LongLived() Option {
	return func(s *settings) { s.longLived = true }
}

// PassPreflights lets CORS preflights through to the next handler without a decision and without a principal. A
// browser sends a preflight without Authorization: it is an OPTIONS with Origin and Access-Control-Request-Method.
// Anybody can send such a request, so give this option only if the next handler answers OPTIONS itself and does
// nothing else for it; WithPreflights is safer. Default: a preflight is decided as every other request.
func PassPreflights() Option {
	return func(s *settings) { s.passPreflights = true }
}

// WithPreflights gives CORS preflights to a handler, in place of deciding on them: see PassPreflights. The next
// handler does not see them.
func WithPreflights(handler http.Handler) Option {
	return func(s *settings) {
		if s.preflights = handler; isNil(handler) {
			s.wrong = append(s.wrong, errors.New("keyauthhttp: WithPreflights: is nil; a handler is required"))
		}
	}
}

// WithAuthenticator asks a function, before the Guard looks for a token, whether a request has another credential,
// such as the cookie of a session. The function gets the request without its Authorization header, and must not read
// the body. It returns
//
//   - a principal and true: the request acts as that principal, within its Scopes. Credential says what it was,
//     for example "session"; Credential, WorkspaceID and MemberID are required;
//   - false: there is no such credential, or it has expired. The Guard then looks for a token;
//   - an error: it cannot be known. The request is refused with 503 or 500 by the error's gRPC status, or as a
//     *keyauth.RefusalError says; it is never tried as another credential.
//
// A request with such a credential and an Authorization header is refused with 401, because nobody knows as
// whom it acts. A request with a cookie may come from another site without the user's knowledge, so put a check
// such as http.CrossOriginProtection in front. LongLived does not watch sessions.
func WithAuthenticator(authenticate func(r *http.Request) (keyauth.Principal, bool, error)) Option {
	return func(s *settings) {
		if s.authenticate = authenticate; authenticate == nil {
			s.wrong = append(s.wrong, errors.New("keyauthhttp: WithAuthenticator: is nil; leave it out if there are API keys only"))
		}
	}
}

// WithDetails asks keysvc for the details of the principal: its Scopes, KeyName and ExpireTime. They cost what
// keyauth.Config.Details says. keyauth.Lacks needs them.
func WithDetails() Option {
	return func(s *settings) { s.details = true }
}

// WithName names a route in the log. Default: the pattern of the request, which http.ServeMux and chi set, and
// otherwise the requirement. The path is never logged, because it may hold a secret.
func WithName(name string) Option {
	return func(s *settings) { s.name = name }
}

// New returns a Protector. The error names everything that is wrong: the guard is nil, or an option cannot be
// met.
func New(guard *keyauth.Guard, options ...Option) (*Protector, error) {
	made, err := new(settings).with(options)
	if guard == nil {
		err = errors.Join(errors.New("keyauthhttp: guard: is nil; make one with keyauth.NewGuard"), err)
	}
	if err != nil {
		return nil, err
	}
	return &Protector{guard: guard, settings: made}, nil
}

// Must returns the Protector of New, and panics if there is an error. It is for variables that are made when a
// program starts.
func Must(protector *Protector, err error) *Protector {
	if err != nil {
		panic(err)
	}
	return protector
}

// with returns settings with options added.
func (s *settings) with(options []Option) (settings, error) {
	made := *s
	return made.added(options)
}

// added adds options.
func (s *settings) added(options []Option) (settings, error) {
	s.wrong = nil
	for _, option := range options {
		if option == nil {
			s.wrong = append(s.wrong, errors.New("keyauthhttp: an Option is nil; leave it out"))
			continue
		}
		option(s)
	}
	if s.realm == "" {
		s.realm = "api"
	}
	if s.body == nil {
		s.body = jsonBody
	}
	if s.expiration = http.CanonicalHeaderKey(s.expiration); !isHeaderName(s.expiration) {
		s.wrong = append(s.wrong, fmt.Errorf("keyauthhttp: ExpirationHeader: is %q; allowed are letters, digits and -", s.expiration))
	}
	if strings.ContainsFunc(s.realm, func(char rune) bool { return char < ' ' || char > '~' || char == '"' || char == '\\' }) {
		s.wrong = append(s.wrong, fmt.Errorf(`keyauthhttp: Realm: is %q; allowed is printable ASCII without " and \`, s.realm))
	}
	return *s, errors.Join(s.wrong...)
}

// isHeaderName reports whether a text can be the name of a header that this package adds; "" is allowed.
func isHeaderName(text string) bool {
	return !strings.ContainsFunc(text, func(char rune) bool {
		return (char < 'a' || char > 'z') && (char < 'A' || char > 'Z') && (char < '0' || char > '9') && char != '-'
	})
}

// isNil reports whether a handler cannot be called.
func isNil(handler http.Handler) bool {
	function, ok := handler.(http.HandlerFunc)
	return handler == nil || ok && function == nil
}

// Require returns a middleware that decides on each request before the next handler sees it, for any router:
//
//	router.With(keyauthhttp.Require(guard, keyauth.Scope("signatures:read"))).Get("/v1/signatures", list)
//
// It is that of a Protector with the same options, and panics as that does.
func Require(guard *keyauth.Guard, requirement keyauth.Requirement, options ...Option) func(next http.Handler) http.Handler {
	return Must(New(guard, options...)).Require(requirement)
}

// Require returns a middleware that decides on each request before the next handler sees it. Statuses, headers and
// all that a handler is promised are those of a Mux and its Route: both run the same code. The options are added
// to those of the Protector. It panics if the requirement cannot be met or an option is wrong, and so does the
// middleware if the next handler is nil: call both when the service starts, as one calls http.ServeMux.Handle.
//
// The requirement is that of the handler that runs, whatever the path looks like. Two kinds of request are
// refused whatever the requirement is, because routers and handlers may take them differently: CONNECT with 405,
// and with 404 a path that has . or .. between slashes, which http.ServeMux would have cleaned.
//
// A Require may run inside another one, or inside a Mux, such as a scope of a route inside the identity of its
// group. The request must meet each of them; the handler sees the principal of the innermost, and no Authorization
// header. The inner one gets the token from the context, where only this package can read it. If something between
// the two adds an Authorization header, the request has two credentials and is refused with 401. If something
// between them takes away the context, the request has none. A public inner requirement adds nothing.
func (p *Protector) Require(requirement keyauth.Requirement, options ...Option) func(next http.Handler) http.Handler {
	if p == nil || p.guard == nil {
		panic("keyauthhttp: Require: the Protector has no guard; make it with New")
	}
	made, err := p.settings.with(options)
	switch {
	case err != nil:
		panic(err)
	case !requirement.IsValid():
		panic(fmt.Errorf("keyauthhttp: Require: %w", badRequirement(requirement)))
	case requirement.IsPublic() && made.longLived:
		panic("keyauthhttp: Require: LongLived has no effect, as the requirement is public; leave it out")
	}
	return func(next http.Handler) http.Handler {
		if isNil(next) {
			panic("keyauthhttp: Require: the next handler is nil; one is required")
		}
		return &protected{guard: p.guard, settings: made, requirement: requirement, next: next}
	}
}

func badRequirement(requirement keyauth.Requirement) error {
	return fmt.Errorf("its Requirement is %q; allowed are keyauth.Scope with resource:action, keyauth.AllOf and keyauth.AnyOf with several, keyauth.IdentityOnly and keyauth.Public",
		requirement)
}

// protected is a handler with the decision before it. A Mux and the middlewares of a Protector make it.
type protected struct {
	guard *keyauth.Guard
	settings
	requirement keyauth.Requirement
	next        http.Handler
}

// carriedKey is the key of *carried in a context.
type carriedKey struct{}

// carried is what an outer middleware leaves in the context for an inner one, and for WriteRefusal.
type carried struct {
	// authorization are the values of the header that the outer one took away.
	authorization []string
	settings      *settings
}

// Format implements fmt.Formatter: the token is not printed.
func (*carried) Format(state fmt.State, _ rune) { _, _ = state.Write([]byte("[redacted]")) }

// ServeHTTP implements http.Handler.
func (p *protected) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	outer, nested := r.Context().Value(carriedKey{}).(*carried)
	switch {
	case r.Method == http.MethodConnect:
		// A CONNECT has no path that was cleaned: a router could take /public/../v1 for a public path, and the
		// handler perhaps not.
		p.answer(w, r, Problem{Status: http.StatusMethodNotAllowed})
		return
	case hasDots(r.URL.EscapedPath()):
		p.answer(w, r, Problem{Status: http.StatusNotFound})
		return
	case (p.passPreflights || p.preflights != nil) && isPreflight(r):
		p.preflight(w, r)
		return
	}
	authorization := r.Header.Values("Authorization")
	if nested {
		// Both are credentials, so a request with both has two.
		authorization = append(slices.Clip(outer.authorization), authorization...)
		if p.requirement.IsPublic() {
			p.next.ServeHTTP(w, withoutAuthorization(r.Context(), r))
			return
		}
	}
	request := keyauth.Request{
		Name:          p.nameOf(r),
		Requirement:   p.requirement,
		Authorization: authorization,
		Peer:          peerAddress(r.RemoteAddr),
		UnixSocket:    isUnixSocket(r),
		Forwarded:     r.Header.Values(p.guard.ForwardedHeader()),
		Details:       p.details,
	}
	if p.workspaceID != nil && !p.requirement.IsPublic() {
		request.WorkspaceID = p.workspaceID(withoutAuthorization(r.Context(), r))
		if request.WorkspaceID == "" {
			// The empty text would mean any workspace.
			p.answer(w, r, Problem{Status: http.StatusNotFound})
			return
		}
	}
	if p.expiration != "" {
		request.ExpireTime = new(time.Time)
	}
	if p.authenticate != nil {
		request.Authenticate = func(ctx context.Context) (keyauth.Principal, bool, error) {
			return p.authenticate(withoutAuthorization(ctx, r))
		}
	}
	ctx, err := p.guard.Admit(r.Context(), request)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	if p.expiration != "" && !request.ExpireTime.IsZero() {
		// Rounded down: a token never works longer than it says.
		w.Header().Set(p.expiration, request.ExpireTime.UTC().Format(http.TimeFormat))
	}
	if p.longLived {
		var stop func()
		ctx, stop = watched(ctx, p.guard, w, request)
		defer stop()
	}
	admitted := withoutAuthorization(context.WithValue(ctx, carriedKey{}, &carried{authorization: authorization, settings: &p.settings}), r)
	p.next.ServeHTTP(w, admitted)
	if admitted.MultipartForm != nil && r.MultipartForm == nil {
		// The server removes the files of an upload when it ends its own request, but it
		// does not see this copy.
		_ = admitted.MultipartForm.RemoveAll() // as the server does: nobody could be told
	}
}

// nameOf returns the name of a request for the log.
func (p *protected) nameOf(r *http.Request) string {
	switch {
	case p.name != "":
		return p.name
	case r.Pattern != "":
		return r.Pattern
	}
	return "a route that needs " + p.requirement.String()
}

// preflight passes a preflight on without a decision.
func (p *protected) preflight(w http.ResponseWriter, r *http.Request) {
	handler := p.preflights
	if handler == nil {
		handler = p.next
	}
	// A public request has no principal, also if a middleware in front admitted it.
	ctx, err := p.guard.Admit(r.Context(), keyauth.Request{Name: p.nameOf(r), Requirement: keyauth.Public()})
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	handler.ServeHTTP(w, withoutAuthorization(ctx, r))
}

// isPreflight reports whether a request is a CORS preflight by the Fetch standard. One with Authorization is not:
// no browser sends that.
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" &&
		r.Header.Get("Access-Control-Request-Method") != "" && len(r.Header.Values("Authorization")) == 0
}

// hasDots reports whether a path, as it was sent, has . or .. as a whole segment.
func hasDots(path string) bool {
	if !strings.Contains(path, "/.") {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// isUnixSocket reports whether a request came over a unix socket. It asks the server's own
// address, because another middleware may have copied a header into RemoteAddr.
func isUnixSocket(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && strings.HasPrefix(local.Network(), "unix")
}

// peerAddress returns the address of a connection; the zero Addr for a unix socket, and for
// text that another middleware put in its place.
func peerAddress(remote string) netip.Addr {
	withPort, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return withPort.Addr()
}
