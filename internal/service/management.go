// Package service holds the handlers of the RPCs. A handler translates the message, calls the
// verb, translates what the verb returns, and maps its error to a status; nothing else.
package service

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/keys"
)

// RequestIDFunc returns the id under which the call is logged.
type RequestIDFunc func(context.Context) string

// Verbs are the verbs of a Manager, called with the messages of the RPCs. The methods translate,
// and return the verbs' errors as they are.
type Verbs struct{ *keys.Manager }

// management is what the handlers of the management services share.
type management struct {
	verbs     Verbs
	errors    Errors
	requestID RequestIDFunc
	forms     *Forms
}

// NewManagement returns the three management services over one Manager. requestID
// returns the id under which a call is logged. forms counts the forms of tokens, and may be nil.
func NewManagement(manager *keys.Manager, errors Errors, requestID RequestIDFunc, forms *Forms) (*KeyService, *MemberService, *PolicyService) {
	shared := management{verbs: Verbs{manager}, errors: errors, requestID: requestID, forms: forms}
	return &KeyService{management: shared}, &MemberService{management: shared}, &PolicyService{management: shared}
}

// change handles an RPC that changes something. The actor is the authenticated caller, with the
// workspaces that it has the method's right for; the verb adds the member that the message names.
func change[Request, Response any](
	ctx context.Context, m management, method string, request Request,
	verb func(context.Context, audit.Actor, Request) (Response, error),
) (Response, error) {
	identity := callers.FromContext(ctx)
	actor := audit.Actor{
		Caller: identity.CallerName(), Credential: identity.CallerCredential(),
		RequestID: m.requestID(ctx), Workspaces: identity.For(callers.NeedsOf(method, request)),
	}
	response, err := verb(ctx, actor, request)
	return response, m.errors.Status(ctx, err)
}

// read handles an RPC that changes nothing. The verb is given the workspaces that the caller has the
// method's right for.
func read[Request, Response any](
	ctx context.Context, m management, method string, request Request,
	verb func(context.Context, access.Workspaces, Request) (Response, error),
) (Response, error) {
	response, err := verb(ctx, callers.FromContext(ctx).For(callers.Needs(method)), request)
	return response, m.errors.Status(ctx, err)
}

// onBehalf returns the actor with the member that a message names; memberID is nil if the message
// names none.
func onBehalf(actor audit.Actor, memberID *string) audit.Actor {
	actor.MemberID = memberID
	return actor
}

// notATime stands for the time of a message that is not a valid one. The verbs refuse it as they
// refuse any time after the year 9999.
var notATime = time.Date(10_000, time.January, 1, 0, 0, 0, 0, time.UTC)

// timeOf returns the time in a message; nil for nil.
func timeOf(stamp *timestamppb.Timestamp) *time.Time {
	if stamp == nil {
		return nil
	}
	at := stamp.AsTime()
	if !stamp.IsValid() {
		at = notATime
	}
	return &at
}

// stampOf returns a time for a message, nil for the zero Time.
func stampOf(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}

// durationOf returns the duration in a message; nil for nil.
func durationOf(duration *durationpb.Duration) *time.Duration {
	if duration == nil {
		return nil
	}
	of := duration.AsDuration()
	if !duration.IsValid() {
		of = keys.NotADuration
	}
	return &of
}
