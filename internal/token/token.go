// Package token is the format of keysvc's API tokens: how one is made, read,
// hashed, and kept out of logs.
//
// A token is
//
//	<prefix> _ ksk1 _ <id: 16 base62> _ <secret: 43 base62><crc: 6 base62>
//
// Base62 is 0-9A-Za-z, most significant digit first. The CRC-32 (IEEE 802.3)
// covers everything before it. It refuses typing mistakes and truncations
// without a look-up and is no security control: anyone can compute it.
package token

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strconv"
	"unsafe"
)

// Pattern is the regular expression (RE2 syntax) that finds the tokens of every
// keysvc installation in a larger text, for secret scanners: also where something is
// stuck to them, as in TOKEN_scribe_ksk1_… and token%3Dscribe_ksk1_….
//
// What it matches is a token, or one with letters and digits stuck to its front, or
// none: the checksum says which, and where the token begins. Find does all that.
const Pattern = `[a-z][a-z0-9]{1,11}_ksk1_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}`

// ErrMalformed is returned for a text that is not a token. It is always this
// very value and tells nothing of the text, which may be most of a real token.
var ErrMalformed = errors.New("token: malformed: want <prefix>_ksk1_<16 base62 characters>_<49 base62 characters> with a matching checksum")

// Sizes of the parts, in bytes, which are also characters: a token is ASCII.
const (
	minPrefixLength = 2
	maxPrefixLength = 12
	idLength        = 16
	secretLength    = 43
	checksumLength  = 6

	version = "_ksk1_" // with the separators on both sides

	// tailLength is what follows the prefix and is the same for every token.
	tailLength = len(version) + idLength + len("_") + secretLength + checksumLength

	minLength = minPrefixLength + tailLength
	maxLength = maxPrefixLength + tailLength
)

const (
	noToken  = "[no token]"
	redacted = "_[redacted]"
)

// Token is a well-formed plaintext token, or nothing (the zero value). Only
// Parse and New make one that is not zero.
//
// However it is printed, marshalled or logged, it shows as
// "scribe_ksk1_9fQ2mXc7Lr0TzB4w_[redacted]", the zero value as "[no token]".
// Reveal is the one way to the plaintext.
//
// The text is held as a pointer to its first byte and a length, not as a
// string: fmt cannot call methods of an unexported field in somebody else's
// struct and prints what it finds there, and for this it finds an address and
// a number.
//
// A Token cannot be compared with ==; compare hashes, with Hash.Equal. For the
// same reason as above reflect.DeepEqual sees only the first byte and the
// length, and must not be used.
type Token struct {
	_ [0]func() // incomparable: == on a secret is not constant time

	text   *byte // from unsafe.StringData, so never written to; keeps the string alive
	length int   // in bytes; 0, or minLength to maxLength
}

// Parse reads a token. The text must be the token alone: no space, no
// "Bearer ". Anything else is ErrMalformed. It does not allocate, and the Token
// goes on referring to text.
//
// That a token parses says nothing of whether it is valid.
func Parse(text string) (Token, error) {
	if len(text) < minLength || len(text) > maxLength {
		return Token{}, ErrMalformed
	}

	// From the right: every part after the prefix has a fixed length.
	prefix, tail := text[:len(text)-tailLength], text[len(text)-tailLength:]
	head, tail := tail[:len(version)], tail[len(version):]
	id, tail := tail[:idLength], tail[idLength:]
	separator, digits := tail[0], tail[1:]
	if head != version || separator != '_' || !ValidPrefix(prefix) || !ValidID(id) || !allBase62(digits) {
		return Token{}, ErrMalformed
	}

	// Digits are compared, not numbers, so that a checksum has one spelling
	// and six digits beyond 32 bits never match.
	covered, written := text[:len(text)-checksumLength], text[len(text)-checksumLength:]
	want := checksum(covered)
	if written != string(want[:]) {
		return Token{}, ErrMalformed
	}
	return fromText(text), nil
}

// New makes a token with the given prefix and id and a new secret of 43 base62
// digits (256 bits) drawn from random, which must be a cryptographic source
// such as crypto/rand.Reader. It returns an error if ValidPrefix or ValidID
// refuse their argument, or if random fails or gives too little.
func New(prefix, id string, random io.Reader) (Token, error) {
	if !ValidPrefix(prefix) {
		return Token{}, errors.New("token: prefix: malformed: want 2 to 12 characters of a-z and 0-9, the first a letter")
	}
	if !ValidID(id) {
		return Token{}, errors.New("token: id: malformed: want 16 characters of 0-9, A-Z and a-z")
	}
	text := make([]byte, 0, maxLength)
	text = append(text, prefix...)
	text = append(text, version...)
	text = append(text, id...)
	text = append(text, '_')
	text, err := appendRandomBase62(text, secretLength, random)
	if err != nil {
		return Token{}, fmt.Errorf("token: secret: %w", err)
	}
	crc := checksum(unsafe.String(unsafe.SliceData(text), len(text))) //nolint:gosec // G103: the text is never written to; see Token
	return fromText(string(append(text, crc[:]...))), nil
}

// NewID draws the public id of a key, 16 base62 digits (95 bits), from random,
// which must be a cryptographic source such as crypto/rand.Reader. It returns
// an error if random fails or gives too little.
func NewID(random io.Reader) (string, error) {
	id, err := appendRandomBase62(make([]byte, 0, idLength), idLength, random)
	if err != nil {
		return "", fmt.Errorf("token: id: %w", err)
	}
	return string(id), nil
}

// ValidPrefix reports whether text can be the prefix of a token:
// [a-z][a-z0-9]{1,11}. It never contains '_', which ends it.
func ValidPrefix(text string) bool {
	if len(text) < minPrefixLength || len(text) > maxPrefixLength {
		return false
	}
	for i := range len(text) {
		c := text[i]
		letter, digit := 'a' <= c && c <= 'z', '0' <= c && c <= '9'
		if !letter && (!digit || i == 0) {
			return false
		}
	}
	return true
}

// ValidID reports whether text can be the id of a key: 16 base62 digits.
func ValidID(text string) bool {
	return len(text) == idLength && allBase62(text)
}

// Prefix returns the part before "_ksk1_", or "" for the zero Token.
// Clone the string (strings.Clone) if it outlives the request: it shares the
// memory of the token and would keep the secret there.
func (t Token) Prefix() string {
	if t.IsZero() {
		return ""
	}
	return t.plaintext()[:t.length-tailLength]
}

// ID returns the public id of the key, which may be logged, or "" for the zero
// Token. Clone the string if it outlives the request, as for Prefix.
func (t Token) ID() string {
	if t.IsZero() {
		return ""
	}
	start := t.length - tailLength + len(version)
	return t.plaintext()[start : start+idLength]
}

// Reveal returns the plaintext, or "" for the zero Token. It is the one way to
// it: call it only to hand the token to its owner or to send it to a server,
// never for a log, an error or a store.
func (t Token) Reveal() string { return t.plaintext() }

// IsZero reports whether t holds no token.
func (t Token) IsZero() bool { return t.length == 0 }

// String returns prefix, version and id, with the secret redacted.
func (t Token) String() string {
	if t.IsZero() {
		return noToken
	}
	return t.plaintext()[:t.length-tailLength+len(version)+idLength] + redacted
}

// GoString is String: %#v shows no more than %v.
func (t Token) GoString() string { return t.String() }

// Format writes String for every verb and flag, so that %x or %d do not get
// past the redaction. It implements fmt.Formatter.
func (t Token) Format(state fmt.State, _ rune) {
	// fmt.State keeps what is written in memory and has no error to give.
	_, _ = io.WriteString(state, t.String())
}

// MarshalText returns String; the error is always nil. There is no way back:
// a Token cannot be unmarshalled.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalJSON returns String as a JSON string; the error is always nil.
func (t Token) MarshalJSON() ([]byte, error) {
	// All characters are printable ASCII, for which Go and JSON quote alike.
	return strconv.AppendQuote(nil, t.String()), nil
}

// LogValue returns String for log/slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

func fromText(text string) Token {
	return Token{text: unsafe.StringData(text), length: len(text)} //nolint:gosec // G103: the text is never written to; see Token
}

func (t Token) plaintext() string { return unsafe.String(t.text, t.length) } //nolint:gosec // G103: the text is never written to; see Token

// covered is what checksum and hash are computed over. t must not be zero.
func (t Token) covered() string { return t.plaintext()[:t.length-checksumLength] }

// checksum returns the CRC-32 of text as base62 digits with leading zeros.
func checksum(text string) [checksumLength]byte {
	// A []byte(text) would be copied to the heap, as crc32 calls through a
	// function variable. It only reads, so the string's own bytes will do.
	sum := crc32.ChecksumIEEE(unsafe.Slice(unsafe.StringData(text), len(text))) //nolint:gosec // G103: the text is never written to; see Token
	var digits [checksumLength]byte
	for i := range digits {
		digits[checksumLength-1-i] = base62[sum%62]
		sum /= 62
	}
	return digits
}
