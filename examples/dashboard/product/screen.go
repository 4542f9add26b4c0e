package product

import (
	"io"
	"net/http"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
)

// screen returns the settings screen: the part that a product of one's own copies.
func (p *product) screen() (http.Handler, error) {
	return keyscreen.New(keyscreen.Config{
		Conn: p.config.Keysvc.Conn(),
		Path: screenPath,
		// The product's own session says who asks. The screen trusts it.
		Session: func(r *http.Request) (workspace, member string, err error) {
			who, err := p.sessions.of(r)
			if err != nil {
				return "", "", keyscreen.ErrSignedOut
			}
			return p.config.Workspace, who.ID, nil
		},
		SignIn:       logInPath,
		AllKeysRoles: []string{"owner"},
		// keysvc never sees a token: it is drawn here.
		IssueLocally: true,
		MemberNames: func(_ *http.Request, _ string, _ []string) map[string]string {
			names := make(map[string]string)
			for _, member := range p.config.Members {
				names[member.ID] = member.Name
			}
			return names
		},
		// The product's header is around the screen.
		Layout: func(w io.Writer, r *http.Request, page keyscreen.Page) error {
			member, _ := p.sessions.of(r)
			return p.pages["screen"].ExecuteTemplate(w, "page.html", map[string]any{
				"Title": page.Title, "Member": member, "Head": page.Head, "Body": page.Body, "ScreenPath": screenPath,
			})
		},
		ExampleURL: p.config.URL + "/v1/signatures",
	})
}
