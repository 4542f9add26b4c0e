package blind_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// window is how many characters in a row of a secret, in one of its forms, are a finding. A text
	// of 16 random base62 characters does not occur twice by chance.
	window = 16
	// secretLength is the number of characters of a secret.
	secretLength = 43
	// factor is the base of the rolling hash.
	factor = 0x9E3779B97F4A7C15
	// filterBits is the size of the filter in front of the map: 2 MiB.
	filterBits = 24
)

// The forms in which texts are searched. In all of them a text of base62 digits has base62 digits only.
const (
	asText = iota
	asBase64
	asHex
	asID     // not a secret: the id of a key
	asDigest // not a secret, but nothing to keep: the digest of a token
)

var forms = [...]string{asText: "text", asBase64: "base64", asHex: "hex", asID: "id", asDigest: "digest"}

// index finds every window of every text that was added to it, in one pass over what is searched.
type index struct {
	mutex    sync.Mutex
	subjects []string
	numbers  map[string]int32
	// windows has texts of base62 digits, and bytes has all others.
	windows, bytes map[[window]byte]entry
	filter         [1 << filterBits / 64]uint64
}

// entry is what a window is a part of.
type entry struct {
	subject int32
	form    uint8
}

func newIndex() *index {
	return &index{windows: make(map[[window]byte]entry), bytes: make(map[[window]byte]entry), numbers: make(map[string]int32)}
}

// addSecret adds a secret in all forms: as it is, and in base64 and hex with anything before it. subject
// is what a finding is reported as. Repeating it is no error.
func (x *index) addSecret(subject, secret string) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	if number, added := x.number(subject); added {
		x.add(x.windows, number, asText, secret)
		for before, cut := range []int{0, 2, 3} {
			// The first characters mix bits of the secret with bits of what is before it.
			encoded := base64.RawStdEncoding.EncodeToString([]byte("xx"[:before] + secret))
			x.add(x.windows, number, asBase64, encoded[cut:(before+len(secret))*8/6])
		}
		encoded := hex.EncodeToString([]byte(secret))
		x.add(x.windows, number, asHex, encoded)
		x.add(x.windows, number, asHex, strings.ToUpper(encoded))
	}
}

// addToken adds the secret of a token.
func (x *index) addToken(subject, text string) {
	x.addSecret(subject, text[len(text)-secretLength-6:len(text)-6])
}

// addDigest adds the digest of a token as bytes, in hex, and in base64 with anything before it.
func (x *index) addDigest(keyID, text string) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	parsed, err := token.Parse(text)
	if err != nil {
		panic(err) // the callers have issued it
	}
	digest := parsed.Digest()
	number, _ := x.number("digest of " + keyID)
	x.add(x.bytes, number, asDigest, string(digest[:]))
	encoded := hex.EncodeToString(digest[:])
	x.add(x.windows, number, asDigest, encoded)
	x.add(x.windows, number, asDigest, strings.ToUpper(encoded))
	for before, cut := range []int{0, 2, 3} {
		joined := append([]byte("xx"[:before]), digest[:]...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			x.add(x.bytes, number, asDigest, encoding.EncodeToString(joined)[cut:len(joined)*8/6])
		}
	}
}

// addID adds the id of a key. It is no secret: where it is found, the search works.
func (x *index) addID(keyID string) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	if number, added := x.number(keyID); added {
		x.add(x.windows, number, asID, keyID)
	}
}

func (x *index) number(subject string) (number int32, added bool) {
	if number, has := x.numbers[subject]; has {
		return number, false
	}
	number = int32(len(x.subjects))
	x.subjects, x.numbers[subject] = append(x.subjects, subject), number
	return number, true
}

func (x *index) add(to map[[window]byte]entry, subject int32, form uint8, text string) {
	for at := 0; at+window <= len(text); at++ {
		piece := [window]byte([]byte(text[at:]))
		to[piece] = entry{subject, form}
		bit := hash(piece[:]) >> (64 - filterBits)
		x.filter[bit/64] |= 1 << (bit % 64)
	}
}

// leaving is the weight of the character that leaves the window.
var leaving = func() uint64 {
	power := uint64(1)
	for range window {
		power *= factor
	}
	return power
}()

func hash(text []byte) uint64 {
	sum := uint64(0)
	for _, c := range text {
		sum = sum*factor + uint64(c)
	}
	return sum
}

var isDigit = func() (is [256]bool) {
	for c := range is {
		is[c] = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
	}
	return is
}()

// search calls found for each window in a text.
func (x *index) search(text []byte, found func(entry)) {
	for at := 0; at+window <= len(text); {
		// 1. Skip to the next window that has base62 digits only.
		last := at + window - 1
		for last >= at && isDigit[text[last]] {
			last--
		}
		if last >= at {
			at = last + 1
			continue
		}
		// 2. Roll to the end of the digits.
		for sum := hash(text[at : at+window]); ; at++ {
			if bit := sum >> (64 - filterBits); x.filter[bit/64]&(1<<(bit%64)) != 0 {
				if of, is := x.windows[[window]byte(text[at:])]; is {
					found(of)
				}
			}
			next := at + window
			if next >= len(text) || !isDigit[text[next]] {
				at = next + 1
				break
			}
			sum = sum*factor + uint64(text[next]) - uint64(text[at])*leaving
		}
	}
}

// searchBytes is search for the texts that have other characters than base62 digits. It is slower.
func (x *index) searchBytes(text []byte, found func(entry)) {
	sum := uint64(0)
	for at, c := range text {
		sum = sum*factor + uint64(c)
		if at >= window {
			sum -= uint64(text[at-window]) * leaving
		}
		if bit := sum >> (64 - filterBits); at >= window-1 && x.filter[bit/64]&(1<<(bit%64)) != 0 {
			if of, is := x.bytes[[window]byte(text[at-window+1:])]; is {
				found(of)
			}
		}
	}
}

// findings are what was found in one place.
type findings struct {
	// secrets are the secrets that were found, each with the forms.
	secrets map[string]map[string]bool
	// tokens are well-formed tokens, whosever they are, with the secret redacted.
	tokens map[string]bool
	// ids are the ids of keys that were found.
	ids map[string]bool
	// digests are the digests of tokens that were found; nil if nobody looks for them.
	digests map[string]bool
	// bytes is how much was searched.
	bytes int64
}

// newFindings returns the findings of a place that may have digests, because they are sent to it.
func newFindings() *findings {
	return &findings{secrets: make(map[string]map[string]bool), tokens: make(map[string]bool), ids: make(map[string]bool)}
}

// withDigests returns the findings of a place in which digests are looked for, too.
func withDigests() *findings {
	found := newFindings()
	found.digests = make(map[string]bool)
	return found
}

// nothing reports whether neither a secret nor a token was found.
func (f *findings) nothing() bool { return len(f.secrets)+len(f.tokens) == 0 }

const (
	mark = "_ksk1_"
	// overlap is how much of a piece is searched again with the next one: more than a token has.
	overlap = 256
	// pieceBytes is how much is searched at a time.
	pieceBytes = 512 << 10
)

// piece searches a piece of a place.
func (f *findings) piece(x *index, text []byte) {
	found := func(of entry) {
		subject := x.subjects[of.subject]
		switch {
		case of.form == asID:
			f.ids[subject] = true
			return
		case of.form == asDigest && f.digests != nil:
			f.digests[subject] = true
			return
		case of.form == asDigest:
			return
		}
		if f.secrets[subject] == nil {
			f.secrets[subject] = make(map[string]bool)
		}
		f.secrets[subject][forms[of.form]] = true
	}
	x.search(text, found)
	if f.digests != nil {
		x.searchBytes(text, found)
	}
	for from := 0; ; {
		next := bytes.Index(text[from:], []byte(mark))
		if next < 0 {
			return
		}
		at := from + next
		for found := range token.Find(string(text[max(0, at-12):min(len(text), at+100)])) {
			f.tokens[found.String()] = true
		}
		from = at + len(mark)
	}
}

// all searches what a reader returns.
func (f *findings) all(x *index, reader io.Reader) error {
	buffer := make([]byte, pieceBytes)
	carried := 0
	for {
		read, err := io.ReadFull(reader, buffer[carried:])
		filled := carried + read
		f.bytes += int64(read)
		f.piece(x, buffer[:filled])
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
		carried = copy(buffer, buffer[max(0, filled-overlap):filled])
	}
}
