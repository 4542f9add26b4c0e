// Package keyauth protects a Go service with keysvc. For each request it reads the bearer
// token, asks a Validator whether the token may do what the request needs, and then either
// gives the handler the principal or refuses the request.
//
// A gRPC service needs three things: the annotation keysvc.v1.access in its proto, the table
// that protoc-gen-go-keyscope generates from it, and the interceptors of a Guard. An HTTP
// service uses the middleware of the package keyauthhttp.
//
// Everything unknown is refused, zero values included.
package keyauth

import (
	"context"
	"net/netip"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Principal is the identity that a request acts as.
type Principal struct {
	// KeyID is the key's public identifier; it is safe in logs.
	KeyID string
	// WorkspaceID is the only workspace whose data the request may touch: limit every query by
	// it.
	WorkspaceID string
	// MemberID is the member that the key acts as.
	MemberID string
	// Role is the name of the member's present role in the policy.
	Role string
	// Credential says by what the presenter was known: empty for a key of keysvc, the name of a Link of a
	// Chain, or what an authenticator said, such as "session".
	Credential string
	// Scopes are the scopes that the key has and its member's role allows, sorted. They are shared:
	// do not change them. Empty if there are none, or with details off: see Config.Details.
	Scopes []string
	// KeyName is what people call the key. Empty with details off: see Config.Details. A service must
	// not decide by it.
	KeyName string
	// ExpireTime is when the token stops working, by the clock of keysvc, if it is neither revoked
	// nor rotated before. Zero with details off: see Config.Details.
	ExpireTime time.Time
}

// Question is what a service asks for each request.
type Question struct {
	// Token is the text that the presenter sent, without "Bearer " in front.
	Token string
	// Requirement is what the request needs. A Validator answers the zero Requirement and
	// Public with an error, because neither is a question about a token.
	Requirement Requirement
	// WorkspaceID is the workspace of the resource that the request is about, if it is known
	// before the handler runs. A key of another workspace is then answered as an unknown key.
	// Empty means any workspace.
	WorkspaceID string
	// ClientAddress is the presenter's address; the zero Addr if it is not known. A key that is
	// limited to addresses does not accept an unknown address.
	ClientAddress netip.Addr
	// WithDetails asks for the details of the principal: Scopes, KeyName and ExpireTime. Without it
	// they are empty. keysvc reads its store for them, which it does for no other question. A
	// near-cache keeps them with the grant, until an event of the key, its member or the policy.
	WithDetails bool
}

// Answer is the answer of a Validator. The zero Answer is a refusal.
type Answer struct {
	// Decision is whether the request may pass: only with DECISION_ALLOWED.
	Decision keysvcv1.Decision
	// Reason is why the request may not pass. It is for the log, not for the presenter.
	Reason keysvcv1.Reason
	// KeyID is the key's public identifier; empty if keysvc did not tell it.
	KeyID string
	// MissingScopes are, with REASON_SCOPE_NOT_GRANTED and REASON_SCOPE_BEYOND_ROLE, the scopes of the
	// requirement that the token lacks, in the order of the requirement. Of AnyOf that is all of
	// them: one would do. Empty if keysvc is too old to say.
	MissingScopes []string
	// Principal is set on DECISION_ALLOWED. It is shared: do not change it.
	Principal *Principal
	// ExpireTime is when the token stops working, by the clock of keysvc, if it is neither revoked nor
	// rotated before. It is set on DECISION_ALLOWED, and zero if the Validator does not know it: a
	// keyclient.Client knows it with a near-cache only.
	ExpireTime time.Time
}

// Validator answers questions. keyclient.Client is one, and keyauthtest makes one for tests.
// Validate may be called from many goroutines.
type Validator interface {
	// Validate answers a question. An error means that there is no answer, and that the request
	// must not pass. Errors are gRPC statuses, or the context's error if the context ended:
	// codes.Internal or codes.InvalidArgument if the service asked wrongly, for example for a
	// scope that the policy does not have; codes.Unavailable if keysvc could not be asked in
	// time. An error never tells anything about the token.
	Validate(ctx context.Context, question Question) (Answer, error)
}

// Watcher is a Validator that also knows when an answer no longer holds. A Guard uses it to end
// streams whose key was revoked. A Watcher that has a method Watches() bool is treated as a
// plain Validator if that method returns false when the Guard is made.
type Watcher interface {
	Validator
	// Watch asks a question, and asks it again whenever something has changed that the answer
	// may depend on. It returns the first answer that is not ALLOWED, an error as Validate's if
	// nothing can be known any more, or the context's error.
	Watch(ctx context.Context, question Question) (Answer, error)
}

type principalKey struct{}

// PrincipalFrom returns the principal of a request. ok is false for a context that did not come
// from a Guard, and for a public method.
func PrincipalFrom(ctx context.Context) (Principal, bool) {
	principal, ok := ctx.Value(principalKey{}).(*Principal)
	if !ok || principal == nil {
		return Principal{}, false
	}
	return *principal, true
}

// WithPrincipal returns a context with a principal. It is for tests, and for services that
// authenticate some requests by other means.
func WithPrincipal(ctx context.Context, principal Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, &principal)
}
