package server

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// caller is who makes a call, as the door has found out.
type caller struct {
	identity *callers.Identity
	// byToken is set if a token of the call has proved it, and not the connection.
	byToken bool
}

// identify returns who makes a call that needs a right. On a connection that may bring tokens, a token decides alone if
// there is one: a wrong token is refused also on a connection that has an identity of its own. The
// error is a status. For a call without a token identify allocates nothing.
func (d *door) identify(ctx context.Context, needs access.Right) (caller, error) {
	if needs == access.Anyone {
		return caller{identity: callers.FromContext(ctx)}, nil // probes do not wait for anything
	}
	if from := callers.PeerFromContext(ctx); from != nil && from.BearerAllowed {
		if sent := metadata.ValueFromIncomingContext(ctx, "authorization"); len(sent) > 0 {
			return d.identifyToken(ctx, from, sent)
		}
	}
	identity := callers.FromContext(ctx)
	if identity != nil {
		if !identity.NotAfter.IsZero() && identity.Ended(d.now()) {
			return caller{}, nil
		}
		if identity.BreaksGlass() {
			d.breakGlass(identity)
		}
	}
	return caller{identity: identity}, nil
}

// identifyToken returns whose token a call has brought.
func (d *door) identifyToken(ctx context.Context, from *callers.Peer, sent []string) (caller, error) {
	bearer, err := bearerOf(sent)
	var identity *callers.Identity
	if err == nil {
		identity, err = d.judge.Bearer(ctx, from, bearer)
	}
	switch {
	case errors.Is(err, callers.ErrBusy):
		return caller{}, d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"the caller's token cannot be checked now; try again"))
	case err != nil:
		if count := d.unknown.count(d.now()); count > 0 {
			d.hooks.CallersRefused(events.CallerRefusals{Peer: from.Address, Reason: err.Error(), Count: count})
		}
		return caller{}, d.notKnown(ctx)
	}
	return caller{identity: identity, byToken: true}, nil
}

var errAuthorization = errors.New("the call has several authorization headers, or one that is not Bearer and a token")

// bearerOf returns the token of an authorization header (RFC 6750, section 2.1).
func bearerOf(sent []string) (string, error) {
	const scheme = "bearer "
	if len(sent) != 1 || len(sent[0]) <= len(scheme) || !strings.EqualFold(sent[0][:len(scheme)], scheme) {
		return "", errAuthorization
	}
	return sent[0][len(scheme):], nil
}

// breakGlass reports that the owner of the process calls although there is a callers file.
func (d *door) breakGlass(identity *callers.Identity) {
	if count := d.owner.count(d.now()); count > 0 {
		d.hooks.OwnerCalled(events.OwnerCalls{Credential: identity.Credential, Count: count})
	}
}

// mayCall returns an error if a caller lacks the right that a method needs.
func (d *door) mayCall(ctx context.Context, identity *callers.Identity, needs access.Right) error {
	switch {
	case identity.May(needs):
		return nil
	case identity == nil:
		return d.notKnown(ctx)
	}
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED,
		"the caller %s may not call this method, which needs the right %q", identity.Name, needs))
}

// notKnown returns the error for a caller that nobody knows.
func (d *door) notKnown(ctx context.Context) error {
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN,
		"keysvc does not know this caller; the log of keysvc says why"))
}

// counter counts what is reported once a second.
type counter struct {
	// total is how often it has happened since the start.
	total   atomic.Int64
	reports reports
}

// count counts once more. It returns how often it has happened since the last report, this one
// included; 0 if that is less than reportInterval ago.
func (c *counter) count(now time.Time) int64 { return c.reports.since(now, c.total.Add(1)) }
