package token

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// NonceLength is the number of bytes of a key id's nonce.
const NonceLength = 16

// keyIDTag makes the hashes of key ids different from those of any other use of SHA-256.
const keyIDTag = "keysvc key id v1\x00"

// KeyID returns the id of a key: 16 base62 digits of a hash over the workspace, with its
// length in 2 bytes, and the nonce. A caller that chooses the nonce therefore cannot choose
// an id that belongs to another workspace. workspaceID has at most 65,535 bytes.
func KeyID(workspaceID string, nonce [NonceLength]byte) string {
	hash := sha256.New()
	hash.Write([]byte(keyIDTag))
	hash.Write(binary.BigEndian.AppendUint16(nil, uint16(len(workspaceID)))) //nolint:gosec // documented; ids have at most 128 bytes
	hash.Write([]byte(workspaceID))
	hash.Write(nonce[:])
	number, base, digit := new(big.Int).SetBytes(hash.Sum(nil)), big.NewInt(int64(len(base62))), new(big.Int)
	var id [idLength]byte
	for index := range id {
		number.DivMod(number, base, digit)
		id[idLength-1-index] = base62[digit.Int64()]
	}
	return string(id[:])
}

// NewKeyID draws the id of a new key of a workspace. random must be a cryptographic source
// such as crypto/rand.Reader. NewKeyID returns an error if random fails or ends early.
func NewKeyID(workspaceID string, random io.Reader) (string, error) {
	var nonce [NonceLength]byte
	if _, err := io.ReadFull(random, nonce[:]); err != nil {
		if errors.Is(err, io.EOF) { // a caller that reads until io.EOF would take io.EOF for success
			err = io.ErrUnexpectedEOF
		}
		return "", fmt.Errorf("token: key id: %w", err)
	}
	return KeyID(workspaceID, nonce), nil
}
