package token

import (
	"iter"
	"strings"
)

// Find yields the tokens in a text, in their order. Anything may come before or after a
// token: line breaks, quotes, "Bearer ", other letters and digits. The checksum decides where
// a token begins, so every token that Find yields is complete. The chance that other text has a
// matching checksum is 1 in 2^32. A token with something inside it, such as a line break, is
// not found.
//
// Find is for tokens that leaked. For a text that is presented as a token, use Parse.
func Find(text string) iter.Seq[Token] {
	return func(yield func(Token) bool) {
		for at := 0; ; {
			found := strings.Index(text[at:], version)
			if found < 0 {
				return
			}
			at += found
			if token, ok := around(text, at); ok && !yield(token) {
				return
			}
			at += len("_ksk1") // the last underscore may be the first one of the next "_ksk1_"
		}
	}
}

// FindOnly returns the only token in a text, which may occur in it repeatedly; the zero Token if there
// is no token. several reports whether the text has different tokens; then the Token is zero, too.
func FindOnly(text string) (only Token, several bool) {
	for found := range Find(text) {
		if !only.IsZero() && found.Reveal() != only.Reveal() {
			return Token{}, true
		}
		only = found
	}
	return only, false
}

// around returns the token whose "_ksk1_" is at the given index of a text. If several
// beginnings fit, which takes a collision of checksums, around returns the longest token.
func around(text string, at int) (Token, bool) {
	end := at + tailLength
	if end > len(text) {
		return Token{}, false
	}
	for start := max(0, at-maxPrefixLength); start <= at-minPrefixLength; start++ {
		if token, err := Parse(text[start:end]); err == nil {
			return token, true
		}
	}
	return Token{}, false
}
