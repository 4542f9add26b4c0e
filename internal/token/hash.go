package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

// Scheme is how a token is hashed at rest. The number is stored beside each hash, so a
// number is never reused. 0 is not a scheme.
type Scheme uint8

// SchemeDigest is the scheme of stores of schema 1: the hash is the digest itself. An upgrade
// of the store replaces such hashes by those of SchemeVerifier. No hash of SchemeDigest is made
// or compared any more. The number 2 was reserved for a pepper and is unused.
const SchemeDigest Scheme = 1

// ErrUnknownScheme is returned for a scheme that this build cannot compute.
var ErrUnknownScheme = errors.New("token: unknown hash scheme")

// domainTag makes these hashes different from those of any other use of SHA-256 on the same
// text. The zero byte ends the tag, because no token contains one.
const domainTag = "keysvc token v1\x00"

// Hash is what keysvc stores of a token. The zero value is equal to no hash.
type Hash struct {
	// Scheme is how Sum was computed.
	Scheme Scheme
	// Sum is the hash.
	Sum [sha256.Size]byte
}

// Digest returns SHA-256 over a domain tag and all text before the CRC. Validators send the
// digest in the token's place. It covers the prefix, the id and the secret, so a secret is
// good for one key only. The digest is a credential towards keysvc: keep it out of logs. The
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

// Hash returns the hash of the token that is stored. It does not allocate.
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

// ShortLength is the number of bytes of a ShortHash's Sum.
const ShortLength = 16

// ShortHash is the part of a Hash by which memory recognizes a token: see ADR 0017. The zero value
// matches no hash.
type ShortHash struct {
	// Scheme is that of the Hash.
	Scheme Scheme
	// Sum is the beginning of the Hash's Sum.
	Sum [ShortLength]byte
}

// String returns nothing of the hash.
func (s ShortHash) String() string { return "[redacted hash]" }

// GoString returns String, so %#v shows no more than %v.
func (s ShortHash) GoString() string { return s.String() }

// Tag returns a number that tells a hash from the others of the same key, and that may be sent to
// callers: 32 bits of a hash over the ShortHash, from which nothing follows about the token. It is
// never 0, except for the zero ShortHash.
func (s ShortHash) Tag() uint32 {
	if s == (ShortHash{}) {
		return 0
	}
	var input [len(tagTag) + 1 + ShortLength]byte
	length := copy(input[:], tagTag)
	input[length] = byte(s.Scheme)
	copy(input[length+1:], s.Sum[:])
	sum := sha256.Sum256(input[:])
	return max(1, binary.BigEndian.Uint32(sum[:]))
}

// tagTag makes tags different from the beginnings of other hashes.
const tagTag = "keysvc secret tag v1\x00"

// Short returns the part of a hash that memory keeps.
func (h Hash) Short() ShortHash { return ShortHash{h.Scheme, [ShortLength]byte(h.Sum[:ShortLength])} }

// Matches reports whether the hash begins with a short one, in a time that depends on neither. It
// returns false if a scheme is 0, so two empty records do not match. Another token's hash matches
// with a probability of 2^-128.
func (h Hash) Matches(short ShortHash) bool {
	sameSum := subtle.ConstantTimeCompare(h.Sum[:ShortLength], short.Sum[:])
	sameScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), uint8(short.Scheme))
	noScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), 0)
	return sameSum&sameScheme&(1-noScheme) == 1
}

// Equal reports whether both hashes are the same, in a time that depends on neither. It
// returns false if a scheme is 0, so two empty records do not match.
func (h Hash) Equal(other Hash) bool {
	sameSum := subtle.ConstantTimeCompare(h.Sum[:], other.Sum[:])
	sameScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), uint8(other.Scheme))
	noScheme := subtle.ConstantTimeByteEq(uint8(h.Scheme), 0)
	return sameSum&sameScheme&(1-noScheme) == 1
}
