package main_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// startBound is how soon a start that fails must say so.
const startBound = 2 * time.Second

// anotherData returns a data folder with a store in it that nobody serves.
func anotherData(t *testing.T) (data, file string) {
	t.Helper()
	data = t.TempDir()
	s := serve(t, data)
	s.putMember(t, "acme", "ann", "owner")
	s.create(t, "acme", "ann", "emails:read")
	s.stop(t)
	return data, s.file
}

// TestStartFails: each of these is one clear line within a second or two, and an exit
// status that is not 0. The store stays as it was.
func TestStartFails(t *testing.T) {
	write := func(t *testing.T, file, text string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	// damaged returns arguments for a store that was changed.
	damaged := func(change func(t *testing.T, file string)) func(*testing.T) []string {
		return func(t *testing.T) []string {
			t.Helper()
			data, file := anotherData(t)
			change(t, file)
			return []string{"--data", data}
		}
	}
	policyFile := func(text string) func(*testing.T) []string {
		return func(t *testing.T) []string {
			t.Helper()
			folder := t.TempDir()
			return []string{"--data", filepath.Join(folder, "data"), "--policy", write(t, filepath.Join(folder, "policy.yaml"), text)}
		}
	}
	tests := map[string]struct {
		arguments func(t *testing.T) []string
		want      string // matches the line
	}{
		"port in use": {func(t *testing.T) []string {
			t.Helper()
			listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
			return []string{"--data", t.TempDir(), "--listen", listener.Addr().String()}
		}, `127\.0\.0\.1:\d+.*in use`},
		"every interface": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--listen", "0.0.0.0:0"}
		}, `--listen.*0\.0\.0\.0.*TLS`},
		"every interface, IPv6": {func(t *testing.T) []string { t.Helper(); return []string{"--data", t.TempDir(), "--listen", "[::]:0"} }, `--listen.*TLS`},
		"no address": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--listen", "nonsense"}
		}, `--listen`},
		"folder below a file": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--init", "--data", filepath.Join(write(t, filepath.Join(t.TempDir(), "file"), "x"), "data")}
		}, `data.*not a directory`},
		"folder is a file": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--init", "--data", write(t, filepath.Join(t.TempDir(), "file"), "x")}
		}, `file.*not a directory`},
		"folder cannot be written to": {func(t *testing.T) []string {
			t.Helper()
			if os.Geteuid() == 0 {
				// Root is let in everywhere, but not here.
				return []string{"--init", "--data", "/proc/self/keysvc"}
			}
			folder := t.TempDir()
			if err := os.Chmod(folder, 0o500); err != nil { //nolint:gosec // a folder
				t.Fatal(err)
			}
			return []string{"--init", "--data", folder}
		}, `(?i)permission denied|no such file|read-only`},
		"no store": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir()}
		}, `there is no store: .*keysvc\.db; .*--init`},
		"no folder of the store": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", filepath.Join(t.TempDir(), "typo")}
		}, `there is no store: .*typo/keysvc\.db; .*--init`},
		"a new store where one is": {func(t *testing.T) []string {
			t.Helper()
			data, _ := anotherData(t)
			return []string{"--init", "--data", data}
		}, `there is a store already: .*keysvc\.db`},
		"a new store where one was": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			write(t, filepath.Join(data, "keysvc.db.anchor"), "left")
			return []string{"--init", "--data", data}
		}, `keysvc\.db has gone.*keysvc\.db\.anchor`},
		"a demonstration where a store was": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			write(t, filepath.Join(data, "keysvc.db.anchor"), "left")
			return []string{"--dev", "--data", data}
		}, `keysvc\.db has gone.*keysvc\.db\.anchor`},
		"the store's file is a folder": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			if err := os.Mkdir(filepath.Join(data, "keysvc.db"), 0o700); err != nil {
				t.Fatal(err)
			}
			return []string{"--data", data}
		}, `keysvc\.db`},
		"not a store": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			write(t, filepath.Join(data, "keysvc.db"), strings.Repeat("this is not a store\n", 1000))
			return []string{"--data", data}
		}, `damaged.*keysvc\.db`},
		"empty file": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			write(t, filepath.Join(data, "keysvc.db"), "")
			return []string{"--data", data}
		}, `damaged.*keysvc\.db`},
		"truncated":                 {damaged(func(t *testing.T, file string) { t.Helper(); truncate(t, file) }), `keysvc\.db.*(damaged|truncated)|damaged.*keysvc\.db`},
		"begin overwritten":         {damaged(func(t *testing.T, file string) { t.Helper(); overwrite(t, file, 0, 8192) }), `damaged.*keysvc\.db`},
		"all but begin overwritten": {damaged(func(t *testing.T, file string) { t.Helper(); overwrite(t, file, 8192, 1<<20) }), `keysvc\.db.*damaged|damaged.*keysvc\.db`},
		"header damaged":            {damaged(func(t *testing.T, file string) { t.Helper(); changeHeader(t, file, false) }), `keysvc\.db.*damaged header`},
		"newer schema":              {damaged(func(t *testing.T, file string) { t.Helper(); changeHeader(t, file, true) }), `newer version.*schema 99`},
		"second process": {func(t *testing.T) []string {
			t.Helper()
			data := t.TempDir()
			serve(t, data)
			return []string{"--data", data}
		}, `in use by another process.*keysvc\.db`},
		"mistake in the policy":   {policyFile("version: 1\ntoken_prefix: a_b\nresources:\n  - name: things\n    actions: [read]\nroles:\n  - name: owner\n    scopes: [\"*\"]\n"), `policy\.yaml:2:15: token_prefix: `},
		"unknown field of policy": {policyFile("version: 1\nresources:\n  - name: things\n    actions: [read]\n    actoins: [write]\nroles:\n  - name: owner\n    scopes: [\"*\"]\n"), `policy\.yaml:5:5: .*actoins`},
		"role beyond the policy":  {policyFile("version: 1\nresources:\n  - name: things\n    actions: [read]\nroles:\n  - name: owner\n    scopes: [things:write]\n"), `policy\.yaml:7:14: .*things:write`},
		"not YAML":                {policyFile("version: [\n"), `policy\.yaml:\d+: `},
		"no policy file": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--policy", "/nowhere/policy.yaml"}
		}, `/nowhere/policy\.yaml.*no such file`},
		"limit out of range": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--max-in-flight", "0"}
		}, `--max-in-flight: is 0, allowed are`},
		"unknown flag": {func(t *testing.T) []string { t.Helper(); return []string{"--nonsense"} }, `--nonsense`},
		"an argument":  {func(t *testing.T) []string { t.Helper(); return []string{"nonsense"} }, `flags only`},
		"socket is a file": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--listen", "unix://" + write(t, filepath.Join(shortDir(t), "s"), "x")}
		}, `address already in use|not a socket|exists`},
		"socket in use": {func(t *testing.T) []string {
			t.Helper()
			path := filepath.Join(shortDir(t), "s")
			listener, err := net.Listen("unix", path) //nolint:noctx // at once
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
			return []string{"--data", t.TempDir(), "--listen", "unix://" + path}
		}, `served by another process`},
		"no folder of the socket": {func(t *testing.T) []string {
			t.Helper()
			return []string{"--data", t.TempDir(), "--listen", "unix:///nowhere/s"}
		}, `/nowhere/s`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := test.arguments(t)
			before := contents(arguments)
			got := command(t, "", append([]string{"serve", "--listen", "127.0.0.1:0"}, arguments...)...)
			if got.status != 1 {
				t.Errorf("exit status %d, want 1", got.status)
			}
			if got.took > startBound {
				t.Errorf("took %s", got.took)
			}
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			if len(lines) != 1 || !strings.HasPrefix(lines[0], "error: ") || !regexp.MustCompile(test.want).MatchString(lines[0]) {
				t.Errorf("want one line like %q, got\n%s", test.want, got.stderr)
			}
			for _, unclear := range []string{"goroutine", "panic", "%!", "<nil>"} {
				if strings.Contains(got.stderr, unclear) {
					t.Errorf("not clear: %s", got.stderr)
				}
			}
			if got.stdout != "" {
				t.Errorf("on standard output: %s", got.stdout)
			}
			if after := contents(arguments); name != "second process" && after != before {
				t.Error("the failed start changed the store's file")
			}
			if _, err := os.Lstat(arguments[len(arguments)-1]); name == "no folder of the store" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the failed start made the folder: %v", err)
			}
		})
	}
}

// contents returns what is in the store's file that the arguments name, if there is one.
func contents(arguments []string) string {
	for index, argument := range arguments {
		if argument == "--data" {
			text, _ := os.ReadFile(filepath.Join(arguments[index+1], "keysvc.db")) //nolint:gosec // the test's own
			return string(text)
		}
	}
	return ""
}

// shortDir returns a new folder whose path fits into the address of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

// truncate cuts the file to its first pages. Most of what follows on the others is room
// that it keeps, and nobody misses.
func truncate(t *testing.T, file string) {
	t.Helper()
	if err := os.Truncate(file, 4*int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
}

// overwrite writes nonsense over a part of the file.
func overwrite(t *testing.T, file string, from, to int) {
	t.Helper()
	text, err := os.ReadFile(file) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	for index := from; index < min(to, len(text)); index++ {
		text[index] = byte(index * 7)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// changeHeader makes the store's header one of a newer version, or damages it.
func changeHeader(t *testing.T, file string, newer bool) {
	t.Helper()
	database, err := bolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = database.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		header := &storagev1.HeaderRecord{}
		if err := storage.Decode("header", "meta/header", meta.Get([]byte("header")), header); err != nil {
			return err
		}
		header.Schema = 99
		encoded, err := storage.Encode(header)
		if err != nil {
			return err
		}
		name := "meta/elsewhere"
		if newer {
			name = "meta/header"
		}
		return meta.Put([]byte("header"), storage.Frame(name, encoded))
	})
	if err := errors.Join(err, database.Close()); err != nil {
		t.Fatal(err)
	}
}

// call is a call of ValidateKey that the server has begun and the client has not
// finished: it has not sent the request yet.
type call struct {
	stream grpc.ClientStream
}

func (s *serving) begin(t *testing.T) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, keysvcv1.ValidationService_ValidateKey_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	// The answer to what was sent later on the same connection shows that the server
	// has the stream.
	s.decide(t, "", "emails:read")
	return &call{stream: stream}
}

// finish sends the request and returns the answer.
func (c *call) finish(token string) (*keysvcv1.ValidateKeyResponse, error) {
	response := &keysvcv1.ValidateKeyResponse{}
	if err := c.stream.SendMsg(&keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read"}); err != nil {
		return nil, err
	}
	if err := c.stream.CloseSend(); err != nil {
		return nil, err
	}
	return response, c.stream.RecvMsg(response)
}

var stopping = regexp.MustCompile(`"msg":"(stopping)"`)

func TestTerminationDrains(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	s.putMember(t, "acme", "ann", "owner")
	token := s.create(t, "acme", "ann", "emails:read").GetToken()
	call := s.begin(t)
	s.signal(t, syscall.SIGTERM)
	if _, err := s.stderr.await(s.ended, stopping); err != nil {
		t.Fatal(err)
	}
	// Nobody new is let in.
	for dialling := testContext(t); ; {
		conn, err := (&net.Dialer{}).DialContext(dialling, "tcp", s.address)
		if err != nil {
			if dialling.Err() != nil {
				t.Error("the listener stays open")
			}
			break
		}
		_ = conn.Close()
	}
	select {
	case <-s.ended:
		t.Fatal("it did not wait for the call")
	default:
	}
	if response, err := call.finish(token); err != nil || inWords(response) != "ALLOWED" {
		t.Errorf("the call in flight got %v, %v", response, err)
	}
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, s.stderr)
	}
	if checked := command(t, "", "check", s.file); checked.status != 0 {
		t.Errorf("check: %s%s", checked.stdout, checked.stderr)
	}
}

func TestTerminationHasADeadline(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--drain-timeout", "100ms")
	call := s.begin(t)
	s.signal(t, syscall.SIGTERM)
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, s.stderr)
	}
	if _, err := call.finish(""); status.Code(err) != codes.Unavailable && !errors.Is(err, fs.ErrClosed) && err == nil {
		t.Error("the call that did not end got an answer")
	}
	if !strings.Contains(s.stderr.String(), "cut off") {
		t.Errorf("the log does not say that calls were cut off:\n%s", s.stderr)
	}
}

// TestSecondSignalExitsAtOnce: whichever comes first and whichever second.
func TestSecondSignalExitsAtOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		first, second syscall.Signal
		status        int
	}{
		{syscall.SIGINT, syscall.SIGINT, 130},
		{syscall.SIGINT, syscall.SIGTERM, 143},
		{syscall.SIGTERM, syscall.SIGTERM, 143},
		{syscall.SIGTERM, syscall.SIGINT, 130},
	} {
		t.Run(test.first.String()+", "+test.second.String(), func(t *testing.T) {
			t.Parallel()
			s := serve(t, t.TempDir(), "--drain-timeout", "1h")
			s.begin(t)
			s.signal(t, test.first)
			if _, err := s.stderr.await(s.ended, stopping); err != nil {
				t.Fatal(err)
			}
			// A terminal that closes is no reason to hurry.
			s.signal(t, syscall.SIGHUP)
			if _, err := s.stderr.await(s.ended, hangUp); err != nil {
				t.Fatal(err)
			}
			s.signal(t, test.second)
			if status := s.wait(t); status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if checked := command(t, "", "check", s.file); checked.status != 0 {
				t.Errorf("check: %s%s", checked.stdout, checked.stderr)
			}
		})
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "keysvc.sock")
	// One that a process left behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	p := launch(t, "serve", "--listen", "unix://"+path, "--data", data, "--init")
	s, err := p.serving(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v; want a socket of mode 0600", info.Mode(), err)
	}
	if s.address != "unix://"+path {
		t.Errorf("it says that it serves on %s", s.address)
	}
	s.putMember(t, "acme", "ann", "owner")
	token := s.create(t, "acme", "ann", "emails:read").GetToken()
	if got := command(t, token, "validate", "--addr", "unix://"+path, "--scope", "emails:read"); got.status != 0 {
		t.Errorf("exit status %d\n%s", got.status, got.stderr)
	}
	if file, err := os.Stat(s.file); err != nil || file.Mode().Perm() != 0o600 {
		t.Errorf("the store: %v, %v; want mode 0600", file.Mode(), err)
	}
	s.stop(t)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
