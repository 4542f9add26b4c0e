package keys

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// A page token is opaque text (AIP-158): the store's cursor behind a checksum over
// it and the filters of the request. The checksum finds tokens that belong to other
// filters or were made up. It grants nothing: what a caller may read is decided anew
// for each page.
const (
	pageChecksumLength = 9
	maxPageTokenLength = 1024
)

// pageDigest returns what a page token is bound to: the request without its page.
func pageDigest(filters proto.Message) []byte {
	// Within one process the encoding is the same for the same filters; a token that
	// does not survive an upgrade is refused, and the list begun again.
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(filters)
	if err != nil {
		encoded = nil // not valid UTF-8; checked with the fields
	}
	name := string(filters.ProtoReflect().Descriptor().FullName())
	digest := sha256.Sum256(append([]byte("keysvc page token v1\x00"+name+"\x00"), encoded...))
	return digest[:]
}

// makePageToken returns the token for what follows a cursor; empty if nothing does.
func makePageToken(cursor string, digest []byte) string {
	if cursor == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(pageChecksum(cursor, digest), cursor...))
}

// parsePageToken returns the cursor in a page token; empty for the first page.
func parsePageToken(fields *problem.Fields, text string, digest []byte) string {
	if text == "" {
		return ""
	}
	// The decoder would pass over line breaks.
	if len(text) <= maxPageTokenLength && !strings.ContainsAny(text, "\r\n") {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err == nil && len(decoded) > pageChecksumLength {
			cursor := string(decoded[pageChecksumLength:])
			if subtle.ConstantTimeCompare(decoded[:pageChecksumLength], pageChecksum(cursor, digest)) == 1 {
				return cursor
			}
		}
	}
	fields.AddAs(keysvcv1.ErrorReason_ERROR_REASON_PAGE_TOKEN_INVALID, "page_token",
		"is not one that this list gave out with these filters; take next_page_token of the page before, or none for the first page")
	return ""
}

func pageChecksum(cursor string, digest []byte) []byte {
	sum := sha256.Sum256(append(append([]byte(nil), digest...), cursor...))
	return sum[:pageChecksumLength]
}

// asPageTokenInvalid turns the store's word that a cursor is none of its into the
// caller's.
func asPageTokenInvalid(err error) error {
	if errors.Is(err, storage.ErrInvalidCursor) {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_PAGE_TOKEN_INVALID, "the page token no longer points into the list")
	}
	return err
}
