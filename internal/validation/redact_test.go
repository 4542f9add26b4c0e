package validation_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// TestTokensAreRedacted: a Question shows no token, however it is printed, marshalled or logged.
func TestTokensAreRedacted(t *testing.T) {
	const token = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"
	const secret, hexed = "0123456789ABCDEFGHIJ", "30313233343536373839414243"
	for name, value := range map[string]any{
		"question": validation.Question{Workspaces: access.All(), Token: token, WorkspaceID: "acme"},
		"pointer":  &validation.Question{Workspaces: access.All(), Token: token},
		"odd text": validation.Question{Workspaces: access.All(), Token: token + "\n"},
	} {
		for _, printed := range []any{value, []any{value}, map[string]any{"k": value}, struct{ V any }{value}} {
			var text strings.Builder
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
				fmt.Fprintf(&text, verb, printed)
			}
			if !strings.Contains(text.String(), "redacted") {
				t.Errorf("%s: there is nothing to see: %s", name, &text)
			}
			marshalled, err := json.Marshal(printed)
			if err != nil {
				t.Error(err)
			}
			text.Write(marshalled)
			for _, handler := range []func(*bytes.Buffer) slog.Handler{
				func(out *bytes.Buffer) slog.Handler { return slog.NewTextHandler(out, nil) },
				func(out *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(out, nil) },
			} {
				var out bytes.Buffer
				slog.New(handler(&out)).Info("m", "v", printed)
				text.Write(out.Bytes())
			}
			if strings.Contains(text.String(), secret) || strings.Contains(strings.ToLower(text.String()), strings.ToLower(hexed)) {
				t.Errorf("%s shows the token: %s", name, &text)
			}
		}
		if marshalled, err := xml.Marshal(value); err == nil && strings.Contains(string(marshalled), secret) {
			t.Errorf("%s shows the token: %s", name, marshalled)
		}
	}
}
