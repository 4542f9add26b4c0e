// Package problem holds the one type of error that may be shown to a caller of
// keysvc. Every other error is internal: the log gets it, the caller does not.
package problem

import (
	"fmt"
	"strings"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Error says what a caller did wrong or must know. It never holds a token, a
// secret, or text of a caller that might be one.
type Error struct {
	// Reason is for programs; it decides the status code.
	Reason keysvcv1.ErrorReason
	// Message is for developers, in English, without the reason.
	Message string
	// Violations name each bad field.
	Violations []Violation
	// Metadata goes into ErrorInfo.
	Metadata map[string]string
	// Cause is for the log only.
	Cause error
}

// Violation is one bad field.
type Violation struct {
	// Field is its path in wire names, e.g. "scopes[3]".
	Field string
	// Description says what was wrong and what is allowed.
	Description string
}

// Error implements error. It tells what the caller is told.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(e.Message)
	for index, violation := range e.Violations {
		separator := "; "
		switch {
		case index > 0:
		case e.Message == "":
			separator = ""
		default:
			separator = ": "
		}
		fmt.Fprintf(&text, "%s%s: %s", separator, violation.Field, violation.Description)
	}
	return text.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New returns an error with a reason and a message.
func New(reason keysvcv1.ErrorReason, format string, arguments ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, arguments...)}
}

// maxViolations bounds the answer to a request with thousands of bad fields.
const maxViolations = 20

// Fields collects the bad fields of one request.
type Fields struct {
	violations []Violation
	reason     keysvcv1.ErrorReason
	more       int
	// parent, of a nested message's Fields, gets them under prefix.
	parent *Fields
	prefix string
}

// Within returns Fields for the fields of a nested message, which are added to these
// under its name.
func (f *Fields) Within(field string) *Fields { return &Fields{parent: f, prefix: field + "."} }

// Add notes a bad field.
func (f *Fields) Add(field, format string, arguments ...any) {
	f.add(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID, field, format, arguments...)
}

// AddAs notes a bad field with a reason of its own, which the error has if all its
// fields have it.
func (f *Fields) AddAs(reason keysvcv1.ErrorReason, field, format string, arguments ...any) {
	f.add(reason, field, format, arguments...)
}

func (f *Fields) add(reason keysvcv1.ErrorReason, field, format string, arguments ...any) {
	if f.parent != nil {
		f.parent.add(reason, f.prefix+field, format, arguments...)
		return
	}
	if len(f.violations) == 0 {
		f.reason = reason
	} else if f.reason != reason {
		f.reason = keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID
	}
	if len(f.violations) == maxViolations {
		f.more++
		return
	}
	f.violations = append(f.violations, Violation{Field: field, Description: fmt.Sprintf(format, arguments...)})
}

// Err returns an *Error for the bad fields, nil if there are none. Fields of a nested
// message have none: ask the outermost.
func (f *Fields) Err() error {
	if len(f.violations) == 0 {
		return nil
	}
	message := "invalid request"
	if f.more > 0 {
		message = fmt.Sprintf("invalid request (%d more bad fields are not shown)", f.more)
	}
	return &Error{Reason: f.reason, Message: message, Violations: f.violations}
}
