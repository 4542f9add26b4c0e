package keyauth

import "strings"

// maxTokenBytes is the longest credential that is looked at; a token of keysvc has less
// than a hundred bytes.
const maxTokenBytes = 4096

// credential is what was found in the authorization header.
type credential uint8

const (
	credentialMissing credential = iota // there was no such header
	credentialBad                       // there was, but no bearer token in it
	credentialToken
)

// bearer reads the token out of all values of the authorization header (RFC 6750 section
// 2.1, RFC 9110 section 11.4): one value, the scheme in any case, one space or more, and
// a token of visible ASCII. Whatever else there is, several values above all, is refused
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
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", credentialBad
	}
	token = strings.TrimLeft(value[len(scheme):], " ")
	if token == "" || len(token) > maxTokenBytes {
		return "", credentialBad
	}
	for _, char := range []byte(token) {
		// token68 of RFC 9110, section 11.2, and nothing beside it: no space, comma or control.
		if !isToken68(char) {
			return "", credentialBad
		}
	}
	return token, credentialToken
}

func isToken68(char byte) bool {
	return char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' || char >= '0' && char <= '9' ||
		char == '_' || char == '-' || char == '.' || char == '~' || char == '+' || char == '/' || char == '='
}
