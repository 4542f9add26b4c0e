package decide

import (
	"crypto/rand"
	"testing"

	"github.com/scribe-mail/keysvc/internal/token"
)

// TestMissHashesToo shows, without a stopwatch, that a miss does the work of a hit: for
// a key that is not there, or whose scheme is none that this program knows, the token is
// hashed all the same, and the result equals nothing.
func TestMissHashesToo(t *testing.T) {
	presented, err := token.New("scribe", "9fQ2mXc7Lr0TzB4w", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want, err := presented.Hash(token.SchemeSHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []token.Scheme{decoy.Secrets[0].Hash.Scheme, 2, 77, 255} {
		got := hashAs(presented, scheme)
		if got.Sum != want.Sum {
			t.Errorf("scheme %d: the token was not hashed", scheme)
		}
		if got.Equal(want) || got.Equal(token.Hash{}) || got.Equal(token.Hash{Scheme: scheme}) ||
			got.Equal(token.Hash{Scheme: scheme, Sum: want.Sum}) {
			t.Errorf("scheme %d: the hash equals something", scheme)
		}
	}
	if newest, older := match(presented, &decoy, 0); newest || older {
		t.Error("the decoy matches")
	}
}
