package cli_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// realClock is the server's: a few milliseconds ahead of the command's, and moved by
// hand.
type realClock struct {
	mutex sync.Mutex
	now   time.Time
}

func (c *realClock) Now() time.Time {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.now = c.now.Add(time.Microsecond)
	return c.now
}

// startReal serves a new, empty store on loopback, and returns where and what it logs.
func startReal(t *testing.T) (addr string, logged func() string) {
	t.Helper()
	clock := &realClock{now: now.Add(3 * time.Millisecond)}
	log := &safeBuffer{}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "keysvc.db"), boltstore.Config{Log: logger, Now: clock.Now, Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIt(t, store) })
	s, err := server.New(t.Context(), server.Config{
		Store: store, Settings: config.Defaults(), Policy: policy.Default(), Now: clock.Now, Log: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Stop(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String(), log.String
}

type safeBuffer struct {
	mutex sync.Mutex
	text  strings.Builder
}

func (b *safeBuffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(text)
}

func (b *safeBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

// player runs commands against a real server.
type player struct {
	command
	tokens []string
}

// plays runs a command that must succeed, and whose output must hold all of want.
func (p *player) plays(t *testing.T, args []string, want ...string) result {
	t.Helper()
	r := p.run(t, args...)
	p.expect(t, r, 0, args, want)
	return r
}

// fails runs a command that must fail.
func (p *player) fails(t *testing.T, status int, args []string, want ...string) {
	t.Helper()
	p.expect(t, p.run(t, args...), status, args, want)
}

func (p *player) expect(t *testing.T, r result, status int, args, want []string) {
	t.Helper()
	if r.status != status {
		t.Errorf("%v: status %d, want %d\n%s%s", args, r.status, status, r.stdout, r.stderr)
	}
	for _, text := range want {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%v: no %q in\n%s%s", args, text, r.stdout, r.stderr)
		}
	}
	for _, token := range p.tokens {
		if strings.Contains(r.stdout+r.stderr, token[len(token)-49:]) {
			t.Errorf("%v: shows a token", args)
		}
	}
}

// takes is plays for a command whose answer is a token.
func (p *player) takes(t *testing.T, args []string, want ...string) (token, keyID string) {
	t.Helper()
	r := p.plays(t, args, want...)
	match := regexp.MustCompile(`^scribe_ksk1_([0-9A-Za-z]{16})_[0-9A-Za-z]{49}\n$`).FindStringSubmatch(r.stdout)
	if match == nil {
		t.Fatalf("%v: standard output is not a token alone, but %d bytes\n%s", args, len(r.stdout), r.stderr)
	}
	token = strings.TrimSpace(r.stdout)
	if strings.Contains(r.stderr, token[len(token)-49:]) {
		t.Errorf("%v: the token is on standard error", args)
	}
	p.tokens = append(p.tokens, token)
	return token, match[1]
}

// validates checks what a token is allowed.
func (p *player) validates(t *testing.T, status int, token, scope, want string) {
	t.Helper()
	p.stdin = strings.NewReader(token)
	args := []string{"validate", "--scope", scope}
	p.expect(t, p.run(t, args...), status, args, []string{want})
	p.stdin = strings.NewReader("")
}

// TestAgainstTheServer plays a key's life.
func TestAgainstTheServer(t *testing.T) {
	addr, logged := startReal(t)
	p := &player{command: command{addr: addr}}
	words := func(line string, more ...string) []string { return append(strings.Fields(line), more...) }
	t.Chdir(t.TempDir())

	p.plays(t, words("member put ann --workspace acme --role manager"), "just now")
	p.plays(t, words("member put bob --workspace acme --role owner"))
	first, id := p.takes(t, words("key create --workspace acme --member ann --name deploy --scope emails:read,emails:delete --label team=web --request-id c1"),
		"just now", "never used")
	at := func(line string, more ...string) []string {
		return words(strings.ReplaceAll(line, "KEY", id+" --workspace acme"), more...)
	}
	p.fails(t, 1, words("key create --workspace acme --member ann --name deploy --scope emails:read --request-id c1"),
		"ALREADY_EXISTS (REQUEST_ID_USED)", "key_id: "+id, "nobody can show a token again")
	p.plays(t, words("key list --workspace acme"), "never used", "2027-11-23 (in 365 days)")

	// Rotated, both tokens work until the rotation is finished.
	second, sameID := p.takes(t, at("key rotate KEY --overlap 7d --request-id r1 --actor bob"), "In rotation", "The old token works until 2026-11-30 06:02 UTC")
	if sameID != id {
		t.Errorf("key %s became %s", id, sameID)
	}
	p.fails(t, 1, at("key rotate KEY --overlap 7d --request-id r1"), "REQUEST_ID_USED", "rotate once more with --overlap 0")
	p.fails(t, 1, at("key rotate KEY --overlap 7d"), "ROTATION_IN_PROGRESS", "keysvc key finish-rotation ends the old token now")
	p.fails(t, 1, at("key rotate KEY --overlap 31d"), "INVALID_ARGUMENT (FIELD_INVALID)", "overlap: is out of range")
	p.plays(t, words("key list --workspace acme"), "active, in rotation until 2026-11-30")
	p.plays(t, at("key get KEY"), "Old token", "New token", "ends 2026-11-30 06:02 UTC, in 7 days")
	p.validates(t, 0, first, "emails:read", "ALLOWED")
	p.validates(t, 0, second, "emails:read", "ALLOWED")
	p.plays(t, at("key finish-rotation KEY"), "State        active")
	p.plays(t, at("key finish-rotation KEY"))
	p.validates(t, 3, first, "emails:read", "KEY_INVALID")
	p.validates(t, 0, second, "emails:read", "ALLOWED")
	if r := p.plays(t, words("key list --workspace acme"), "2026-11-23 (just now)"); strings.Contains(r.stdout, "rotation") {
		t.Errorf("still in rotation:\n%s", r.stdout)
	}
	p.stdin = strings.NewReader(first)
	p.fails(t, 1, words("key revoke --token-stdin"), "NOT_FOUND (KEY_NOT_FOUND)")

	// As if the answer of the second rotation was lost.
	third, _ := p.takes(t, at("key rotate KEY --overlap 0 --expires-in 10d"), "soon: in 10 days", "All other tokens of the key have ended.")
	p.validates(t, 3, second, "emails:read", "KEY_INVALID")
	p.plays(t, words("key list --expiring-within 30d"), id, "2026-12-03 (soon: in 10 days)")
	p.plays(t, words("key list --expiring-within 30d --unused-for 90d"), "no keys")

	// An update changes what it names, if the etag still holds.
	r := p.plays(t, at("key get KEY -o json"))
	var got struct {
		Key struct{ Etag string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || got.Key.Etag == "" {
		t.Fatal(err, r.stdout)
	}
	p.plays(t, at("key update KEY --clear-labels --allow-cidr 192.0.2.0/24 --etag "+got.Key.Etag, "--name", "nightly deploy"),
		"nightly deploy", "192.0.2.0/24", "emails:delete, emails:read")
	p.fails(t, 1, at("key update KEY --name x --etag "+got.Key.Etag), "ABORTED (ETAG_MISMATCH)")
	p.fails(t, 1, at("key update KEY --scope financial_documents:read"), "PERMISSION_DENIED (SCOPE_BEYOND_ROLE)")
	p.fails(t, 1, at("key update KEY --allow-cidr nonsense"), "INVALID_ARGUMENT", "key.allowed_cidrs[0]")
	p.validates(t, 4, third, "emails:read", "ADDRESS_NOT_ALLOWED")
	if r := p.plays(t, at("key update KEY --clear-cidrs"), "Usable from  anywhere"); strings.Contains(r.stdout, "Labels") {
		t.Errorf("labels are still there:\n%s", r.stdout)
	}
	p.validates(t, 0, third, "emails:delete", "ALLOWED")

	// A policy that takes a scope away narrows the key.
	changed := policy.Default()
	changed.Resources[1].Actions = []string{"read", "write"}
	changed.Retention = 30 * policy.Day
	if err := os.WriteFile("policy.yaml", changed.Document(), 0o600); err != nil {
		t.Fatal(err)
	}
	p.plays(t, words("policy apply policy.yaml --dry-run"), "- scope      emails:delete", "retired for good", "manager", "loses emails:delete",
		"90 days → 30 days", "1 live key can do less.")
	p.validates(t, 0, third, "emails:delete", "ALLOWED")
	p.fails(t, 1, words("policy apply policy.yaml"), "nothing was changed: there is no terminal")
	p.plays(t, words("policy apply policy.yaml --yes --actor bob --wait"), "Applied: the active policy is "+changed.Digest()+". 1 live key can do less.",
		"(0 applied, ")
	p.validates(t, 1, third, "emails:delete", "SCOPE_UNKNOWN")
	p.plays(t, words("policy apply policy.yaml"), "nothing to change")
	p.plays(t, words("policy show"), "# retired scopes: emails:delete")
	if err := os.WriteFile("old.yaml", policy.Default().Document(), 0o600); err != nil {
		t.Fatal(err)
	}
	p.fails(t, 1, words("policy apply old.yaml --yes"), "FAILED_PRECONDITION (SCOPE_RETIRED)", "emails:delete")

	// A token that leaked ends its key, again and again.
	for range 2 {
		p.stdin = strings.NewReader(third + "\n")
		p.plays(t, words("key revoke --token-stdin"), "Key "+id+" of workspace acme is revoked")
	}
	p.validates(t, 3, third, "emails:read", "KEY_REVOKED")
	p.fails(t, 1, at("key rotate KEY --overlap 0"), "FAILED_PRECONDITION (KEY_REVOKED)")
	p.plays(t, at("key get KEY"), "State        revoked", "Revoked      2026-11-23 06:02 UTC, just now")

	// Who is removed leaves no key behind.
	fourth, other := p.takes(t, words("key create --workspace acme --member bob --name other --scope emails:read"))
	p.validates(t, 0, fourth, "emails:read", "ALLOWED")
	p.fails(t, 1, words("member remove bob --workspace acme --source-version -1"), "INVALID_ARGUMENT", "source_version")
	p.plays(t, words("member remove bob --workspace acme --source-version 4"), "bob is not a member of workspace acme any more")
	p.plays(t, words("member remove bob --workspace acme"), "note: bob was removed from workspace acme before")
	p.fails(t, 1, words("member remove bob --workspace acme --source-version 3"), "ABORTED (SOURCE_VERSION_OUTDATED)")
	p.plays(t, words("member remove bbo --workspace acme"), "note: there was no member bbo in workspace acme")
	p.validates(t, 3, fourth, "emails:read", "KEY_REVOKED")
	p.plays(t, words("key get "+other), "State        revoked, as its member or workspace was removed")

	fifth, _ := p.takes(t, words("key create --workspace acme --member ann --name last --scope emails:read"))
	p.fails(t, 1, words("workspace remove acme"), "nothing was changed")
	p.validates(t, 0, fifth, "emails:read", "ALLOWED")
	p.plays(t, words("workspace remove acme --yes"), "Workspace acme is removed")
	p.plays(t, words("workspace remove acme --yes --wait"), "no cache anywhere answers from before revision ")
	p.validates(t, 3, fifth, "emails:read", "KEY_REVOKED")
	p.plays(t, words("key list --workspace acme --state active,suspended"), "no keys")

	for _, token := range p.tokens {
		if strings.Contains(logged(), token[len(token)-49:]) {
			t.Error("a token in the server's log")
		}
	}
}
