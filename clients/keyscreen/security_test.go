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

// changes returns how many requests for changes have reached keysvc.
func (p *product) changes() int {
	count := 0
	for _, request := range p.conn.requests {
		switch request.(type) {
		case *keysvcv1.CreateKeyRequest, *keysvcv1.RotateKeyRequest, *keysvcv1.FinishRotationRequest, *keysvcv1.RevokeKeyRequest:
			count++
		}
	}
	return count
}

// forms returns the forms of the screen, with what each needs.
func forms(id string) map[string]url.Values {
	return map[string]url.Values{
		"/new":                     {"name": {"x"}, "scope": {"signatures:read"}, "expiry": {"year"}},
		"/keys/" + id + "/replace": {"overlap": {"0"}},
		"/keys/" + id + "/finish":  {},
		"/keys/" + id + "/revoke":  {"name": {"mine"}},
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	p := newProduct(t, nil)
	id, _ := p.newKey("mine", "signatures:read")
	before := p.changes()
	for path, values := range forms(id) {
		hidden := p.open("/new") // the token is the member's, for every form
		whole := url.Values{}
		for _, some := range []url.Values{hidden, values} {
			for name, list := range some {
				whole[name] = list
			}
		}
		for name, change := range map[string]func(*http.Request){
			"Sec-Fetch-Site cross-site": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
			"Sec-Fetch-Site same-site":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			"Origin": func(r *http.Request) {
				r.Header.Del("Sec-Fetch-Site")
				r.Header.Set("Origin", "https://evil.example")
			},
		} {
			if got := p.ask(mounted+path, whole, change); got.status != http.StatusForbidden || !strings.Contains(got.text(), "another site") {
				t.Errorf("POST %s with %s: %d %s", path, name, got.status, got.text())
			}
		}
		for name, token := range map[string]string{
			"no token": "", "another token": "99999999999.00", "no end": "." + strings.Repeat("0", 64),
			"another end": "9" + hidden.Get("form_token"),
		} {
			whole.Set("form_token", token)
			if got := p.ask(mounted+path, whole, nil); got.status != http.StatusForbidden || !strings.Contains(got.text(), "open for too long") {
				t.Errorf("POST %s with %s: %d %s", path, name, got.status, got.text())
			}
		}
		// In the address it is no token of a form.
		whole.Del("form_token")
		if got := p.ask(mounted+path+"?form_token="+hidden.Get("form_token"), whole, nil); got.status != http.StatusForbidden {
			t.Errorf("POST %s with the token in the address: %d", path, got.status)
		}
	}
	// The token of another member, of another workspace, and one that has ended.
	token := p.open("/new")
	for _, member := range []string{"acme/bob", "other/eve"} {
		p.member = member
		p.send("/new", token, forms(id)["/new"]).want(http.StatusForbidden)
	}
	p.member = "acme/ann"
	p.clock.Advance(13 * time.Hour)
	kept := p.send("/new", token, forms(id)["/new"]).want(http.StatusForbidden)
	if !strings.Contains(kept.body, `value="x"`) || len(kept.matches(checkedPattern)) != 1 {
		t.Error("after an old form what was typed is lost")
	}
	if after := p.changes(); after != before {
		t.Errorf("%d changes reached keysvc", after-before)
	}
	// The form that was shown with the refusal works.
	p.send("/new", kept.hidden(), forms(id)["/new"]).want(http.StatusOK)
}

// TestForeignKeyIsAnsweredLikeAnUnknownOne: a key that the member may not see is answered like one that does not exist.
func TestForeignKeyIsAnsweredLikeAnUnknownOne(t *testing.T) {
	p := newProduct(t, nil)
	mine, _ := p.newKey("mine", "signatures:read")
	p.member = "acme/bob"
	bobs, _ := p.newKey("bobs", "signatures:read")
	p.member = "other/eve"
	eves, _ := p.newKey("eves", "signatures:read")

	p.member = "acme/bob"
	unknown := p.get("/keys/0000000000000000/revoke").want(http.StatusNotFound)
	form := p.open("/new")
	before := p.changes()
	for _, id := range []string{mine, eves, "0000000000000000", "..", "x", mine + "0"} {
		for _, action := range []string{"replace", "finish", "revoke"} {
			path := "/keys/" + id + "/" + action
			if got := p.get(path); got.status != http.StatusNotFound || got.body != unknown.body {
				t.Errorf("GET %s: %d, or another page than for an unknown key", path, got.status)
			}
			got := p.send(path, form, url.Values{"name": {"mine"}, "overlap": {"0"}})
			if got.status != http.StatusNotFound || strings.Contains(got.body, "mine") || strings.Contains(got.body, "eves") {
				t.Errorf("POST %s: %d %s", path, got.status, got.text())
			}
		}
	}
	if p.changes() != before {
		t.Error("a change of a foreign key reached keysvc")
	}
	// A member sees only its own keys, whatever it asks for.
	for _, query := range []string{"", "?mine=", "?search=m", "?view=active"} {
		for id := range p.get("/" + query).want(http.StatusOK).rows() {
			if id != bobs {
				t.Errorf("bob sees the key %s", id)
			}
		}
	}
	// A role that sees all keys sees those of its workspace, revokes them, and cannot replace them.
	p.member = "acme/ann"
	rows := p.get("/").rows()
	if len(rows) != 2 || rows[bobs] == "" || strings.Contains(rows[bobs], "Create replacement") {
		t.Errorf("ann sees %v", rows)
	}
	if rows := p.get("/?mine=1").rows(); len(rows) != 1 || rows[mine] == "" {
		t.Errorf("ann's own keys are %v", rows)
	}
	p.get("/keys/" + eves + "/revoke").want(http.StatusNotFound)
	p.get("/keys/"+bobs+"/replace").want(http.StatusForbidden, "Only the member whom a key acts as")
	p.send("/keys/"+bobs+"/replace", p.open("/new"), url.Values{"overlap": {"0"}}).want(http.StatusForbidden)
	p.post("/keys/"+bobs+"/revoke", url.Values{"name": {"bobs"}}).want(http.StatusSeeOther)
}

func TestWhoMayNotEnter(t *testing.T) {
	p := newProduct(t, func(config *keyscreen.Config) { config.SignIn = "/log-in" })
	p.newKey("mine", "signatures:read")
	p.member = ""
	if got := p.get("/").want(http.StatusUnauthorized, "You are signed out"); !strings.Contains(got.body, `href="/log-in"`) {
		t.Error("the page does not lead to the log-in")
	}
	p.member = "acme/nobody"
	p.get("/").want(http.StatusForbidden, "no access to API keys")
	for _, member := range []string{"/ann", "acme/"} {
		p.member = member
		p.get("/").want(http.StatusServiceUnavailable)
	}
	p.member = "acme/carl"
	if page := p.get("/").want(http.StatusOK, "Your role does not allow you to create API keys"); strings.Contains(page.text(), "Create a key to call") {
		t.Error("a member without scopes is told to create a key")
	}
	p.get("/new").want(http.StatusForbidden, "Your role does not allow you")
	if _, err := p.keysvc.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_SUSPENDED,
	}); err != nil {
		t.Fatal(err)
	}
	p.member = "acme/ann"
	if got := p.get("/").want(http.StatusForbidden, "Your account is suspended"); strings.Contains(got.body, "mine") {
		t.Error("a suspended member sees keys")
	}
	if _, err := p.keysvc.Members.RemoveMember(t.Context(), &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}); err != nil {
		t.Fatal(err)
	}
	p.get("/").want(http.StatusForbidden, "no access to API keys")
}

func TestEachPageForbidsScriptsFramesAndCaches(t *testing.T) {
	p := newProduct(t, func(config *keyscreen.Config) {
		config.Stylesheets = []string{"/static/brand.css", "https://static.example.com/brand.css"}
	})
	for _, path := range []string{"/", "/new", "/nothing", "/keys/0000000000000000/revoke"} {
		page := p.get(path)
		policy := page.header.Get("Content-Security-Policy")
		for _, part := range []string{
			"default-src 'none'", "script-src 'self';", "style-src 'self' https://static.example.com;",
			"form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
		} {
			if !strings.Contains(policy, part) {
				t.Errorf("%s: the policy %q lacks %q", path, policy, part)
			}
		}
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY",
		} {
			if got := page.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		// The policy would block these.
		for _, inline := range []string{"<style", " style=", " onclick=", "<script>", "javascript:"} {
			if strings.Contains(page.body, inline) {
				t.Errorf("%s has %s", path, inline)
			}
		}
		for _, asset := range assetPattern.FindAllStringSubmatch(page.body, -1) {
			got := p.ask(asset[1], nil, nil)
			if got.status != http.StatusOK || !strings.Contains(got.header.Get("Cache-Control"), "immutable") || len(got.body) < 1000 {
				t.Errorf("%s: %d, Cache-Control %q", asset[1], got.status, got.header.Get("Cache-Control"))
			}
		}
		if len(assetPattern.FindAllString(page.body, -1)) != 2 {
			t.Errorf("%s links other assets than two", path)
		}
	}
	p.ask(mounted+"/assets/keyscreen.js", nil, nil).want(http.StatusNotFound)
}

// TestNamesAreEscaped: what members type is text in every page.
func TestNamesAreEscaped(t *testing.T) {
	p := newProduct(t, nil)
	const name = `<script>alert("1")</script>' onload=x`
	id, _ := p.newKey(name, "signatures:read")
	for _, path := range []string{"/", "/keys/" + id + "/replace", "/keys/" + id + "/revoke", "/?search=" + url.QueryEscape(name)} {
		page := p.get(path)
		if strings.Contains(page.body, "<script>alert") || strings.Contains(page.body, `"' onload`) || !strings.Contains(page.body, "&lt;script&gt;") {
			t.Errorf("%s: the name is not escaped", path)
		}
	}
	p.post("/keys/"+id+"/revoke", url.Values{"name": {name}}).want(http.StatusSeeOther)
}
