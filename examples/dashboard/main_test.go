package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/examples/process"
)

// TestTheStoryOverHTTP plays what a member does, without a browser: the screen's forms work without
// JavaScript. A key is made on the screen, reads, is refused with 403, holds a stream open, and is revoked.
func TestTheStoryOverHTTP(t *testing.T) {
	keysvc, err := process.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keysvc.Stop)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reader, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, out, keysvc.Client, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	printed := bufio.NewReader(reader)
	line, err := printed.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, printed)
	base, ok := strings.CutPrefix(strings.TrimSpace(line), "Open ")
	if !ok {
		t.Fatalf("no link is printed, but %q", line)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	member := &member{t: t, base: base, browser: &http.Client{Jar: jar}}

	// 1. Log in, and make a key on the screen.
	if page := member.get("/"); !strings.Contains(page, "stand-in") && !strings.Contains(page, "Sign in") {
		t.Errorf("whoever is not logged in is not led to the log-in: %s", page)
	}
	member.post("/log-in", url.Values{"member": {"max"}})
	form := member.get("/settings/api-keys/new")
	shown := member.post("/settings/api-keys/new", url.Values{
		"form_token": {hidden(t, form, "form_token")}, "once": {hidden(t, form, "once")},
		"name": {"My first key"}, "scope": {"signatures:read"}, "expiry": {"30"},
	})
	token := regexp.MustCompile(`scribe_ksk1_[0-9A-Za-z_]+`).FindString(shown)
	if token == "" {
		t.Fatalf("the key is not shown: %s", shown)
	}

	// 2. It reads, says whose it is, and may not delete.
	told := member.do(token, http.MethodGet, "/v1/me")
	var me struct {
		Name       string     `json:"name"`
		MemberID   string     `json:"member_id"`
		Scopes     []string   `json:"scopes"`
		ExpireTime *time.Time `json:"expire_time"`
	}
	if err := json.NewDecoder(told.Body).Decode(&me); err != nil || me.Name != "My first key" || me.MemberID != "max" ||
		!slices.Equal(me.Scopes, []string{"signatures:read"}) || me.ExpireTime == nil {
		t.Errorf("GET /v1/me: %+v (%v)", me, err)
	}
	told.Body.Close()
	member.call(token, http.MethodGet, "/v1/signatures", http.StatusOK)
	member.call(token, http.MethodDelete, "/v1/signatures/sig-1", http.StatusForbidden)
	member.call("", http.MethodGet, "/v1/signatures", http.StatusUnauthorized)

	// 3. It holds a stream open, until it is revoked on the screen.
	stream := member.open(token, "/v1/events")
	if first, err := stream.ReadString('\n'); err != nil || first != "event: signatures\n" {
		t.Fatalf("the stream begins with %q (%v)", first, err)
	}
	revoke := "/settings/api-keys/keys/" + strings.Split(token, "_")[2] + "/revoke"
	form = member.get(revoke)
	if table := member.post(revoke, url.Values{"form_token": {hidden(t, form, "form_token")}, "name": {"My first key"}}); !strings.Contains(table, "The key is revoked.") {
		t.Fatalf("the key is not revoked: %s", table)
	}
	// It ends by an error, because the connection is cut. The end of the test bounds the wait.
	if _, err := io.Copy(io.Discard, stream); err == nil {
		t.Error("the stream ended as if it were complete")
	}
	member.call(token, http.MethodGet, "/v1/signatures", http.StatusUnauthorized)
}

// member is a member's browser, and a program with a key.
type member struct {
	t       *testing.T
	base    string
	browser *http.Client
}

// get opens a page.
func (m *member) get(path string) string {
	m.t.Helper()
	return m.send(http.MethodGet, path, nil)
}

// post sends a form.
func (m *member) post(path string, form url.Values) string {
	m.t.Helper()
	return m.send(http.MethodPost, path, form)
}

func (m *member) send(method, path string, form url.Values) string {
	m.t.Helper()
	request, err := http.NewRequestWithContext(m.t.Context(), method, m.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		m.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := m.browser.Do(request)
	if err != nil {
		m.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// call calls the API, and expects a status.
func (m *member) call(token, method, path string, want int) {
	m.t.Helper()
	response := m.do(token, method, path)
	defer response.Body.Close()
	if response.StatusCode != want {
		m.t.Errorf("%s %s: status %d, want %d", method, path, response.StatusCode, want)
	}
}

// open opens a stream.
func (m *member) open(token, path string) *bufio.Reader {
	m.t.Helper()
	response := m.do(token, http.MethodGet, path)
	m.t.Cleanup(func() { response.Body.Close() })
	if response.StatusCode != http.StatusOK {
		m.t.Fatalf("%s: status %d", path, response.StatusCode)
	}
	return bufio.NewReader(response.Body)
}

func (m *member) do(token, method, path string) *http.Response {
	m.t.Helper()
	request, err := http.NewRequestWithContext(m.t.Context(), method, m.base+path, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		m.t.Fatal(err)
	}
	return response
}

// hidden returns the value of a hidden field.
func hidden(t *testing.T, page, name string) string {
	t.Helper()
	found := regexp.MustCompile(`name="` + name + `" value="([^"]+)"`).FindStringSubmatch(page)
	if found == nil {
		t.Fatalf("the form has no %s: %s", name, page)
	}
	return found[1]
}
