// Package keyauth protects a Go service with keysvc: it reads the bearer token of each
// request, asks a Validator whether the token may do what the request needs, and hands
// the handler the principal, or answers for it.
//
// A service that speaks gRPC needs three things: the annotation keysvc.v1.access in its
// proto, the table that protoc-gen-go-keyscope generates of it, and the interceptors of
// a Guard. One that speaks HTTP finds the middleware in the package keyauthhttp.
//
// Whatever is not known, and every zero value, ends in a refusal.
package keyauth

import (
	"context"
	"net/netip"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Principal is who a request acts as.
type Principal struct {
	// KeyID is the key's public identifier; it is safe in logs.
	KeyID string
	// WorkspaceID is the only workspace whose data the request may touch: limit every
	// query by it.
	WorkspaceID string
	// MemberID is the member who made the key.
	MemberID string
	// Role is the member's role as it is now, by its name in the policy.
	Role string
}

// Question is what a service asks of each request.
type Question struct {
	// Token is what the presenter sent, without "Bearer " in front.
	Token string
	// Requirement is what the request needs. The zero Requirement and Public are not for
	// a Validator: it answers them with an error.
	Requirement Requirement
	// WorkspaceID is the workspace of the resource that the request is about, if that is
	// known before the handler runs: another workspace's key is then answered as an
	// unknown one. Empty means any.
	WorkspaceID string
	// ClientAddress is the presenter's; the zero Addr if it is not known, which keys that
	// are limited to addresses do not accept.
	ClientAddress netip.Addr
}

// Answer is what a Validator knows of a token. The zero Answer is a refusal.
type Answer struct {
	// Decision says whether the request may pass. Only DECISION_ALLOWED says yes.
	Decision keysvcv1.Decision
	// Reason says why not. It is for the log, not for the presenter.
	Reason keysvcv1.Reason
	// KeyID is the key's public identifier, where it may be told.
	KeyID string
	// Principal is set on DECISION_ALLOWED. It is shared: do not change it.
	Principal *Principal
}

// Validator answers questions. The client of the package keyclient is one, and so is
// what the package keyauthtest makes; both are safe for concurrent use, as every
// Validator has to be.
type Validator interface {
	// Validate answers a question. An error means that there is no answer, and that the
	// request must not pass: a status of codes.Internal or codes.InvalidArgument if the
	// service asked wrongly, for example for a scope that the policy does not have; that
	// of codes.Unavailable if keysvc could not be asked in time; the context's error if it
	// ended. Errors never say anything about the token.
	Validate(ctx context.Context, question Question) (Answer, error)
}

// Watcher is a Validator that also knows when an answer ceases to hold. A Guard uses it
// to end streams whose key was revoked. A Watcher with a method Watches() bool that says
// false when the Guard is made is treated as a Validator only.
type Watcher interface {
	Validator
	// Watch asks a question, and asks it anew for as long as the answer is ALLOWED, whenever
	// something has changed that the answer may depend on. It returns the first answer that
	// is not ALLOWED, an error of Validate's kind if nothing can be known any more, or the
	// context's error.
	Watch(ctx context.Context, question Question) (Answer, error)
}

type principalKey struct{}

// PrincipalFrom returns who the request acts as. There is none in a context that did not
// come from a Guard, nor in that of a public method.
func PrincipalFrom(ctx context.Context) (Principal, bool) {
	principal, ok := ctx.Value(principalKey{}).(*Principal)
	if !ok || principal == nil {
		return Principal{}, false
	}
	return *principal, true
}

// WithPrincipal returns a context that acts as the principal. It is for tests and for
// services that authenticate some requests by other means.
func WithPrincipal(ctx context.Context, principal Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, &principal)
}
