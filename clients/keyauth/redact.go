package keyauth

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	"github.com/scribe-mail/keysvc/internal/token"
)

// A Question and a Request hold the token as text, because Validators and transports need it.
// The token is redacted however they are printed, marshalled or logged. There is one exception:
// fmt does not call their methods for an unexported field of another struct, so do not store
// them in one.

// shownQuestion is a Question without methods, for fmt and json to print.
type shownQuestion Question

func (q Question) shown() shownQuestion {
	shown := shownQuestion(q)
	shown.Token = token.Shown(q.Token)
	return shown
}

// String returns the question with its token redacted.
func (q Question) String() string { return fmt.Sprintf("%+v", q.shown()) }

// Format writes the question with its token redacted, whatever the verb. It implements
// fmt.Formatter.
func (q Question) Format(state fmt.State, verb rune) {
	// Writing to a fmt.State does not fail.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), q.shown())
}

// MarshalJSON returns the question with its token redacted. There is no UnmarshalJSON.
func (q Question) MarshalJSON() ([]byte, error) { return json.Marshal(q.shown()) }

// MarshalText returns String; the error is always nil.
func (q Question) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// LogValue returns String for log/slog.
func (q Question) LogValue() slog.Value { return slog.StringValue(q.String()) }

// shownRequest is a Request without methods, for fmt and json to print.
type shownRequest Request

func (r Request) shown() shownRequest {
	shown := shownRequest(r)
	if r.Authorization != nil {
		shown.Authorization = slices.Repeat([]string{"[redacted]"}, len(r.Authorization))
	}
	return shown
}

// String returns the request with its token redacted.
func (r Request) String() string { return fmt.Sprintf("%+v", r.shown()) }

// Format writes the request with its token redacted, whatever the verb. It implements
// fmt.Formatter.
func (r Request) Format(state fmt.State, verb rune) {
	// Writing to a fmt.State does not fail.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), r.shown())
}

// MarshalJSON returns the request with its token redacted. There is no UnmarshalJSON.
func (r Request) MarshalJSON() ([]byte, error) { return json.Marshal(r.shown()) }

// MarshalText returns String; the error is always nil.
func (r Request) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// LogValue returns String for log/slog.
func (r Request) LogValue() slog.Value { return slog.StringValue(r.String()) }
