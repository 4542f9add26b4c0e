package logging_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/internal/logging"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; none comes near it unless something hangs.
const patience = 20 * time.Second

// within fails the test if f does not return soon.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
	}
}

func notice(dropped int64) []byte { return fmt.Appendf(nil, "dropped %d\n", dropped) }

// TestWriteDoesNotWaitForAPipeThatNobodyReads fills a pipe and what may wait, and then reads:
// lines come in order, and each is either there or counted, where it would have been.
func TestWriteDoesNotWaitForAPipeThatNobodyReads(t *testing.T) {
	reader, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	w := logging.NewWriter(out, logging.Config{Limit: 16 << 10, Notice: notice, Patience: patience})
	const lines = 500
	filler := strings.Repeat(".", 1000)
	within(t, "Write", func() {
		for number := range lines {
			if n, err := fmt.Fprintf(w, "line %d %s\n", number, filler); err != nil || n < len(filler) {
				t.Errorf("Write: %d, %v", n, err)
			}
		}
	})
	closed := make(chan bool, 1)
	go func() {
		closed <- w.Close()
		_ = out.Close()
	}()
	next, dropped := 0, 0
	for text := bufio.NewScanner(reader); text.Scan(); {
		var number, count int
		if _, err := fmt.Sscanf(text.Text(), "dropped %d", &count); err == nil {
			dropped += count
			next += count
			continue
		}
		if _, err := fmt.Sscanf(text.Text(), "line %d", &number); err != nil || number != next {
			t.Fatalf("%.20q, %v; want line %d", text.Text(), err, next)
		}
		next++
	}
	if next != lines || dropped == 0 || dropped == lines {
		t.Errorf("%d lines are there or counted, want %d; %d dropped", next, lines, dropped)
	}
	if !<-closed {
		t.Error("Close says that not all was written")
	}
}

// watched tells of each write that is over.
type watched struct {
	io.Writer
	over chan error
}

func (w watched) Write(text []byte) (int, error) {
	n, err := w.Writer.Write(text)
	w.over <- err
	return n, err
}

// TestWriterGoesOnWhenAnotherReaderComes writes to a named pipe.
func TestWriterGoesOnWhenAnotherReaderComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() *os.File {
		file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	first := read()
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	pipe := watched{out, make(chan error, 100)}
	w := logging.NewWriter(pipe, logging.Config{Notice: notice})
	put := func(text string) error {
		fmt.Fprintln(w, text)
		return <-pipe.over
	}
	if err := put("first"); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 100)
	if n, err := first.Read(text); err != nil || string(text[:n]) != "first\n" {
		t.Fatalf("the first reader got %q, %v", text[:n], err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := put("lost"); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("Write: %v, want a broken pipe", err)
		}
	}
	second := read()
	defer second.Close()
	if err := put("again"); err != nil { // the notice
		t.Fatal(err)
	}
	if err := <-pipe.over; err != nil {
		t.Fatal(err)
	}
	if !w.Close() {
		t.Error("Close says that not all was written")
	}
	n, err := second.Read(text)
	if want := "dropped 3\nagain\n"; err != nil || string(text[:n]) != want {
		t.Errorf("the second reader got %q, %v; want %q", text[:n], err, want)
	}
}

func TestCloseGivesUpAfterItsPatience(t *testing.T) {
	reader, out := io.Pipe() // holds nothing
	w := logging.NewWriter(out, logging.Config{Patience: 10 * time.Millisecond})
	fmt.Fprintln(w, "a line")
	within(t, "Close", func() {
		if w.Close() {
			t.Error("Close says that all was written")
		}
	})
	within(t, "Write", func() { fmt.Fprintln(w, "too late") })
	_ = reader.Close() // lets the goroutine end
}

// disk is a file on a disk that is full and then not any more.
type disk struct {
	text strings.Builder
	room int
}

func (d *disk) Write(text []byte) (int, error) {
	n := min(d.room, len(text))
	d.text.Write(text[:n])
	if d.room -= n; n < len(text) {
		d.room = 1000
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestLineAfterATornLineIsWhole: one half of a line is on the disk, and then there is
// room again.
func TestLineAfterATornLineIsWhole(t *testing.T) {
	full := &disk{room: 3}
	w := logging.NewWriter(full, logging.Config{Notice: notice})
	for _, text := range []string{"abcdef", "second", "third"} {
		fmt.Fprintln(w, text)
	}
	if !w.Close() {
		t.Error("Close says that not all was written")
	}
	if got, want := full.text.String(), "abc\ndropped 1\nsecond\nthird\n"; got != want {
		t.Errorf("written %q, want %q", got, want)
	}
}
