package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestDev runs what `serve --dev` prints, as a person would paste it.
func TestDev(t *testing.T) {
	t.Parallel()
	t.Run("on a port", func(t *testing.T) {
		t.Parallel()
		testDev(t, "127.0.0.1:0")
	})
	t.Run("on a socket", func(t *testing.T) {
		t.Parallel()
		testDev(t, "unix://"+filepath.Join(shortDir(t), "s"))
	})
}

func testDev(t *testing.T, listen string) {
	t.Helper()
	// A path that a shell would take apart.
	data := filepath.Join(t.TempDir(), "my data; it's $HOME")
	s := serveDev(t, data, listen)
	tokenFile := filepath.Join(data, "demo-token")
	info, err := os.Stat(tokenFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the token's file: %v, %v; want mode 0600", info, err)
	}
	token := read(t, tokenFile)
	commands := pasted(s.stdout.String())
	if len(commands) != 6 {
		t.Fatalf("want 6 commands, got %d in\n%s", len(commands), s.stdout)
	}
	environment := environmentWithTools(t)
	wants := []struct {
		has    string // what the command is
		status int
		says   string
	}{
		{"validate", 0, "ALLOWED"},
		{"validate", 4, "PERMISSION_DENIED: SCOPE_NOT_GRANTED"},
		{"echo nonsense", 3, "UNAUTHENTICATED: KEY_INVALID"},
		{"grpcurl", 0, `"decision": "DECISION_ALLOWED"`},
		{"revoke", 0, "revoked"},
		{"validate", 3, "UNAUTHENTICATED: KEY_REVOKED"},
	}
	for index, want := range wants {
		if index == 4 {
			s = restart(t, s, data, listen)
			if read(t, tokenFile) != token {
				t.Error("the token is another one after a restart")
			}
			// The address is another one now; that is what it prints, too.
			commands = pasted(s.stdout.String())
		}
		if !strings.Contains(commands[index], want.has) {
			t.Errorf("command %d is %q, want one with %s", index, commands[index], want.has)
		}
		got := execute(t, environment, t.TempDir(), "", "sh", "-c", commands[index])
		if got.status != want.status || !strings.Contains(got.stdout, want.says) {
			t.Errorf("%s\nexit status %d, want %d; said\n%s%s\nwant %q", commands[index], got.status, want.status, got.stdout, got.stderr, want.says)
		}
	}
	s.stop(t)
}

// restart stops and starts the server and expects that nothing was seeded again.
func restart(t *testing.T, s *serving, data, listen string) *serving {
	t.Helper()
	// What a person changed stays.
	s.putMember(t, "demo", "member", "manager")
	before := s.seeded(t)
	s.stop(t)
	s = serveDev(t, data, listen)
	if after := s.seeded(t); after != before || strings.Count(after, "key_id") != 1 {
		t.Errorf("after a restart there are\n%s\nwere\n%s", after, before)
	}
	return s
}

var lastLine = regexp.MustCompile(`(?m)^Stop with Ctrl-C`)

// serveDev starts a server with --dev and waits until it has printed all that it prints.
func serveDev(t *testing.T, data, listen string, arguments ...string) *serving {
	t.Helper()
	s := serve(t, data, append([]string{"--dev", "--listen", listen}, arguments...)...)
	if _, err := s.stdout.await(s.ended, lastLine); err != nil {
		t.Fatalf("%v\n%s", err, s.stderr)
	}
	return s
}

// TestDevOnANewStore: a token that is left over from another store is no reason to show
// commands that do not work.
func TestDevOnANewStore(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "demo-token"), []byte("left over"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serveDev(t, data, "127.0.0.1:0")
	token := strings.TrimSuffix(read(t, filepath.Join(data, "demo-token")), "\n")
	if got := s.decide(t, token, "signatures:read"); inWords(got) != "ALLOWED" {
		t.Errorf("got %s for the demo token", inWords(got))
	}
	// And one that is lost is replaced.
	s.stop(t)
	if err := os.Remove(filepath.Join(data, "demo-token")); err != nil {
		t.Fatal(err)
	}
	s = serveDev(t, data, "127.0.0.1:0")
	token = strings.TrimSuffix(read(t, filepath.Join(data, "demo-token")), "\n")
	if got := s.decide(t, token, "signatures:read"); inWords(got) != "ALLOWED" {
		t.Errorf("got %s for the second demo token", inWords(got))
	}
}

// TestDevAfterRevoking: a demo key that is dead is followed by another one, as the text says
// that it is allowed.
func TestDevAfterRevoking(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := serveDev(t, data, "127.0.0.1:0")
	first := strings.TrimSuffix(read(t, filepath.Join(data, "demo-token")), "\n")
	if _, err := s.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "demo", KeyId: strings.Split(first, "_")[2]}); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	s = serveDev(t, data, "127.0.0.1:0")
	second := strings.TrimSuffix(read(t, filepath.Join(data, "demo-token")), "\n")
	if got := s.decide(t, second, "signatures:read"); inWords(got) != "ALLOWED" || first == second {
		t.Errorf("got %s for the second demo token", inWords(got))
	}
	if got := s.decide(t, first, "signatures:read"); inWords(got) == "ALLOWED" {
		t.Error("the first one is allowed again")
	}
}

// seeded returns the keys and members of the demo workspace.
func (s *serving) seeded(t *testing.T) string {
	t.Helper()
	keys, err := s.keys.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	members, err := s.members.ListMembers(testContext(t), &keysvcv1.ListMembersRequest{WorkspaceId: "demo"})
	if err != nil || len(members.GetMembers()) != 4 {
		t.Fatalf("got %v, %v; want a member for each role", members, err)
	}
	for _, key := range keys.GetKeys() {
		key.LastUsedTime = nil
	}
	keys.Revision, members.Revision = 0, 0
	text, err := json.Marshal([]any{keys, members})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pasted returns the commands in what serve --dev printed: what is indented and no
// comment; a line that ends in a pipe goes on.
func pasted(text string) []string {
	var commands []string
	open := false
	for line := range strings.Lines(text) {
		command, indented := strings.CutPrefix(line, "  ")
		if !indented || strings.HasPrefix(command, "#") {
			continue
		}
		if open {
			commands[len(commands)-1] += command
		} else {
			commands = append(commands, command)
		}
		open = strings.HasSuffix(strings.TrimSpace(command), "|")
	}
	return commands
}

// environmentWithTools returns an environment in which keysvc and grpcurl are found.
func environmentWithTools(t *testing.T) []string {
	t.Helper()
	modules, err := filepath.Abs("../../tools/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	script := "#!/bin/sh\nexec go -C " + filepath.Dir(modules) + " tool grpcurl \"$@\"\n"
	if err := os.WriteFile(filepath.Join(folder, "grpcurl"), []byte(script), 0o700); err != nil { //nolint:gosec // to be run
		t.Fatal(err)
	}
	return append(clean(), "PATH="+folder+":"+filepath.Dir(binary)+":"+os.Getenv("PATH"))
}
