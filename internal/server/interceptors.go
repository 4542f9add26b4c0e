package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2"
	grpccall "github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/service"
)

// interceptors returns what every call passes, outermost first:
//
//  1. request id: so that everything below logs it;
//  2. recovery: a panic becomes INTERNAL and one log entry;
//  3. log: one line a call, validations and health only at debug;
//  4. in flight: what is too much is refused before it costs anything;
//  5. caller: who calls, and whether they may. Nothing passes by it;
//  6. for streams, the stop: what would go on for ever ends with stopping.
func interceptors(
	stopping context.Context, settings config.Settings, log *slog.Logger, errors service.Errors,
) ([]grpc.UnaryServerInterceptor, []grpc.StreamServerInterceptor) {
	recoverOption := recovery.WithRecoveryHandlerContext(recoverer(log, errors))
	logged := selector.MatchFunc(func(ctx context.Context, call grpccall.CallMeta) bool {
		switch callers.Needs(call.FullMethod()) {
		case callers.Validate, callers.Anyone: // Anyone is health, which probes ask all the time
			return log.Enabled(ctx, slog.LevelDebug)
		case callers.Nobody, callers.Manage, callers.Report, callers.Audit, callers.Administer, callers.Inspect:
		}
		return true
	})
	options := logOptions()
	flight := &inFlight{most: int64(settings.MaxInFlight), errors: errors}
	unary := []grpc.UnaryServerInterceptor{
		unaryRequestID,
		recovery.UnaryServerInterceptor(recoverOption),
		selector.UnaryServerInterceptor(logging.UnaryServerInterceptor(logger(log), options...), logged),
		flight.unary,
		unaryCaller(errors),
	}
	stream := []grpc.StreamServerInterceptor{
		streamRequestID,
		recovery.StreamServerInterceptor(recoverOption),
		selector.StreamServerInterceptor(logging.StreamServerInterceptor(logger(log), options...), logged),
		streamCaller(errors),
		streamStop(stopping),
	}
	return unary, stream
}

// recoverer turns a panic into INTERNAL. The value of the panic is logged only where
// it cannot be text of a caller.
func recoverer(log *slog.Logger, errors service.Errors) recovery.RecoveryHandlerFuncContext {
	return func(ctx context.Context, value any) error {
		described := slog.String("type", typeName(value))
		if fault, ok := value.(runtime.Error); ok {
			described = slog.String("panic", fault.Error())
		}
		log.ErrorContext(ctx, "a handler panicked", described, slog.String("stack", string(debug.Stack())))
		return errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_INTERNAL, "internal error; the log has its cause"))
	}
}

// requestIDHeader carries the id under which a call is logged, both ways.
const requestIDHeader = "x-request-id"

// maxRequestIDLength is shorter than any token, so that none gets into the log when
// a caller mixes up its headers.
const maxRequestIDLength = 64

type requestIDKey struct{}

// requestIDOf returns the id under which a call is logged; empty for validations.
func requestIDOf(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// newRequestID returns the caller's request id if it sent a proper one, else a new
// one.
func newRequestID(ctx context.Context) string {
	if sent := metadata.ValueFromIncomingContext(ctx, requestIDHeader); len(sent) == 1 && properRequestID(sent[0]) {
		return sent[0]
	}
	return rand.Text()
}

func properRequestID(id string) bool {
	return id != "" && len(id) <= maxRequestIDLength && strings.IndexFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._:-", r)
	}) < 0
}

func unaryRequestID(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	// A validation is not worth the header: there are many, and they are not logged.
	if callers.Needs(info.FullMethod) == callers.Validate {
		return handler(ctx, request)
	}
	id := newRequestID(ctx)
	// It fails only after the headers were sent, which nobody has done yet.
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, id))
	return handler(context.WithValue(ctx, requestIDKey{}, id), request)
}

func streamRequestID(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	id := newRequestID(stream.Context())
	_ = stream.SetHeader(metadata.Pairs(requestIDHeader, id))
	return handler(server, &middleware.WrappedServerStream{
		ServerStream: stream, WrappedContext: context.WithValue(stream.Context(), requestIDKey{}, id),
	})
}

// inFlight bounds how many unary calls are worked on at a time.
type inFlight struct {
	most   int64
	now    atomic.Int64
	errors service.Errors
}

func (f *inFlight) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	// Health must be told however busy the server is.
	if callers.Needs(info.FullMethod) == callers.Anyone {
		return handler(ctx, request)
	}
	defer f.now.Add(-1)
	if f.now.Add(1) > f.most {
		return nil, f.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"%d requests are in flight, as many as allowed; try again", f.most))
	}
	return handler(ctx, request)
}

// admit says who calls, and refuses whoever may not.
func admit(ctx context.Context, fullMethod string, errors service.Errors) (context.Context, error) {
	// Until there is TLS, only this machine reaches the listener.
	identity := callers.Local()
	if !identity.May(fullMethod) {
		return nil, errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED,
			"the caller may not call this method, which needs the permission %q", callers.Needs(fullMethod)))
	}
	return callers.NewContext(ctx, identity), nil
}

func unaryCaller(errors service.Errors) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := admit(ctx, info.FullMethod, errors)
		if err != nil {
			return nil, err
		}
		return handler(ctx, request)
	}
}

func streamCaller(errors service.Errors) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := admit(stream.Context(), info.FullMethod, errors)
		if err != nil {
			return err
		}
		return handler(server, &middleware.WrappedServerStream{ServerStream: stream, WrappedContext: ctx})
	}
}

// streamStop ends the context of streams when the server stops. Without it, one that
// only waits, as who watches health does, would take up the whole drain.
func streamStop(stopping context.Context) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(stopping, cancel)()
		err := handler(server, &middleware.WrappedServerStream{ServerStream: stream, WrappedContext: ctx})
		if stopping.Err() == nil || stream.Context().Err() != nil {
			return err
		}
		if info.FullMethod == grpc_health_v1.Health_Watch_FullMethodName {
			// It may have seen its context end before the news.
			_ = stream.SendMsg(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING})
		}
		return status.Error(codes.Unavailable, "the server is stopping")
	}
}

// logger lets the middleware write to slog.
func logger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, message string, fields ...any) {
		log.Log(ctx, slog.Level(level), message, fields...) //nolint:sloglint // the middleware has few messages, all constant
	})
}

// logOptions says what is logged of a call: nothing of requests and responses.
func logOptions() []logging.Option {
	return []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithDisableLoggingFields(logging.ComponentFieldKey, logging.MethodTypeFieldKey, logging.SystemTag[0]),
		logging.WithLevels(func(code codes.Code) logging.Level {
			switch code {
			case codes.Internal, codes.DataLoss, codes.Unknown:
				return logging.LevelError
			case codes.Unavailable, codes.ResourceExhausted, codes.Unimplemented:
				return logging.LevelWarn
			}
			return logging.LevelInfo
		}),
	}
}
