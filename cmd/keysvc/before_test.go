package main_test

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// beforeVariable names a folder with the programs keysvc and ask of an older version, the one before
// clients sent digests. `make interop` makes it.
const beforeVariable = "KEYSVC_BEFORE"

// TestServersBeforeClients runs this version and an older one against each other, both ways round.
// Servers are upgraded before clients, so old clients must get what they got before. A client that was
// upgraded too early gets no answer: never a 401 that is not one.
func TestServersBeforeClients(t *testing.T) {
	folder := os.Getenv(beforeVariable)
	if folder == "" {
		t.Skipf("NOT RUN: old clients and servers are not tried, because %s names no folder with an older version; `make interop` does it", beforeVariable)
	}
	now := t.TempDir()
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(now, "ask"), "./testdata/ask").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	programs := map[string]struct{ keysvc, ask string }{
		"old": {filepath.Join(folder, "keysvc"), filepath.Join(folder, "ask")},
		"new": {binary, filepath.Join(now, "ask")},
	}
	for server, of := range programs {
		data := shortDir(t)
		started := exec.CommandContext(t.Context(), of.keysvc, serveOn(data)...)
		started.Env = clean()
		p, err := begin(started)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		s, err := p.serving(data)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.conn.Close() })
		s.putMember(t, "acme", "ann", "owner")
		live, revoked := s.create(t, "acme", "ann", "signatures:read"), s.create(t, "acme", "ann", "signatures:read")
		if _, err := s.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: revoked.GetKey().GetKeyId()}); err != nil {
			t.Fatal(err)
		}
		unknown, err := token.New("scribe", "0123456789abcdef", rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		texts := strings.Join([]string{live.GetToken(), revoked.GetToken(), unknown.Reveal(), "sk_live_foreign"}, "\n")
		for client, its := range programs {
			want := "DECISION_ALLOWED\nDECISION_UNAUTHENTICATED\nDECISION_UNAUTHENTICATED\nDECISION_UNAUTHENTICATED\n"
			status := map[string]int{live.GetToken(): 0, unknown.Reveal(): 3}
			if client == "new" && server == "old" {
				want = strings.Repeat("Unavailable\n", 4)
				status = map[string]int{live.GetToken(): 1, unknown.Reveal(): 1}
			}
			for _, way := range []string{"plain", "near"} {
				if got := execute(t, clean(), "", texts, its.ask, s.address, way); got.status != 0 || got.stdout != want {
					t.Errorf("%s client, %s, %s server: %+v\nwant %s", client, way, server, got, want)
				}
			}
			environment := append(clean(), "KEYSVC_ADDR="+s.address)
			for text, want := range status {
				if got := execute(t, environment, "", text, its.keysvc, "validate", "--identity-only"); got.status != want {
					t.Errorf("%s command, %s server: %+v, want status %d", client, server, got, want)
				}
			}
		}
		// A key that is issued locally exists only where the server used the digest.
		environment := append(clean(), "KEYSVC_ADDR="+s.address)
		got := execute(t, environment, "", "", binary, "key", "create", "--workspace", "acme", "--member", "ann", "--name", "local", "--scope", "emails:read", "--local")
		listed, err := s.keys.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", States: []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE}})
		if err != nil {
			t.Fatal(err)
		}
		works := s.decide(t, strings.TrimSpace(got.stdout), "emails:read").GetDecision() == keysvcv1.Decision_DECISION_ALLOWED
		if isNew := server == "new"; (got.status == 0) != isNew || works != isNew || len(listed.GetKeys()) != map[bool]int{true: 2, false: 1}[isNew] {
			t.Errorf("%s server: %+v, the token works: %t, keys: %v", server, got, works, listed)
		}
		// A leaked token is not said to be harmless.
		got = execute(t, environment, "", live.GetToken(), binary, "key", "revoke", "--token-stdin", "--yes")
		if isNew := server == "new"; (got.status == 0) != isNew || !isNew && !strings.Contains(got.stderr, "not revoked") {
			t.Errorf("%s server, a report: %+v", server, got)
		}
	}
}
