package service

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// ErrorDomain is the domain of every ErrorInfo that keysvc sends.
const ErrorDomain = "keysvc"

// reasonCodes maps each reason to the code that it is sent with. A missing reason would be
// sent as INTERNAL; a test checks that none is missing.
var reasonCodes = map[keysvcv1.ErrorReason]codes.Code{
	keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID:           codes.InvalidArgument,
	keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN:           codes.InvalidArgument,
	keysvcv1.ErrorReason_ERROR_REASON_ROLE_UNKNOWN:            codes.InvalidArgument,
	keysvcv1.ErrorReason_ERROR_REASON_PAGE_TOKEN_INVALID:      codes.InvalidArgument,
	keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND:           codes.NotFound,
	keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND:        codes.NotFound,
	keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE:       codes.PermissionDenied,
	keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED:      codes.PermissionDenied,
	keysvcv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN:          codes.Unauthenticated,
	keysvcv1.ErrorReason_ERROR_REASON_ETAG_MISMATCH:           codes.Aborted,
	keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED: codes.Aborted,
	keysvcv1.ErrorReason_ERROR_REASON_CONCURRENT_CHANGE:       codes.Aborted,
	keysvcv1.ErrorReason_ERROR_REASON_POLICY_CHANGED:          codes.Aborted,
	keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED:         codes.AlreadyExists,
	keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED:             codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_KEY_EXPIRED:             codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED:        codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED:           codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS:    codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_SCOPE_RETIRED:           codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH:          codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS:       codes.ResourceExhausted,
	keysvcv1.ErrorReason_ERROR_REASON_STORE_FULL:              codes.ResourceExhausted,
	keysvcv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:         codes.Unknown,
	keysvcv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE:       codes.Unavailable,
	keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED:    codes.Unavailable,
	keysvcv1.ErrorReason_ERROR_REASON_RECORD_DAMAGED:          codes.DataLoss,
	keysvcv1.ErrorReason_ERROR_REASON_INTERNAL:                codes.Internal,
	keysvcv1.ErrorReason_ERROR_REASON_NOT_IMPLEMENTED:         codes.Unimplemented,
	keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE:            codes.Unavailable,
	keysvcv1.ErrorReason_ERROR_REASON_TOKENS_REFUSED:          codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_AUDIT_SINK_UNAVAILABLE:  codes.Unavailable,
	keysvcv1.ErrorReason_ERROR_REASON_TOKEN_KNOWN:             codes.AlreadyExists,
	keysvcv1.ErrorReason_ERROR_REASON_READ_ONLY:               codes.Unavailable,
	keysvcv1.ErrorReason_ERROR_REASON_BACKUP_RUNNING:          codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_KEY_HELD:                codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_SETTINGS_NOT_STORED:     codes.FailedPrecondition,
	keysvcv1.ErrorReason_ERROR_REASON_SCHEMA_DIFFERS:          codes.FailedPrecondition,
}

// retryDelay is how long a caller is told to wait before a retry.
const retryDelay = 100 * time.Millisecond

// Errors maps errors to statuses; nothing else does. It logs the cause of an error once, because
// a caller may not see the cause.
type Errors struct {
	// Log is where causes go. Required.
	Log *slog.Logger
}

// Status returns the error that an RPC is answered with; nil for nil.
func (e Errors) Status(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := contextStatus(err); ended != nil {
		return ended
	}
	told := e.problem(ctx, err)
	if told.Reason == keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED {
		// The call has waited for as long as its deadline allowed. A client that retries by
		// itself, because of the code, would run into the deadline, and its user would not see
		// this answer; so the trailer forbids the retry. Without a call, as in tests, SetTrailer
		// fails.
		_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "-1"))
	}
	return statusOf(told).Err()
}

// contextStatus returns the status for a call that was cancelled or took too long.
func contextStatus(err error) error {
	switch {
	case errors.Is(err, storage.ErrOutcomeUnknown):
		return nil // the reason OUTCOME_UNKNOWN says more than the context's error
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call's deadline passed; nothing was changed")
	}
	return nil
}

// problem maps an error to the *problem.Error that the caller may see.
func (e Errors) problem(ctx context.Context, err error) *problem.Error {
	if known, ok := errors.AsType[*problem.Error](err); ok {
		return known
	}
	switch {
	case errors.Is(err, storage.ErrOutcomeUnknown):
		e.Log.ErrorContext(ctx, "the outcome of a change is unknown", "error", err)
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the store failed during the change, which took effect or did not; read it, or repeat it with the same request_id")
	case errors.Is(err, storage.ErrFull):
		// Not logged here: the store has logged it once for all the calls that follow.
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_STORE_FULL,
			"the disk of the store is full, so only changes that take something away are made; nothing was changed")
	case errors.Is(err, storage.ErrSink):
		// Not logged here, as above.
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_AUDIT_SINK_UNAVAILABLE,
			"the audit sink cannot be written, so only changes that take something away are made; nothing was changed; try again")
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrHistoryChanged): // the process ends at once after the latter
		e.Log.WarnContext(ctx, "the store is not available", "error", err)
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE,
			"the store is not ready; nothing was changed; try again")
	case errors.Is(err, storage.ErrDamaged):
		e.Log.ErrorContext(ctx, "a stored record is damaged", "error", err)
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_RECORD_DAMAGED,
			"a stored record is damaged; the operator finds which with keysvc check")
	}
	e.Log.ErrorContext(ctx, "internal error", "error", err)
	return problem.New(keysvcv1.ErrorReason_ERROR_REASON_INTERNAL, "internal error; the log has its cause")
}

// codeOf returns the code that a reason is sent with.
func codeOf(reason keysvcv1.ErrorReason) codes.Code {
	if code, known := reasonCodes[reason]; known {
		return code
	}
	return codes.Internal
}

// Reason returns a reason as ErrorInfo has it: without the prefix of the enum.
func Reason(reason keysvcv1.ErrorReason) string {
	return strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// statusOf returns the status of a problem, with details.
func statusOf(problem *problem.Error) *status.Status {
	result := status.New(codeOf(problem.Reason), problem.Error())
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason: Reason(problem.Reason), Domain: ErrorDomain, Metadata: problem.Metadata,
	}}
	if len(problem.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, violation := range problem.Violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: violation.Field, Description: violation.Description,
			})
		}
		details = append(details, bad)
	}
	if result.Code() == codes.ResourceExhausted {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)})
	}
	if detailed, err := result.WithDetails(details...); err == nil {
		return detailed
	}
	return result
}
