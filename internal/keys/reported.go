package keys

import (
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
)

// reportedToken returns the token in text that somebody found and copied, with line breaks, quotes
// or the name of a variable around it; the zero token if the text has none. Text with several
// tokens is refused: the answer can name only one key, and the caller might believe that all of
// them are revoked.
func reportedToken(fields *problem.Fields, text string) token.Token {
	var reported token.Token
	for found := range token.Find(text) {
		if !reported.IsZero() && found.Reveal() != reported.Reveal() {
			fields.Add("token", "holds several tokens; one at a time is allowed")
			return token.Token{}
		}
		reported = found
	}
	return reported
}
