package server

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/tap"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// streamBound bounds the open streams of all connections, without the sessions of near-caches. It
// refuses a stream before the stream has a goroutine.
//
// A connection may have half as many as there is room for besides. So however many connections there are with as
// many streams as they get, something is left for one that has few; and all together never have more
// than the bound.
type streamBound struct {
	limit       int64
	connections *connection.Set
	door        *door
	full        error
	refused     atomic.Int64
	reports     reports
}

// allowance is the part of what is left that a connection may have: one half.
const allowance = 2

func newStreamBound(s *Server, d *door) *streamBound {
	limit := int64(s.config.Settings.MaxOpenStreams)
	return &streamBound{
		limit: limit, connections: s.connections, door: d,
		full: d.errors.Status(context.Background(), problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"%d requests are allowed to be open at a time; there are about as many, or this connection has too large a part of them; try again", limit)),
	}
}

// tap is what grpc calls for each stream, on the goroutine that reads the connection. The streams that
// are counted contain this one, and those that have come together with it.
func (b *streamBound) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	own, all := int64(1), b.connections.Streams()
	if c := connection.FromContext(ctx); c != nil {
		own = c.Streams()
	}
	// 1. Most calls end here: there is room for any call, and so its kind does not matter.
	least := b.limit - b.limit/callerShare
	if own <= (least-all)/allowance {
		return ctx, nil
	}
	// 2. A quarter is for validations alone, and for probes.
	room := least
	switch callers.Of(info.FullMethodName).Work {
	case callers.Validation, callers.Probe:
		room = b.limit
	case callers.NoWork, callers.Change, callers.Read, callers.Wait, callers.Session, callers.Watch, callers.Inspection:
	}
	if own <= (room-all)/allowance {
		return ctx, nil
	}
	if refused := b.reports.since(b.door.now(), b.refused.Add(1)); refused > 0 {
		b.door.hooks.CallsRefused(events.Refusals{Work: "stream", Limit: b.limit, Count: refused})
	}
	return ctx, b.full
}
