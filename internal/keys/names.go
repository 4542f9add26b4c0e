package keys

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"

	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// checkName checks the name of a key. A name must show something, and must not have characters that
// show nothing, because two different names must not look alike. It must be in Unicode's
// normalization form NFC, which NormalName returns.
func checkName(fields *problem.Fields, name string, limits policy.Limits) {
	switch count := utf8.RuneCountInString(name); {
	case refuseToken(fields, "name", name):
	case name == "":
		fields.Add("name", "is missing; 1 to %d characters are required", limits.KeyNameCharacters)
	case count > limits.KeyNameCharacters:
		fields.Add("name", "has %d characters; 1 to %d are allowed", count, limits.KeyNameCharacters)
	case !utf8.ValidString(name):
		fields.Add("name", "is not valid UTF-8")
	case hasUnseen(name):
		fields.Add("name", "has a control, invisible or other unprintable character; printable ones and the space are allowed")
	case name[0] == ' ' || name[len(name)-1] == ' ':
		fields.Add("name", "begins or ends with a space; spaces are allowed only inside")
	case beginsWithMark(name):
		fields.Add("name", "begins with a combining mark; a character that it can stand on is required before it")
	case !norm.NFC.IsNormalString(name):
		fields.Add("name", "is not in Unicode's normalization form NFC, which is required")
	}
}

// NormalName returns a name in Unicode's normalization form NFC, in which names are stored: an é
// that was sent as two characters becomes one.
func NormalName(name string) string { return norm.NFC.String(name) }

// maxNamePart is how many characters the text that names are searched for has at most.
const maxNamePart = 128

// checkNamePart checks the text that names are searched for; empty searches for nothing.
func checkNamePart(fields *problem.Fields, text string) {
	const field = "name_contains"
	switch count := utf8.RuneCountInString(text); {
	case refuseToken(fields, field, text):
	case count > maxNamePart:
		fields.Add(field, "has %d characters; 1 to %d are allowed", count, maxNamePart)
	case !utf8.ValidString(text):
		fields.Add(field, "is not valid UTF-8")
	case strings.ContainsFunc(text, unicode.IsControl):
		fields.Add(field, "has a control character, which no name has; printable ones and the space are allowed")
	}
}

// foldName returns a name with one form for characters that differ only in case, by Unicode's simple
// case folding: no character becomes two.
func foldName(name string) string { return strings.Map(foldRune, name) }

// foldRune returns the least of the characters that differ from a character only in case.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
		return r
	}
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return least
}

func beginsWithMark(text string) bool {
	first, _ := utf8.DecodeRuneInString(text)
	return unicode.IsMark(first)
}

// hasUnseen reports whether text has a character that shows nothing at its place: a control or
// format character, a line break, a space other than U+0020, a filler, or a joiner or variation
// selector that does not change how its neighbours look.
func hasUnseen(text string) bool {
	runes := []rune(text)
	for index, r := range runes {
		switch {
		case r == zwnj || r == zwj:
			if !joins(runes, index) {
				return true
			}
		case r == textStyle || r == emojiStyle:
			if index == 0 || !hasStyles(runes[index-1], runeAt(runes, index+1)) {
				return true
			}
		case unicode.Is(tags, r):
			if !inFlag(runes, index) {
				return true
			}
		case !unicode.IsPrint(r), unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector, blanks):
			return true
		}
	}
	return false
}

const (
	zwnj       = '\u200c' // zero width non-joiner
	zwj        = '\u200d' // zero width joiner
	textStyle  = '\ufe0e'
	emojiStyle = '\ufe0f'
	keycap     = '\u20e3'
	blackFlag  = '\U0001f3f4'
)

var (
	// blanks are characters that show nothing although Unicode counts them as letters, marks or
	// symbols, and does not list them as ignorable.
	blanks = &unicode.RangeTable{
		R16: []unicode.Range16{{Lo: 0x2800, Hi: 0x2800, Stride: 1}, {Lo: 0xfffc, Hi: 0xfffc, Stride: 1}},
		R32: []unicode.Range32{
			{Lo: 0x13441, Hi: 0x13446, Stride: 1}, // Egyptian blanks and lost signs
			{Lo: 0x16fe4, Hi: 0x16fe4, Stride: 1}, // Khitan filler
			{Lo: 0x1d159, Hi: 0x1d159, Stride: 1}, // musical null notehead
		},
	}
	// tags are the characters that spell the region of a flag.
	tags = &unicode.RangeTable{R32: []unicode.Range32{{Lo: 0xe0020, Hi: 0xe007f, Stride: 1}}}
	// modifiers are skin tones.
	modifiers = &unicode.RangeTable{R32: []unicode.Range32{{Lo: 0x1f3fb, Hi: 0x1f3ff, Stride: 1}}}
)

// runeAt returns the rune at an index; 0 if there is no such index.
func runeAt(runes []rune, index int) rune {
	if index < 0 || index >= len(runes) {
		return 0
	}
	return runes[index]
}

// hasStyles reports whether a character is shown differently as text and as an emoji.
func hasStyles(r, next rune) bool {
	switch r {
	case '#', '*', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return next == keycap
	case '‼', '⁉', '〰', '〽', 'ℹ':
		return true
	}
	return unicode.In(r, unicode.So, unicode.Sm)
}

// flags are the regions, other than countries, that have a flag. They are spelled as in the tags
// (UTS 51, RGI_Emoji_Tag_Sequence).
var flags = map[string]bool{"gbeng": true, "gbsct": true, "gbwls": true}

// inFlag reports whether the tag at an index belongs to a flag.
func inFlag(runes []rune, index int) bool {
	const cancel = 0xe007f
	start := index
	for start > 0 && unicode.Is(tags, runes[start-1]) {
		start--
	}
	if runeAt(runes, start-1) != blackFlag {
		return false
	}
	var region []byte
	for _, r := range runes[start:] {
		if r == cancel {
			return flags[string(region)] && index <= start+len(region)
		}
		if !unicode.Is(tags, r) {
			return false
		}
		region = append(region, string(r-0xe0000)...) // the ASCII character of the tag
	}
	return false
}

// joins reports whether the joiner at an index changes how its neighbours look.
func joins(runes []rune, index int) bool {
	joiner, before, after := runes[index], runeAt(runes, index-1), runeAt(runes, index+1)
	switch {
	case before == 0 || before == zwnj || before == zwj:
		return false
	case isVirama(before):
		// Half forms of Indic scripts; a non-joiner separates two letters.
		return joiner == zwj || unicode.IsLetter(after)
	case unicode.IsLetter(before) && isVirama(after):
		return true
	case joiner == zwj && isPictograph(after):
		// One emoji that is made of several, such as a family.
		return isPictograph(before) || before == emojiStyle || unicode.Is(modifiers, before)
	}
	// Cursive scripts such as Arabic: a non-joiner separates letters that would be joined, and a
	// joiner gives a letter the form that it has beside another letter.
	left, right := joinsNext(beforeMarks(runes[:index])), joinsPrevious(afterMarks(runes[index+1:]))
	if joiner == zwnj {
		return left && right
	}
	return left != right
}

func isVirama(r rune) bool {
	const virama = 9 // the canonical combining class
	return r != 0 && norm.NFC.PropertiesString(string(r)).CCC() == virama
}

// isPictograph reports whether a character may be part of an emoji. Go does not have Unicode's list
// of these characters, all of which are symbols, so every symbol counts.
func isPictograph(r rune) bool { return unicode.Is(unicode.So, r) }

// beforeMarks returns the last rune that is not a mark; 0 if all of them are marks.
func beforeMarks(runes []rune) rune {
	for _, r := range slices.Backward(runes) {
		if !unicode.IsMark(r) {
			return r
		}
	}
	return 0
}

// afterMarks returns the first rune that is not a mark; 0 if all of them are marks.
func afterMarks(runes []rune) rune {
	for _, r := range runes {
		if !unicode.IsMark(r) {
			return r
		}
	}
	return 0
}

// joinsNext and joinsPrevious report whether a letter is joined to the letter after it, or before
// it. Package precis has the table, but does not export it. It allows a non-joiner only between two
// letters that would be joined (RFC 5892, appendix A.1), so these functions ask it about a
// non-joiner.
func joinsNext(r rune) bool     { return r != 0 && allowsNonJoiner(r, arabicBeh) }
func joinsPrevious(r rune) bool { return r != 0 && allowsNonJoiner(arabicBeh, r) }

const arabicBeh = '\u0628' // joined on both sides

var freeform = precis.NewFreeform()

func allowsNonJoiner(before, after rune) bool {
	_, err := freeform.String(string([]rune{before, zwnj, after}))
	return err == nil
}
