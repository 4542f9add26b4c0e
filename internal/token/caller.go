package token

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

// CallerPattern is Pattern for the tokens of callers.
const CallerPattern = `[a-z][a-z0-9]{1,11}_ksc1_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}`

// ErrCallerMalformed is returned for a text that is not a caller's token. It is never wrapped, and
// never contains any of the text.
var ErrCallerMalformed = errors.New("token: malformed: want <prefix>_ksc1_<16 base62 characters>_<49 base62 characters> with a matching checksum")

// callerMark is what a caller's token has where a key's token has version. Both have the same
// length.
const callerMark = "_ksc1_"

// callerTag makes hashes of callers' tokens different from those of keys' tokens, and from those of
// any other use of SHA-256.
const callerTag = "keysvc caller token v1\x00"

// Caller is a well-formed plaintext token of a caller of keysvc; the zero value is no token. Its
// form is that of a key's token with another mark:
//
//	<prefix> _ ksc1 _ <id: 16 base62> _ <secret: 43 base62><crc: 6 base62>
//
// A Caller is printed, marshalled and logged as "scribe_ksc1_9fQ2mXc7Lr0TzB4w_[redacted]". Only
// Reveal returns the plaintext. It cannot be compared with ==; compare hashes, in constant time.
type Caller struct{ token Token }

// ParseCaller reads the token of a caller. For a text that is anything else, a key's token
// included, the error is ErrCallerMalformed. It does not allocate: the Caller refers to text.
func ParseCaller(text string) (Caller, error) {
	if !wellFormed(text, callerMark) {
		return Caller{}, ErrCallerMalformed
	}
	return Caller{fromText(text)}, nil
}

// NewCaller makes a token of a caller with the given prefix, a new id, and a new secret of 43
// base62 digits (256 bits). Both are drawn from random, which must be a cryptographic source such
// as crypto/rand.Reader. It returns an error if the prefix is not valid (see ValidPrefix), or if
// random fails or ends early.
func NewCaller(prefix string, random io.Reader) (Caller, error) {
	id, err := NewID(random)
	if err != nil {
		return Caller{}, err
	}
	made, err := newMarked(prefix, callerMark, id, random)
	return Caller{made}, err
}

// CallerIn reports whether text contains something that looks like a caller's token or a part of
// one.
func CallerIn(text string) bool { return strings.Contains(text, callerMark) }

// ID returns the public id of the token, which may be logged, or "" for the zero Caller. Clone the
// string if it outlives the call: it shares the memory of the token.
func (c Caller) ID() string { return c.token.ID() }

// Reveal returns the plaintext, or "" for the zero Caller. Call it only to give the token to its
// owner, or to send it to a server.
func (c Caller) Reveal() string { return c.token.Reveal() }

// IsZero reports whether c holds no token.
func (c Caller) IsZero() bool { return c.token.IsZero() }

// Hash returns SHA-256 over a domain tag and all text before the CRC, which is what a callers file
// has of the token. It covers the prefix, the id and the secret. The zero Caller has the zero hash.
// Hash does not allocate.
func (c Caller) Hash() [sha256.Size]byte {
	if c.IsZero() {
		return [sha256.Size]byte{}
	}
	var input [len(callerTag) + maxLength]byte
	length := copy(input[:], callerTag)
	length += copy(input[length:], c.token.covered())
	return sha256.Sum256(input[:length])
}

// String returns prefix, mark and id, with the secret redacted.
func (c Caller) String() string { return c.token.String() }

// GoString returns String, so %#v shows no more than %v.
func (c Caller) GoString() string { return c.String() }

// Format writes String for every verb and flag. It implements fmt.Formatter.
func (c Caller) Format(state fmt.State, verb rune) { c.token.Format(state, verb) }

// MarshalText returns String; the error is always nil. A Caller cannot be unmarshalled.
func (c Caller) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// MarshalJSON returns String as a JSON string; the error is always nil.
func (c Caller) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, c.String()), nil }

// LogValue returns String for log/slog.
func (c Caller) LogValue() slog.Value { return slog.StringValue(c.String()) }
