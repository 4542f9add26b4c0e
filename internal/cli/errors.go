package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// errorDomain is the domain of the ErrorInfo that keysvc sends.
const errorDomain = "keysvc"

// tokenText finds text that may be a token, with all letters and digits that touch it.
var tokenText = regexp.MustCompile(`[0-9A-Za-z]*_ks[kc]1_[0-9A-Za-z_]*`)

// redact replaces tokens in a text that is shown to a person.
func redact(text string) string { return tokenText.ReplaceAllString(text, "[redacted token]") }

// printError writes the line "error: …" and, indented below it, the details. All errors of
// the command go to standard error through printError.
func (a *app) printError(ctx context.Context, err error) {
	var call *callError
	lines := []string{err.Error()}
	mistakes := mistakesOf(err)
	switch {
	case len(mistakes) > 0:
		lines = mistakes
	case errors.As(err, &call) && ctx.Err() != nil:
		lines = []string{"interrupted"}
		if call.changes {
			lines[0] += "; " + outcomeUnknown
		}
		lines = append(lines, call.advice...)
	case errors.As(err, &call):
		lines = call.lines()
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		lines = []string{"interrupted"}
	}
	var text strings.Builder
	text.WriteString("error: ")
	for i, line := range lines {
		if i > 0 {
			text.WriteString("  ")
		}
		text.WriteString(printable(redact(line)) + "\n")
	}
	// If standard error cannot be written to, the error cannot be reported.
	_, _ = io.WriteString(a.Stderr, text.String())
}

// listMistakes writes each mistake of a policy file or of settings on a line of its own to standard
// error, without "error: " before it, so that editors find file and line. It returns an error with
// the text summary, or err itself if err is not a list of mistakes.
func (a *app) listMistakes(err error, summary string) error {
	mistakes := mistakesOf(err)
	if len(mistakes) == 0 {
		return err
	}
	var text strings.Builder
	for _, mistake := range mistakes {
		text.WriteString(printable(redact(mistake)) + "\n")
	}
	if _, err := io.WriteString(a.Stderr, text.String()); err != nil {
		return err
	}
	return errors.New(summary)
}

// mistakesOf returns the mistakes of a policy file or of settings; nil for any other error.
func mistakesOf(err error) []string {
	var list []error
	if wrong, isPolicy := errors.AsType[policy.Errors](err); isPolicy {
		list = wrong.Unwrap()
	}
	if wrong, isSettings := errors.AsType[config.Errors](err); isSettings {
		list = wrong.Unwrap()
	}
	var texts []string
	for _, mistake := range list {
		texts = append(texts, mistake.Error())
	}
	return texts
}

const outcomeUnknown = "the change may have been made or not"

// callError is a call to the server that failed.
type callError struct {
	status    *status.Status
	address   string
	requestID string
	// dial is the error of the last attempt to connect; nil if it succeeded.
	dial error
	// timeout is the timeout of the call.
	timeout time.Duration
	// changes is set for a call that changes something if it succeeds.
	changes bool
	// afterChange is set if the command had made its change before this call.
	afterChange bool
	// advice is what the person can do now, a line each. The command adds it.
	advice []string
}

// Error returns the headline.
func (e *callError) Error() string { return e.lines()[0] }

// Unwrap returns the status of gRPC, for errors.As and status.FromError.
func (e *callError) Unwrap() error { return e.status.Err() }

// advise adds advice to the error of a call. The function advice returns "" if there is no
// advice for that error.
func advise(err error, advice func(*callError) string) error {
	if call, isCall := errors.AsType[*callError](err); isCall {
		if text := advice(call); text != "" {
			call.advice = append(call.advice, text)
		}
	}
	return err
}

// has reports whether the server gave this reason.
func (e *callError) has(reason keysvcv1.ErrorReason) bool {
	for _, detail := range e.status.Details() {
		if info, isInfo := detail.(*errdetails.ErrorInfo); isInfo && info.GetDomain() == errorDomain {
			return "ERROR_REASON_"+info.GetReason() == reason.String()
		}
	}
	return false
}

// maybeDone reports whether the change may have been made although the call failed.
func (e *callError) maybeDone() bool {
	if !e.changes {
		return false
	}
	if e.has(keysvcv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN) {
		return true
	}
	switch e.status.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		return e.dial == nil && len(e.status.Details()) == 0
	}
	return false
}

// lines returns the headline and a line for each detail.
func (e *callError) lines() []string {
	var reason string
	var details []string
	for _, detail := range e.status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() != errorDomain {
				continue
			}
			reason = detail.GetReason()
			for _, name := range slices.Sorted(maps.Keys(detail.GetMetadata())) {
				if name == "by_digest" {
					continue // it is for clients of servers that know no digests
				}
				details = append(details, name+": "+detail.GetMetadata()[name])
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				// The message may contain the violation already.
				if line := violation.GetField() + ": " + violation.GetDescription(); !strings.Contains(e.status.Message(), line) {
					details = append(details, line)
				}
			}
		case *errdetails.RetryInfo:
			details = append(details, "retry after: "+detail.GetRetryDelay().AsDuration().String())
		}
	}
	if e.requestID != "" {
		details = append(details, "request id: "+e.requestID)
	}
	return append([]string{e.headline(reason)}, append(details, e.advice...)...)
}

func (e *callError) headline(reason string) string {
	name := code.Code(e.status.Code()).String() //nolint:gosec // G115: codes are 0 to 16
	if reason != "" {
		return fmt.Sprintf("%s (%s): %s", name, reason, e.status.Message())
	}
	// An error without a reason comes from gRPC, in the client or the server. Its message
	// means little to a person.
	switch e.status.Code() {
	case codes.Unavailable:
		if e.dial != nil {
			text := fmt.Sprintf("cannot reach keysvc at %s: %s", e.address, e.dial)
			if errors.Is(e.dial, syscall.ECONNREFUSED) || errors.Is(e.dial, syscall.ENOENT) {
				text += "; start a server with \"keysvc serve\", or say with --addr or KEYSVC_ADDR where one is"
			}
			return text
		}
		text := fmt.Sprintf("%s: the connection to %s broke; is it keysvc that listens there?", name, e.address)
		if e.changes {
			text += " If it is, " + outcomeUnknown
		}
		return text
	case codes.DeadlineExceeded:
		text := fmt.Sprintf("%s: no answer from %s within %s", name, e.address, e.timeout)
		if e.changes {
			text += "; " + outcomeUnknown
		}
		return text
	case codes.Unimplemented:
		return fmt.Sprintf("%s: the server at %s does not have this call: its listener may be for another purpose, it may be older than this command, or not be keysvc", name, e.address)
	case codes.Internal:
		if strings.Contains(e.status.Message(), "invalid UTF-8") {
			return "a value is not text in UTF-8, so it cannot be sent"
		}
	}
	return name + ": " + e.status.Message()
}
