package keys

import (
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
)

// reportedToken returns the token that somebody found, with whatever stuck to it where it
// was copied: a line break, quotes, the name of a variable. It returns the zero token if the text holds no token. A text
// with several is refused: the answer can name one key only, and the others would live on.
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
