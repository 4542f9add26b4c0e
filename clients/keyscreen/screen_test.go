package keyscreen_test

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

var assetPattern = regexp.MustCompile(`(?:href|src)="(/settings/api-keys/assets/[^"]+)"`)

var nextPattern = regexp.MustCompile(`href="([^"]*page=[^"]*)" rel="next"`)

func TestCreateFormOffersWhatTheRoleMayGrant(t *testing.T) {
	p := newProduct(t, nil)
	// 1. The boxes are what the role may grant.
	if boxes := p.get("/new").want(http.StatusOK, "Read only", "Everything I may do").matches(boxPattern); len(boxes) != 23 {
		t.Errorf("an owner has %d boxes, want 23", len(boxes))
	}
	p.member = "acme/bob"
	boxes := p.get("/new").matches(boxPattern)
	if len(boxes) == 0 || slices.Contains(boxes, "financial_documents:read") {
		t.Errorf("a manager's boxes are %q", boxes)
	}
	// 2. Presets work without a script, create nothing, and keep what was typed.
	for preset, want := range map[string]int{"read": 8, "all": len(boxes), "none": 0} {
		page := p.post("/new", url.Values{"preset": {preset}, "name": {"kept"}, "expiry": {"30"}}).want(http.StatusOK)
		checked := page.matches(checkedPattern)
		if len(checked) != want || !strings.Contains(page.body, `value="kept"`) || !strings.Contains(page.body, `value="30" checked`) {
			t.Errorf("preset %s checks %q", preset, checked)
		}
		if preset == "read" && slices.ContainsFunc(checked, func(scope string) bool { return !strings.HasSuffix(scope, ":read") }) {
			t.Errorf("read only checks %q", checked)
		}
	}
	// 3. Errors stand at their fields, and what was typed is kept.
	good := url.Values{"name": {"ok"}, "scope": {"signatures:read"}, "expiry": {"year"}}
	for _, bad := range []struct{ field, value, message, mark string }{
		{"name", "", "Enter a name", "keyscreen-name-error"},
		{"name", "   ", "Enter a name", "keyscreen-name-error"},
		{"name", strings.Repeat("é", 129), "at most 128 characters", "keyscreen-name-error"},
		{"name", "a\u200bb", "This name cannot be used", "keyscreen-name-error"},
		{"scope", "", "does not allow one of these permissions", "keyscreen-scopes-error"},
		{"scope", "financial_documents:read", "does not allow one of these permissions", "keyscreen-scopes-error"},
		{"expiry", "", "Choose when the key expires", "keyscreen-expiry-error"},
		{"expiry", "date", "Choose when the key expires", "keyscreen-expiry-error"},
	} {
		values := url.Values{}
		for name, list := range good {
			values[name] = list
		}
		values[bad.field] = []string{bad.value}
		page := p.post("/new", values).want(http.StatusUnprocessableEntity, bad.message, "Some fields need another look")
		if !strings.Contains(page.body, `id="`+bad.mark+`"`) || !strings.Contains(page.body, `aria-invalid="true"`) || strings.Count(page.body, bad.mark) < 2 {
			t.Errorf("%s %q: the field is not marked", bad.field, bad.value)
		}
		if bad.field != "name" && !strings.Contains(page.body, `value="ok"`) {
			t.Errorf("%s %q: the name is lost", bad.field, bad.value)
		}
	}
	p.post("/new", url.Values{"name": {"ok"}, "expiry": {"year"}}).want(http.StatusUnprocessableEntity, "Choose at least one permission")
	// 4. Days.
	for day, want := range map[string]string{
		"2027-02-28": "", "2028-03-02": "", "x": "", "2027-03-01": "2 Mar 2027, 00:00", "2027-12-31": "1 Jan 2028, 00:00", "2028-03-01": "1 Mar 2028, 12:00",
	} {
		page := p.post("/new", url.Values{"name": {"ok"}, "scope": {"signatures:read"}, "expiry": {"date"}, "date": {day}})
		if want == "" {
			page.want(http.StatusUnprocessableEntity, "Choose a day from today")
		} else {
			page.want(http.StatusOK, want)
		}
	}
}

func TestFiltersAndPaging(t *testing.T) {
	p := newProduct(t, func(config *keyscreen.Config) { config.PageSize = 2 })
	for _, name := range []string{"alpha", "beta", "gamma", "Alphabet"} {
		p.newKey(name, "signatures:read")
	}
	first := p.get("/").want(http.StatusOK, "4 keys", "Next page")
	next := nextPattern.FindStringSubmatch(first.body)
	if next == nil || len(first.rows()) != 2 {
		t.Fatalf("the first page has %d keys, and leads to %v", len(first.rows()), next)
	}
	second := p.ask(strings.ReplaceAll(next[1], "&amp;", "&"), nil, nil).want(http.StatusOK, "alpha", "beta", "First page")
	if len(second.rows()) != 2 || strings.Contains(second.text(), "Next page") {
		t.Errorf("the second page has %d keys", len(second.rows()))
	}
	if got := p.get("/?page=zzz").want(http.StatusSeeOther); got.header.Get("Location") != mounted+"/" {
		t.Errorf("an odd page leads to %q", got.header.Get("Location"))
	}
	if rows := p.get("/?search=ALPHA").want(http.StatusOK, "2 keys").rows(); len(rows) != 2 {
		t.Errorf("the search found %v", rows)
	}
	p.get("/?search=nothing").want(http.StatusOK, "0 keys", "No key matches", "Show all keys")

	p.post("/new", url.Values{"name": {"short"}, "scope": {"signatures:read"}, "expiry": {"30"}}).want(http.StatusOK, "short")
	if got := p.get("/?view=expiring").want(http.StatusOK, "1 key", "short", "in 30 days"); strings.Contains(got.text(), "Expiring soon") {
		t.Error("a key that was just made for 30 days needs attention")
	}
	p.get("/?view=unused").want(http.StatusOK, "No key matches")
	p.clock.Advance(15 * 24 * time.Hour)
	p.get("/?view=expiring").want(http.StatusOK, "1 key", "short", "Expiring soon")
	p.clock.Advance(76 * 24 * time.Hour)
	// The filter stays the same from page to page, although time goes on.
	unused := p.get("/?view=unused").want(http.StatusOK, "4 keys")
	p.clock.Advance(time.Minute)
	p.ask(strings.ReplaceAll(nextPattern.FindStringSubmatch(unused.body)[1], "&amp;", "&"), nil, nil).want(http.StatusOK, "alpha", "First page")
	p.get("/?view=expired").want(http.StatusOK, "1 key", "short", "Expired", "ago")
	p.get("/?view=revoked").want(http.StatusOK, "No key matches")
	p.get("/?view=odd").want(http.StatusOK, "5 keys")
}

func TestFailuresOfKeysvc(t *testing.T) {
	const inner = "the disk of 10.0.0.7 is on fire"
	p := newProduct(t, nil)
	id, _ := p.newKey("mine", "signatures:read")
	// 1. keysvc cannot be reached: a page in the product's words.
	p.conn.before = func(string) error { return status.Error(codes.Unavailable, inner) }
	for _, path := range []string{"/", "/new", "/keys/" + id + "/revoke"} {
		page := p.get(path).want(http.StatusServiceUnavailable, "Not available at the moment")
		if page.header.Get("Retry-After") == "" || strings.Contains(page.body, inner) {
			t.Errorf("%s: Retry-After %q\n%s", path, page.header.Get("Retry-After"), page.text())
		}
	}
	p.conn.before = nil
	// It stops while a form is filled in: the page has a button that sends the same form again.
	form, values := p.open("/new"), url.Values{"name": {"typed"}, "scope": {"signatures:read", "folders:read"}, "expiry": {"year"}}
	p.conn.before = func(string) error { return status.Error(codes.Unavailable, inner) }
	stopped := p.send("/new", form, values).want(http.StatusServiceUnavailable, "Try again")
	p.conn.before = nil
	again := url.Values{}
	for _, field := range hiddenPattern.FindAllStringSubmatch(stopped.body, -1) {
		again.Add(field[1], html.UnescapeString(field[2]))
	}
	p.send("/new", again, nil).want(http.StatusOK, "typed", "Folders Read", "Signatures Read")
	// 2. The answer of a change is lost: the same form again finds the key.
	form, values = p.open("/new"), url.Values{"name": {"lost"}, "scope": {"signatures:read"}, "expiry": {"year"}}
	p.conn.after = func(method string, _, _ any) error {
		if strings.HasSuffix(method, "/CreateKey") {
			return status.Error(codes.Unavailable, inner)
		}
		return nil
	}
	page := p.send("/new", form, values).want(http.StatusServiceUnavailable, "It is not known whether this was done")
	if !strings.Contains(page.body, `value="lost"`) || strings.Contains(page.body, inner) {
		t.Error("what was typed is lost, or keysvc's words are shown")
	}
	p.conn.after = nil
	p.send("/new", page.hidden(), values).want(http.StatusConflict, "This was done before", "lost")
	// 3. A keysvc without assignable scopes and total: the page says so, and the rest works.
	p.conn.after = func(_ string, _, answer any) error {
		switch answer := answer.(type) {
		case *keysvcv1.GetMemberResponse:
			answer.AssignableScopes = nil
		case *keysvcv1.ListKeysResponse:
			answer.TotalSize = nil
		}
		return nil
	}
	if page := p.get("/").want(http.StatusOK, "has to be updated", "mine"); strings.Contains(page.body, mounted+"/new") {
		t.Error("the page offers to create a key")
	}
	p.get("/new").want(http.StatusServiceUnavailable, "has to be updated")
	p.conn.after = nil
	// 4. A key that was revoked while its form was open.
	form = p.open("/keys/" + id + "/replace")
	p.post("/keys/"+id+"/revoke", url.Values{"name": {"mine"}}).want(http.StatusSeeOther)
	p.send("/keys/"+id+"/replace", form, url.Values{"overlap": {"7d"}}).want(http.StatusConflict, "revoked meanwhile")
	// 5. Config.Session fails.
	failing := newProduct(t, func(config *keyscreen.Config) {
		config.Session = func(*http.Request) (string, string, error) { return "", "", errors.New(inner) }
	})
	if page := failing.get("/").want(http.StatusServiceUnavailable); strings.Contains(page.body, inner) || !strings.Contains(failing.log.String(), inner) {
		t.Error("the error of Session is shown, or not logged")
	}
}

func TestRotationOfARotatingKey(t *testing.T) {
	p := newProduct(t, nil)
	id, first := p.newKey("mine", "signatures:read")
	second := p.post("/keys/"+id+"/replace", url.Values{"overlap": {"30d"}}).want(http.StatusOK).token()
	page := p.get("/keys/"+id+"/replace").want(http.StatusOK, "being replaced already", "It stops now")
	if strings.Contains(page.body, `value="7d"`) {
		t.Error("a third token is offered beside two")
	}
	p.send("/keys/"+id+"/replace", page.hidden(), url.Values{"overlap": {"7d"}}).want(http.StatusConflict, "being replaced already")
	p.send("/keys/"+id+"/replace", page.hidden(), url.Values{"overlap": {"8d"}}).want(http.StatusUnprocessableEntity, "Choose how long")
	third := p.post("/keys/"+id+"/replace", url.Values{"overlap": {"0"}}).want(http.StatusOK).token()
	if p.valid(first) || p.valid(second) || !p.valid(third) {
		t.Error("not exactly the third token is valid")
	}
	p.get("/keys/"+id+"/finish").want(http.StatusOK, "nothing to finish")
}

func TestOnlyPathsBelowTheMountAreAnswered(t *testing.T) {
	p := newProduct(t, nil)
	for path, want := range map[string]int{
		mounted: http.StatusOK, mounted + "/": http.StatusOK, mounted + "/nothing": http.StatusNotFound, mounted + "/keys": http.StatusNotFound,
		"/": http.StatusInternalServerError, "/new": http.StatusInternalServerError, mounted + "x": http.StatusInternalServerError,
	} {
		if got := p.ask(path, nil, nil); got.status != want {
			t.Errorf("GET %s: %d, want %d", path, got.status, want)
		}
	}
	if !strings.Contains(p.log.String(), "do not strip it") {
		t.Errorf("the log does not say what is wrong:\n%s", p.log)
	}
	mux := http.NewServeMux()
	mux.Handle(mounted+"/", http.StripPrefix(mounted, p.screen))
	recorder := httptest.NewRecorder()
	mux.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, mounted+"/", nil))
	if recorder.Code != http.StatusInternalServerError {
		t.Errorf("behind StripPrefix: %d", recorder.Code)
	}
	for method, want := range map[string]int{http.MethodHead: http.StatusOK, http.MethodPut: http.StatusMethodNotAllowed, http.MethodPost: http.StatusMethodNotAllowed} {
		if got := p.ask(mounted+"/", nil, func(r *http.Request) { r.Method = method }); got.status != want {
			t.Errorf("%s: %d, want %d", method, got.status, want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	conn := &conn{}
	session := func(*http.Request) (string, string, error) { return "", "", nil }
	for want, config := range map[string]keyscreen.Config{
		"Config.Conn":         {Path: "/x", Session: session},
		"Config.Session":      {Path: "/x", Conn: conn},
		"Config.Path":         {Path: "/x/", Conn: conn, Session: session},
		"Config.Path is \"\"": {Conn: conn, Session: session},
		"Config.FormKey":      {Path: "/x", Conn: conn, Session: session, FormKey: []byte("short")},
		"Config.PageSize":     {Path: "/x", Conn: conn, Session: session, PageSize: 101},
		"Config.Theme":        {Path: "/x", Conn: conn, Session: session, Theme: "pink"},
		"Config.Stylesheets":  {Path: "/x", Conn: conn, Session: session, Stylesheets: []string{"https://a;script-src"}},
		"Config.Languages[0]": {Path: "/x", Conn: conn, Session: session, Languages: []*keyscreen.Language{{Tag: "fr"}}},
	} {
		if _, err := keyscreen.New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestLayoutAndNames(t *testing.T) {
	p := newProduct(t, func(config *keyscreen.Config) {
		config.Layout = func(w io.Writer, r *http.Request, page keyscreen.Page) error {
			_, err := fmt.Fprintf(w, "<title>%s</title>%s<nav>Scribe %s</nav><main>%s</main>", page.Title, page.Head, r.Method, page.Body)
			return err
		}
		config.MemberNames = func(_ *http.Request, workspace string, members []string) map[string]string {
			if workspace != "acme" || !slices.Contains(members, "bob") {
				t.Errorf("asked for %q of %s", members, workspace)
			}
			return map[string]string{"bob": "Bob Brown"}
		}
	})
	p.member = "acme/bob"
	p.newKey("bobs", "signatures:read")
	p.member = "acme/ann"
	p.get("/").want(http.StatusOK, "Scribe GET", "Bob Brown 1 Mar 2027")
}

// TestPatience: a keysvc that does not answer does not hold a request for long.
func TestPatience(t *testing.T) {
	p := newProduct(t, nil)
	p.conn.before = func(string) error { return context.DeadlineExceeded }
	p.get("/").want(http.StatusServiceUnavailable)
}
