package keyauth

import (
	"strings"

	tokens "github.com/scribe-mail/keysvc/internal/token"
)

// maxTokenBytes is the longest credential that is looked at.
const maxTokenBytes = tokens.MaxTextBytes

// credential is what was found in the authorization header.
type credential uint8

const (
	credentialMissing credential = iota // there was no such header
	credentialOther                     // there was, with another scheme or none
	credentialBad                       // there were several, or no token after the scheme
	credentialToken
)

// String returns what the log says.
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

// bearer reads the token out of all values of the authorization header (RFC 6750 section
// 2.1, RFC 9110 section 11.4): one value, the scheme in any case, one space or more, and
// a b64token. Whatever else there is, several values above all, is refused
// rather than interpreted.
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
	// b64token: what stands for digits, and padding at the end only.
	if len(token) > maxTokenBytes || !allToken68(strings.TrimRight(token, "=")) {
		return "", credentialBad
	}
	return token, credentialToken
}

// token68 are the characters of RFC 9110 section 11.2 but for the padding.
var token68 = func() (set [256]bool) {
	for _, char := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/") {
		set[char] = true
	}
	return set
}()

// allToken68 says whether text is not empty and has no other characters: no space, comma
// or control above all.
func allToken68(text string) bool {
	for index := range len(text) {
		if !token68[text[index]] {
			return false
		}
	}
	return text != ""
}
