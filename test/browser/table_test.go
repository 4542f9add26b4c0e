package browser_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
)

// tableWays are the two ways in which the table is tested.
var tableWays = []way{{script: true}, {keyboard: true, phone: true, dark: true}}

// TestRolesSeeWhatIsTheirs signs in as members of each role.
func TestRolesSeeWhatIsTheirs(t *testing.T) {
	t.Parallel()
	for _, way := range tableWays {
		t.Run(way.String(), func(t *testing.T) {
			t.Parallel()
			s := startScreen(t, nil)
			s.create("max", "Key of Max", []string{"emails:read"}, 0)
			mias := s.create("mia", "Key of Mia", []string{"emails:read", "signatures:write"}, 0).GetKey().GetKeyId()
			w := walker{open(t, way), s}

			// 1. A manager sees the own keys only, also by address.
			w.visit(s.url + screenPath + "/")
			w.row("Key of Max", "Active")
			w.lacks("Key of Mia", "Only my keys")
			w.expect("404")
			for _, page := range []string{"revoke", "replace", "finish"} {
				w.visit(s.url + screenPath + "/keys/" + mias + "/" + page)
				w.sees("Key not found")
				w.lacks("Key of Mia")
			}
			w.checkState("not found")

			// 2. An owner sees all keys, revokes them, and replaces only the own ones.
			s.as("olivia")
			w.visit(s.url + screenPath + "/")
			w.row("Key of Mia", "Mia Manager", "Active")
			w.row("Key of Max", "Max Manager")
			w.lacks("Create replacement")
			w.checkState("the owner's table")
			w.uses("box", "Only my keys", "")
			w.applies()
			w.sees("No key matches this search.")
			w.checkState("no match")
			w.visit(s.url + screenPath + "/")
			w.uses("link", "Revoke Key of Mia", "")
			w.types("Type the name of the key to confirm", "Key of Mia")
			w.uses("button", "Revoke key", "")
			w.sees("The key is revoked.")
			w.home()
			w.row("Key of Mia", "Revoked")

			// 3. The two resources that are read only have one box each.
			w.uses("link", "Create API key", "")
			w.sees("Give the key a name")
			all, _ := w.boxes()
			if len(all) != 23 || !contains(all, "Integrations: Read") || !contains(all, "Financial documents: Read") {
				t.Errorf("an owner is offered %d boxes: %v", len(all), all)
			}

			// 4. A member whose role has no scopes can create nothing.
			s.as("ann")
			w.visit(s.url + screenPath + "/")
			w.sees("Your role does not allow you to create API keys.")
			if ask[bool](w.tab, "!!"+control("link", "Create API key", "")) {
				t.Error("a member without scopes is led to the form")
			}
			w.checkState("no scopes")

			// 5. Nobody.
			s.as("")
			w.expect("401")
			w.visit(s.url + screenPath + "/")
			w.sees("You are signed out", "Sign in")
			w.checkState("signed out")
			s.as("nobody")
			w.expect("403")
			w.visit(s.url + screenPath + "/")
			w.sees("No access to API keys")
			w.checkState("no access")
		})
	}
}

// applies applies the filters: without JavaScript by the button.
func (w walker) applies() {
	w.t.Helper()
	if !w.way.script {
		w.uses("button", "Apply", "")
	}
}

// TestKeysAreFound filters, searches and turns pages.
func TestKeysAreFound(t *testing.T) {
	t.Parallel()
	for _, way := range tableWays {
		t.Run(way.String(), func(t *testing.T) {
			t.Parallel()
			s := startScreen(t, func(config *keyscreen.Config) { config.PageSize = 5 })
			s.create("max", "Old and unused", []string{"emails:read"}, 0)
			s.clock.Advance(90 * 24 * time.Hour)
			s.create("max", "Ends soon", []string{"emails:read"}, 20)
			s.clock.Advance(10 * 24 * time.Hour)
			for number := range 10 {
				s.create("max", fmt.Sprintf("Import %02d", number), []string{"emails:read"}, 0)
			}
			w := walker{open(t, way), s}

			// 1. Pages, with the total.
			w.visit(s.url + screenPath + "/")
			w.sees("12 keys", "Next page")
			w.lacks("First page")
			rows := `document.querySelectorAll("tr[data-key]").length`
			w.until(rows + " === 5")
			w.checkState("first page")
			w.uses("link", "Next page", "")
			w.sees("First page")
			w.until(rows + " === 5")
			w.uses("link", "Next page", "")
			w.until(rows + " === 2")
			w.lacks("Next page")
			w.checkState("last page")
			w.uses("link", "First page", "")
			w.until(rows + " === 5")

			// 2. Filters.
			w.filters("Expiring within 30 days")
			w.sees("1 key")
			w.row("Ends soon", "Expiring soon")
			w.lacks("Old and unused", "Import 01")
			w.checkState("expiring")
			w.filters("Not used for 90 days")
			w.row("Old and unused", "Never")
			w.until(`rowText("Ends soon") === ""`)
			w.lacks("Import 01")
			w.filters("Revoked")
			w.sees("No key matches this search.")
			w.filters("All keys")
			w.sees("12 keys")

			// 3. Search, by a part of the name.
			w.types("Search by name", "port 07")
			w.applies()
			w.row("Import 07", "Active")
			w.until(rows + " === 1")
			w.sees("1 key")
			w.checkState("found")
		})
	}
}

// filters chooses a view.
func (w walker) filters(view string) {
	w.t.Helper()
	w.chooses("Show", view)
	w.applies()
}

// TestKeysvcCannotBeReached stops keysvc while members use the screen.
func TestKeysvcCannotBeReached(t *testing.T) {
	t.Parallel()
	for _, way := range tableWays {
		t.Run(way.String(), func(t *testing.T) {
			t.Parallel()
			s := startScreen(t, nil)
			w := walker{open(t, way), s}
			w.visit(s.url + screenPath + "/")
			w.uses("link", "Create API key", "")
			w.types("Name", "Nightly export")
			w.uses("box", "Emails: Read", "")
			s.keysvc.Stop()
			w.expect("503")
			w.uses("button", "Create key", "")
			w.sees("API keys cannot be shown or changed at the moment. Existing keys are not changed.")
			w.checkState("unreachable, with a form")
			w.visit(s.url + screenPath + "/")
			w.sees("Not available at the moment", "Try again")
			w.checkState("unreachable")
		})
	}
}

// TestDialogsAreLeftByEscape leaves dialogs as people with a keyboard do, and comes back to where they were opened.
func TestDialogsAreLeftByEscape(t *testing.T) {
	t.Parallel()
	s := startScreen(t, nil)
	s.create("max", "Key of Max", []string{"emails:read"}, 0)
	w := walker{open(t, way{keyboard: true, script: true}), s}
	w.visit(s.url + screenPath + "/")
	for _, opener := range []string{"Create API key", "Create replacement for Key of Max", "Revoke Key of Max"} {
		w.uses("link", opener, "")
		w.until(`!!document.querySelector("dialog[open] h1")`)
		// The focus stays in the dialog, or goes to the browser itself.
		for range 45 {
			w.presses(kb.Tab)
			if !ask[bool](w.tab, `focused() === document.body || document.querySelector("dialog[open]").contains(focused())`) {
				t.Errorf("%s: Tab leads out of the dialog", opener)
				break
			}
		}
		w.presses(kb.Escape)
		w.home()
		w.until("focused() === " + control("link", opener, ""))
	}
}
