package browser_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// secretToken is a token that bad pages leave somewhere.
const secretToken = "scribe_ksk1_0123456789abcdef_SECRETSECRETSECRETSECRET"

// TestEveryFaultIsNoticed opens pages that each have one fault. A check that finds nothing there would find
// nothing on the screen either.
func TestEveryFaultIsNoticed(t *testing.T) {
	t.Parallel()
	const head = `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fault</title><meta name="viewport" content="width=device-width"></head><body><main><h1>Fault</h1>`
	tests := []struct{ name, body, want string }{
		{"nothing", `<p>Nothing.</p>`, ""},
		{"no label", `<input type="text">`, "axe-core: label"},
		{"no contrast", `<p style="color:#ccc;background:#fff">Pale.</p>`, "axe-core: color-contrast"},
		{"a button without a name", `<button></button>`, "axe-core: button-name"},
		{"too wide", `<div style="width:500px">Wide.</div>`, "wider than 360 pixels"},
		{"the console", `<script>console.error("oh")</script>`, "console.error"},
		{"an exception", `<script>undefined.name</script>`, "exception"},
		{"the policy", `<img src="http://127.0.0.1:1/">`, "Content Security Policy"},
		{"the document", `<p hidden>` + secretToken + `</p>`, "the document of the page"},
		{"a field", `<label>Key <input></label><script>document.querySelector("input").value="` + secretToken + `"</script>`, "the fields of the page"},
		{"the storage", `<script>localStorage.setItem("key", "` + secretToken + `")</script>`, "localStorage of"},
		{"the storage of the session", `<script>sessionStorage.setItem("key", "` + secretToken + `")</script>`, "sessionStorage of"},
		{"IndexedDB", `<script>indexedDB.open("` + secretToken + `")</script>`, "IndexedDB"},
		{"the address", `<script>history.replaceState(null, "", "#` + secretToken + `")</script>`, "the history"},
		{"the state of the history", `<script>history.replaceState("` + secretToken + `", "")</script>`, "history.state of"},
		{"a page before", `<script>if (!location.search) { document.title = "before"; history.replaceState(null, "", "?token=` + secretToken + `"); history.pushState(null, "", "/now#") }</script>`, "the history"},
		{"a request", `<script>fetch("/?token=` + secretToken + `")</script>`, "a request"},
		{"a global", `<script>window.kept = "` + secretToken + `"</script>`, "globals of"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'unsafe-inline'; connect-src 'self'")
		for _, test := range tests {
			if "/"+strings.ReplaceAll(test.name, " ", "-") == r.URL.Path {
				w.Write([]byte(head + test.body + "</main></body></html>"))
			}
		}
	}))
	t.Cleanup(server.Close)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, way{phone: true, script: true})
			b.expect("") // every complaint
			b.visit(server.URL + "/" + strings.ReplaceAll(test.name, " ", "-"))
			var found []string
			if !strings.Contains(test.body, secretToken) {
				found = b.stateFindings()
			}
			for _, place := range b.placesOf(secretToken) {
				found = append(found, "the token is in "+place)
			}
			b.mutex.Lock()
			found = append(found, b.complaints...)
			b.mutex.Unlock()
			all := strings.Join(found, "\n")
			if !strings.Contains(all, test.want) || test.want == "" && all != "" {
				t.Errorf("want %q, got %q", test.want, all)
			}
		})
	}
}
