package token

import (
	"regexp"
	"strings"
)

// MaxTextBytes is the longest text that clients take for what may be a token, also one of a
// newer form; a token has less than a hundred bytes.
const MaxTextBytes = 4096

// anyToken finds all of what may be a token, with whatever is stuck to it.
var anyToken = regexp.MustCompile(`[0-9A-Za-z]*_ksk1_[0-9A-Za-z_]*`)

// In says whether text holds what looks like a token, whole or in part.
func In(text string) bool { return strings.Contains(text, version) }

// Redact takes everything out of text that looks like a token, for text that somebody
// else wrote and that goes to a log or a person. Text without any comes back as it is.
func Redact(text string) string {
	if !In(text) {
		return text
	}
	return anyToken.ReplaceAllLiteralString(text, "[redacted token]")
}

// Shown returns what may be shown of a text that was presented as a token, whatever it
// is: prefix and id of a well-formed one, and of anything else only that there was
// something. It is for the types that have to hold such a text as a string.
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
