package token_test

import (
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/token"
)

func TestRedactReplacesWhatLooksLikeAToken(t *testing.T) {
	const whole = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"
	for text, want := range map[string]string{
		"":                                      "",
		"nothing here":                          "nothing here",
		whole:                                   "[redacted token]",
		"Bearer " + whole + ", twice: " + whole: "Bearer [redacted token], twice: [redacted token]",
		whole[:len(whole)-20]:                   "[redacted token]",
		strings.ToUpper("x") + whole:            "[redacted token]",
	} {
		if got := token.Redact(text); got != want {
			t.Errorf("Redact(%q) = %q, want %q", text, got, want)
		}
		if token.In(text) != (text != want) {
			t.Errorf("In(%q) = %v", text, token.In(text))
		}
	}
}

func TestShownHasPrefixAndIDOnly(t *testing.T) {
	const whole = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"
	for text, want := range map[string]string{
		"":                   "[no token]",
		whole:                "scribe_ksk1_9fQ2mXc7Lr0TzB4w_[redacted]",
		whole + "\n":         "[redacted]",
		whole[:len(whole)-1]: "[redacted]",
		"another's token":    "[redacted]",
	} {
		if got := token.Shown(text); got != want {
			t.Errorf("Shown(%q) = %q, want %q", text, got, want)
		}
	}
}
