package reload_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/reload"
)

// bench is a Poller of one file, whose contents are used unless they begin with "bad".
type bench struct {
	file    string
	used    []string
	changes int
	log     bytes.Buffer
	poller  *reload.Poller
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{file: filepath.Join(t.TempDir(), "file")}
	item := reload.Item{Name: "a file", Reload: reload.File(b.file, 100, func(text []byte) error {
		if bytes.HasPrefix(text, []byte("bad")) {
			return errors.New("file:1: " + string(text))
		}
		b.used = append(b.used, string(text))
		return nil
	})}
	b.poller = reload.New(slog.New(slog.NewTextHandler(&b.log, nil)), func(context.Context) { b.changes++ }, item)
	return b
}

// write replaces the file, so that a Check at the same moment reads the old text or the new one, and
// no empty file.
func (b *bench) write(t *testing.T, text string) {
	t.Helper()
	next := b.file + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, b.file); err != nil {
		t.Fatal(err)
	}
}

func TestContentsAreUsedOncePerChange(t *testing.T) {
	b := newBench(t)
	for _, text := range []string{"one", "one", "two", "one"} {
		b.write(t, text)
		b.poller.Check(t.Context())
		b.poller.Check(t.Context())
	}
	if got := strings.Join(b.used, " "); got != "one two one" || b.changes != 3 {
		t.Errorf("used %q, with %d changes", got, b.changes)
	}
}

func TestBadContentsAreLoggedOnceAndNotUsed(t *testing.T) {
	b := newBench(t)
	for _, text := range []string{"one", "bad 1", "bad 1", "bad 2", strings.Repeat("x", 101), "one", "two"} {
		b.write(t, text)
		b.poller.Check(t.Context())
		b.poller.Check(t.Context())
	}
	if err := os.Remove(b.file); err != nil {
		t.Fatal(err)
	}
	b.poller.Check(t.Context())
	b.poller.Check(t.Context())
	if got := strings.Join(b.used, " "); got != "one one two" {
		t.Errorf("used %q", got)
	}
	if errors := strings.Count(b.log.String(), "level=ERROR"); errors != 4 || !strings.Contains(b.log.String(), "file:1: bad 2") {
		t.Errorf("%d errors in the log:\n%s", errors, b.log.String())
	}
}

// TestContentsBehindSymbolicLinksAreNoticed: so Kubernetes puts new versions of a mounted secret.
func TestContentsBehindSymbolicLinksAreNoticed(t *testing.T) {
	b := newBench(t)
	folder := filepath.Dir(b.file)
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(folder, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, version, "file"), []byte(version), 0o600); err != nil {
			t.Fatal(err)
		}
		next := filepath.Join(folder, "..data_tmp")
		if err := os.Symlink(version, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
		if version == "v1" {
			if err := os.Symlink("..data/file", b.file); err != nil {
				t.Fatal(err)
			}
		}
		b.poller.Check(t.Context())
	}
	if got := strings.Join(b.used, " "); got != "v1 v2" {
		t.Errorf("used %q", got)
	}
}

func TestRunChecksAtEachTick(t *testing.T) {
	b := newBench(t)
	b.write(t, "one")
	ticks, ended := make(chan time.Time), make(chan struct{})
	ctx, end := context.WithCancel(t.Context())
	go func() {
		b.poller.Run(ctx, ticks)
		close(ended)
	}()
	ticks <- time.Time{}
	ticks <- time.Time{} // taken only when the Check of the first is over
	b.write(t, "two")
	ticks <- time.Time{}
	end()
	<-ended
	if got := strings.Join(b.used, " "); got != "one two" {
		t.Errorf("used %q", got)
	}
}

func TestReadRefusesWhatIsTooLong(t *testing.T) {
	b := newBench(t)
	b.write(t, "12345")
	if text, err := reload.Read(b.file, 5); err != nil || string(text) != "12345" {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := reload.Read(b.file, 4); err == nil {
		t.Error("too long a file is read")
	}
}
