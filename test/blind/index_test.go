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
	asID // not a secret: the id of a key
)

var forms = [...]string{asText: "text", asBase64: "base64", asHex: "hex", asID: "id"}

// index finds every window of every text that was added to it, in one pass over what is searched.
type index struct {
	mutex    sync.Mutex
	subjects []string
	numbers  map[string]int32
	windows  map[[window]byte]entry
	filter   [1 << filterBits / 64]uint64
}

// entry is what a window is a part of.
type entry struct {
	subject int32
	form    uint8
}

func newIndex() *index {
	return &index{windows: make(map[[window]byte]entry), numbers: make(map[string]int32)}
}

// addSecret adds a secret in all forms: as it is, and in base64 and hex with anything before it. subject
// is what a finding is reported as. Repeating it is no error.
func (x *index) addSecret(subject, secret string) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	if number, added := x.number(subject); added {
		x.add(number, asText, secret)
		for before, cut := range []int{0, 2, 3} {
			// The first characters mix bits of the secret with bits of what is before it.
			encoded := base64.RawStdEncoding.EncodeToString([]byte("xx"[:before] + secret))
			x.add(number, asBase64, encoded[cut:(before+len(secret))*8/6])
		}
		encoded := hex.EncodeToString([]byte(secret))
		x.add(number, asHex, encoded)
		x.add(number, asHex, strings.ToUpper(encoded))
	}
}

// addToken adds the secret of a token.
func (x *index) addToken(subject, text string) {
	x.addSecret(subject, text[len(text)-secretLength-6:len(text)-6])
}

// addID adds the id of a key. It is no secret: where it is found, the search works.
func (x *index) addID(keyID string) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	if number, added := x.number(keyID); added {
		x.add(number, asID, keyID)
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

func (x *index) add(subject int32, form uint8, text string) {
	for at := 0; at+window <= len(text); at++ {
		piece := [window]byte([]byte(text[at:]))
		x.windows[piece] = entry{subject, form}
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

// findings are what was found in one place.
type findings struct {
	// secrets are the secrets that were found, each with the forms.
	secrets map[string]map[string]bool
	// tokens are well-formed tokens, whosever they are, with the secret redacted.
	tokens map[string]bool
	// ids are the ids of keys that were found.
	ids map[string]bool
	// bytes is how much was searched.
	bytes int64
}

func newFindings() *findings {
	return &findings{secrets: make(map[string]map[string]bool), tokens: make(map[string]bool), ids: make(map[string]bool)}
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
	x.search(text, func(of entry) {
		subject := x.subjects[of.subject]
		if of.form == asID {
			f.ids[subject] = true
			return
		}
		if f.secrets[subject] == nil {
			f.secrets[subject] = make(map[string]bool)
		}
		f.secrets[subject][forms[of.form]] = true
	})
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
