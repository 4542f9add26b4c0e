package keyscreen_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestKeyIsMadeUsedAndEndedByFormsAlone: a key from the empty table to its end, by forms alone. Its tokens are in the two answers
// that show them, and nowhere else.
func TestKeyIsMadeUsedAndEndedByFormsAlone(t *testing.T) {
	for _, locally := range []bool{false, true} {
		t.Run(map[bool]string{false: "by keysvc", true: "locally"}[locally], func(t *testing.T) {
			p := newProduct(t, func(config *keyscreen.Config) { config.IssueLocally = locally })
			p.get("/").want(http.StatusOK, "No API keys yet", "Create API key")

			// 1. Create.
			form := p.open("/new")
			asked := url.Values{"name": {"  Nightly export "}, "scope": {"signatures:read", "signatures:write"}, "expiry": {"90"}}
			made := p.send("/new", form, asked).want(http.StatusOK, "Your new API key", "only time", "Nightly export", "30 May 2027")
			token := made.token()
			if !p.valid(token) {
				t.Fatalf("the token on the page is not valid: %s", made.text())
			}
			id := strings.Split(token, "_")[2]
			if row := p.get("/").rows()[id]; !strings.Contains(row, "Nightly export") || !strings.Contains(row, "Signatures Read, Write") || !strings.Contains(row, "Active") ||
				!strings.Contains(row, "You 1 Mar 2027") || !strings.Contains(row, "just now") || !strings.Contains(row, "in 3 months") {
				t.Errorf("the row is %q", row)
			}

			// 2. A reload, which sends the form again, makes no second key and shows no token.
			again := p.send("/new", form, asked).want(http.StatusConflict, "This was done before", "Nightly export", "create a replacement")
			if rows := p.get("/").rows(); len(rows) != 1 || again.token() != "" {
				t.Errorf("after a reload there are %d keys, and the token %q", len(rows), again.token())
			}

			// 3. Replace, with an overlap of a day.
			p.clock.Advance(24 * time.Hour)
			form = p.open("/keys/" + id + "/replace")
			replaced := p.send("/keys/"+id+"/replace", form, url.Values{"overlap": {"1d"}}).want(http.StatusOK, "Your replacement key", "in 1 day")
			if !p.valid(token) || !p.valid(replaced.token()) {
				t.Fatal("one of the two tokens is not valid")
			}
			p.send("/keys/"+id+"/replace", form, url.Values{"overlap": {"1d"}}).want(http.StatusConflict, "This was done before")
			p.get("/").want(http.StatusOK, "Being replaced", "New key: last used just now", "Old key: last used just now", "works until 3 Mar 2027 (in 1 day)")

			// 4. Finish, with a warning, because the old token was just used.
			p.get("/keys/"+id+"/finish").want(http.StatusOK, "within the last 7 days")
			finished := p.post("/keys/"+id+"/finish", nil).want(http.StatusSeeOther)
			if finished.header.Get("Location") != mounted+"/?done=finished" {
				t.Errorf("after Finish: %q", finished.header.Get("Location"))
			}
			p.get("/?done=finished").want(http.StatusOK, "The old key has ended")
			if p.valid(token) || !p.valid(replaced.token()) {
				t.Error("after Finish the old token is valid, or the new one is not")
			}

			// 5. Revoke. The name has to be typed.
			for _, typed := range []string{"", "nightly export", "Nightly"} {
				p.post("/keys/"+id+"/revoke", url.Values{"name": {typed}}).want(http.StatusUnprocessableEntity, "not the name of the key")
			}
			p.post("/keys/"+id+"/revoke", url.Values{"name": {"Nightly export"}}).want(http.StatusSeeOther)
			if p.valid(replaced.token()) {
				t.Error("the revoked key is valid")
			}
			if row := p.get("/?done=revoked").want(http.StatusOK, "The key is revoked").rows()[id]; !strings.Contains(row, "Revoked") || strings.Contains(row, "Create replacement") {
				t.Errorf("the row is %q", row)
			}

			// 6. The tokens are in two answers, with no-store, in no address and no log.
			for _, secret := range []string{token, replaced.token()} {
				secret = secret[len(secret)-49:]
				found := 0
				for _, page := range p.served {
					if strings.Contains(page.body, secret) {
						found++
					}
					for name, values := range page.header {
						if strings.Contains(strings.Join(values, ""), secret) {
							t.Errorf("%s: the header %s has the token", page.address, name)
						}
					}
					if strings.Contains(page.address, secret) || page.header.Get("Cache-Control") != "no-store" {
						t.Errorf("%s: has the token, or Cache-Control is %q", page.address, page.header.Get("Cache-Control"))
					}
				}
				if found != 1 || strings.Contains(p.log.String(), secret) {
					t.Errorf("a token is in %d pages, want 1; or it is in the log:\n%s", found, p.log)
				}
			}
			if locally {
				for _, request := range p.conn.requests {
					if create, is := request.(*keysvcv1.CreateKeyRequest); is && len(create.GetTokenDigest()) == 0 {
						t.Error("a key was not issued locally")
					}
				}
			}

			// 7. The actor is the member of the session.
			kept, err := p.keysvc.Keys.GetKey(t.Context(), &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: id})
			if err != nil || kept.GetKey().GetCreatedBy().GetActorMemberId() != "ann" || kept.GetKey().GetRevokedBy().GetActorMemberId() != "ann" || kept.GetKey().GetMemberId() != "ann" {
				t.Errorf("the key is of %s, created by %v, revoked by %v; %v", kept.GetKey().GetMemberId(), kept.GetKey().GetCreatedBy(), kept.GetKey().GetRevokedBy(), err)
			}
		})
	}
}
