// Package token is the format of keysvc's API tokens: how a token is made, parsed, hashed,
// and kept out of logs.
//
// A token is
//
//	<prefix> _ ksk1 _ <id: 16 base62> _ <secret: 43 base62><crc: 6 base62>
//
// Base62 is 0-9A-Za-z, most significant digit first. The CRC-32 (IEEE 802.3)
// covers everything before it. It finds typing mistakes and truncations without a
// look-up. It is not a security control: anyone can compute it.
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

// Pattern is a regular expression (RE2 syntax) for secret scanners. It finds the tokens of
// every keysvc installation in a larger text, also where other text touches them, as in
// TOKEN_scribe_ksk1_… and token%3Dscribe_ksk1_….
//
// A match is a token, or a token with letters and digits before it, or not a token. Only the
// checksum shows which of these it is, and where the token begins. Find checks it.
const Pattern = `[a-z][a-z0-9]{1,11}_ksk1_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}`

// ErrMalformed is returned for a text that is not a token. It is never wrapped, and never
// contains any of the text, which may be most of a real token.
var ErrMalformed = errors.New("token: malformed: want <prefix>_ksk1_<16 base62 characters>_<49 base62 characters> with a matching checksum")

// Sizes of the parts, in bytes. A token is ASCII, so a byte is a character.
const (
	minPrefixLength = 2
	maxPrefixLength = 12
	idLength        = 16
	secretLength    = 43
	checksumLength  = 6

	version = "_ksk1_" // with the separators on both sides

	// tailLength is the length of everything after the prefix. It is the same for all tokens.
	tailLength = len(version) + idLength + len("_") + secretLength + checksumLength

	minLength = minPrefixLength + tailLength
	maxLength = maxPrefixLength + tailLength
)

const (
	noToken  = "[no token]"
	redacted = "_[redacted]"
)

// Token is a well-formed plaintext token; the zero value is no token. Only Parse and New
// return a Token that is not zero.
//
// A Token is printed, marshalled and logged as "scribe_ksk1_9fQ2mXc7Lr0TzB4w_[redacted]", the
// zero value as "[no token]". Only Reveal returns the plaintext.
//
// The text is held as a pointer to its first byte and a length, not as a string. The reason:
// fmt cannot call methods of an unexported field of another package's struct, and prints what
// the field holds. Of a Token it then prints an address and a number.
//
// A Token cannot be compared with ==; compare hashes, with Hash.Equal. Do not use
// reflect.DeepEqual: it compares only the first byte and the length.
type Token struct {
	_ [0]func() // makes == an error of the compiler: on a secret it is not constant time

	text   *byte // from unsafe.StringData, so never written to; keeps the string alive
	length int   // in bytes; 0, or minLength to maxLength
}

// Parse reads a token. The text must be the token alone, without spaces or "Bearer "; for any
// other text the error is ErrMalformed. Parse does not allocate: the Token refers to text.
//
// A token that can be parsed may still be unknown, expired or revoked.
func Parse(text string) (Token, error) {
	if !wellFormed(text, version) {
		return Token{}, ErrMalformed
	}
	return fromText(text), nil
}

// wellFormed reports whether a text has the form of a token with a mark, which is version or
// callerMark, and a matching checksum. It does not allocate.
func wellFormed(text, mark string) bool {
	if len(text) < minLength || len(text) > maxLength {
		return false
	}

	// From the right: every part after the prefix has a fixed length.
	prefix, tail := text[:len(text)-tailLength], text[len(text)-tailLength:]
	head, tail := tail[:len(mark)], tail[len(mark):]
	id, tail := tail[:idLength], tail[idLength:]
	separator, digits := tail[0], tail[1:]
	if head != mark || separator != '_' || !ValidPrefix(prefix) || !ValidID(id) || !allBase62(digits) {
		return false
	}

	// Digits are compared, not numbers: so a checksum has one spelling, and six digits that
	// stand for more than 32 bits never match.
	covered, written := text[:len(text)-checksumLength], text[len(text)-checksumLength:]
	want := checksum(covered)
	return written == string(want[:])
}

// SecretText is the number of bytes after the head of a token, see Outline.
const SecretText = secretLength + checksumLength

// Outline cuts a text that is outlined like a token into its head, which may be logged, and the
// SecretText bytes of its secret and checksum. ok is false for any other text. Outline looks at
// lengths and at "_ksk1_" only: what it cuts need not be a token. It does not allocate.
func Outline(text string) (head, secret string, ok bool) {
	if len(text) < minLength || len(text) > maxLength {
		return "", "", false
	}
	if mark := len(text) - tailLength; text[mark:mark+len(version)] != version {
		return "", "", false
	}
	cut := len(text) - SecretText
	return text[:cut], text[cut:], true
}

// New makes a token with the given prefix and id and a new secret of 43 base62 digits (256
// bits). The secret is drawn from random, which must be a cryptographic source such as
// crypto/rand.Reader. New returns an error if the prefix or the id is not valid (see
// ValidPrefix and ValidID), or if random fails or ends early.
func New(prefix, id string, random io.Reader) (Token, error) {
	return newMarked(prefix, version, id, random)
}

// newMarked is New for a mark.
func newMarked(prefix, mark, id string, random io.Reader) (Token, error) {
	if !ValidPrefix(prefix) {
		return Token{}, errors.New("token: prefix: malformed: want 2 to 12 characters of a-z and 0-9, the first a letter")
	}
	if !ValidID(id) {
		return Token{}, errors.New("token: id: malformed: want 16 characters of 0-9, A-Z and a-z")
	}
	text := make([]byte, 0, maxLength)
	text = append(text, prefix...)
	text = append(text, mark...)
	text = append(text, id...)
	text = append(text, '_')
	text, err := appendRandomBase62(text, secretLength, random)
	if err != nil {
		return Token{}, fmt.Errorf("token: secret: %w", err)
	}
	crc := checksum(unsafe.String(unsafe.SliceData(text), len(text))) //nolint:gosec // G103: the text is never written to; see Token
	return fromText(string(append(text, crc[:]...))), nil
}

// NewID draws an id of 16 base62 digits (95 bits), such as an incarnation, from random, which must
// be a cryptographic source such as crypto/rand.Reader. It returns an error if random fails or ends
// early. The id of a key is drawn by NewKeyID.
func NewID(random io.Reader) (string, error) {
	id, err := appendRandomBase62(make([]byte, 0, idLength), idLength, random)
	if err != nil {
		return "", fmt.Errorf("token: id: %w", err)
	}
	return string(id), nil
}

// ValidPrefix reports whether text can be the prefix of a token: [a-z][a-z0-9]{1,11}. A
// prefix has no '_', because '_' ends it.
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

// Prefix returns the part before "_ksk1_", or "" for the zero Token. Clone the string
// (strings.Clone) if it outlives the call: it shares the memory of the token, and would keep
// the secret in memory.
func (t Token) Prefix() string {
	if t.IsZero() {
		return ""
	}
	return t.plaintext()[:t.length-tailLength]
}

// ID returns the public id of the key, which may be logged, or "" for the zero
// Token. Clone the string if it outlives the call, as for Prefix.
func (t Token) ID() string {
	if t.IsZero() {
		return ""
	}
	start := t.length - tailLength + len(version)
	return t.plaintext()[start : start+idLength]
}

// Reveal returns the plaintext, or "" for the zero Token. Call it only to give the token to
// its owner or to send it to a server, never for a log, an error or a store.
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

// GoString returns String, so %#v shows no more than %v.
func (t Token) GoString() string { return t.String() }

// Format writes String for every verb and flag, so %x and %d are redacted too. It implements
// fmt.Formatter.
func (t Token) Format(state fmt.State, _ rune) {
	// fmt.State writes to memory, which cannot fail.
	_, _ = io.WriteString(state, t.String())
}

// MarshalText returns String; the error is always nil. A Token cannot be unmarshalled.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalJSON returns String as a JSON string; the error is always nil.
func (t Token) MarshalJSON() ([]byte, error) {
	// All characters are printable ASCII, which Go and JSON quote in the same way.
	return strconv.AppendQuote(nil, t.String()), nil
}

// LogValue returns String for log/slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

func fromText(text string) Token {
	return Token{text: unsafe.StringData(text), length: len(text)} //nolint:gosec // G103: the text is never written to; see Token
}

func (t Token) plaintext() string { return unsafe.String(t.text, t.length) } //nolint:gosec // G103: the text is never written to; see Token

// covered returns the text that checksum and digest are computed over. t must not be zero.
func (t Token) covered() string { return t.plaintext()[:t.length-checksumLength] }

// checksum returns the CRC-32 of text as base62 digits with leading zeros.
func checksum(text string) [checksumLength]byte {
	// []byte(text) would be copied to the heap, because crc32 calls a function variable.
	// crc32 only reads, so it gets the bytes of the string itself.
	sum := crc32.ChecksumIEEE(unsafe.Slice(unsafe.StringData(text), len(text))) //nolint:gosec // G103: the text is never written to; see Token
	var digits [checksumLength]byte
	for i := range digits {
		digits[checksumLength-1-i] = base62[sum%62]
		sum /= 62
	}
	return digits
}
