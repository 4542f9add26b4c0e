package docs_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestCommandsOfReadmeDoWhatItSays runs the commands of README.md up to the section about grpcurl,
// as a newcomer pastes them, with a server that `serve --dev` started.
func TestCommandsOfReadmeDoWhatItSays(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", filepath.Join(folder, "keysvc"), "./cmd/keysvc")
	build.Dir = root
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, output)
	}
	// A path of a unix socket has at most 103 bytes, and that of the test's folder may be longer.
	sockets, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	address := "unix://" + filepath.Join(sockets, "s")
	serveDev(t, folder, address)

	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(text), "\n## Try it with grpcurl\n")
	if !found {
		t.Fatal("README.md has no section about grpcurl any more")
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(before, -1) {
		if block[1] != "make run\n" { // the server is there already
			script.WriteString(block[1])
		}
	}
	paste := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	paste.Dir = folder
	paste.Env = append(os.Environ(), "KEYSVC_ADDR="+address)
	var complaints strings.Builder
	paste.Stderr = &complaints
	output, err := paste.Output()
	if err != nil {
		t.Errorf("the last command: %v", err)
	}
	// The decisions and exit statuses in their order.
	got := regexp.MustCompile(`(?m)^(ALLOWED|PERMISSION_DENIED: \w+|UNAUTHENTICATED: \w+|status \d+)`).FindAllString(string(output), -1)
	want := []string{
		"ALLOWED", // the demo key
		"ALLOWED", "status 0",
		"PERMISSION_DENIED: SCOPE_NOT_GRANTED", "status 4",
		"UNAUTHENTICATED: KEY_INVALID", "status 3",
		"ALLOWED", "status 0", // after the rotation
		"UNAUTHENTICATED: KEY_REVOKED", "status 3",
		"UNAUTHENTICATED: KEY_REVOKED", // key explain
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q\n%s\n%s\n%s", got, want, script.String(), output, complaints.String())
	}
	if strings.Contains(complaints.String(), "error:") {
		t.Errorf("a command failed:\n%s", complaints.String())
	}
}

// serveDev starts `keysvc serve --dev` in folder, waits until it serves, and stops it at the end
// of the test.
func serveDev(t *testing.T, folder, address string) {
	t.Helper()
	server := exec.CommandContext(t.Context(), filepath.Join(folder, "keysvc"), "serve", "--dev", "--listen", address)
	server.Dir = folder
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGTERM) }
	var log strings.Builder
	server.Stderr = &log
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Stop with Ctrl-C") {
	}
	served := strings.HasPrefix(lines.Text(), "Stop with Ctrl-C")
	t.Cleanup(func() { _ = server.Wait() }) // the test's context has ended: SIGTERM was sent
	if !served {
		_ = server.Process.Kill()
		_ = server.Wait()
		t.Fatalf("the server did not start:\n%s", log.String())
	}
}
