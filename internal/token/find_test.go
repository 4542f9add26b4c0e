package token

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// found returns the plaintext of what Find yields.
func found(text string) []string {
	var all []string
	for token := range Find(text) {
		all = append(all, token.Reveal())
	}
	return all
}

// surroundings are texts around a token, as people and programs leave them. In each of them
// Find finds the whole token.
var surroundings = map[string]func(token string) string{
	"alone":                 func(token string) string { return token },
	"a line break behind":   func(token string) string { return token + "\n" },
	"carriage return":       func(token string) string { return token + "\r\n" },
	"spaces":                func(token string) string { return "  " + token + "\t" },
	"quotes":                func(token string) string { return `"` + token + `"` },
	"JSON":                  func(token string) string { return `{"token":"` + token + `","x":1}` },
	"escaped JSON":          func(token string) string { return `{\"token\":\"` + token + `\"}` },
	"header":                func(token string) string { return "Authorization: Bearer " + token },
	"scheme":                func(token string) string { return "bearer " + token },
	"name before it":        func(token string) string { return "TOKEN_" + token },
	"assignment":            func(token string) string { return "export TOKEN=" + token + ";" },
	"query":                 func(token string) string { return "?token=" + token + "&x=1" },
	"query in a query":      func(token string) string { return "next=%3Ftoken%3D" + token + "%26x%3D1" },
	"lower case escape":     func(token string) string { return "token%3d" + token + "%0a" },
	"escaped line break":    func(token string) string { return `\n` + token + `\n` },
	"letters before it":     func(token string) string { return "ab" + token },
	"many letters":          func(token string) string { return strings.Repeat("ab9", 100) + token },
	"letters behind it":     func(token string) string { return token + "abc" },
	"digits around it":      func(token string) string { return "0" + token + "0" },
	"underscores around it": func(token string) string { return "_" + token + "_" },
	"a mark before it":      func(token string) string { return "_ksk1_" + token },
	"half of one before it": func(token string) string { return token[:len(token)-1] + "_" + token },
	"its middle before it":  func(token string) string { return token[:len(token)-56] + token },
	"invisible":             func(token string) string { return "\ufeff" + token + "\u200b" },
	"not UTF-8":             func(token string) string { return "\xff" + token + "\xff" },
}

func TestFindYieldsTokensThatTouchOtherText(t *testing.T) {
	for name, put := range surroundings {
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
	for name, put := range surroundings {
		match := pattern.FindString(put(vector))
		begins := 0
		for ; begins < len(match)-6 && !strings.HasSuffix(match, referenceChecksum(match[begins:len(match)-6])); begins++ {
		}
		if match == "" || match[begins:] != vector {
			t.Errorf("%s: matched %q", name, match)
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
