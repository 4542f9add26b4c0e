package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// These tests are about other processes: those that read the output of keysvc, send it signals or
// take its file descriptors. None of them may stop it from working.

var (
	hangUp         = regexp.MustCompile(`"msg":"(the settings were read again)`)
	droppedLines   = regexp.MustCompile(`"msg":"log lines were dropped[^\n]*"dropped":(\d+)`)
	notAccepted    = regexp.MustCompile(`"msg":"(a connection cannot be accepted)`)
	repeatedLine   = regexp.MustCompile(`"repeated":(\d+)`)
	descriptorsSet = "ulimit -n 24; exec \"$0\" \"$@\""
)

// plumbed is a keysvc whose standard output and standard error go into one pipe.
type plumbed struct {
	*serving
	// reader is the reading end of the pipe.
	reader *os.File
}

// plumb starts a server on a unix socket and waits until it serves.
func plumb(t *testing.T, arguments ...string) *plumbed {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	data, socket := t.TempDir(), filepath.Join(shortDir(t), "s")
	p := &process{stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{})}
	p.command = exec.Command(binary, append([]string{"serve", "--init", "--data", data, "--listen", "unix://" + socket}, arguments...)...)
	p.command.Env = clean()
	p.command.Stdout, p.command.Stderr = writer, writer
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	go func() {
		_ = p.command.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	_, _ = p.stdout.Write([]byte("keysvc serves on unix://" + socket + "\n"))
	s, err := p.serving(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	for dialling := testContext(t); ; {
		conn, err := (&net.Dialer{}).DialContext(dialling, "unix", socket)
		if err == nil {
			_ = conn.Close()
			return &plumbed{s, reader}
		}
		if dialling.Err() != nil {
			t.Fatal(err)
		}
	}
}

// flood makes keysvc log more than the pipe and the buffers of the log hold.
func (p *plumbed) flood(t *testing.T) {
	t.Helper()
	const lines = 6000 // of more than 200 bytes
	for range lines {
		p.decide(t, "nonsense", "emails:read")
	}
}

// TestNobodyHasToReadTheOutput fills the pipe of the output; the server must go on working.
func TestNobodyHasToReadTheOutput(t *testing.T) {
	t.Parallel()
	t.Run("until the stop", func(t *testing.T) {
		t.Parallel()
		p := plumb(t, "--log-level", "debug")
		p.flood(t)
		p.putMember(t, "acme", "ann", "owner")
		token := p.create(t, "acme", "ann", "emails:read").GetToken()
		if got := p.decide(t, token, "emails:read"); inWords(got) != "ALLOWED" {
			t.Errorf("got %s", inWords(got))
		}
		p.stop(t)
		if checked := command(t, "", "check", p.file); checked.status != 0 {
			t.Errorf("check: %s%s", checked.stdout, checked.stderr)
		}
	})
	t.Run("but may again", func(t *testing.T) {
		t.Parallel()
		p := plumb(t, "--log-level", "debug")
		p.flood(t)
		go func() { _, _ = io.Copy(p.stderr, p.reader) }()
		if dropped, err := p.stderr.await(p.ended, droppedLines); err != nil || dropped == "0" {
			t.Errorf("the log does not say how many lines were dropped: %q, %v", dropped, err)
		}
		p.stop(t)
	})
	t.Run("nor what the stacks say", func(t *testing.T) {
		t.Parallel()
		p := plumb(t, "--log-level", "debug")
		p.flood(t)
		p.signal(t, syscall.SIGQUIT)
		if status := p.wait(t); status != 128+int(syscall.SIGQUIT) {
			t.Errorf("exit status %d", status)
		}
	})
}

// TestReaderOfTheLogMayDie: without care, SIGPIPE would end the process in the middle of a call.
func TestReaderOfTheLogMayDie(t *testing.T) {
	t.Parallel()
	p := plumb(t)
	if err := p.reader.Close(); err != nil {
		t.Fatal(err)
	}
	p.putMember(t, "acme", "ann", "owner")
	token := p.create(t, "acme", "ann", "emails:read").GetToken()
	if got := p.decide(t, token, "emails:read"); inWords(got) != "ALLOWED" {
		t.Errorf("got %s", inWords(got))
	}
	p.stop(t)
}

// TestOtherSignalsEndNothing sends each signal that is not meant to end the process.
func TestOtherSignalsEndNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	for _, signal := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGTTOU, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGVTALRM,
		syscall.SIGPROF, syscall.SIGIO, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGWINCH, syscall.SIGURG, syscall.SIGCHLD, syscall.SIGCONT,
	} {
		s.signal(t, signal)
		s.putMember(t, "acme", fmt.Sprint("after-", int(signal)), "owner")
	}
	if _, err := s.stderr.await(s.ended, hangUp); err != nil {
		t.Error(err)
	}
	s.stop(t)
}

// TestSIGHUPReadsTheFileAgain: settings that can change do, and the log names the others.
func TestSIGHUPReadsTheFileAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keysvc.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: warn\n")
	s := serve(t, t.TempDir(), "--config", file)
	for _, test := range []struct{ text, want string }{
		{"log-level: debug\nstaleness: 2s\n", `"level":"WARN","msg":"the settings were read again; some need a restart","at_next_start":"staleness"`},
		{"log-level: loud\n", `"level":"ERROR".*keysvc\.yaml:1:12: log-level: is .*loud`},
		{"log-level: info\n", `"level":"INFO","msg":"the settings were read again"`},
	} {
		write(test.text)
		s.signal(t, syscall.SIGHUP)
		if _, err := s.stderr.await(s.ended, regexp.MustCompile("("+test.want+")")); err != nil {
			t.Fatalf("%v\n%s", err, s.stderr)
		}
	}
	s.stop(t)
}

func TestSIGQUITWritesTheStackOfEachGoroutine(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	s.signal(t, syscall.SIGQUIT)
	if status := s.wait(t); status != 128+int(syscall.SIGQUIT) {
		t.Errorf("exit status %d", status)
	}
	if text := s.stderr.String(); !strings.Contains(text, "goroutine 1 ") || !strings.Contains(text, "boltstore") {
		t.Errorf("no stacks:\n%s", text)
	}
}

// TestServingGoesOnWithoutDescriptors opens more connections than the process may have open.
func TestServingGoesOnWithoutDescriptors(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	p := &process{stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{})}
	p.command = exec.Command("sh", append([]string{"-c", descriptorsSet, binary}, serveOn(data)...)...)
	p.command.Env = clean()
	p.command.Stdout, p.command.Stderr = p.stdout, p.stderr
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	s, err := p.serving(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	s.putMember(t, "acme", "ann", "owner")
	token := s.create(t, "acme", "ann", "emails:read").GetToken()

	open := exhaust(t, s)
	for number := range 20 {
		s.putMember(t, "acme", fmt.Sprint("m", number), "owner")
		if got := s.decide(t, token, "emails:read"); inWords(got) != "ALLOWED" {
			t.Errorf("got %s", inWords(got))
		}
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	if got := command(t, token, "validate", "--addr", s.address, "--scope", "emails:read"); got.status != 0 {
		t.Errorf("with descriptors again: exit status %d\n%s", got.status, got.stderr)
	}
	if lines := len(notAccepted.FindAllString(s.stderr.String(), -1)); lines > 3 {
		t.Errorf("the log has %d lines about it", lines)
	}
	exhaust(t, s)
	s.stop(t)
}

// exhaust opens connections until the server says that it cannot accept one.
func exhaust(t *testing.T, s *serving) []net.Conn {
	t.Helper()
	var open []net.Conn
	for range 40 {
		conn, err := (&net.Dialer{}).DialContext(testContext(t), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		open = append(open, conn)
	}
	if _, err := s.stderr.await(s.ended, notAccepted); err != nil {
		t.Fatalf("the log says nothing: %v", err)
	}
	return open
}

// TestStopOfAHangingStartIsGivenUp: the policy is a named pipe that nobody writes into, so the start
// hangs.
func TestStopOfAHangingStartIsGivenUp(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "policy.yaml")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, "serve", "--init", "--allow-plaintext", "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--policy", pipe, "--drain-timeout", "0s")
	// Opening without waiting succeeds once the start has opened the pipe for reading.
	for opening := testContext(t); ; {
		file, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			defer file.Close()
			break
		}
		if !errors.Is(err, syscall.ENXIO) || opening.Err() != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	p.signal(t, syscall.SIGTERM)
	if status := p.wait(t); status != 5 {
		t.Errorf("exit status %d, want 5", status)
	}
	if took := time.Since(begin); took < 3*time.Second || took > 10*time.Second {
		t.Errorf("it took %s, want about 4 s", took)
	}
	if text := p.stderr.String(); !strings.Contains(text, "error: the stop hangs") {
		t.Errorf("it said\n%s", text)
	}
}

// TestRefusalsDoNotFloodTheLog: for hundreds of equal warnings the log has one line and, ten
// seconds later or at the stop, a second line that counts the rest.
func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--max-sessions", "1")
	sync := keysvcv1.NewSyncServiceClient(s.conn)
	session := func() error {
		stream, err := sync.Sync(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err
	}
	if err := session(); err != nil {
		t.Fatal(err)
	}
	const refusals = 300
	for range refusals {
		if err := session(); err == nil {
			t.Fatal("a second session was let in")
		}
	}
	s.stop(t)
	stands, lines := 0, 0
	for line := range strings.Lines(s.stderr.String()) {
		if !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, "RESOURCE_EXHAUSTED") {
			continue
		}
		lines++
		count := 1
		if found := repeatedLine.FindStringSubmatch(line); found != nil {
			if _, err := fmt.Sscan(found[1], &count); err != nil {
				t.Fatal(err)
			}
		}
		stands += count
	}
	if lines == 0 || lines > 8 || stands%refusals != 0 {
		t.Errorf("%d lines that stand for %d, want few for %d", lines, stands, refusals)
	}
}
