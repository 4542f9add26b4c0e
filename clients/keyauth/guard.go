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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Config says what a Guard protects.
type Config struct {
	// Tables say what each method needs. A method that is in none of them is denied. Two
	// tables must not have the same method. Health and Reflection are such tables.
	Tables []Table
	// TrustedProxies are the addresses of proxies whose X-Forwarded-For is believed. Without
	// them the client address is that of the connection.
	TrustedProxies []netip.Prefix
	// TrustUnixSockets says that whoever connects over a unix socket is such a proxy. The
	// socket's own mode and folder have to keep everybody else out.
	TrustUnixSockets bool
	// Log receives the precise reason of every refusal, which the presenter is not told,
	// and what keeps requests from being decided. It never receives a token. Default:
	// slog.Default().
	Log *slog.Logger
}

// Guard decides on requests before their handlers see them. Its methods may be called
// from many goroutines.
type Guard struct {
	validator Validator
	// watcher is the validator, if it is one.
	watcher  Watcher
	table    Table
	trusted  []netip.Prefix
	log      *slog.Logger
	needsXFF bool
	// trustSockets is Config.TrustUnixSockets.
	trustSockets bool
}

// NewGuard returns a Guard that asks a Validator. An error says what is wrong with the
// configuration: no validator, a requirement that cannot be met, a name that is not a
// method's, a method in two tables, or a prefix that is not valid.
func NewGuard(validator Validator, config Config) (*Guard, error) {
	if validator == nil {
		return nil, errors.New("keyauth: validator: is nil; one of keyclient or keyauthtest is required")
	}
	guard := &Guard{validator: validator, table: make(Table), trusted: slices.Clone(config.TrustedProxies), log: config.Log}
	if watcher, ok := validator.(Watcher); ok {
		// One that could watch may say that it does not.
		if optional, has := validator.(interface{ Watches() bool }); !has || optional.Watches() {
			guard.watcher = watcher
		}
	}
	guard.trustSockets = config.TrustUnixSockets
	guard.needsXFF = len(guard.trusted) > 0 || guard.trustSockets
	if guard.log == nil {
		guard.log = slog.Default()
	}
	for _, table := range config.Tables {
		for _, method := range slices.Sorted(maps.Keys(table)) {
			requirement := table[method]
			if _, twice := guard.table[method]; twice {
				return nil, fmt.Errorf("keyauth: %s: is in two tables; one of them must say what it needs", method)
			}
			if !validMethod(method) {
				return nil, fmt.Errorf("keyauth: %q: is not a method; the form is /package.Service/Method", method)
			}
			if !requirement.IsValid() {
				return nil, fmt.Errorf("keyauth: %s: needs %q; allowed are Scope with resource:action, IdentityOnly and Public", method, requirement)
			}
			guard.table[method] = requirement
		}
	}
	for _, prefix := range guard.trusted {
		// No address is ever compared in the mapped form, so such a prefix would trust nobody.
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("keyauth: trusted proxies: the prefix %v is not valid; the form is 10.0.0.0/8 or fd00::/8", prefix)
		}
	}
	return guard, nil
}

// validMethod says whether text has the form /package.Service/Method. Nothing in a table is
// a pattern.
func validMethod(text string) bool {
	rest, rooted := strings.CutPrefix(text, "/")
	service, name, found := strings.Cut(rest, "/")
	return rooted && found && service != "" && name != "" && !strings.ContainsAny(rest, " *\t\r\n") && !strings.Contains(name, "/")
}

// Health is the table of grpc.health.v1: public, as probes have no key. Add it to the
// tables of a service that serves it.
func Health() Table {
	return Table{
		"/grpc.health.v1.Health/Check": Public(),
		"/grpc.health.v1.Health/List":  Public(),
		"/grpc.health.v1.Health/Watch": Public(),
	}
}

// Reflection is the table of server reflection, v1 and v1alpha: public. Add it only where
// everybody may see how the API looks.
func Reflection() Table {
	return Table{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      Public(),
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Public(),
	}
}

// Request is what is known of a request before it is decided.
type Request struct {
	// Name is what the request asks for: a method or a pattern. It is for the log.
	Name string
	// Requirement is what the request needs.
	Requirement Requirement
	// Authorization are all values of the authorization header.
	Authorization []string
	// WorkspaceID is as in a Question.
	WorkspaceID string
	// Peer is the address of the connection; the zero Addr if it is not known.
	Peer netip.Addr
	// UnixSocket says that the connection came over a unix socket. It counts where Peer is
	// not known: another middleware may have set that.
	UnixSocket bool
	// Forwarded are all values of the X-Forwarded-For header. They count only if the peer
	// is a trusted proxy.
	Forwarded []string
}

// Admit decides on a request. It returns a context with the principal in it and without
// the incoming authorization metadata, or a *RefusalError.
//
// It is for transports that this module does not know; services use the interceptors or
// the middleware.
func (g *Guard) Admit(ctx context.Context, request Request) (context.Context, error) {
	principal, _, refusal := g.decide(ctx, &request)
	if refusal != nil {
		return nil, refusal
	}
	return admit(ctx, principal), nil
}

// Watch blocks for as long as a request that was admitted would be admitted again, and
// returns the *RefusalError that it would meet, or the context's error. It returns nil at
// once if there is nothing to watch: the request is public, or the Validator is no
// Watcher.
//
// The interceptors do this by themselves; it is for other transports that keep requests
// open for long.
func (g *Guard) Watch(ctx context.Context, request Request) error {
	if g.watcher == nil || request.Requirement.IsPublic() {
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
		// A Watcher that ends with a yes knows nothing any more.
		answer, err = Answer{}, status.Error(codes.Internal, "the watch ended with an answer that is none")
	}
	if _, refusal := g.judge(ctx, name, &question, answer, err); refusal != nil {
		return refusal
	}
	return &RefusalError{Code: codes.Internal}
}

// decide returns who the request acts as; nil for a public one.
func (g *Guard) decide(ctx context.Context, request *Request) (*Principal, Question, *RefusalError) {
	if request.Requirement.IsPublic() {
		return nil, Question{}, nil
	}
	question, refusal := g.question(ctx, request)
	if refusal != nil {
		return nil, Question{}, refusal
	}
	answer, err := guarded(ctx, question, g.validator.Validate)
	principal, refusal := g.judge(ctx, request.Name, &question, answer, err)
	return principal, question, refusal
}

// question makes a question of a request, if there is one to ask.
func (g *Guard) question(ctx context.Context, request *Request) (Question, *RefusalError) {
	if !request.Requirement.IsValid() {
		g.log.ErrorContext(ctx, "denied: nothing says what this needs; it is in no table", "method", request.Name)
		return Question{}, &RefusalError{Code: codes.PermissionDenied, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED}
	}
	token, found := bearer(request.Authorization)
	if found != credentialToken {
		missing := found == credentialMissing || found == credentialOther
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "no bearer token", "authorization", found.String())
		return Question{}, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID, TokenMissing: missing}
	}
	return Question{
		Token:         token,
		Requirement:   request.Requirement,
		WorkspaceID:   request.WorkspaceID,
		ClientAddress: g.clientAddress(request),
	}, nil
}

// guarded asks; a panic is an error.
func guarded(ctx context.Context, question Question, ask func(context.Context, Question) (Answer, error)) (answer Answer, err error) {
	defer func() {
		if value := recover(); value != nil {
			answer, err = Answer{}, newPanicError(value)
		}
	}()
	return ask(ctx, question)
}

// panicError is that a Validator panicked.
type panicError struct{ what, stack string }

func newPanicError(value any) *panicError {
	// What was thrown could hold the token, unless the runtime threw it.
	what := fmt.Sprintf("%T", value)
	if fault, ok := value.(runtime.Error); ok {
		what = fault.Error()
	}
	return &panicError{what: what, stack: string(debug.Stack())}
}

// Error implements error.
func (e *panicError) Error() string { return "the validator panicked: " + e.what }

// judge turns what a Validator said into a principal or a refusal.
func (g *Guard) judge(ctx context.Context, name string, question *Question, answer Answer, err error) (*Principal, *RefusalError) {
	if err != nil {
		return nil, g.failed(ctx, name, question.Requirement.Scope(), question.Token, err)
	}
	switch answer.Decision {
	case keysvcv1.Decision_DECISION_ALLOWED:
		if answer.Principal != nil {
			return answer.Principal, nil
		}
	case keysvcv1.Decision_DECISION_UNAUTHENTICATED:
		g.log.InfoContext(ctx, "request refused", "method", name, "reason", answer.Reason.String(), "key_id", answer.KeyID)
		return nil, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID}
	case keysvcv1.Decision_DECISION_PERMISSION_DENIED:
		g.log.InfoContext(ctx, "request refused", "method", name, "reason", answer.Reason.String(),
			"key_id", answer.KeyID, "scope", question.Requirement.Scope())
		return nil, &RefusalError{Code: codes.PermissionDenied, Reason: shown(answer.Reason), Scope: question.Requirement.Scope()}
	case keysvcv1.Decision_DECISION_UNSPECIFIED:
	}
	return nil, g.failed(ctx, name, question.Requirement.Scope(), question.Token, status.Errorf(codes.Internal, "answered with decision %d and no principal", answer.Decision))
}

// shown returns what the presenter may know of the reason for PERMISSION_DENIED. One that
// speaks of the key, or that this version does not know, stays here.
func shown(reason keysvcv1.Reason) keysvcv1.Reason {
	if reason == keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED || reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE {
		return reason
	}
	return keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED
}

// failed is the answer when there is none. It is never a 401 or 403: the error speaks of
// keysvc or of how this service asked, not of the token.
func (g *Guard) failed(ctx context.Context, name, scope, token string, err error) *RefusalError {
	if errors.Is(ctx.Err(), context.Canceled) {
		return &RefusalError{Code: codes.Canceled}
	}
	// Another context's end, or what grpc says of a connection that was closed.
	ended := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	answered, isStatus := status.FromError(err)
	code := codes.Internal
	switch answered.Code() { //nolint:exhaustive // all others are this service's own fault, or keysvc's
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		code = codes.Unavailable
	case codes.Unknown:
		if isStatus || ended {
			code = codes.Unavailable
		}
	}
	// Errors do not hold the token. Should one do so after all, it goes no further.
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

// admit returns the context of a handler; principal is nil if the request is public.
func admit(ctx context.Context, principal *Principal) context.Context {
	return &admitted{Context: ctx, principal: principal}
}

// admitted is the context of a request that may pass. It has the principal, and hides the
// token: one allocation for both.
type admitted struct {
	context.Context //nolint:containedctx // it is one
	principal       *Principal
}

// Value implements context.Context. Incoming metadata lies in a context under a key that
// only grpc's package knows, but the value gives itself away by its type: outgoing
// metadata has another one.
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
// x-forwarded-authorization, proxy-authorization). grpc has names in lower case, but
// nothing forces whoever made them.
func withoutAuthorization(incoming metadata.MD) metadata.MD {
	stripped := make(metadata.MD, len(incoming))
	for name, values := range incoming {
		if !strings.HasSuffix(strings.ToLower(name), authorizationHeader) {
			stripped[name] = values
		}
	}
	return stripped
}
