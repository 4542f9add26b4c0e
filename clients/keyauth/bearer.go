package keyauth

import (
	"strings"

	tokens "github.com/scribe-mail/keysvc/internal/token"
)

// maxTokenBytes is the length of the longest credential that is read.
const maxTokenBytes = tokens.MaxTextBytes

// credential is what the authorization header holds.
type credential uint8

const (
	credentialMissing credential = iota // there is no such header
	credentialOther                     // another scheme, or none
	credentialBad                       // several values, or no token after the scheme
	credentialToken
)

// String returns the credential as the log names it.
func (c credential) String() string {
	switch c {
	case credentialMissing:
		return "missing"
	case credentialOther:
		return "not of the scheme Bearer"
	case credentialToken:
		return "a token"
	case credentialBad:
	}
	return "malformed, or given more than once"
}

// bearer returns the token of the authorization header, given all its values (RFC 6750 section
// 2.1, RFC 9110 section 11.4): one value, the scheme in any case, one space or more, and a
// b64token. Everything else is refused rather than interpreted, above all several values.
func bearer(values []string) (token string, found credential) {
	if len(values) == 0 {
		return "", credentialMissing
	}
	const scheme = "bearer "
	if len(values) > 1 {
		return "", credentialBad
	}
	value := values[0]
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", credentialOther
	}
	token = strings.TrimLeft(value[len(scheme):], " ")
	// b64token: digits and the characters that stand for digits, and padding only at the end.
	if len(token) > maxTokenBytes || !allToken68(strings.TrimRight(token, "=")) {
		return "", credentialBad
	}
	return token, credentialToken
}

// token68 holds the characters of RFC 9110 section 11.2, without the padding.
var token68 = func() (set [256]uint8) {
	for _, char := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/") {
		set[char] = 1
	}
	return set
}()

// allToken68 reports whether text is not empty and has only characters of token68. Spaces,
// commas and control characters are not among them.
func allToken68(text string) bool {
	all, rest := uint8(1), text
	// Every request comes here: eight characters at a time, and without a branch for each.
	for ; len(rest) >= 8; rest = rest[8:] {
		all &= token68[rest[0]] & token68[rest[1]] & token68[rest[2]] & token68[rest[3]] &
			token68[rest[4]] & token68[rest[5]] & token68[rest[6]] & token68[rest[7]]
	}
	for index := range len(rest) {
		all &= token68[rest[index]]
	}
	return all == 1 && text != ""
}
