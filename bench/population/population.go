// Package population makes stores of keys to measure with: up to millions of keys, each with its
// audit events, as keysvc would have written them. Every id and every secret follows from a number, so
// that no token has to be kept. The tokens protect nothing: anybody can derive them.
package population

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"

	"github.com/scribe-mail/keysvc/internal/token"
)

// The form of a population.
const (
	// KeysPerMember is how many keys each member has.
	KeysPerMember = 10
	// KeysPerWorkspace is how many keys each workspace has; the last one may have fewer.
	KeysPerWorkspace = 100
	// Role is the role of every member.
	Role = "manager"
	// Scope is one of the scopes that each key has.
	Scope = "signatures:read"
	// Address is in the networks of those keys that are limited to some.
	Address = "10.20.30.40"
)

const (
	prefix = "scribe"
	seed   = "keysvc bench population v1\x00"
	// Of ten keys, one is in rotation and another one is limited to networks.
	rotatedOfTen, limitedOfTen = 3, 7
)

// Key is a key of a population.
type Key struct {
	// Number is the number of the key, from 0 on.
	Number int
	// WorkspaceID and MemberID are whose it is.
	WorkspaceID, MemberID string
	// Token is its newest token. Overlapping is the token that it had before, for a key in rotation;
	// otherwise it is zero.
	Token, Overlapping token.Token
	// Networks are the networks that it is limited to; none means anywhere.
	Networks []string
}

// At returns the key with a number.
func At(number int) (Key, error) {
	workspace := number / KeysPerWorkspace
	key := Key{Number: number, WorkspaceID: workspaceID(workspace), MemberID: memberID(number / KeysPerMember)}
	random := source(number)
	id, err := token.NewKeyID(key.WorkspaceID, random)
	if err != nil {
		return Key{}, err
	}
	if key.Token, err = token.New(prefix, id, random); err != nil {
		return Key{}, err
	}
	switch number % 10 {
	case rotatedOfTen:
		key.Overlapping, err = token.New(prefix, id, random)
	case limitedOfTen:
		key.Networks = []string{"10.0.0.0/8", "192.168.0.0/16"}
	}
	return key, err
}

// Spread returns a number of keys that lie evenly among the first keys of a population. Measure
// with equally many tokens at every size. Otherwise the client's own cache misses are measured.
func Spread(count, among int) ([]Key, error) {
	if among > count {
		among -= among % 10
	}
	count = min(count, among)
	spread := make([]Key, count)
	for index := range spread {
		// The last digit of a number decides what the key is like, so every digit comes in turn.
		number := index * among / count
		key, err := At(number - number%10 + index%10)
		if err != nil {
			return nil, err
		}
		spread[index] = key
	}
	return spread, nil
}

// source returns the bytes that ids and secrets of a key are drawn from.
func source(number int) *mathrand.ChaCha8 {
	return mathrand.NewChaCha8(sha256.Sum256(binary.BigEndian.AppendUint64([]byte(seed), uint64(number))))
}

func workspaceID(number int) string { return fmt.Sprintf("workspace-%06d", number) }
func memberID(number int) string    { return fmt.Sprintf("member-%07d", number) }
