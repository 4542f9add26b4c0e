package server

import (
	"context"
	"crypto/rand"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/version"
)

// recovered turns a panic into INTERNAL. The value of the panic is reported only if it cannot
// contain text of a caller.
func (d *door) recovered(ctx context.Context, value any) error {
	panicked := events.Panic{RequestID: requestIDOf(ctx), Type: typeName(value), Stack: string(debug.Stack())}
	if fault, ok := value.(runtime.Error); ok {
		panicked.Fault = fault.Error()
	}
	d.hooks.HandlerPanicked(panicked)
	return d.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_INTERNAL, "internal error; the log has its cause"))
}

// requestIDHeader carries the id under which a call is logged, both ways.
const requestIDHeader = "x-request-id"

// maxRequestIDLength is the longest request id that is taken from a caller, in bytes. It is
// shorter than any token, so that no token gets into the log when a caller mixes up its
// headers.
const maxRequestIDLength = 64

type requestIDKey struct{}

// requestIDOf returns the id under which a call is logged; empty for validations.
func requestIDOf(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// newRequestID returns the request id that the caller sent, or a new one if that is missing
// or malformed.
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

// withRequestID returns a context with the call's request id. It sends the caller two headers: the
// id, and the version of this server. Validations get neither.
func withRequestID(ctx context.Context) context.Context {
	id := newRequestID(ctx)
	// SetHeader fails only if the headers were sent already, and they were not.
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, id, version.Header, version.Text()))
	return context.WithValue(ctx, requestIDKey{}, id)
}

// untilStop calls a stream's handler with a context that also ends when the stop begins.
// Otherwise a stream that only waits, as a watch of health does, would use up the whole
// drain.
func untilStop(
	stopping context.Context, server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// The handler of reflection waits for requests, and does not notice that its context ends. The
	// gate of the budget ends a stream whose context ends with a status. Other handlers still have
	// something to send.
	inspects := callers.Of(info.FullMethod).Work == callers.Inspection
	cause := context.Canceled
	if inspects {
		cause = errStopping
	}
	defer context.AfterFunc(stopping, func() { cancel(cause) })()
	err := handler(server, &middleware.WrappedServerStream{ServerStream: stream, WrappedContext: ctx})
	if stopping.Err() == nil || !inspects && stream.Context().Err() != nil {
		return err
	}
	if info.FullMethod == grpc_health_v1.Health_Watch_FullMethodName {
		// The handler may have returned before it could send the new status.
		_ = stream.SendMsg(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING})
	}
	return errStopping
}

// errStopping is the status of a stream that the stop has ended.
var errStopping = status.Error(codes.Unavailable, "the server is stopping")
