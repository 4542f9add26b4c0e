package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/budget"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/tracing"
)

// door is the interceptor that every call passes before its handler. It handles
//
//   - recovery: a panic becomes INTERNAL and one event;
//   - identity: who the caller is;
//   - rights: a caller without the right that the method needs is refused;
//   - slots: a call that finds no slot is refused before it costs anything;
//   - observation: a request id, and the event that the call has an answer.
//
// A validation gets no request id, and no CallFinished event except at debug. The door
// allocates nothing for it: its handler gets the context as it came, without the identity.
type door struct {
	errors service.Errors
	log    *slog.Logger
	now    func() time.Time
	slots  *slotTable
	// workOf returns the kind of work of a validation, which depends on what it asks for.
	workOf func(request any) callers.Work
	// judge says who calls, live has the streams that are open, and unknown and owner count what is
	// reported once a second.
	judge callers.Judge
	// remote is set if every call waits for the store, which is another process.
	remote         bool
	live           liveStreams
	unknown, owner counter
	// stopping ends when the stop begins.
	stopping context.Context //nolint:containedctx // the server's own lifetime, not a call's

	// hooks are called for each call, and subjects finds out what the call was about.
	hooks    events.Hooks
	subjects subjects
	// tracing knows the traces of calls; nil if there are none.
	tracing *tracing.Tracing
}

// newDoor returns the door of a server.
func newDoor(
	stopping context.Context, slots *slotTable, log *slog.Logger, now func() time.Time,
	errors service.Errors, workOf func(request any) callers.Work, hooks events.Hooks, subjects subjects, judge callers.Judge,
) *door {
	return &door{
		judge: judge, errors: errors, log: log, now: now, slots: slots, workOf: workOf, stopping: stopping,
		hooks: hooks, subjects: subjects,
	}
}

// unary is the interceptor of unary calls.
func (d *door) unary(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (response any, err error) {
	method := callers.Of(info.FullMethod)
	if method.Work == callers.Validation {
		if !d.log.Enabled(ctx, slog.LevelDebug) {
			return d.validation(ctx, method, request, info, handler)
		}
	} else {
		ctx = withRequestID(ctx)
		method.Needs = callers.NeedsOf(info.FullMethod, request)
	}
	observed := observe(info.FullMethod)
	response, err = d.pass(ctx, method, info.FullMethod, request, handler, observed)
	d.finished(ctx, observed, request, response, err)
	return response, err
}

// validation passes a validation, and reports it only if there is a hook for that.
func (d *door) validation(
	ctx context.Context, method callers.Method, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (response any, err error) {
	if d.hooks.ValidationFinished == nil {
		return d.pass(ctx, method, info.FullMethod, request, handler, nil)
	}
	began := monotonic()
	response, err = d.pass(ctx, method, info.FullMethod, request, handler, nil)
	_, name := methodOf(info.FullMethod)
	d.hooks.ValidationFinished(events.Validation{Method: name, Code: codeName(status.Code(err)), Duration: monotonic().Sub(began)})
	return response, err
}

// pass takes a unary call through the door. observed is nil for a validation that is not reported
// as a call.
func (d *door) pass(
	ctx context.Context, method callers.Method, fullMethod string, request any, handler grpc.UnaryHandler, observed *observation,
) (response any, err error) {
	// 1. Recovery comes before everything that can panic.
	defer func() {
		if value := recover(); value != nil {
			response, err = nil, d.recovered(ctx, value)
		}
	}()
	// 2. Identity and rights are checked before the call can take a slot from other calls.
	from, err := d.identify(ctx, method.Needs)
	if err == nil {
		observed.by(from.identity)
		err = d.mayCall(ctx, from.identity, method.Needs)
	}
	if err != nil {
		if observed == nil {
			d.refusedValidation(ctx, fullMethod, from.identity, err)
		}
		return nil, err
	}
	// 3. The slot is held until the handler has returned, or panicked.
	work := method.Work
	if work == callers.Validation {
		work = d.workOf(request)
	}
	if free := d.slots.of(work); free != nil {
		share := free.acquire(from.identity.CallerName())
		if share == nil {
			observed.refuse()
			return nil, d.noSlot(ctx, free)
		}
		defer free.release(share)
	}
	if d.remote || work == callers.Wait || work == callers.Change { // for the store, for another change, and for the disk
		if c := connection.FromContext(ctx); c != nil {
			defer c.Waits()()
		}
	}
	// 4. The handler asks callers.FromContext. Most connections know their caller, and then a
	// context with the identity would be one more allocation.
	if callers.FromContext(ctx) != from.identity {
		ctx = callers.NewContext(ctx, from.identity)
	}
	return handler(ctx, request)
}

// stream is the interceptor of streams.
func (d *door) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, observed := withRequestID(stream.Context()), observe(info.FullMethod)
	err := d.passStream(ctx, server, stream, info, handler, observed)
	d.finished(ctx, observed, nil, nil, err)
	return err
}

// passStream takes a stream through the door, in the steps of pass.
func (d *door) passStream(
	ctx context.Context, server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler, observed *observation,
) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = d.recovered(ctx, value)
		}
	}()
	method, judged := callers.Of(info.FullMethod), d.live.judged()
	from, err := d.identify(ctx, method.Needs)
	if err != nil {
		return err
	}
	observed.by(from.identity)
	if err := d.mayCall(ctx, from.identity, method.Needs); err != nil {
		return err
	}
	if free := d.slots.of(method.Work); free != nil {
		share := free.acquire(from.identity.CallerName())
		if share == nil {
			observed.refuse()
			return d.noSlot(ctx, free)
		}
		defer free.release(share)
	}
	if c := connection.FromContext(ctx); c != nil && method.Work == callers.Session {
		defer c.Apart()() // the slots, and the hub, count it
	}
	// The stream is judged again while it is open, and ends with a status.
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	open := &liveStream{live: callers.NewLive(from.identity), needs: method.Needs, peer: callers.PeerFromContext(ctx), byToken: from.byToken, end: end}
	defer d.beginLive(ctx, open, judged)()
	wrapped := &middleware.WrappedServerStream{
		ServerStream: stream, WrappedContext: callers.NewLiveContext(callers.NewContext(ctx, from.identity), open.live),
	}
	err = untilStop(d.stopping, server, wrapped, info, handler)
	if cause := context.Cause(ctx); cause != nil {
		if _, isStatus := status.FromError(cause); isStatus { // it was ended here, and not by the client
			return cause
		}
	}
	return err
}

// noSlot returns the error for a call that found no slot. Refusals are reported once a
// second.
func (d *door) noSlot(ctx context.Context, free *slots) error {
	if refused := free.reports.since(d.now(), free.refused.Load()); refused > 0 {
		d.hooks.CallsRefused(events.Refusals{Work: free.work.String(), Limit: free.limit.Load(), Count: refused})
	}
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
		"%d calls of this kind (%s) are allowed at a time, a quarter of them to other callers; as many are in flight; try again",
		free.limit.Load(), free.work))
}

// noRoom returns the function that reports calls that found no room for their bytes, once a second.
func (d *door) noRoom() func(budget.Snapshot) {
	var reports reports
	return func(state budget.Snapshot) {
		if refused := reports.since(d.now(), state.Refused); refused > 0 {
			d.hooks.BytesRefused(events.BytesRefused{Limit: state.Limit, Held: state.Held, Count: refused})
		}
	}
}
