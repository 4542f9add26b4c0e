package server

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// streamBound bounds the open calls of all connections, without the sessions of near-caches.
//
// A connection may have half as many as there is room for besides: so many validations, and so many of
// all others. So however many connections there are with as many calls as they get, something is left
// for one that has few. A connection with very few calls is not refused here at all: beyond the bound,
// the places of each kind of work and of half-open calls bound how many there are.
type streamBound struct {
	limit       int64
	taken       atomic.Int64
	connections *connection.Set
	door        *door
	full        error
	refused     counter
}

const (
	// freeShare is the part of what is left that a connection may have: one half.
	freeShare = 2
	// surplusFactor is how many times more streams than the bound there may be before streams are
	// refused without a goroutine, and surplusOfValidations that for validations. There are more
	// streams than calls because some wait for their goroutine, or for their refusal to be written.
	surplusFactor, surplusOfValidations = 2, 3
	// fewCalls and fewValidations are how many a connection may have in any case.
	fewCalls, fewValidations = 16, 64
	// fewStreams is how many streams of a connection always get their goroutine: the streams that a
	// crowd has sent too much are counted until their refusal is written.
	fewStreams = 64
)

func newStreamBound(s *Server, d *door) *streamBound {
	limit := int64(s.config.Settings.MaxOpenStreams)
	return &streamBound{
		limit: limit, connections: s.connections, door: d,
		full: d.errors.Status(context.Background(), problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"%d requests are allowed to be open at a time; there are about as many, or this connection has too large a part of them; try again", limit)),
	}
}

// Take implements budget.Places.
func (b *streamBound) Take(from *peer.Peer, work callers.Work) (*atomic.Int64, error) {
	share := connection.PlacesOf(from, isLast(work))
	own, all := share.Add(1), b.taken.Add(1)
	room, few := b.limit, int64(fewValidations)
	if !isLast(work) {
		room, few = b.limit-b.limit/callerShare, fewCalls
	}
	if own > max(few, (room-all)/freeShare) {
		b.Give(share)
		return nil, b.refuse()
	}
	return share, nil
}

// Give implements budget.Places.
func (b *streamBound) Give(share *atomic.Int64) {
	share.Add(-1)
	b.taken.Add(-1)
}

// refuse returns the error of a call that found no place. Refusals are reported once a second.
func (b *streamBound) refuse() error {
	if refused := b.refused.count(b.door.now()); refused > 0 {
		b.door.hooks.CallsRefused(events.Refusals{Work: "open", Limit: b.limit, Count: refused})
	}
	return b.full
}

// tap is what grpc calls for each stream, on the goroutine that reads the connection. The streams that
// are counted contain this one, and those that have come together with it.
func (b *streamBound) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	all := b.connections.Streams()
	if all < b.limit {
		return ctx, nil
	}
	room := surplusFactor * b.limit
	if isLast(callers.Of(info.FullMethodName).Work) {
		room = surplusOfValidations * b.limit
	}
	if c := connection.FromContext(ctx); c != nil && c.Streams() > max(fewStreams, (room-all)/freeShare) {
		return ctx, b.refuse()
	}
	return ctx, nil
}

// isLast reports whether work of a kind is refused last.
func isLast(work callers.Work) bool { return work == callers.Validation || work == callers.Probe }
