package keys

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// A page token is opaque text (AIP-158): a checksum over the store's cursor and the filters of
// the list, and after it the cursor. The checksum finds tokens that were made up or belong to
// other filters. It grants nothing: what a caller may read is decided again for each page.
const (
	pageChecksumLength = 9
	maxPageTokenLength = 1024
)

// pageDigest returns what the page tokens of a list are bound to: its kind and its filters.
func pageDigest(kind string, filters any) []byte {
	// The same filters have the same form within one version. An upgrade may end that: its
	// server then refuses older tokens, and the list has to begin again.
	encoded, err := json.Marshal(filters)
	if err != nil {
		encoded = nil // a time outside of the years 0 to 9999, which the caller has refused already
	}
	digest := sha256.Sum256(append([]byte("keysvc page token v1\x00"+kind+"\x00"), encoded...))
	return digest[:]
}

// makePageToken returns the token of the page that begins at a cursor; empty for no cursor.
func makePageToken(cursor string, digest []byte) string {
	if cursor == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(pageChecksum(cursor, digest), cursor...))
}

// parsePageToken returns the cursor in a page token; empty for the first page. The token must
// be the very text that makePageToken returned.
func parsePageToken(fields *problem.Fields, text string, digest []byte) string {
	if text == "" {
		return ""
	}
	// The decoder ignores line breaks, so text with one would be a second form of a token.
	if len(text) <= maxPageTokenLength && !strings.ContainsAny(text, "\r\n") {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err == nil && len(decoded) > pageChecksumLength {
			cursor := string(decoded[pageChecksumLength:])
			if subtle.ConstantTimeCompare(decoded[:pageChecksumLength], pageChecksum(cursor, digest)) == 1 {
				return cursor
			}
		}
	}
	fields.AddAs(problem.PageTokenInvalid, "page_token",
		"was not given out by this list with these filters; next_page_token of the page before is required, or none for the first page")
	return ""
}

func pageChecksum(cursor string, digest []byte) []byte {
	sum := sha256.Sum256(append(append([]byte(nil), digest...), cursor...))
	return sum[:pageChecksumLength]
}

// asPageTokenInvalid maps storage.ErrInvalidCursor to PAGE_TOKEN_INVALID. Other errors stay as
// they are.
func asPageTokenInvalid(err error) error {
	if errors.Is(err, storage.ErrInvalidCursor) {
		return problem.New(problem.PageTokenInvalid, "the page token no longer points into the list")
	}
	return err
}
