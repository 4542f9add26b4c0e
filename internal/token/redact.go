package token

import (
	"regexp"
	"strings"
)

// MaxTextBytes is the max length, in bytes, of a text that clients send as a token. A token of
// this version has less than a hundred bytes; the rest is for newer forms.
const MaxTextBytes = 4096

// anyToken matches everything that may be a key's or a caller's token, with the letters, digits and
// underscores around it.
var anyToken = regexp.MustCompile(`[0-9A-Za-z]*_ks[kc]1_[0-9A-Za-z_]*`)

// In reports whether text contains something that looks like a token or a part of one.
func In(text string) bool { return strings.Contains(text, version) }

// Redact replaces everything in text that looks like a key's token or a caller's. It is for text
// from elsewhere that goes to a log or to a person. Text without a token is returned unchanged.
func Redact(text string) string {
	if !In(text) && !CallerIn(text) {
		return text
	}
	return anyToken.ReplaceAllLiteralString(text, "[redacted token]")
}

// Shown returns what may be shown of a text that was presented as a token: prefix and id of a
// well-formed token, "[redacted]" for any other text, "[no token]" for "". It is for types
// that must hold such a text as a string.
func Shown(text string) string {
	if text == "" {
		return noToken
	}
	parsed, err := Parse(text)
	if err != nil {
		return "[redacted]"
	}
	return parsed.String()
}
