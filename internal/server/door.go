package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2"
	grpccall "github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"google.golang.org/grpc"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/service"
)

// door is the one point that every call passes, before its handler. It settles
//
//   - recovery: a panic becomes INTERNAL and one log entry;
//   - identity: who calls;
//   - needs: whether they may. Nothing passes by it;
//   - room: what is too much is refused before it costs anything;
//   - observation: a request id, and one line in the log.
//
// A validation is neither given a request id nor logged, except at debug. It costs no
// allocation here: its handler gets the context that came, without the identity.
type door struct {
	errors service.Errors
	log    *slog.Logger
	now    func() time.Time
	rooms  *rooms
	// workOf says what kind of work a validation is, which depends on what it asks for.
	workOf func(request any) callers.Work
	// stopping ends when the server stops.
	stopping context.Context //nolint:containedctx // the server's own lifetime, not a call's

	// logUnary and logStream are the library's.
	logUnary  grpc.UnaryServerInterceptor
	logStream grpc.StreamServerInterceptor
}

// newDoor returns the door of a server with these settings.
func newDoor(
	stopping context.Context, rooms *rooms, log *slog.Logger, now func() time.Time,
	errors service.Errors, workOf func(request any) callers.Work,
) *door {
	d := &door{errors: errors, log: log, now: now, rooms: rooms, workOf: workOf, stopping: stopping}
	options := logOptions()
	logged := selector.MatchFunc(func(ctx context.Context, call grpccall.CallMeta) bool {
		switch callers.Needs(call.FullMethod()) {
		case callers.Validate, callers.Anyone: // Anyone is health, which probes ask all the time
			return log.Enabled(ctx, slog.LevelDebug)
		case callers.Nobody, callers.Manage, callers.Report, callers.Audit, callers.Administer, callers.Inspect:
		}
		return true
	})
	d.logUnary = selector.UnaryServerInterceptor(logging.UnaryServerInterceptor(logger(log), options...), logged)
	d.logStream = selector.StreamServerInterceptor(logging.StreamServerInterceptor(logger(log), options...), logged)
	return d
}

// identify returns who makes a call.
func (d *door) identify(context.Context) callers.Identity {
	// Until there is TLS, only this machine reaches the listener.
	return callers.Local()
}

// unary is the interceptor of unary calls.
func (d *door) unary(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (response any, err error) {
	method := callers.Of(info.FullMethod)
	bare := method.Work == callers.Validation && !d.log.Enabled(ctx, slog.LevelDebug)
	if method.Work != callers.Validation {
		ctx = withRequestID(ctx)
	}
	defer func() {
		if value := recover(); value != nil {
			response, err = nil, d.recovered(ctx, value)
		}
	}()
	identity := d.identify(ctx)
	if !identity.Has(method.Needs) {
		return d.logUnary(ctx, request, info, func(ctx context.Context, _ any) (any, error) {
			return nil, d.notAllowed(ctx, method.Needs)
		})
	}
	work := method.Work
	if work == callers.Validation {
		work = d.workOf(request)
	}
	if room := d.rooms.of(work); room != nil {
		if !room.enter() {
			return nil, d.noRoom(ctx, room)
		}
		defer room.leave()
	}
	if bare {
		return handler(ctx, request)
	}
	return d.logUnary(callers.NewContext(ctx, identity), request, info, handler)
}

// stream is the interceptor of streams.
func (d *door) stream(
	server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) (err error) {
	method := callers.Of(info.FullMethod)
	ctx := withRequestID(stream.Context())
	defer func() {
		if value := recover(); value != nil {
			err = d.recovered(ctx, value)
		}
	}()
	identity := d.identify(ctx)
	ctx = callers.NewContext(ctx, identity)
	wrapped := &middleware.WrappedServerStream{ServerStream: stream, WrappedContext: ctx}
	if !identity.Has(method.Needs) {
		return d.logStream(server, wrapped, info, func(any, grpc.ServerStream) error {
			return d.notAllowed(ctx, method.Needs)
		})
	}
	if room := d.rooms.of(method.Work); room != nil {
		if !room.enter() {
			return d.noRoom(ctx, room)
		}
		defer room.leave()
	}
	return d.logStream(server, wrapped, info, func(server any, stream grpc.ServerStream) error {
		return untilStop(d.stopping, server, stream, info, handler)
	})
}

// notAllowed is the answer to who may not call a method.
func (d *door) notAllowed(ctx context.Context, needs callers.Permission) error {
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED,
		"the caller may not call this method, which needs the permission %q", needs))
}

// noRoom is the answer to a call that is too many. The log gets one line a second of all
// of them.
func (d *door) noRoom(ctx context.Context, room *room) error {
	if refused := room.tell(d.now()); refused > 0 {
		d.log.WarnContext(ctx, "calls are refused: as many are in flight as allowed",
			"kind", room.work.String(), "allowed", room.most.Load(), "refused", refused)
	}
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
		"%d calls of this kind (%s) are in flight, as many as allowed; try again", room.most.Load(), room.work))
}
