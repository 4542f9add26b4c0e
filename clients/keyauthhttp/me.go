package keyauthhttp

import (
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// me is the answer of Me.
type me struct {
	KeyID       string     `json:"key_id,omitempty"`
	Name        string     `json:"name,omitempty"`
	WorkspaceID string     `json:"workspace_id"`
	MemberID    string     `json:"member_id"`
	Role        string     `json:"role"`
	Scopes      []string   `json:"scopes"`
	ExpireTime  *time.Time `json:"expire_time"`
	Credential  string     `json:"credential,omitempty"`
}

// Me returns a handler for a route such as GET /me, which tells whoever presents a key what the key is and may do.
// It answers with a JSON object:
//
//   - key_id and name of the key; neither with a credential that is no key;
//   - workspace_id, member_id and role;
//   - scopes: those that the key has and its member's role allows, sorted, without wildcards;
//   - expire_time: when the token presented stops working (RFC 3339, UTC), or null if that is not known;
//   - credential: the name of the credential if it is no key of keysvc; see keyauth.Principal.
//
// The answer is not cached (Cache-Control: no-store). The handler has its own decision, for any valid key and
// with details, so it is mounted without a Require; the options are those of Require. It also works inside a Require or
// a Mux, as the handler of a route with keyauth.IdentityOnly. It takes GET and HEAD, and answers 405 to other
// methods. It panics as Require does.
func Me(guard *keyauth.Guard, options ...Option) http.Handler {
	return Must(New(guard, options...)).Me()
}

// Me is the function Me with the options of this Protector.
func (p *Protector) Me(options ...Option) http.Handler {
	details := func(s *settings) { s.details = true }
	return p.Require(keyauth.IdentityOnly(), append(slices.Clip(options), details)...)(http.HandlerFunc(serveMe))
}

func serveMe(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		if outer, ok := r.Context().Value(carriedKey{}).(*carried); ok {
			outer.settings.answer(w, r, Problem{Status: http.StatusMethodNotAllowed})
		}
		return
	}
	principal, ok := keyauth.PrincipalFrom(r.Context())
	if !ok {
		WriteRefusal(w, r, &keyauth.RefusalError{Code: codes.Internal})
		return
	}
	said := me{
		KeyID: principal.KeyID, Name: principal.KeyName, WorkspaceID: principal.WorkspaceID, MemberID: principal.MemberID,
		Role: principal.Role, Scopes: principal.Scopes, Credential: principal.Credential,
	}
	if said.Scopes == nil {
		said.Scopes = []string{}
	}
	if !principal.ExpireTime.IsZero() {
		end := principal.ExpireTime.UTC()
		said.ExpireTime = &end
	}
	body, err := json.Marshal(said)
	if err != nil {
		WriteRefusal(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n')) // the presenter has gone: nobody could be told
	}
}
