package token

import (
	"iter"
	"strings"
)

// Find yields the tokens in a text, in their order, whatever stands before and behind
// them: line breaks, quotes, "Bearer ", other letters and digits. The checksum decides
// where a token begins, so what is yielded is whole; by chance it is something else in
// one of 2^32 cases. A token that has something inside it, a line break for example, is
// not found.
//
// Find is for tokens that leaked. A text that is presented as a token must be one: that
// is for Parse.
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
			at += len("_ksk1") // the last underscore may be the first one of the next
		}
	}
}

// around returns the token whose version stands at an index of a text. Of several
// beginnings that fit, which takes a collision of checksums, it is the longest.
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
