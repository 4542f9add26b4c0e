package token

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/token/tokentest"
)

// found returns the plaintext of what Find yields.
func found(text string) []string {
	var all []string
	for token := range Find(text) {
		all = append(all, token.Reveal())
	}
	return all
}

func TestFindYieldsTokensThatTouchOtherText(t *testing.T) {
	for name, put := range tokentest.Surroundings {
		text := put(vector)
		if got := found(text); len(got) != 1 || got[0] != vector {
			t.Errorf("%s: found %q in %q", name, got, text)
		}
	}
}

// TestPatternFindsWhatFindFinds: a scanner that knows only the pattern and the checksum finds
// the same tokens.
func TestPatternFindsWhatFindFinds(t *testing.T) {
	pattern := regexp.MustCompile(Pattern)
	for name, put := range tokentest.Surroundings {
		match := pattern.FindString(put(vector))
		begins := 0
		for ; begins < len(match)-6 && !strings.HasSuffix(match, referenceChecksum(match[begins:len(match)-6])); begins++ {
		}
		if match == "" || match[begins:] != vector {
			t.Errorf("%s: matched %q", name, match)
		}
	}
}

func TestFindOnlyTellsSeveralTokensFromOne(t *testing.T) {
	const second = "ab_ksk1_0000000000000000_00000000000000000000000000000000000000000003zFKvH"
	for text, want := range map[string]struct {
		only    string
		several bool
	}{
		"nothing here":                       {"", false},
		"x " + vector + "\n":                 {vector, false},
		vector + " and once more " + vector:  {vector, false},
		vector + " " + second:                {"", true},
		vector + " " + second + " " + vector: {"", true},
	} {
		if only, several := FindOnly(text); only.Reveal() != want.only || several != want.several {
			t.Errorf("%q: got %s, %t", text, only, several)
		}
	}
}

func TestFindYieldsSeveralTokensInOrder(t *testing.T) {
	const second = "ab_ksk1_0000000000000000_00000000000000000000000000000000000000000003zFKvH"
	for _, text := range []string{
		vector + second, vector + "\n" + second, second[:30] + vector + "," + second + vector[:40],
		vector + "_ksk1_" + second + "_ksk1_",
	} {
		if got := found(text); len(got) != 2 || got[0] != vector || got[1] != second {
			t.Errorf("%q: found %q", text, got)
		}
	}
	for token := range Find(vector + second) { // the caller may stop early
		if token.Reveal() != vector {
			t.Errorf("found %q first", token.Reveal())
		}
		break
	}
}

func TestFindYieldsNothingIfNoTokenIsWhole(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"prose":           "the token is in the safe",
		"cut":             vector[:len(vector)-1],
		"prefix cut":      vector[len("scribe"):],
		"one letter left": vector[len("scrib"):],
		"wrong checksum":  vector[:len(vector)-1] + "K",
		"line break":      vector[:40] + "\n" + vector[40:],
		"escaped":         url.QueryEscape(strings.ReplaceAll(vector, "_", " ")),
		"upper case":      strings.ToUpper(vector),
		"id only":         vector[:len("scribe_ksk1_9fQ2mXc7Lr0TzB4w")],
		"marks":           strings.Repeat("_ksk1_", 1000),
		"prefix not fit":  "sc_ibe" + vector[len("scribe"):],
	} {
		if got := found(text); len(got) != 0 {
			t.Errorf("%s: found %q", name, got)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Fuzz(func(t *testing.T, before, behind string) {
		check := func(text string) (tokens []string) {
			for token := range Find(text) {
				if _, err := Parse(token.Reveal()); err != nil || !strings.Contains(text, token.Reveal()) {
					t.Fatalf("found %q in %q: %v", token.Reveal(), text, err)
				}
				tokens = append(tokens, token.Reveal())
			}
			return tokens
		}
		check(before + behind)
		whole := false
		for _, token := range check(before + vector + behind) {
			whole = whole || token == vector
		}
		if !whole {
			t.Fatalf("the token is not found between %q and %q", before, behind)
		}
	})
}
