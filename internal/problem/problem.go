// Package problem has the only type of error that may be shown to a caller of keysvc. Every
// other error is internal: it goes to the log, not to the caller.
package problem

import (
	"fmt"
	"strings"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Error tells a caller what it did wrong or has to know. It never contains a token, a secret, or
// text from a caller that might be one of the two.
type Error struct {
	// Reason is for programs; it decides the status code.
	Reason keysvcv1.ErrorReason
	// Message is for developers. It is English text and does not repeat the reason.
	Message string
	// Violations has the bad fields.
	Violations []Violation
	// Metadata becomes the metadata of ErrorInfo.
	Metadata map[string]string
	// Cause is for the log only; nil if there is no further cause.
	Cause error
}

// Violation is one bad field.
type Violation struct {
	// Field is its path in wire names, e.g. "scopes[3]".
	Field string
	// Description says what was wrong and what is allowed.
	Description string
}

// Error returns what the caller is told: the message and the bad fields.
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

// Unwrap returns Cause.
func (e *Error) Unwrap() error { return e.Cause }

// New returns an Error with a reason and a formatted message.
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
	// parent is set for the Fields of a nested message: it gets the fields, with prefix before
	// their names.
	parent *Fields
	prefix string
}

// Within returns the Fields of a nested message. Bad fields that are added to it are added to
// f, with the name of the nested message before their own.
func (f *Fields) Within(field string) *Fields { return &Fields{parent: f, prefix: field + "."} }

// Add adds a bad field, with the reason FIELD_INVALID.
func (f *Fields) Add(field, format string, arguments ...any) {
	f.add(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID, field, format, arguments...)
}

// AddAs adds a bad field with another reason. The error has that reason if all bad fields
// have it, and FIELD_INVALID otherwise.
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

// Err returns an *Error with the bad fields, or nil if there are none. Call it on the Fields
// of the request, not on those that Within returned: they keep nothing.
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
