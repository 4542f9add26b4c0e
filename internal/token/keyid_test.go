package token

import (
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestKeyIDHasItsVector fixes how ids are computed: other implementations must get the same.
func TestKeyIDHasItsVector(t *testing.T) {
	var nonce [NonceLength]byte
	for index := range nonce {
		nonce[index] = byte(index)
	}
	if got, want := KeyID("acme", nonce), "VXH6gz35rInRE3Ep"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestKeyIDDependsOnWorkspaceAndNonce(t *testing.T) {
	seen := make(map[string]string)
	for _, workspaceID := range []string{"", "a", "b", "ab", strings.Repeat("w", 128), "ü"} {
		for last := range 4 {
			id := KeyID(workspaceID, [NonceLength]byte{15: byte(last)})
			if !ValidID(id) {
				t.Errorf("%q is not the id of a key", id)
			}
			if other, found := seen[id]; found {
				t.Errorf("workspaces %q and %q share the id %s", other, workspaceID, id)
			}
			seen[id] = workspaceID
		}
	}
}

func TestNewKeyIDFailsWithItsSource(t *testing.T) {
	if id, err := NewKeyID("acme", rand.Reader); err != nil || !ValidID(id) {
		t.Errorf("got %q, %v", id, err)
	}
	for _, given := range []string{"", "fifteen bytes.."} {
		if id, err := NewKeyID("acme", strings.NewReader(given)); !errors.Is(err, io.ErrUnexpectedEOF) || id != "" {
			t.Errorf("%d bytes: got %q, %v", len(given), id, err)
		}
	}
}
