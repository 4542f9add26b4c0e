package validation

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/scribe-mail/keysvc/internal/token"
)

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
	// Writing to a fmt.State cannot fail: it writes to memory.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), q.shown())
}

// MarshalJSON returns the question with its token redacted. It cannot be unmarshalled.
func (q Question) MarshalJSON() ([]byte, error) { return json.Marshal(q.shown()) }

// MarshalText returns String; the error is always nil.
func (q Question) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// LogValue returns String for log/slog.
func (q Question) LogValue() slog.Value { return slog.StringValue(q.String()) }
