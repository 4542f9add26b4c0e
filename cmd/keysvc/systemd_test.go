package main_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is the part of systemd that a service speaks with.
type manager struct {
	*net.UnixConn
	// passed is the socket that the service gets.
	passed *os.File
	path   string
	folder string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	folder, err := os.MkdirTemp("", "keysvc") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	m := &manager{folder: folder, path: filepath.Join(folder, "passed.sock")}
	if m.UnixConn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(folder, "notify")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: m.path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	if m.passed, err = listener.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.passed.Close() })
	return m
}

// start starts the service with the socket, as systemd does. The shell becomes the service, so
// LISTEN_PID is the number of its process.
func (m *manager) start(t *testing.T, arguments ...string) *process {
	t.Helper()
	shell := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, binary}, arguments...)...)
	shell.Env = append(clean(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+m.LocalAddr().String(), "WATCHDOG_USEC=200000")
	shell.ExtraFiles = []*os.File{m.passed}
	p, err := begin(shell)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// await returns the first message that begins with a text.
func (m *manager) await(t *testing.T, begins string) string {
	t.Helper()
	if err := m.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 4096)
	for {
		length, err := m.Read(message)
		if err != nil {
			t.Fatalf("%s: %v", begins, err)
		}
		if text := string(message[:length]); strings.HasPrefix(text, begins) {
			return text
		}
	}
}

// TestServiceManagerHearsHowTheServiceIs starts the service as a unit with Type=notify, a socket and
// a watchdog.
func TestServiceManagerHearsHowTheServiceIs(t *testing.T) {
	t.Parallel()
	systemd := newManager(t)
	// Callers may connect before the service runs: they wait.
	early := make(chan result, 1)
	address := "unix://" + systemd.path
	go func() { early <- command(t, "", "policy", "show", "--addr", address) }()
	p := systemd.start(t, "serve", "--init", "--data", t.TempDir(), "--listen", address)
	systemd.await(t, "READY=1")
	if got := <-early; got.status != 0 {
		t.Errorf("a caller before the start: %+v", got)
	}
	for range 3 {
		systemd.await(t, "WATCHDOG=1")
	}
	p.signal(t, syscall.SIGHUP)
	if got := systemd.await(t, "RELOADING=1"); !strings.Contains(got, "\nMONOTONIC_USEC=") {
		t.Errorf("reloading: %q", got)
	}
	systemd.await(t, "READY=1")
	p.signal(t, syscall.SIGTERM)
	systemd.await(t, "STOPPING=1")
	if status := p.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, p.stderr)
	}
	// The socket is systemd's: it stays for the next start.
	if _, err := os.Lstat(systemd.path); err != nil {
		t.Error(err)
	}
}

func TestSocketThatNoSettingNamesIsRefused(t *testing.T) {
	t.Parallel()
	systemd := newManager(t)
	p := systemd.start(t, "serve", "--init", "--data", t.TempDir(), "--listen", "unix://"+filepath.Join(systemd.folder, "other.sock"))
	if status := p.wait(t); status == 0 {
		t.Error("it ended with status 0")
	}
	if got := p.stderr.String(); !strings.Contains(got, "systemd passed a socket for "+systemd.path+", and no setting listens there") {
		t.Errorf("it says %s", got)
	}
}
