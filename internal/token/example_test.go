package token_test

import (
	"fmt"

	"github.com/scribe-mail/keysvc/internal/token"
)

// A token can be printed safely; only Reveal returns the plaintext.
func ExampleParse() {
	parsed, err := token.Parse("scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J")
	fmt.Println(parsed, err)
	fmt.Println(parsed.ID())

	_, err = token.Parse("scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1j")
	fmt.Println(err)
	// Output:
	// scribe_ksk1_9fQ2mXc7Lr0TzB4w_[redacted] <nil>
	// 9fQ2mXc7Lr0TzB4w
	// token: malformed: want <prefix>_ksk1_<16 base62 characters>_<49 base62 characters> with a matching checksum
}
