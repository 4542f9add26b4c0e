package nearcache

import (
	"strings"
	"testing"
	"unsafe"
)

// exampleToken is the test vector of ADR 0003.
const exampleToken = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"

// Every character of a token counts, whichever of the two parts it is in (C5).
func TestIdentityIsOfTheWholeToken(t *testing.T) {
	made := newIdentities()
	text := exampleToken
	known := made.of(text)
	if known.head == "" || strings.Contains(known.head, text[len(known.head):]) || !strings.HasPrefix(text, known.head) {
		t.Fatalf("the head %q of %q", known.head, text)
	}
	if again := made.of(strings.Clone(text)); again != known {
		t.Error("the same text has another identity")
	}
	for index := range len(text) {
		other := []byte(text)
		other[index] ^= 1
		if made.of(string(other)) == known {
			t.Errorf("with another character %d the identity is the same", index)
		}
	}
	for _, other := range []string{"", text[1:], text[:len(text)-1], "x" + text, text + "x", text[len(known.head):]} {
		if made.of(other) == known {
			t.Errorf("%q has the identity of the token", other)
		}
	}
	if another := newIdentities(); another.of(text).digest == known.digest {
		t.Error("the digest does not depend on the process")
	}
}

// A text of another form may be secret from its first character, so nothing of it is in memory.
func TestIdentityHoldsNothingOfOtherTexts(t *testing.T) {
	made := newIdentities()
	for _, text := range []string{"", "sk_live_51HxAbCdEf", strings.Repeat("x", 80), exampleToken + "0", strings.Replace(exampleToken, "_ksk1_", "_ksk2_", 1)} {
		if head := made.of(text).head; head != "" {
			t.Errorf("the head %q of %q", head, text)
		}
	}
	kept := made.of(exampleToken).retained()
	if unsafe.StringData(kept.head) == unsafe.StringData(exampleToken) {
		t.Error("what is kept keeps the whole token in memory")
	}
}
