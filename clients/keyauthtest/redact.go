package keyauthtest

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/scribe-mail/keysvc/internal/token"
)

// shownCreated is a Created without methods, for fmt and json to print.
type shownCreated Created

func (c Created) shown() shownCreated {
	shown := shownCreated(c)
	shown.Token = token.Shown(c.Token)
	return shown
}

// String returns the created key with its token redacted.
func (c Created) String() string { return fmt.Sprintf("%+v", c.shown()) }

// Format writes the created key with its token redacted, whatever the verb. It implements
// fmt.Formatter.
func (c Created) Format(state fmt.State, verb rune) {
	// Writing to a fmt.State does not fail.
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), c.shown())
}

// MarshalJSON returns the created key with its token redacted. There is no UnmarshalJSON.
func (c Created) MarshalJSON() ([]byte, error) { return json.Marshal(c.shown()) }

// MarshalText returns String; the error is always nil.
func (c Created) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue returns String for log/slog.
func (c Created) LogValue() slog.Value { return slog.StringValue(c.String()) }
