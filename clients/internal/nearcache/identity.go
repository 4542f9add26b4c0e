package nearcache

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/scribe-mail/keysvc/internal/token"
)

// identity is what an entry is found by: the whole token, of which the secret part is a keyed
// digest (C5). Two texts have the same identity only if they are equal, or if SHA-256 collides.
type identity struct {
	// head is what a token has before its secret: prefix and key id, which may be in logs. It is
	// empty for a text of another form, whose digest is over the whole text.
	head   string
	digest digest
}

// retained returns the identity for an entry, which must not keep the memory of the token.
func (i identity) retained() identity { return identity{head: strings.Clone(i.head), digest: i.digest} }

// oneBlock is the longest message that SHA-256 takes in one block.
const oneBlock = 55

// identities makes identities. Its keys are random, so nobody can compute a digest, choose tokens
// for one place of the table, or recognize a digest of another process. SHA-256 keeps somebody who
// has read the memory of the process, keys included, from making up a token that is accepted: a
// faster hash would not.
type identities struct {
	// text keys the digests of texts of any length.
	text [32]byte
	// secret keys those of the secret part of a token: SHA-256((part ⊕ k) || l) with the first bytes of
	// secret as k and the others as l. That fits into one block, so it takes two thirds of the time
	// of a digest over text and token. The exclusive or keeps different parts different. Nobody who does not know k
	// can choose what is hashed, as with the inner key of HMAC.
	secret [oneBlock + 1]byte
}

func newIdentities() (made identities) {
	for _, key := range [][]byte{made.text[:], made.secret[:]} {
		if _, err := rand.Read(key); err != nil {
			panic(err) // crypto/rand does not fail
		}
	}
	return made
}

// of returns the identity of a token. It does not parse the token, and does not allocate for one of
// the usual form.
func (i *identities) of(text string) identity {
	head, secret, ok := token.Outline(text)
	if !ok {
		var buffer [192]byte
		return identity{digest: sha256.Sum256(append(append(buffer[:0], i.text[:]...), text...))}
	}
	var block [oneBlock + 1]byte // whole words
	copy(block[:], secret)
	for word := 0; word < len(block); word += 8 {
		at := block[word : word+8]
		binary.LittleEndian.PutUint64(at, binary.LittleEndian.Uint64(at)^binary.LittleEndian.Uint64(i.secret[word:]))
	}
	return identity{head: head, digest: sha256.Sum256(block[:oneBlock])}
}
