package server

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/events"
)

// monotonic returns a time to measure a duration from.
func monotonic() time.Time { return time.Now() }

// observation is what the door remembers of a call until the call has its answer.
type observation struct {
	fullMethod string
	began      time.Time
	caller     string
	credential string
	// refused is set if the call found no slot: CallsRefused counts it.
	refused bool
}

func observe(fullMethod string) *observation {
	return &observation{fullMethod: fullMethod, began: monotonic()}
}

// by remembers who called. On nil it does nothing.
func (o *observation) by(identity *callers.Identity) {
	if o != nil {
		o.caller, o.credential = identity.CallerName(), identity.CallerCredential()
	}
}

// refuse remembers that the call found no slot. On nil it does nothing.
func (o *observation) refuse() {
	if o != nil {
		o.refused = true
	}
}

// finished reports a call that has its answer. request and response are nil for streams.
func (d *door) finished(ctx context.Context, observed *observation, request, response any, err error) {
	if observed.refused {
		return
	}
	result := status.Convert(err)
	call := events.Call{
		Caller: observed.caller, Credential: observed.credential, RequestID: requestIDOf(ctx), TraceID: d.tracing.IDOf(ctx),
		Code: codeName(result.Code()), Reason: reasonOf(result), Error: result.Message(),
		Duration: monotonic().Sub(observed.began), Severity: severityOf(observed.fullMethod, result.Code()),
	}
	call.Service, call.Method = methodOf(observed.fullMethod)
	if from, known := peer.FromContext(ctx); known {
		call.Peer = from.Addr.String()
	}
	if callers.Of(observed.fullMethod).Work != callers.Validation {
		call.Subject, call.Actor = d.subjects.of(request, response)
	}
	d.hooks.CallFinished(call)
}

// refusedValidation reports a validation that is refused because of who called.
func (d *door) refusedValidation(ctx context.Context, fullMethod string, identity *callers.Identity, err error) {
	result := status.Convert(err)
	call := events.Call{
		Caller: identity.CallerName(), Credential: identity.CallerCredential(),
		Code: codeName(result.Code()), Reason: reasonOf(result), Error: result.Message(),
		Severity: severityOf(fullMethod, result.Code()),
	}
	call.Service, call.Method = methodOf(fullMethod)
	if from, known := peer.FromContext(ctx); known {
		call.Peer = from.Addr.String()
	}
	d.hooks.ValidationRefused(call)
}

// codeName returns the name of a code, as in "NOT_FOUND".
func codeName(of codes.Code) string {
	if of == codes.OK { // without a look into the descriptor
		return okCode
	}
	return code.Code(of).String() //nolint:gosec // 0 to 16
}

// methodOf returns the service and the RPC of "/service/RPC".
func methodOf(fullMethod string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return service, method
}

// reasonOf returns the reason of a status that keysvc made; "" for another one.
func reasonOf(result *status.Status) string {
	for _, detail := range result.Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			return info.GetReason()
		}
	}
	return ""
}

// severityOf returns how much an answer matters to operators. Validations, sessions and health
// are asked for all the time, and logged at debug only. A session that is refused because there
// are too many is a warning, because that near-cache cannot work.
func severityOf(fullMethod string, answer codes.Code) slog.Level {
	if needs := callers.Needs(fullMethod); (needs == access.Validate || needs == access.Anyone) && answer != codes.ResourceExhausted {
		return slog.LevelDebug
	}
	switch answer {
	case codes.Internal, codes.DataLoss, codes.Unknown:
		return slog.LevelError
	case codes.Unavailable, codes.ResourceExhausted, codes.Unimplemented:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
