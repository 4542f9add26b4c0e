package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// The variables that make TestProcessServer serve: the kind of server, its address, and its
// file.
const (
	serverVariable  = "KEYSVC_BENCH_SERVER"
	addressVariable = "KEYSVC_BENCH_ADDRESS"
	fileVariable    = "KEYSVC_BENCH_FILE"

	realServer = "keysvc"
	// floorServer only tells all sessions of a change.
	floorServer = "floor"
	// emptyServer answers validations without deciding.
	emptyServer = "empty"
	// baselineServer does so for TestBench, over TCP, TLS and a unix socket. tunedServer is the same
	// with every tuning.
	baselineServer, tunedServer = "baseline", "tuned"
)

// TestProcessServer is the server of other tests, in its own process, so that it can be stopped
// and the clients' memory does not count. It writes its address. Then it writes its memory for
// each line that it reads.
func TestProcessServer(t *testing.T) {
	options := servertest.Options{File: os.Getenv(fileVariable)}
	if address := os.Getenv(addressVariable); address != "" {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		options.Listener = listener
	}
	switch os.Getenv(serverVariable) {
	case "":
		t.Skip("only for other tests")
	case floorServer:
		fmt.Println("address", startFloor(t))
	case emptyServer:
		fmt.Println("address", startEmpty(t))
	case baselineServer, tunedServer:
		startBaseline(t, os.Getenv(serverVariable) == tunedServer)
	default:
		fmt.Println("address", servertest.Start(t, options).Address)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		// Once more, because a pool keeps what was put into it until the second collection.
		runtime.GC()
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		fmt.Println("memory", memory.HeapInuse+memory.StackInuse, runtime.NumGoroutine(), memory.HeapAlloc, memory.Mallocs, memory.TotalAlloc)
	}
}

// worker is a test of this program in another process, which reads and writes lines.
type worker struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout io.Reader
	lines  *bufio.Scanner
	// address is the address of a server.
	address string
}

// startProcess starts a test in another process, with environment variables. That test must end
// when its input ends.
func startProcess(t *testing.T, test string, environment ...string) *worker {
	t.Helper()
	return startProcessWith(t, test, nil, environment...)
}

// startProcessWith is startProcess with further flags of the test binary.
func startProcessWith(t *testing.T, test string, flags []string, environment ...string) *worker {
	t.Helper()
	started := &worker{Cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], append(flags, "-test.run", "^"+test+"$", "-test.v")...)}
	started.Env = append(os.Environ(), environment...)
	started.Stderr = os.Stderr
	var err error
	if started.stdin, err = started.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if started.stdout, err = started.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := started.Start(); err != nil {
		t.Fatal(err)
	}
	started.lines = bufio.NewScanner(started.stdout)
	return started
}

// startServer starts a server of a kind, and stops it when the test ends.
func startServer(t *testing.T, kind string) *worker {
	t.Helper()
	server := startProcess(t, "TestProcessServer", serverVariable+"="+kind)
	t.Cleanup(func() { server.end(t) })
	server.address = server.line(t, "address")
	return server
}

// end lets the process end in order.
func (w *worker) end(t *testing.T) {
	t.Helper()
	_ = w.stdin.Close()
	_, _ = io.Copy(io.Discard, w.stdout)
	if err := w.Wait(); err != nil {
		t.Errorf("%v: %v", w.Args, err)
	}
}

// write writes a line to the process.
func (w *worker) write(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(w.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// line returns the next line that begins with a word, without it.
func (w *worker) line(t *testing.T, word string) string {
	t.Helper()
	for w.lines.Scan() {
		if rest, found := strings.CutPrefix(w.lines.Text(), word+" "); found {
			return rest
		}
	}
	t.Fatalf("the process is gone: %v", w.lines.Err())
	return ""
}

// memory returns the memory of a server in bytes, and the number of its goroutines.
func memory(t *testing.T, server *worker) (bytes, goroutines int64) {
	t.Helper()
	read := readMemory(t, server)
	return read.inUse, read.goroutines
}

// memoryStats is the memory of a server: heap and stacks in use, what the heap holds after a
// collection, how many objects and bytes were allocated since the start, and how many goroutines
// there are.
type memoryStats struct{ inUse, goroutines, heap, mallocs, allocated int64 }

func readMemory(t *testing.T, server *worker) (read memoryStats) {
	t.Helper()
	server.write(t, "")
	fmt.Sscan(server.line(t, "memory"), &read.inUse, &read.goroutines, &read.heap, &read.mallocs, &read.allocated)
	return read
}
