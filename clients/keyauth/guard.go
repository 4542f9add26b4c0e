package keyauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/tally"
)

// Config is what a Guard protects.
type Config struct {
	// Tables hold what each method needs. A method that is in no table is denied. Two tables
	// must not have the same method. Health and Reflection return such tables.
	Tables []Table
	// TrustedProxies are the addresses of proxies whose ForwardedHeader is believed. For every
	// other peer the client address is that of the connection.
	TrustedProxies []netip.Prefix
	// ForwardedHeader is the one header in which trusted proxies say who the presenter is:
	// "X-Forwarded-For"; "Forwarded" (RFC 7239); or "X-Real-IP", which must have one value with one
	// address. No other header is read, so the proxies must set this one or append to it, and replace
	// it in requests from outside if it is X-Real-IP. In gRPC it is read from the metadata. What is malformed
	// or hidden, such as for=unknown, makes the address unknown, and a key that is limited to addresses
	// is then refused. It has no effect, and is an error, without TrustedProxies and TrustUnixSockets.
	// Default: "X-Forwarded-For".
	ForwardedHeader string
	// TrustUnixSockets makes every peer on a unix socket a trusted proxy. The socket's mode and
	// folder must then keep everybody else out.
	TrustUnixSockets bool
	// Workspace returns the workspace of the resource that a call is about. A key of another
	// workspace is then answered as an unknown key is. A service that may validate in some
	// workspaces only, by the callers file of keysvc, needs it: such a service must name one of
	// them in each validation, and without a name each call fails with codes.Internal.
	//
	// request is the message of a unary method, and nil for a stream, which is decided before
	// anything is read from it. ctx does not have the token. Workspace must return the workspace that
	// the handler itself uses. The empty text means any workspace; the handler must then limit what it
	// touches by the principal's. For a unary method whose requirement has a WorkspaceField, that field
	// is read in its place. Text that cannot be the id of a workspace is answered with
	// codes.NotFound. Public methods are not asked about, nor are methods in no table.
	//
	// It is for the interceptors: Admit takes Request.WorkspaceID, and the routes of keyauthhttp have
	// a function of their own. Default: any workspace.
	Workspace func(ctx context.Context, fullMethod string, request any) string
	// Authenticate accepts other credentials than tokens, such as the session of a cookie in the metadata
	// cookie. It is asked before the Guard looks for a token; ctx has the metadata without the token. It returns
	//
	//   - a principal and true: the call acts as that principal, within its Scopes. Credential says what it was,
	//     for example "session"; Credential, WorkspaceID and MemberID are required;
	//   - false: there is no such credential, or it has expired. The Guard then looks for a token;
	//   - an error: it cannot be known. The call is refused with UNAVAILABLE or INTERNAL by the error's status, or
	//     as a *RefusalError says; it is never tried as another credential.
	//
	// A call with such a credential and an authorization is refused with UNAUTHENTICATED, because nobody knows
	// as whom it acts. Streams of such a principal are decided once, when they begin. It is for the interceptors;
	// keyauthhttp has WithAuthenticator. Default: tokens only.
	Authenticate func(ctx context.Context, fullMethod string) (Principal, bool, error)
	// Details asks keysvc for the details of every principal: Scopes, KeyName and ExpireTime of
	// Principal. Without it they are empty, unless Request.Details asks for them. keysvc then reads its
	// store for each validation that the near-cache does not answer, so a validation takes longer, and
	// fails while the store cannot be read. Default: no details.
	Details bool
	// InvalidTokens is called when a network has presented many tokens that are not valid: at most
	// once a minute for one network, and once a second for all of them. It must return at once.
	// The log has a line in any case. Nobody is refused because of it. Default: nothing is called.
	InvalidTokens func(InvalidTokens)
	// Log receives the exact reason of every refusal, which the presenter is not told, and
	// every failure that keeps a request from being decided. It never receives a token.
	// Default: slog.Default().
	Log *slog.Logger
}

// InvalidTokens are tokens of one network that were no keys' tokens.
type InvalidTokens struct {
	// Network is the client address that presented them, or the 64 bits that it begins with if it
	// is one of IPv6.
	Network netip.Prefix
	// Count is how many there were, at least: those of the last minute, half of those of the minute
	// before, and so on.
	Count int64
}

// Guard decides on requests before their handlers see them. Its methods may be called
// from many goroutines.
type Guard struct {
	validator Validator
	// watcher is the validator; nil if the validator is no Watcher.
	watcher Watcher
	table   Table
	trusted []netip.Prefix
	log     *slog.Logger
	// invalid counts tokens that are not valid.
	invalid *tally.Tally
	// workspace is Config.Workspace; it may be nil.
	workspace func(ctx context.Context, fullMethod string, request any) string
	// authenticate is Config.Authenticate; it may be nil.
	authenticate func(ctx context.Context, fullMethod string) (Principal, bool, error)
	// details is Config.Details.
	details bool
	// trustSockets is Config.TrustUnixSockets.
	trustSockets bool
	// readsForwarded is set if forwardedHeader counts for some connections.
	readsForwarded bool
	// forwardedHeader is the header of Config.ForwardedHeader.
	forwardedHeader string
}

// NewGuard returns a Guard that asks a Validator. It returns an error if the validator is nil,
// a requirement cannot be met, a name is not a method's, a method is in two tables, a prefix
// is not valid, or ForwardedHeader is unknown or has no effect.
func NewGuard(validator Validator, config Config) (*Guard, error) {
	if validator == nil {
		return nil, errors.New("keyauth: validator: is nil; a Validator of keyclient or keyauthtest is required")
	}
	guard := &Guard{validator: validator, table: make(Table), trusted: slices.Clone(config.TrustedProxies), log: config.Log}
	guard.watcher = watcherOf(validator)
	guard.authenticate = config.Authenticate
	guard.workspace = config.Workspace
	guard.details = config.Details
	guard.trustSockets = config.TrustUnixSockets
	guard.readsForwarded = len(guard.trusted) > 0 || guard.trustSockets
	if guard.log == nil {
		guard.log = slog.Default()
	}
	var err error
	if guard.forwardedHeader, err = forwardedHeader(config.ForwardedHeader); err != nil {
		return nil, err
	}
	if config.ForwardedHeader != "" && !guard.readsForwarded {
		return nil, fmt.Errorf("keyauth: ForwardedHeader: is %q, which nobody is trusted to send; name proxies in TrustedProxies, or leave it out", config.ForwardedHeader)
	}
	guard.invalid = tally.New(time.Now, func(report tally.Report) {
		guard.log.Warn("many tokens are not valid: somebody guesses, or uses a key that never was", "network", report.Source.String(), "tokens", report.Count)
		if config.InvalidTokens != nil {
			config.InvalidTokens(InvalidTokens{Network: report.Source.Network, Count: report.Count})
		}
	})
	for _, table := range config.Tables {
		for _, method := range slices.Sorted(maps.Keys(table)) {
			requirement := table[method]
			if _, twice := guard.table[method]; twice {
				return nil, fmt.Errorf("keyauth: %s: is in two tables; leave it in one of them", method)
			}
			if !validMethod(method) {
				return nil, fmt.Errorf("keyauth: %q: is not a method; the form is /package.Service/Method", method)
			}
			if !requirement.IsValid() {
				return nil, fmt.Errorf("keyauth: %s: needs %q; allowed are Scope with resource:action, AllOf and AnyOf with 1 to 16 of them, IdentityOnly and Public", method, requirement)
			}
			if requirement.IsPublic() && requirement.field != "" {
				return nil, fmt.Errorf("keyauth: %s: is public, so it cannot have a WorkspaceField; leave it out", method)
			}
			guard.table[method] = requirement
		}
	}
	for _, prefix := range guard.trusted {
		// Addresses are never compared in their IPv4-mapped form, so such a prefix would trust
		// nobody.
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("keyauth: trusted proxies: the prefix %v is not valid; the form is 10.0.0.0/8 or fd00::/8", prefix)
		}
	}
	return guard, nil
}

// validMethod reports whether text has the form /package.Service/Method. Nothing in a table is
// a pattern.
func validMethod(text string) bool {
	rest, rooted := strings.CutPrefix(text, "/")
	service, name, found := strings.Cut(rest, "/")
	return rooted && found && service != "" && name != "" && !strings.ContainsAny(rest, " *\t\r\n") && !strings.Contains(name, "/")
}

// Health returns the table of grpc.health.v1. Its methods are public, because probes have no
// key. Add it to the tables of a service that serves health.
func Health() Table {
	return Table{
		"/grpc.health.v1.Health/Check": Public(),
		"/grpc.health.v1.Health/List":  Public(),
		"/grpc.health.v1.Health/Watch": Public(),
	}
}

// Reflection returns the table of server reflection, v1 and v1alpha. Its methods are public.
// Add it only if everybody may see the API's schema.
func Reflection() Table {
	return Table{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      Public(),
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Public(),
	}
}

// Request is what is known of a request before it is decided.
type Request struct {
	// Name is the method or pattern that is asked for. It is for the log.
	Name string
	// Requirement is what the request needs.
	Requirement Requirement
	// Authorization are all values of the authorization header.
	Authorization []string
	// WorkspaceID is as in Question. Text that cannot be the id of a workspace is refused with
	// codes.NotFound.
	WorkspaceID string
	// Peer is the address of the connection; the zero Addr if it is not known.
	Peer netip.Addr
	// UnixSocket is set if the connection came over a unix socket. It counts only if Peer is
	// not known, because another middleware may have set Peer.
	UnixSocket bool
	// Forwarded are all values of the header that Guard.ForwardedHeader names. They count only if the
	// peer is a trusted proxy.
	Forwarded []string
	// Authenticate, if not nil, looks for another credential than the token: see Config.Authenticate.
	// It is not printed.
	Authenticate func(ctx context.Context) (Principal, bool, error) `json:"-"`
	// Details asks for the details of the principal, as Config.Details does for every request.
	Details bool
	// ExpireTime, if not nil, is where Admit puts Answer.ExpireTime of a request that may pass.
	ExpireTime *time.Time
}

// Admit decides on a request. If the request may pass, it returns a context that has the
// principal and lacks the incoming authorization metadata. Otherwise it returns a
// *RefusalError.
//
// Admit is for transports that this module does not know. Services use the interceptors, or the
// middleware of keyauthhttp.
func (g *Guard) Admit(ctx context.Context, request Request) (context.Context, error) {
	principal, _, refusal := g.decide(ctx, &request)
	if refusal != nil {
		return nil, refusal
	}
	return admit(ctx, principal), nil
}

// Watch blocks for as long as an admitted request would be admitted again. It then returns the
// *RefusalError that the request would get, or the context's error. It returns nil at once if
// there is nothing to watch: the request is public, it was admitted by Authenticate, or the Validator is no
// Watcher.
//
// The interceptors call Watch themselves. It is for other transports that keep requests open
// for long.
func (g *Guard) Watch(ctx context.Context, request Request) error {
	if g.watcher == nil || request.Requirement.IsPublic() || request.Authenticate != nil && len(request.Authorization) == 0 {
		return nil
	}
	question, refusal := g.question(ctx, &request)
	if refusal != nil {
		return refusal
	}
	return g.watch(ctx, request.Name, question)
}

func (g *Guard) watch(ctx context.Context, name string, question Question) error {
	answer, err := guarded(ctx, question, g.watcher.Watch)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED {
		// A Watcher must not return ALLOWED: nobody would watch the key from now on.
		answer, err = Answer{}, status.Error(codes.Internal, "the watch ended although the key is allowed")
	}
	if _, refusal := g.judge(ctx, name, &question, answer, err); refusal != nil {
		return refusal
	}
	return &RefusalError{Code: codes.Internal}
}

// decide returns the principal of a request; nil for a public request.
func (g *Guard) decide(ctx context.Context, request *Request) (*Principal, Question, *RefusalError) {
	if request.Requirement.IsPublic() {
		return nil, Question{}, nil
	}
	if principal, refusal, found := g.authenticated(ctx, request); found {
		return principal, Question{}, refusal
	}
	question, refusal := g.question(ctx, request)
	if refusal != nil {
		return nil, Question{}, refusal
	}
	answer, err := guarded(ctx, question, g.validator.Validate)
	principal, refusal := g.judge(ctx, request.Name, &question, answer, err)
	if refusal == nil && request.ExpireTime != nil {
		*request.ExpireTime = answer.ExpireTime
	}
	return principal, question, refusal
}

// question makes the Question of a request. It returns a refusal if the request is refused without
// asking the Validator.
func (g *Guard) question(ctx context.Context, request *Request) (Question, *RefusalError) {
	if !request.Requirement.IsValid() {
		g.log.ErrorContext(ctx, "denied: the method is in no table, so it is not known what it needs", "method", request.Name)
		return Question{}, &RefusalError{Code: codes.PermissionDenied, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED}
	}
	token, found := bearer(request.Authorization)
	if found != credentialToken {
		missing := found == credentialMissing || found == credentialOther
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "no bearer token", "authorization", found.String())
		return Question{}, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID, TokenMissing: missing}
	}
	if request.WorkspaceID != "" && !validID(request.WorkspaceID) {
		// keysvc would return INVALID_ARGUMENT, which would become INTERNAL although this service is
		// not at fault.
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "its workspace cannot be the id of one")
		return Question{}, &RefusalError{Code: codes.NotFound}
	}
	requirement := request.Requirement
	if requirement.field != "" && request.WorkspaceID == "" {
		// A workspace that is not known must not mean any workspace.
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "it names no workspace", "field", requirement.field)
		return Question{}, &RefusalError{Code: codes.NotFound}
	}
	requirement.field = "" // for this package only
	return Question{
		Token:         token,
		Requirement:   requirement,
		WorkspaceID:   request.WorkspaceID,
		ClientAddress: g.clientAddress(request),
		WithDetails:   g.details || request.Details,
	}, nil
}

// validID reports whether text can be the id of a workspace: 1 to 128 characters of A-Z a-z 0-9
// . _ : @ and -.
func validID(text string) bool {
	for _, char := range []byte(text) {
		letter := char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z'
		if !letter && (char < '0' || char > '9') && strings.IndexByte("._:@-", char) < 0 {
			return false
		}
	}
	return text != "" && len(text) <= 128
}

// guarded calls ask, and turns a panic into an error.
func guarded(ctx context.Context, question Question, ask func(context.Context, Question) (Answer, error)) (answer Answer, err error) {
	defer func() {
		if value := recover(); value != nil {
			answer, err = Answer{}, newPanicError(value)
		}
	}()
	return ask(ctx, question)
}

// panicError is a panic of a Validator.
type panicError struct{ what, stack string }

func newPanicError(value any) *panicError {
	// The value may hold the token unless the runtime made it, so only its type is kept.
	what := fmt.Sprintf("%T", value)
	if fault, ok := value.(runtime.Error); ok {
		what = fault.Error()
	}
	return &panicError{what: what, stack: string(debug.Stack())}
}

// Error implements error.
func (e *panicError) Error() string { return "the validator panicked: " + e.what }

// judge returns the principal or the refusal that an answer of a Validator stands for.
func (g *Guard) judge(ctx context.Context, name string, question *Question, answer Answer, err error) (*Principal, *RefusalError) {
	if err != nil {
		return nil, g.failed(ctx, name, question.Requirement.String(), question.Token, err)
	}
	switch answer.Decision {
	case keysvcv1.Decision_DECISION_ALLOWED:
		if answer.Principal != nil {
			return answer.Principal, nil
		}
	case keysvcv1.Decision_DECISION_UNAUTHENTICATED:
		g.log.InfoContext(ctx, "request refused", "method", name, "reason", answer.Reason.String(), "key_id", answer.KeyID)
		if answer.Reason == keysvcv1.Reason_REASON_KEY_INVALID {
			g.invalid.Add("", question.ClientAddress)
		}
		return nil, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID}
	case keysvcv1.Decision_DECISION_PERMISSION_DENIED:
		g.log.InfoContext(ctx, "request refused", "method", name, "reason", answer.Reason.String(),
			"key_id", answer.KeyID, "scope", question.Requirement.String())
		return nil, denied(question.Requirement, &answer)
	case keysvcv1.Decision_DECISION_UNSPECIFIED:
	}
	return nil, g.failed(ctx, name, question.Requirement.String(), question.Token, status.Errorf(codes.Internal, "answered with decision %d and no principal", answer.Decision))
}

// denied returns the refusal for DECISION_PERMISSION_DENIED.
func denied(requirement Requirement, answer *Answer) *RefusalError {
	refusal := &RefusalError{Code: codes.PermissionDenied, Reason: shown(answer.Reason), Scope: requirement.Scope()}
	if refusal.Reason == keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED {
		return refusal
	}
	// Only scopes of the requirement are shown, because the presenter may know those.
	needed := requirement.Scopes()
	for _, scope := range needed {
		if slices.Contains(answer.MissingScopes, scope) {
			refusal.MissingScopes = append(refusal.MissingScopes, scope)
		}
	}
	refusal.AnyScope = requirement.IsAnyOf()
	if len(refusal.MissingScopes) == 0 || refusal.AnyScope {
		refusal.MissingScopes = needed
	}
	return refusal
}

// shown returns the reason that a presenter may know with PERMISSION_DENIED. A reason that reveals
// something about the key, or that this version does not know, becomes SCOPE_NOT_GRANTED.
func shown(reason keysvcv1.Reason) keysvcv1.Reason {
	if reason == keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED || reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE {
		return reason
	}
	return keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED
}

// failed returns the refusal for a question without an answer. It is never a 401 or 403,
// because the error is about keysvc or about this service's question, not about the token.
func (g *Guard) failed(ctx context.Context, name, scope, token string, err error) *RefusalError {
	if errors.Is(ctx.Err(), context.Canceled) {
		return &RefusalError{Code: codes.Canceled}
	}
	// ended is set if a context ended that is not the caller's.
	ended := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	answered, isStatus := status.FromError(err)
	code := codes.Internal
	switch answered.Code() { // every other code is a fault of this service or of keysvc
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted,
		codes.Canceled: // grpc's status for a connection that was closed here
		code = codes.Unavailable
	case codes.Unknown:
		if isStatus || ended {
			code = codes.Unavailable
		}
	}
	// Errors must not hold the token. If one does, the token is not logged.
	attributes := []any{
		"method", name, "scope", scope, "answered", code.String(),
		"error", strings.ReplaceAll(err.Error(), token, "[token]"),
	}
	if fault, panicked := errors.AsType[*panicError](err); panicked {
		attributes = append(attributes, "stack", fault.stack)
	}
	g.log.ErrorContext(ctx, "request not decided", attributes...)
	return &RefusalError{Code: code}
}

// admit returns the context for a handler. principal is nil if the request is public.
func admit(ctx context.Context, principal *Principal) context.Context {
	return &admitted{Context: ctx, principal: principal}
}

// admitted is the context of a request that may pass. It holds the principal and hides the
// token, in one allocation.
type admitted struct {
	context.Context //nolint:containedctx // this type is a context
	principal       *Principal
}

// Value implements context.Context. Incoming metadata is stored under a key that only grpc's
// metadata package knows, so it is recognized by its type; outgoing metadata has another type.
func (a *admitted) Value(key any) any {
	if _, ours := key.(principalKey); ours {
		return a.principal
	}
	value := a.Context.Value(key)
	if incoming, ok := value.(metadata.MD); ok {
		return withoutAuthorization(incoming)
	}
	return value
}

// withoutAuthorization returns metadata without the headers that may hold the token:
// authorization, and what gateways and proxies make of it (grpcgateway-authorization,
// x-forwarded-authorization, proxy-authorization). grpc writes names in lower case, but
// metadata may be made by other code.
func withoutAuthorization(incoming metadata.MD) metadata.MD {
	stripped := make(metadata.MD, len(incoming))
	for name, values := range incoming {
		if !strings.HasSuffix(strings.ToLower(name), authorizationHeader) {
			stripped[name] = values
		}
	}
	return stripped
}
