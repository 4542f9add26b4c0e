package token

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Diagnose returns what is wrong with a text that was presented as a token. The answer continues a
// sentence that begins with "the text", for example "is empty". It is "" for a text that Parse
// accepts. It reveals only the form of the text, so it can be shown and logged.
//
// malformed reports whether the text is certainly not a credential. If it is false although there
// is a problem, the text lacks "_ksk1_": it is not a token of this form, but a server may know
// other forms.
//
// Diagnose is for people who look for their mistake. Like Parse, it cannot tell whether a token is
// valid.
func Diagnose(text string) (problem string, malformed bool) {
	if _, err := Parse(text); err == nil {
		return "", false
	}
	if problem := surrounded(text); problem != "" {
		return problem, true
	}
	if !In(text) {
		return `has no "_ksk1_" in it, which every token of keysvc has: it is something else, or only a part of a token`, false
	}
	return misformed(text), true
}

// misformed returns what is wrong with the form of a text that has "_ksk1_" in it and that Parse
// does not accept.
func misformed(text string) string {
	at := strings.LastIndex(text, version)
	prefix, tail := text[:at], text[at:]
	switch {
	case strings.IndexFunc(text, notOfTokens) >= 0:
		return "has a character in it that no token has"
	case len(tail) < tailLength:
		return fmt.Sprintf("is %s too short: its end is missing", characters(tailLength-len(tail)))
	case len(tail) > tailLength:
		return fmt.Sprintf("is %s too long: something was added at its end", characters(len(tail)-tailLength))
	case tail[len(version)+idLength] != '_':
		return "has no underscore between key id and secret: a character is missing, or there is one too many"
	case !ValidPrefix(prefix):
		return `has something other than a prefix before "_ksk1_"; a prefix is 2 to 12 characters of a-z and 0-9, the first a letter`
	case !ValidID(tail[len(version) : len(version)+idLength]), !allBase62(tail[len(version)+idLength+1:]):
		return "has an underscore where no token has one"
	}
	return "has a wrong checksum: a letter was changed, or some were swapped"
}

// surrounded returns what was copied along with a token, such as quotes or the name of a header;
// "" if the text is a token alone, or has another problem.
func surrounded(text string) string {
	first, _ := utf8.DecodeRuneInString(text)
	last, _ := utf8.DecodeLastRuneInString(text)
	lower := strings.ToLower(text)
	switch {
	case text == "":
		return "is empty"
	case strings.TrimSpace(text) == "":
		return "has nothing but white space"
	case strings.HasPrefix(lower, "authorization:"):
		return "is a whole header line; the token is what comes after Bearer"
	case strings.HasPrefix(lower, "bearer ") || lower == "bearer":
		return "begins with Bearer; the token is what comes after that"
	case strings.ContainsRune(quotes, first) || strings.ContainsRune(quotes, last):
		return "is quoted; the quotes are no part of the token"
	case unicode.IsSpace(first):
		return "begins with white space"
	case unicode.IsSpace(last):
		return "ends with white space"
	case strings.ContainsAny(text, "\r\n"):
		return "has a line break inside"
	case strings.IndexFunc(text, unicode.IsSpace) >= 0:
		return "has white space inside"
	}
	return ""
}

// quotes are the characters that programs and word processors put around text.
const quotes = "\"'`“”„‘’‚«»‹›"

// notOfTokens reports whether a character occurs in no token.
func notOfTokens(r rune) bool {
	return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

func characters(number int) string {
	if number == 1 {
		return "1 character"
	}
	return fmt.Sprintf("%d characters", number)
}
