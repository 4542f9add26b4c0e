package keyauth

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	"github.com/scribe-mail/keysvc/internal/token"
)

// A Question and a Request hold the token as text, for Validators and transports to use.
// However they are printed, marshalled or logged, it is redacted. Only fmt in somebody
// else's struct, in a field that is not exported, does not ask them: keep none there.

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
	// fmt.State keeps what is written in memory and has no error to give.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), q.shown())
}

// MarshalJSON returns the question with its token redacted. There is no way back.
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
	// fmt.State keeps what is written in memory and has no error to give.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), r.shown())
}

// MarshalJSON returns the request with its token redacted. There is no way back.
func (r Request) MarshalJSON() ([]byte, error) { return json.Marshal(r.shown()) }

// MarshalText returns String; the error is always nil.
func (r Request) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// LogValue returns String for log/slog.
func (r Request) LogValue() slog.Value { return slog.StringValue(r.String()) }
