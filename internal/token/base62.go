package token

import (
	"errors"
	"fmt"
	"io"
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

const (
	// fairBytes is the greatest multiple of 62 below 256. Bytes of this value and above are
	// discarded: with them, the digits 0 to 7 would be more likely than the others.
	fairBytes = 4 * 62

	// maxDraws bounds the reads from a source whose bytes are all discarded. Of a working
	// source, 1 byte in 32 is discarded, so the bound is never reached.
	maxDraws = 64
)

var errBrokenSource = errors.New("random source is broken: want evenly spread bytes")

// appendRandomBase62 appends count digits, with each of the 62 digits equally likely. It
// returns an error and no digits if random fails or ends early.
func appendRandomBase62(digits []byte, count int, random io.Reader) ([]byte, error) {
	end := len(digits) + count
	drawn := make([]byte, count)
	defer clear(drawn)
	for range maxDraws {
		missing := drawn[:end-len(digits)]
		if _, err := io.ReadFull(random, missing); err != nil {
			// A caller that reads until io.EOF would take io.EOF for success.
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("reading %d random bytes: %w", len(missing), err)
		}
		for _, b := range missing {
			if b < fairBytes {
				digits = append(digits, base62[b%62])
			}
		}
		if len(digits) == end {
			return digits, nil
		}
	}
	return nil, errBrokenSource
}

func allBase62(text string) bool {
	for i := range len(text) {
		c := text[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
