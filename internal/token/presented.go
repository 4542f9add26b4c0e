package token

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
)

// Presented is what a validator sends keysvc of a token: the token, or its digest with the id of
// its key. Deciding treats both alike. The zero value is no token, and matches nothing.
//
// A Presented is printed, marshalled and logged as a Token is, with the id of the key and nothing
// else of the token. It cannot be compared with ==.
type Presented struct {
	token  Token
	digest Digest
	keyID  string // with a digest
}

// Present returns the token that a text is. A text without "_ksk1_", of up to MaxTextBytes, may be the token
// of another system, and is presented by its ForeignDigest. For any other text Present returns the zero
// Presented. It allocates for the token of another system only.
func Present(text string) Presented {
	parsed, err := Parse(text)
	if err != nil && text != "" && len(text) <= MaxTextBytes && !In(text) {
		digest := ForeignDigest(text)
		return PresentDigest("", DigestFrom(digest[:]))
	}
	return parsed.Presented()
}

// PresentDigest returns a digest with the id of its key. An empty id is that of a foreign text, see
// ForeignDigest. For an invalid digest or id it returns the zero Presented. It does not allocate.
func PresentDigest(keyID string, digest Digest) Presented {
	if !digest.IsValid() || keyID != "" && !ValidID(keyID) {
		return Presented{}
	}
	return Presented{digest: digest, keyID: keyID}
}

// Presented returns the token as it is presented.
func (t Token) Presented() Presented { return Presented{token: t} }

// KeyID returns the id of the key that is presented; "" for the zero Presented and for a foreign
// text. Clone the string if it outlives the call.
func (p Presented) KeyID() string {
	if p.ByDigest() {
		return p.keyID
	}
	return p.token.ID()
}

// IsZero reports whether nothing that could match is presented.
func (p Presented) IsZero() bool { return p.token.IsZero() && p.digest.IsZero() }

// ByDigest reports whether p holds a digest in the place of a token.
func (p Presented) ByDigest() bool { return !p.digest.IsZero() }

// IsForeign reports whether p is the digest of a text that is not a token of this form.
func (p Presented) IsForeign() bool { return p.ByDigest() && p.keyID == "" }

// Hash returns the hash to compare with what is stored; the zero Hash for the zero Presented. It
// takes no longer for a digest than for a token, and does not allocate.
func (p Presented) Hash() Hash {
	switch {
	case p.IsForeign():
		return p.digest.ForeignHash()
	case p.ByDigest():
		return p.digest.Hash()
	case p.token.IsZero():
		return Hash{}
	}
	return Hash{Scheme: SchemeVerifier, Sum: VerifierOf(p.token.Digest())}
}

// String returns the token with its secret redacted; for a digest, "ksk1_" and the id of the key
// with the digest redacted.
func (p Presented) String() string {
	switch {
	case !p.ByDigest():
		return p.token.String()
	case p.keyID == "":
		return redactedDigest
	}
	return "ksk1_" + p.keyID + "_" + redactedDigest
}

// GoString returns String, so %#v shows no more than %v.
func (p Presented) GoString() string { return p.String() }

// Format writes String for every verb and flag. It implements fmt.Formatter.
func (p Presented) Format(state fmt.State, _ rune) {
	_, _ = io.WriteString(state, p.String()) // fmt.State writes to memory, which cannot fail
}

// MarshalText returns String; the error is always nil. A Presented cannot be unmarshalled.
func (p Presented) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// MarshalJSON returns String as a JSON string; the error is always nil.
func (p Presented) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, p.String()), nil }

// LogValue returns String for log/slog.
func (p Presented) LogValue() slog.Value { return slog.StringValue(p.String()) }
