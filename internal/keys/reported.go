package keys

import (
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
)

// Reported is a token that was found where it should not be: Text, or Digest and KeyID.
type Reported struct {
	// Text holds the token, with or without other text around it.
	Text string
	// Digest and KeyID are those of the token, in the place of Text.
	Digest token.Digest
	KeyID  string
}

// String returns nothing of the token but the id of its key.
func (r Reported) String() string { return "[reported token] " + r.KeyID }

// GoString returns String.
func (r Reported) GoString() string { return r.String() }

// token returns the token that was reported; the zero Presented if nothing was. Text with several
// tokens is refused: the answer can name only one key, and the caller might believe that all of
// them are revoked.
func (r Reported) token(fields *problem.Fields) token.Presented {
	if digest := CheckPresented(fields, r.Text, r.KeyID, r.Digest); !r.Digest.IsZero() {
		return digest
	}
	reported, several := token.FindOnly(r.Text)
	if several {
		fields.Add("token", "holds several tokens; one at a time is allowed")
	}
	if reported.IsZero() && !several {
		// It may be the token of another system, which has no form by which text around it could be told.
		foreign, _ := token.Foreign(r.Text)
		return token.Present(foreign)
	}
	return reported.Presented()
}
