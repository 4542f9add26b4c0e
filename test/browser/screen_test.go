package browser_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp/kb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// screenPath is where the screen is mounted.
const screenPath = "/settings/api-keys"

// screen is a screen over a keysvc of its own.
type screen struct {
	t      *testing.T
	keysvc *servertest.Keysvc
	clock  *servertest.Clock
	url    string

	mutex  sync.Mutex
	member string
}

// startScreen starts a keysvc with four members and a screen, which Max the manager sees.
func startScreen(t *testing.T, change func(*keyscreen.Config)) *screen {
	t.Helper()
	needsBrowser(t)
	s := &screen{t: t, clock: servertest.NewClock(time.Now()), member: "max"}
	s.keysvc = servertest.Start(t, servertest.Options{Now: s.clock.Now})
	for member, role := range map[string]string{"olivia": "owner", "max": "manager", "mia": "manager", "ann": "member"} {
		s.keysvc.PutMember(t, "acme", member, role)
	}
	config := keyscreen.Config{
		Conn: s.keysvc.Conn, Path: screenPath, AllKeysRoles: []string{"owner"}, IssueLocally: true, Log: slog.New(slog.DiscardHandler), SignIn: "/log-in", Now: s.clock.Now,
		Session: func(*http.Request) (string, string, error) {
			s.mutex.Lock()
			defer s.mutex.Unlock()
			if s.member == "" {
				return "", "", keyscreen.ErrSignedOut
			}
			return "acme", s.member, nil
		},
		MemberNames: func(*http.Request, string, []string) map[string]string {
			return map[string]string{"olivia": "Olivia Owner", "max": "Max Manager", "mia": "Mia Manager", "ann": "Ann Member"}
		},
		ExampleURL: "https://api.example.com/v1/signatures",
	}
	if change != nil {
		change(&config)
	}
	handler, err := keyscreen.New(config)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(screenPath+"/", handler)
	mux.HandleFunc("/favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/paste", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte(`<!doctype html><title>Paste</title><label>Paste <textarea></textarea></label>`))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// as changes who is signed in.
func (s *screen) as(member string) {
	s.mutex.Lock()
	s.member = member
	s.mutex.Unlock()
}

// create makes a key without the screen.
func (s *screen) create(member, name string, scopes []string, days int) *keysvcv1.CreateKeyResponse {
	s.t.Helper()
	request := &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: member, ActorMemberId: &member, Name: name, Scopes: scopes}
	if days > 0 {
		request.ExpireTime = timestamppb.New(s.clock.Now().AddDate(0, 0, days))
	}
	made, err := s.keysvc.Keys.CreateKey(s.t.Context(), request)
	if err != nil {
		s.t.Fatal(err)
	}
	return made
}

// decides asks keysvc about a token.
func (s *screen) decides(token, scope string) keysvcv1.Reason {
	s.t.Helper()
	answer, err := s.keysvc.Validation.ValidateKey(s.t.Context(), &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope})
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.GetReason()
}

// usable checks whether a token works for a scope.
func (s *screen) usable(token, scope string, want bool) {
	s.t.Helper()
	if reason := s.decides(token, scope); (reason == keysvcv1.Reason_REASON_UNSPECIFIED) != want {
		s.t.Errorf("a token for %s: usable is %v, want %v (%v)", scope, !want, want, reason)
	}
}

// ways returns the ways to walk: all sixteen, or four, in which both widths, both schemes, mouse and keyboard
// come in every pair.
func ways() []way {
	var all []way
	for bits := range 16 {
		w := way{keyboard: bits&1 > 0, phone: bits&2 > 0, dark: bits&4 > 0, script: bits&8 > 0}
		if *everyWay || w.dark != w.script && (w.keyboard != w.phone) == w.dark {
			all = append(all, w)
		}
	}
	return all
}

// walker is a tab on the screen.
type walker struct {
	*tab
	s *screen
}

// row checks what the row of a key says.
func (w walker) row(name string, texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		w.until(fmt.Sprintf("rowText(%s).includes(%s)", quote(name), quote(strings.ToLower(text))))
	}
}

// boxes returns the names of the boxes for scopes, and of those that are checked.
func (w walker) boxes() (all, checked []string) {
	w.t.Helper()
	const boxes = `[...document.querySelectorAll('input[name=scope]')].filter(visible)`
	return ask[[]string](w.tab, boxes+".map(named)"), ask[[]string](w.tab, boxes+".filter((one) => one.checked).map(named)")
}

// token reads the token that is shown.
func (w walker) token() string {
	w.t.Helper()
	w.sees("This is the only time the key is shown.")
	token := ask[string](w.tab, `document.querySelector("[data-keyscreen-token]").textContent`)
	if !strings.HasPrefix(token, "scribe_ksk1_") {
		w.t.Fatalf("what is shown is not a token: it has %d characters", len(token))
	}
	return token
}

// clipboard is one for all tabs of Chromium.
var clipboard sync.Mutex

// copies copies the token by the button, and pastes it elsewhere.
func (w walker) copies(token string) {
	w.t.Helper()
	clipboard.Lock()
	defer clipboard.Unlock()
	w.uses("button", "Copy key", "")
	w.sees("Copied.")
	other := open(w.t, way{script: true})
	other.visit(w.s.url + "/paste")
	other.clicks("field", "Paste", "")
	other.do(send(input.DispatchKeyEvent, input.DispatchKeyEventParams{
		Type: input.DispatchKeyEventTypeKeyDown, Key: "v", Code: "KeyV", Modifiers: 2, Commands: []string{"paste"},
	}))
	other.until(`document.querySelector("textarea").value !== ""`)
	if ask[string](other, `document.querySelector("textarea").value`) != token {
		w.t.Error("what was copied is not the key")
	}
}

// done closes a key that is shown once, and waits for the table. With JavaScript the table behind the dialog
// is fetched anew then: a click before that would miss a row that moves.
func (w walker) done(control string) {
	w.t.Helper()
	w.until(`(() => { const old = document.querySelector("[data-keyscreen-results]"); if (old) old.dataset.before = "yes"; return true; })()`)
	w.uses("link", control, "")
	w.until(`!document.querySelector("[data-keyscreen-results][data-before]")`)
	w.home()
}

// home waits until the table is there, and nothing over it.
func (w walker) home() {
	w.t.Helper()
	w.until(`!document.querySelector("dialog[open]") && !!document.querySelector("[data-keyscreen-results]")`)
}

// TestAKeysWholeLife makes a key on the screen, replaces and revokes it, in every way that members come. It is
// what the product's documentation shows, step by step.
func TestAKeysWholeLife(t *testing.T) {
	t.Parallel()
	for _, way := range ways() {
		t.Run(way.String(), func(t *testing.T) {
			t.Parallel()
			s := startScreen(t, nil)
			w := walker{open(t, way), s}
			w.visit(s.url + screenPath + "/")

			// 1. There is no key yet.
			w.sees("API keys", "No API keys yet")
			w.checkState("empty")

			// 2. Create API key: a name, and for each resource the boxes Read, Write and Delete.
			w.uses("link", "Create API key", "")
			w.sees("Give the key a name and only the permissions that it needs.")
			all, checked := w.boxes()
			if len(all) != 22 || len(checked) != 0 {
				t.Errorf("a manager is offered %d boxes, of which %d are checked: %v", len(all), len(checked), all)
			}
			for _, resource := range []string{"Teammates", "Emails", "Signatures", "Smart fields", "Folders", "Assets", "Marketing campaigns"} {
				for _, action := range []string{"Read", "Write", "Delete"} {
					if !contains(all, resource+": "+action) {
						t.Errorf("there is no box %s: %s", resource, action)
					}
				}
			}
			if !contains(all, "Integrations: Read") || contains(all, "Integrations: Write") || contains(all, "Financial documents: Read") {
				t.Errorf("integrations are read only, and a manager has no financial documents: %v", all)
			}
			w.checkState("create")
			w.presets()

			// 3. What is wrong is said at its field, and what was entered stays.
			w.uses("button", "Create key", "")
			w.sees("Enter a name.", "Choose at least one permission.")
			w.fieldError("keyscreen-name", "Enter a name.")
			w.expect("422")
			w.checkState("errors")

			// 4. The key is shown once, to be copied.
			w.types("Name", "Nightly export")
			w.uses("box", "Emails: Read", "")
			w.uses("box", "Signatures: Read", "")
			w.uses("box", "In 90 days", "")
			w.uses("button", "Create key", "")
			first := w.token()
			w.sees("Your new API key", "Copy it now.", "Emails", "Signatures")
			w.checkState("shown once")
			s.usable(first, "emails:read", true)
			s.usable(first, "signatures:read", true)
			if s.decides(first, "emails:write") != keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED {
				t.Error("the key has a scope that was not checked")
			}
			if way.script {
				// It is not closed by mistake.
				w.presses(kb.Escape)
				w.sees("Copy the key first")
				w.copies(first)
			}
			w.done("I have copied it")
			w.checkTokenIsGone(first)
			w.visit(s.url + screenPath + "/")

			// 5. The table: name, id, scopes, who made it, when, last used, expiry, state.
			id := strings.Split(first, "_")[2]
			w.row("Nightly export", id, "Emails", "Signatures", "Read", "You", s.clock.Now().UTC().Format("2 Jan 2006"),
				"just now", s.clock.Now().UTC().AddDate(0, 0, 90).Format("2 Jan 2006"), "Active")
			w.checkState("table")
			w.reachesEverything()

			// 6. A replacement before the end: both work, and each says when it was last used.
			w.uses("link", "Create replacement for Nightly export", "")
			w.sees("How long the old key goes on working")
			w.checkState("replace")
			w.uses("box", "1 day", "")
			w.uses("button", "Create replacement", "")
			second := w.token()
			w.sees("Your replacement key", "The old key works until:")
			w.checkState("replacement shown once")
			s.usable(first, "emails:read", true)
			s.usable(second, "emails:read", true)
			if way.script {
				w.copies(second)
			}
			w.done("I have copied it")
			w.checkTokenIsGone(second)
			w.visit(s.url + screenPath + "/")
			w.row("Nightly export", "Being replaced")
			w.sees("New key:", "Old key:", "last used", "works until")
			w.checkState("being replaced")

			// 7. Finish: the old one ends.
			w.uses("link", "Finish replacing Nightly export", "")
			w.sees("The old key of “Nightly export” stops working at once.", "Old key:")
			w.checkState("finish")
			w.uses("button", "Stop the old key", "")
			w.sees("Only the new one works now.")
			w.home()
			w.checkState("finished")
			s.usable(first, "emails:read", false)
			s.usable(second, "emails:read", true)

			// 8. Revoke, with the name typed: at once.
			w.uses("link", "Revoke Nightly export", "")
			w.sees("Type the name of the key to confirm")
			w.checkState("revoke")
			w.types("Type the name of the key to confirm", "Nightly")
			w.uses("button", "Revoke key", "")
			w.sees("This is not the name of the key.")
			w.fieldError("keyscreen-confirm", "This is not the name of the key.")
			s.usable(second, "emails:read", true)
			w.checkState("revoke, with an error")
			w.types("Type the name of the key to confirm", "Nightly export")
			w.uses("button", "Revoke key", "")
			w.sees("The key is revoked.")
			w.home()
			w.row("Nightly export", "Revoked")
			w.checkState("revoked")
			s.usable(second, "emails:read", false)
			w.checkTokenIsGone(second)
		})
	}
}

// presets uses the presets, which check boxes and create nothing.
func (w walker) presets() {
	w.t.Helper()
	for _, preset := range []struct {
		name  string
		boxes int
	}{{"Read only", 8}, {"Everything I may do", 22}, {"Nothing", 0}} {
		w.uses("button", preset.name, "")
		w.until(fmt.Sprintf(`document.querySelectorAll('input[name=scope]:checked').length === %d`, preset.boxes))
		_, checked := w.boxes()
		for _, name := range checked {
			if preset.name == "Read only" && !strings.HasSuffix(name, ": Read") {
				w.t.Errorf("Read only checks %s", name)
			}
		}
	}
}

// fieldError checks that a field is marked, and that its message belongs to it.
func (w walker) fieldError(id, message string) {
	w.t.Helper()
	field := "document.getElementById(" + quote(id) + ")"
	if ask[string](w.tab, field+`.getAttribute("aria-invalid") ?? ""`) != "true" {
		w.t.Errorf("the field %s is not marked as wrong", id)
	}
	described := ask[string](w.tab, `(`+field+`.getAttribute("aria-describedby") ?? "").split(" ").map((one) => document.getElementById(one)?.textContent ?? "").join(" ")`)
	if !strings.Contains(described, message) {
		w.t.Errorf("the field %s is described by %q", id, described)
	}
}

// reachesEverything checks, by keyboard, that Tab comes to every control of the page, and leaves it again.
func (w walker) reachesEverything() {
	w.t.Helper()
	if !w.way.keyboard {
		return
	}
	const tabbable = `[...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']")].filter((one) => visible(one) && one.tabIndex >= 0 && !one.disabled)`
	total := ask[int](w.tab, tabbable+".length")
	ask[bool](w.tab, `(window.reached = new Set(), document.activeElement.blur(), true)`)
	for range total + 3 {
		w.presses(kb.Tab)
		ask[bool](w.tab, `(window.reached.add(document.activeElement), true)`)
	}
	if missed := ask[[]string](w.tab, tabbable+`.filter((one) => !window.reached.has(one)).map((one) => one.outerHTML.slice(0, 200))`); len(missed) > 0 {
		w.t.Errorf("Tab does not come to %v", missed)
	}
}

func contains(list []string, text string) bool {
	for _, one := range list {
		if one == text {
			return true
		}
	}
	return false
}
