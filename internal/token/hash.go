package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
)

// Scheme names the way a token is hashed at rest. Its number is stored beside
// each hash, so a number is never used twice. 0 is no scheme.
type Scheme uint8

// SchemeDigest is that of stores of schema 1: the digest itself. An upgrade turns it into
// SchemeVerifier; no hash is made or matched by it any more. 2 was kept for a pepper, and
// is unused.
const SchemeDigest Scheme = 1

// ErrUnknownScheme is returned when a scheme is none that this build can compute.
var ErrUnknownScheme = errors.New("token: unknown hash scheme")

// domainTag keeps these hashes apart from any other use of SHA-256 on the same
// text. The zero byte ends it, since no token contains one.
const domainTag = "keysvc token v1\x00"

// Hash is what keysvc stores of a token. The zero value equals nothing.
type Hash struct {
	Scheme Scheme
	Sum    [sha256.Size]byte
}

// Digest returns SHA-256 over a domain tag and all text before the CRC: what validators
// send in the token's place. It covers the prefix, the id and the secret, so that a secret
// is good for one key only. It is a credential towards keysvc: keep it out of logs. The
// zero Token has the zero digest. Digest does not allocate.
func (t Token) Digest() [sha256.Size]byte {
	if t.IsZero() {
		return [sha256.Size]byte{}
	}
	var input [len(domainTag) + maxLength]byte
	length := copy(input[:], domainTag)
	length += copy(input[length:], t.covered())
	return sha256.Sum256(input[:length])
}

// Hash returns the hash of the token that is kept at rest. It does not allocate.
//
// The error is ErrMalformed for the zero Token and wraps ErrUnknownScheme for
// a scheme other than SchemeVerifier.
func (t Token) Hash(scheme Scheme) (Hash, error) {
	if t.IsZero() {
		return Hash{}, ErrMalformed
	}
	if scheme != SchemeVerifier {
		return Hash{}, fmt.Errorf("%w %d: want %d", ErrUnknownScheme, scheme, SchemeVerifier)
	}
	return Hash{Scheme: scheme, Sum: VerifierOf(t.Digest())}, nil
}

// Equal reports whether both are the same hash, in time that does not depend on
// either. Where a scheme is 0 the answer is no: two empty records are no match.
func (h Hash) Equal(other Hash) bool {
	sameSum := subtle.ConstantTimeCompare(h.Sum[:], other.Sum[:])
	sameScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), uint8(other.Scheme))
	noScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), 0)
	return sameSum&sameScheme&(1-noScheme) == 1
}
