package decide

import (
	"crypto/rand"
	"math"
	"testing"

	"github.com/scribe-mail/keysvc/internal/token"
)

// TestOnlyTheVerifierSchemeMatches: match hashes the token once, before it looks at the stored
// hashes, so a miss does the work of a hit. The right sum under another scheme does not match.
func TestOnlyTheVerifierSchemeMatches(t *testing.T) {
	presented, err := token.New("scribe", "9fQ2mXc7Lr0TzB4w", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	right, err := presented.Hash(token.SchemeVerifier)
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []token.Scheme{decoy.Secrets[0].Hash.Scheme, token.SchemeDigest, 2, token.SchemeVerifier, 77, 255} {
		for index := range 2 {
			var key Key
			key.Secrets[index] = Secret{Hash: token.Hash{Scheme: scheme, Sum: right.Sum}.Short(), End: math.MaxInt64}
			newest, older := match(presented.Presented(), &key, 0)
			if want := scheme == token.SchemeVerifier; (newest || older) != want {
				t.Errorf("scheme %d, secret %d: matches: %t, want %t", scheme, index, newest || older, want)
			}
		}
	}
	if newest, older := match(presented.Presented(), &decoy, 0); newest || older {
		t.Error("the decoy matches")
	}
	if newest, older := match(token.Presented{}, &decoy, 0); newest || older {
		t.Error("no token matches the decoy")
	}
}
