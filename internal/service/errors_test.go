package service_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// mapper returns an Errors and what it logs.
func mapper() (service.Errors, *journal) {
	log := &journal{}
	return service.Errors{Log: slog.New(log)}, log
}

// documented returns the code that the contract gives each reason: the first word of the
// reason's comment.
func documented(t *testing.T) map[string]codes.Code {
	t.Helper()
	text, err := os.ReadFile("../../proto/keysvc/v1/errors.proto")
	if err != nil {
		t.Fatal(err)
	}
	result := make(map[string]codes.Code)
	for _, match := range regexp.MustCompile(`(?m)((?:^  //.*\n)+)^  (ERROR_REASON_\w+) = \d+;`).FindAllStringSubmatch(string(text), -1) {
		name := strings.TrimPrefix(match[2], "ERROR_REASON_")
		word := regexp.MustCompile(`^  // ([A-Z_]+)\.`).FindStringSubmatch(match[1])
		if word == nil {
			if name != "UNSPECIFIED" {
				t.Errorf("%s does not say its code", name)
			}
			continue
		}
		var code codes.Code
		if err := code.UnmarshalJSON([]byte(`"` + word[1] + `"`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		result[name] = code
	}
	return result
}

// TestEveryReasonIsSentWithTheCodeOfTheContract: errors.proto names the code of each reason. The
// status has this code, the domain, and the reason without its prefix. Nothing is logged.
func TestEveryReasonIsSentWithTheCodeOfTheContract(t *testing.T) {
	codesOf := documented(t)
	for number, name := range keysvcv1.ErrorReason_name {
		reason := keysvcv1.ErrorReason(number)
		short := strings.TrimPrefix(name, "ERROR_REASON_")
		if reason == keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
			continue
		}
		t.Run(short, func(t *testing.T) {
			errors, log := mapper()
			want, found := codesOf[short]
			if !found {
				t.Fatal("the contract does not say its code")
			}
			if reason != keysvcv1.ErrorReason_ERROR_REASON_INTERNAL && want == codes.Internal {
				t.Error("only faults of keysvc are INTERNAL")
			}
			told := problem.New(reason, "message of %s", short)
			told.Metadata = map[string]string{"key_id": "Key1"}
			got := refused(t, errors.Status(t.Context(), told), want, short)
			if got.message != "message of "+short || got.info.GetMetadata()["key_id"] != "Key1" {
				t.Errorf("got %+v", got)
			}
			retry := want == codes.ResourceExhausted
			if (got.retry != nil) != retry || retry && got.retry.GetRetryDelay().AsDuration() <= 0 {
				t.Errorf("RetryInfo: %v", got.retry)
			}
			if len(log.entries) != 0 {
				t.Errorf("logged: %+v", log.entries)
			}
			if got := service.Reason(reason); got != short {
				t.Errorf("Reason: got %q", got)
			}
		})
	}
	if len(codesOf) < 28 {
		t.Errorf("only %d reasons were found in the contract", len(codesOf))
	}
}

func TestUnknownReasonIsSentAsInternal(t *testing.T) {
	errors, _ := mapper()
	for _, reason := range []keysvcv1.ErrorReason{0, 9999} {
		if got := read(t, errors.Status(t.Context(), problem.New(reason, "hm"))).code; got != codes.Internal {
			t.Errorf("%d: got %s", reason, got)
		}
	}
}

func TestNilErrorHasNoStatus(t *testing.T) {
	errors, log := mapper()
	if err := errors.Status(t.Context(), nil); err != nil || len(log.entries) != 0 {
		t.Errorf("got %v, logged %+v", err, log.entries)
	}
}

func TestBadFieldsAreListedInTheStatus(t *testing.T) {
	errors, _ := mapper()
	var fields problem.Fields
	fields.Add("name", "is missing")
	fields.Within("key").Add("scopes[3]", "is there twice")
	got := refused(t, errors.Status(t.Context(), fmt.Errorf("wrapped: %w", fields.Err())),
		codes.InvalidArgument, "FIELD_INVALID", "name", "key.scopes[3]")
	if want := "invalid request: name: is missing; key.scopes[3]: is there twice"; got.message != want {
		t.Errorf("got %q, want %q", got.message, want)
	}
}

// TestCausesAreLoggedOnceAndNeverSent: a caller is told what to do about an error of the store or a
// fault of the server. Its cause is in the log, once.
func TestCausesAreLoggedOnceAndNeverSent(t *testing.T) {
	const secret = "/var/lib/keysvc: disk on fire"
	cause := errors.New(secret)
	wrap := func(outer error) error { return fmt.Errorf("committing: %w: %w", outer, cause) }
	for _, test := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
		level  slog.Level
	}{
		// Design, section 5.
		{"outcome unknown", wrap(storage.ErrOutcomeUnknown), codes.Unknown, "OUTCOME_UNKNOWN", slog.LevelError},
		{"unavailable", wrap(storage.ErrUnavailable), codes.Unavailable, "STORE_UNAVAILABLE", slog.LevelWarn},
		{"damaged", wrap(storage.ErrDamaged), codes.DataLoss, "RECORD_DAMAGED", slog.LevelError},
		{
			"damaged record", &storage.DamagedError{Kind: "key", Name: "Key1", Problem: secret},
			codes.DataLoss, "RECORD_DAMAGED", slog.LevelError,
		},
		// The caller must know about the change before anything else.
		{
			"outcome unknown because the context ended", fmt.Errorf("%w: %w: %w", storage.ErrOutcomeUnknown, context.DeadlineExceeded, cause),
			codes.Unknown, "OUTCOME_UNKNOWN", slog.LevelError,
		},
		{
			"outcome unknown and unavailable", fmt.Errorf("%w: %w: %w", storage.ErrUnavailable, storage.ErrOutcomeUnknown, cause),
			codes.Unknown, "OUTCOME_UNKNOWN", slog.LevelError,
		},
		{
			"unavailable because the file is damaged", fmt.Errorf("%w: %w: %w", storage.ErrUnavailable, storage.ErrDamaged, cause),
			codes.Unavailable, "STORE_UNAVAILABLE", slog.LevelWarn,
		},
		// The process ends at once, and a supervisor starts it again.
		{"history changed", wrap(storage.ErrHistoryChanged), codes.Unavailable, "STORE_UNAVAILABLE", slog.LevelWarn},
		// What the verbs should have turned into a problem is a fault of keysvc.
		{"any other", cause, codes.Internal, "INTERNAL", slog.LevelError},
		{"conflict", wrap(storage.ErrConflict), codes.Internal, "INTERNAL", slog.LevelError},
		{"not found", wrap(storage.ErrNotFound), codes.Internal, "INTERNAL", slog.LevelError},
		{"invalid change", wrap(storage.ErrInvalidChange), codes.Internal, "INTERNAL", slog.LevelError},
		{"invalid cursor", wrap(storage.ErrInvalidCursor), codes.Internal, "INTERNAL", slog.LevelError},
		{"exists", fmt.Errorf("%w: %w", &storage.ExistsError{KeyID: "Key1"}, cause), codes.Internal, "INTERNAL", slog.LevelError},
	} {
		t.Run(test.name, func(t *testing.T) {
			errors, log := mapper()
			err := errors.Status(t.Context(), test.err)
			got := refused(t, err, test.code, test.reason)
			if strings.Contains(fmt.Sprintf("%v %+v %v", err, got, got.info), secret) {
				t.Errorf("the caller learns the cause: %v", err)
			}
			if test.code == codes.Internal && !strings.HasPrefix(got.message, "internal error") {
				t.Errorf("got %q", got.message)
			}
			if len(log.entries) != 1 || log.entries[0].level != test.level || !strings.Contains(log.entries[0].cause, secret) {
				t.Errorf("logged %+v", log.entries)
			}
		})
	}
}

// TestFullStoreIsNotLoggedForEachCall: the store has logged it once.
func TestFullStoreIsNotLoggedForEachCall(t *testing.T) {
	errors, log := mapper()
	err := errors.Status(t.Context(), fmt.Errorf("committing /data: %w", storage.ErrFull))
	got := refused(t, err, codes.ResourceExhausted, "STORE_FULL")
	if strings.Contains(got.message, "/data") || len(log.entries) != 0 {
		t.Errorf("got %q, logged %+v", got.message, log.entries)
	}
}

// TestFailingSinkIsNotLoggedForEachCall: the store has logged it once.
func TestFailingSinkIsNotLoggedForEachCall(t *testing.T) {
	errors, log := mapper()
	refused(t, errors.Status(t.Context(), fmt.Errorf("committing: %w", storage.ErrSink)), codes.Unavailable, "AUDIT_SINK_UNAVAILABLE")
	if len(log.entries) != 0 {
		t.Errorf("logged %+v", log.entries)
	}
}

// TestEndedContextsAreNotLogged: a caller that left is no fault.
func TestEndedContextsAreNotLogged(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"cancelled", context.Canceled, codes.Canceled},
		{"cancelled, wrapped", fmt.Errorf("waiting: %w", context.Canceled), codes.Canceled},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded},
		{"deadline, wrapped", fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			errors, log := mapper()
			if got := read(t, errors.Status(t.Context(), test.err)); got.code != test.code || got.info != nil {
				t.Errorf("got %+v", got)
			}
			if len(log.entries) != 0 {
				t.Errorf("logged %+v", log.entries)
			}
		})
	}
}

// TestWrappedProblemKeepsItsReason, whatever wraps it, and whatever it wraps.
func TestWrappedProblemKeepsItsReason(t *testing.T) {
	errors, log := mapper()
	told := problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND, "no such key")
	told.Cause = storage.ErrNotFound
	got := refused(t, errors.Status(t.Context(), fmt.Errorf("reading: %w", told)), codes.NotFound, "KEY_NOT_FOUND")
	if got.message != "no such key" || slices.ContainsFunc(log.entries, func(e entry) bool { return e.level >= slog.LevelWarn }) {
		t.Errorf("got %q, logged %+v", got.message, log.entries)
	}
}

func TestRetryDelayIsBetween10msAnd10s(t *testing.T) {
	errors, _ := mapper()
	got := read(t, errors.Status(t.Context(), problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS, "busy")))
	if delay := got.retry.GetRetryDelay().AsDuration(); delay < 10*time.Millisecond || delay > 10*time.Second {
		t.Errorf("got %s", delay)
	}
}
