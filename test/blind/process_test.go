package blind_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait. A wait that lasts so long hangs.
const patience = time.Minute

// built builds keysvc once.
var built = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "blind")
	if err != nil {
		return "", err
	}
	programs = folder
	program := filepath.Join(folder, "keysvc")
	command := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/keysvc")
	command.Dir = filepath.Join("..", "..")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building keysvc: %w\n%s", err, output)
	}
	return program, nil
})

// programs is the folder of the built program; empty if none was built.
var programs string

func TestMain(m *testing.M) {
	status := m.Run()
	if programs != "" {
		_ = os.RemoveAll(programs)
	}
	os.Exit(status)
}

// process is a running keysvc.
type process struct {
	command *exec.Cmd
	program string
	// folder has everything that the process writes: its data, sink, log, and core.
	folder string
	socket string
	ended  chan struct{}
}

// start starts keysvc and waits until it listens.
func start(t *testing.T, arguments ...string) *process {
	t.Helper()
	program, err := built()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{program: program, folder: t.TempDir(), socket: filepath.Join(shortDir(t), "s"), ended: make(chan struct{})}
	for _, folder := range []string{"cwd", "sink"} {
		if err := os.Mkdir(filepath.Join(p.folder, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A hard limit that does not allow cores is found out about later.
	shell := []string{"-c", `ulimit -c unlimited 2>/dev/null; exec "$0" "$@"`, program}
	p.command = exec.Command("sh", append(append(shell, "serve", "--init", "--data", filepath.Join(p.folder, "data"),
		"--listen", "unix://"+p.socket, "--audit-sink", filepath.Join(p.folder, "sink", "audit.jsonl"),
		"--log-level", "debug", "--channelz", "--usage-interval", "1s"), arguments...)...)
	p.command.Dir = filepath.Join(p.folder, "cwd")
	p.command.Env = append(clean(), "GOTRACEBACK=crash")
	for name, to := range map[string]*io.Writer{"stdout": &p.command.Stdout, "log": &p.command.Stderr} {
		file, err := os.Create(filepath.Join(p.folder, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		*to = file
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill()
		<-p.ended
	})
	p.until(t, "it listens", func() bool {
		conn, err := net.Dial("unix", p.socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return p
}

// until waits until a condition holds.
func (p *process) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker, deadline := time.NewTicker(2*time.Millisecond), time.After(patience)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-p.ended:
			text, _ := os.ReadFile(filepath.Join(p.folder, "log"))
			t.Fatalf("keysvc ended before %s\n%s", what, text)
		case <-deadline:
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// clean returns the environment of this process without the variables of keysvc.
func clean() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "KEYSVC_") })
}

// shortDir returns a new folder with a path that is short enough for the address of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

func (p *process) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// memory stops the process, searches everything that it can read of its own memory, and lets it go on.
// Stopped, it cannot move a secret from where the search has not been to where it has been.
func (p *process) memory(t *testing.T, x *index) *findings {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	defer p.signal(t, syscall.SIGCONT)
	p.until(t, "it stops", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.command.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), ") ")
		return strings.HasPrefix(after, "T ")
	})
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", p.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.command.Process.Pid))
	if err != nil {
		t.Fatalf("the memory of a child process cannot be read here, and this test is about it: %v", err)
	}
	defer memory.Close()
	found, names := newFindings(), make(map[string]bool)
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		var from, to int64
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			// The addresses of vsyscall do not fit; it has the kernel's code alone.
			continue
		}
		name := strings.Join(fields[5:], " ")
		if !strings.HasPrefix(fields[1], "r") || name == "[vvar]" || name == "[vvar_vclock]" {
			continue
		}
		names[name] = true
		if err := found.all(x, &mapping{memory: memory, at: from, end: to}); err != nil {
			t.Fatalf("the mapping %s: %v", lines.Text(), err)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if !names["[stack]"] || !names[""] || !names[filepath.Join(p.folder, "data", "keysvc.db")] {
		t.Errorf("the stack, the heap or the file is not among the mappings: %v", names)
	}
	return found
}

// mapping reads a mapping of a process. Pages that cannot be read read as zeros: those of a mapped
// file behind its end.
type mapping struct {
	memory  *os.File
	at, end int64
}

// Read implements io.Reader.
func (m *mapping) Read(buffer []byte) (int, error) {
	if m.at >= m.end {
		return 0, io.EOF
	}
	buffer = buffer[:min(int64(len(buffer)), m.end-m.at)]
	read, err := m.memory.ReadAt(buffer, m.at)
	if read == 0 && errors.Is(err, syscall.EIO) {
		page := int64(os.Getpagesize())
		read, err = int(min(page-m.at%page, int64(len(buffer)))), nil
		clear(buffer[:read])
	}
	m.at += int64(read)
	if read > 0 {
		err = nil
	}
	return read, err
}

// files searches every file that the process wrote, and returns what was found by the name of the file.
func (p *process) files(t *testing.T, x *index) map[string]*findings {
	t.Helper()
	all := make(map[string]*findings)
	err := filepath.WalkDir(p.folder, func(path string, item fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the process has removed it meanwhile
		}
		if err != nil || !item.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		defer file.Close()
		name, err := filepath.Rel(p.folder, path)
		if err != nil {
			return err
		}
		all[name] = withDigests()
		if isCore(name) {
			all[name] = newFindings() // it is memory
		}
		return errors.Join(all[name].all(x, strings.NewReader(path)), all[name].all(x, file))
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// isCore reports whether a file is the core of the process.
func isCore(name string) bool {
	folder, file := filepath.Split(name)
	return folder == "cwd/" && strings.HasPrefix(file, "core")
}

// crash ends the process with SIGABRT, so that it writes its stacks and a core.
func (p *process) crash(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGABRT)
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("it does not end with SIGABRT")
	}
}

// stop ends the process with SIGTERM.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("it does not end with SIGTERM")
	}
	if status := p.command.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// proxy is between the clients and keysvc, and keeps every byte.
type proxy struct {
	socket   string
	listener net.Listener

	mutex sync.Mutex
	// received is what keysvc was sent on each connection, and answered what it sent.
	received, answered []*recording
}

// recording is what came over one connection in one direction.
type recording struct {
	mutex sync.Mutex
	text  []byte
}

// Write implements io.Writer.
func (r *recording) Write(text []byte) (int, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.text = append(r.text, text...)
	return len(text), nil
}

// copy returns what came so far.
func (r *recording) copy() []byte {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return slices.Clone(r.text)
}

// between starts a proxy in front of a process.
func between(t *testing.T, p *process) *proxy {
	t.Helper()
	x := &proxy{socket: filepath.Join(filepath.Dir(p.socket), "p")}
	var err error
	if x.listener, err = net.Listen("unix", x.socket); err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for {
			client, err := x.listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", p.socket)
			if err != nil {
				_ = client.Close()
				continue
			}
			up, down := x.record()
			for _, way := range []struct {
				from, to net.Conn
				keep     *recording
			}{{client, server, up}, {server, client, down}} {
				pumps.Go(func() {
					// What was not kept is not sent.
					_, _ = io.Copy(way.to, io.TeeReader(way.from, way.keep))
					_, _ = client.Close(), server.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = x.listener.Close()
		_ = p.command.Process.Kill() // ends the connections
		pumps.Wait()
	})
	return x
}

func (x *proxy) record() (up, down *recording) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	up, down = new(recording), new(recording)
	x.received, x.answered = append(x.received, up), append(x.answered, down)
	return up, down
}

// search searches what was received so far, and what was answered: as it was on the wire, and unpacked.
func (x *proxy) search(t *testing.T, of *index) (received, answered *findings) {
	t.Helper()
	x.mutex.Lock()
	defer x.mutex.Unlock()
	in := func(recordings []*recording) *findings {
		found := withDigests()
		for _, each := range recordings {
			recorded := each.copy()
			found.bytes += int64(len(recorded))
			found.piece(of, recorded)
			found.piece(of, unpack(t, recorded))
		}
		return found
	}
	return in(x.received), in(x.answered)
}

// target is the address of the proxy for clients.
func (x *proxy) target() string { return "unix://" + x.socket }
