package token

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
	"unsafe"
)

// DigestLength is the number of bytes of a digest.
const DigestLength = sha256.Size

// Digest is what a caller sent as the digest of a token: bytes of any number, of which IsValid
// tells whether they can be a digest. The zero value is no digest.
//
// A digest is a credential towards keysvc. So a Digest is printed, marshalled and logged as
// "[redacted digest]", and cannot be compared with ==. It is held as Token holds its text, for
// the same reason.
type Digest struct {
	_ [0]func() // makes == an error of the compiler; see Token

	first  *byte // never written to
	length int   // in bytes
}

const (
	noDigest       = "[no digest]"
	redactedDigest = "[redacted digest]"
)

// DigestFrom returns the digest in the bytes of a message. It does not allocate: the Digest refers
// to the bytes, so they must not be changed.
func DigestFrom(message []byte) Digest {
	return Digest{first: unsafe.SliceData(message), length: len(message)} //nolint:gosec // G103: the bytes are never written to; see Token
}

// ForeignDigest returns the digest of a text that is not a token of this form: SHA-256 of the text.
// It goes without a key id.
func ForeignDigest(text string) [DigestLength]byte {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(text), len(text))) //nolint:gosec // G103: the text is only read
}

// Foreign returns a text that leaked without the white space around it, and reports whether it may be the token
// of another system: one piece of up to MaxTextBytes, without "_ksk1_".
func Foreign(text string) (foreign string, is bool) {
	foreign = strings.TrimSpace(text)
	return foreign, foreign != "" && len(foreign) <= MaxTextBytes && !In(foreign) && strings.IndexFunc(foreign, unicode.IsSpace) < 0
}

// IsZero reports whether d is no digest, as in a message without one.
func (d Digest) IsZero() bool { return d.length == 0 }

// Len returns the number of bytes that the caller sent.
func (d Digest) Len() int { return d.length }

// IsValid reports whether d can be the digest of a token: it has DigestLength bytes, and not only
// zeros, which no token has and a program that computed no digest sends.
func (d Digest) IsValid() bool { return d.length == DigestLength && d.sum() != [DigestLength]byte{} }

// Hash returns the hash that is stored of the digest's token; the zero Hash if d is not valid.
func (d Digest) Hash() Hash {
	if !d.IsValid() {
		return Hash{}
	}
	return Hash{Scheme: SchemeVerifier, Sum: VerifierOf(d.sum())}
}

// ForeignHash is Hash for a ForeignDigest.
func (d Digest) ForeignHash() Hash {
	if !d.IsValid() {
		return Hash{}
	}
	return Hash{Scheme: SchemeForeign, Sum: ForeignVerifierOf(d.sum())}
}

// sum returns the bytes. d must have DigestLength of them.
func (d Digest) sum() [DigestLength]byte {
	return [DigestLength]byte(unsafe.Slice(d.first, d.length)) //nolint:gosec // G103: the bytes are never written to; see Token
}

// String returns "[redacted digest]", or "[no digest]" for the zero Digest.
func (d Digest) String() string {
	if d.IsZero() {
		return noDigest
	}
	return redactedDigest
}

// GoString returns String, so %#v shows no more than %v.
func (d Digest) GoString() string { return d.String() }

// Format writes String for every verb and flag. It implements fmt.Formatter.
func (d Digest) Format(state fmt.State, _ rune) {
	_, _ = io.WriteString(state, d.String()) // fmt.State writes to memory, which cannot fail
}

// MarshalText returns String; the error is always nil. A Digest cannot be unmarshalled.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// MarshalJSON returns String as a JSON string; the error is always nil.
func (d Digest) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, d.String()), nil }

// LogValue returns String for log/slog.
func (d Digest) LogValue() slog.Value { return slog.StringValue(d.String()) }
