package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// slowSink is a sink.Disk with which a test delays or fails writes.
type slowSink struct {
	mutex sync.Mutex
	// hold, if it is not nil, is what a sync waits for. Then it returns err.
	hold chan struct{}
	err  error
	// short is how many bytes a write leaves out.
	short int
	// space is how much disk the file may have; 0 is any.
	space int64
	syncs int
}

func (s *slowSink) set(hold chan struct{}, err error, short int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.hold, s.err, s.short = hold, err, short
}

func (s *slowSink) setSpace(space int64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.space = space
}

func (s *slowSink) disk() sink.Disk {
	return sink.Disk{
		Write: func(file *os.File, data []byte, offset int64) (int, error) {
			s.mutex.Lock()
			short, space := s.short, s.space
			s.mutex.Unlock()
			if space > 0 && offset+int64(len(data)) > space {
				return 0, syscall.ENOSPC
			}
			written, err := file.WriteAt(data[:max(0, len(data)-short)], offset)
			if err == nil && short > 0 {
				err = io.ErrShortWrite
			}
			return written, err
		},
		Sync: func(*os.File) error {
			s.mutex.Lock()
			s.syncs++
			hold, err := s.hold, s.err
			s.mutex.Unlock()
			if hold != nil {
				<-hold
			}
			return err
		},
		Allocate: func(_ *os.File, _, to int64) error {
			s.mutex.Lock()
			defer s.mutex.Unlock()
			if s.space > 0 && to > s.space {
				return syscall.ENOSPC
			}
			return nil
		},
	}
}

// sunkStore is a store with a sink and a workspace with a member.
type sunkStore struct {
	*Store
	slow       *slowSink
	workspace  *storagetest.Workspace
	path, sink string
	// fault is the store's Config.fault.
	fault func(written bool) error
	// wait is the store's Config.wait.
	wait time.Duration
}

// patient is for tests on the real clock, which must not depend on a disk that is slow at times.
const patient = time.Minute

func openSunk(t *testing.T, wait time.Duration) *sunkStore {
	t.Helper()
	folder := t.TempDir()
	s := &sunkStore{
		wait: wait, slow: &slowSink{}, workspace: storagetest.NewWorkspace("w"),
		path: filepath.Join(folder, "store.db"), sink: filepath.Join(folder, "audit"),
	}
	s.open(t)
	s.commit(t, s.workspace.PutMember("member", "admin"))
	return s
}

func (s *sunkStore) open(t *testing.T) {
	t.Helper()
	var err error
	s.Store, err = Open(s.path, Config{Create: CreateIfAbsent, Sink: s.sink, SinkReserve: 64 << 10, sinkDisk: s.slow.disk(), fault: s.fault, wait: s.wait})
	if err != nil {
		t.Fatal(err)
	}
}

// try commits a change, and returns its error and how long that took.
func (s *sunkStore) try(t *testing.T, change *storage.Change) (time.Duration, error) {
	t.Helper()
	began := time.Now()
	_, err := s.Commit(t.Context(), change)
	if err == nil {
		s.workspace.Follow(change)
	}
	return time.Since(began), err
}

func (s *sunkStore) commit(t *testing.T, change *storage.Change) time.Duration {
	t.Helper()
	took, err := s.try(t, change)
	if err != nil {
		t.Errorf("Commit: %v", err)
	}
	return took
}

// narrowed returns a change that narrows.
func (s *sunkStore) narrowed() *storage.Change {
	change := s.workspace.PutMember("member", "viewer")
	change.Narrows = true
	return change
}

// sunk returns the revisions in the files of a sink, late ones with "late" behind them. It fails the
// test for a line that is not whole, and for revisions that are not in order.
func sunk(t *testing.T, files ...string) []string {
	t.Helper()
	reader := sink.NewReader(files...)
	defer reader.Close()
	var revisions []string
	last := int64(0)
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return revisions
		}
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint(line.Mark.Revision)
		switch {
		case line.Event == nil && line.Mark.Revision != last && last > 0:
			t.Errorf("an anchor's line says revision %d after %d", line.Mark.Revision, last)
		case line.Event == nil:
			name = "anchor " + name
		case line.Mark.Revision != last+1:
			t.Errorf("revision %d follows on %d", line.Mark.Revision, last)
		case line.Late:
			name += " late"
		}
		last = line.Mark.Revision
		revisions = append(revisions, name)
	}
}

// mustHave fails the test if the sink has other lines than these, separated by commas.
func mustHave(t *testing.T, want string, files ...string) {
	t.Helper()
	if got := strings.Join(sunk(t, files...), ","); got != want {
		t.Errorf("the sink has %s, want %s", got, want)
	}
}

// TestEveryChangeWaitsForTheSink: even a new key is answered only once its line is durable.
func TestEveryChangeWaitsForTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSunk(t, 0)
		defer s.Close()
		hold := make(chan struct{})
		s.slow.set(hold, nil, 0)
		time.AfterFunc(500*time.Millisecond, func() { close(hold) })
		if took := s.commit(t, s.workspace.CreateKey(storagetest.KeyID(1))); took != 500*time.Millisecond {
			t.Errorf("a new key took %v, and its line 500 ms", took)
		}
		if got := s.State(); got.SinkStalled || got.SinkRevision != 2 {
			t.Errorf("State: %+v", got)
		}
		mustHave(t, "anchor 0,1,2", s.sink)
		if _, err := os.Stat(AnchorOf(s.path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an anchor's file is there: %v", err)
		}
	})
}

// TestSinkThatFails: the change that meets the failure is acknowledged, then only narrowing changes
// are made, at once, and the sink gets every event once, in order.
func TestSinkThatFails(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		short int
		hangs bool
	}{
		"sync fails":           {err: syscall.EIO},
		"write is short":       {short: 7},
		"sync hangs":           {hangs: true},
		"sync hangs and fails": {hangs: true, err: syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := openSunk(t, 0)
				defer s.Close()
				var hold chan struct{}
				want := time.Duration(0)
				if test.hangs {
					hold, want = make(chan struct{}), time.Second
				}
				s.slow.set(hold, test.err, test.short)
				if took := s.commit(t, s.workspace.CreateKey(storagetest.KeyID(1))); took != want {
					t.Errorf("the change that met the failure took %v, want %v", took, want)
				}
				for range 3 {
					if took, err := s.try(t, s.workspace.CreateKey(storagetest.KeyID(2))); !errors.Is(err, storage.ErrSink) || took != 0 {
						t.Errorf("a new key: %v after %v, want ErrSink at once", err, took)
					}
					if took := s.commit(t, s.narrowed()); took != 0 {
						t.Errorf("a narrowing change took %v", took)
					}
				}
				if got := s.State(); !got.SinkStalled || got.SinkRevision != 1 || got.SinkRefused != 3 {
					t.Errorf("State: %+v, want an alarm", got)
				}
				s.slow.set(nil, nil, 0)
				if hold != nil {
					close(hold)
				}
				time.Sleep(time.Second)
				if got := s.State(); got.SinkStalled || got.SinkRevision != 5 {
					t.Errorf("State: %+v, want revision 5 and no alarm", got)
				}
				s.commit(t, s.workspace.CreateKey(storagetest.KeyID(2)))
				mustHave(t, "anchor 0,1,2 late,3 late,4 late,5 late,6", s.sink)
			})
		})
	}
}

// TestStopBringsStoreAndSinkTogether: a stop writes the lines that are missing, too.
func TestStopBringsStoreAndSinkTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSunk(t, 0)
		s.slow.set(nil, syscall.EIO, 0)
		s.commit(t, s.narrowed())
		s.commit(t, s.narrowed())
		s.slow.set(nil, nil, 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mustHave(t, "anchor 0,1,2 late,3 late", s.sink)
	})
}

// TestQueuedChangeIsRefused: a change that is in the queue when the sink fails is refused, too,
// before its commit.
func TestQueuedChangeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSunk(t, 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		var hold atomic.Pointer[chan struct{}]
		s.fault = func(written bool) error {
			if wait := hold.Load(); wait != nil && !written {
				<-*wait
			}
			return nil
		}
		s.open(t)
		defer s.Close()
		s.slow.set(nil, syscall.EIO, 0)
		commit := make(chan struct{})
		hold.Store(&commit)
		other, third := storagetest.NewWorkspace("other"), storagetest.NewWorkspace("third")
		outcomes := make([]error, 3)
		var group sync.WaitGroup
		narrowing := third.PutMember("member", "admin")
		narrowing.Narrows = true
		for index, change := range []*storage.Change{s.workspace.CreateKey(storagetest.KeyID(1)), other.PutMember("member", "admin"), narrowing} {
			group.Go(func() { _, outcomes[index] = s.Commit(t.Context(), change) })
			synctest.Wait() // the first is being committed, and the others are queued
		}
		s.Store.sink.stall(syscall.EIO)
		close(commit)
		group.Wait()
		if outcomes[0] != nil || !errors.Is(outcomes[1], storage.ErrSink) || outcomes[2] != nil {
			t.Errorf("outcomes %v, want nil, ErrSink, nil", outcomes)
		}
		s.slow.set(nil, nil, 0)
		time.Sleep(time.Second)
		mustHave(t, "anchor 0,1,2 late,3 late", s.sink)
	})
}

// TestFullSinkRefusesWhatDoesNotNarrow: when the reserve cannot be kept, narrowing changes still get
// their lines before they are answered.
func TestFullSinkRefusesWhatDoesNotNarrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSunk(t, 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s.slow.setSpace(32 << 10) // the reserve is 64 KiB
		s.open(t)
		defer s.Close()
		s.commit(t, s.narrowed())
		if got := s.State(); !got.SinkFull || got.SinkStalled {
			t.Fatalf("State: %+v, want full", got)
		}
		if _, err := s.try(t, s.workspace.CreateKey(storagetest.KeyID(1))); !errors.Is(err, storage.ErrSink) {
			t.Errorf("a new key: %v, want ErrSink", err)
		}
		for range 5 {
			s.commit(t, s.narrowed())
		}
		mustHave(t, "anchor 0,1,2,3,4,5,6,7", s.sink)
		s.slow.setSpace(0)
		// A change that is refused makes the server look for room, beside it and once in an interval. Which of
		// the next changes is the first to pass is not said.
		_, err := s.try(t, s.workspace.CreateKey(storagetest.KeyID(1)))
		for tries := 0; err != nil && tries < 3; tries++ {
			time.Sleep(roomInterval)
			synctest.Wait()
			_, err = s.try(t, s.workspace.CreateKey(storagetest.KeyID(1)))
		}
		if err != nil {
			t.Errorf("with room again: %v", err)
		}
		mustHave(t, "anchor 0,1,2,3,4,5,6,7,8", s.sink)
	})
}

// TestStartBringsStoreAndSinkTogether: a torn end is cut, and what is missing is read from the store.
func TestStartBringsStoreAndSinkTogether(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, s *sunkStore, lines [][]byte)
		want   string
	}{
		"the sink is behind": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			writeFile(t, s.sink, bytes.Join(lines[:2], nil))
		}, "anchor 0,1,2 late,3 late"},
		"a torn line": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			writeFile(t, s.sink, append(bytes.Join(lines[:3], nil), lines[3][:50]...))
		}, "anchor 0,1,2,3 late"},
		"blocks that never reached the disk": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			writeFile(t, s.sink, append(bytes.Join(lines[:3], nil), make([]byte, 9000)...))
		}, "anchor 0,1,2,3 late"},
		"only the first line, torn": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			if err := os.Rename(s.sink, s.sink+".1"); err != nil {
				t.Fatal(err)
			}
			writeFile(t, s.sink+".1", bytes.Join(lines[:3], nil))
			writeFile(t, s.sink, lines[0][:30])
		}, "anchor 2,3 late"},
		"renamed": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			if err := os.Rename(s.sink, s.sink+"-20261126"); err != nil {
				t.Fatal(err)
			}
			writeFile(t, s.sink+"-20261126", bytes.Join(lines[:3], nil))
		}, "anchor 2,3 late"},
		"moved": {func(t *testing.T, s *sunkStore, lines [][]byte) {
			t.Helper()
			before := s.sink
			s.sink = filepath.Join(t.TempDir(), "elsewhere")
			if err := os.Rename(before, s.sink); err != nil {
				t.Fatal(err)
			}
		}, "anchor 0,1,2,3"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openSunk(t, patient)
			s.commit(t, s.workspace.CreateKey(storagetest.KeyID(1)))
			s.commit(t, s.narrowed())
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			test.change(t, s, bytes.SplitAfter(readFile(t, s.sink), []byte("\n")))
			for range 2 {
				s.open(t)
				mustHave(t, test.want, s.sink)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			mustBeSound(t, s.path)
		})
	}
}

// TestStartIsRefusedIfTheStoreDisagreesWithItsSink, until it is accepted.
func TestStartIsRefusedIfTheStoreDisagreesWithItsSink(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(t *testing.T, s *sunkStore, older []byte)
		want     string
		accepted string
	}{
		"older copy of the store": {func(t *testing.T, s *sunkStore, older []byte) {
			t.Helper()
			writeFile(t, s.path, older)
		}, "the newest changes are lost", "anchor 0,1,2,3,anchor 1,2"},
		"another event": {func(t *testing.T, s *sunkStore, _ []byte) {
			t.Helper()
			lines := bytes.SplitAfter(readFile(t, s.sink), []byte("\n"))
			line, err := sink.Parse(lines[3])
			if err != nil {
				t.Fatal(err)
			}
			line = sink.EventLine(line.Mark.Epoch, 2, *line.Event, false)
			other, err := line.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, s.sink, append(bytes.Join(lines[:2], nil), other...))
		}, "the event at revision 2", "anchor 0,1,2,anchor 3,4"},
		"another epoch": {func(t *testing.T, s *sunkStore, _ []byte) {
			t.Helper()
			line, err := sink.AnchorLine(anchor.Mark{Epoch: "other"}, time.Unix(0, 0)).Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, s.sink, line)
		}, "epoch other", "anchor 0,anchor 3,4"},
		"no sink": {func(t *testing.T, s *sunkStore, _ []byte) {
			t.Helper()
			if err := os.Remove(s.sink); err != nil {
				t.Fatal(err)
			}
		}, "is not there", "anchor 3,4"},
		// The sink that is left behind would grow stale, and agree with an old copy of the store.
		"another path": {func(_ *testing.T, s *sunkStore, _ []byte) {
			s.sink += "-mistyped"
		}, "there is none at", "anchor 3,4"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openSunk(t, patient)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			older := readFile(t, s.path)
			s.open(t)
			s.commit(t, s.workspace.CreateKey(storagetest.KeyID(1)))
			s.commit(t, s.workspace.CreateKey(storagetest.KeyID(2)))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			test.change(t, s, older)
			for range 2 {
				if _, err := Open(s.path, Config{Sink: s.sink}); !errors.Is(err, storage.ErrAnchor) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("Open: %v, want ErrAnchor with %q", err, test.want)
				}
			}
			if report, err := CheckAnchored(t.Context(), s.path, "", s.sink); err != nil || len(report.Problems) != 1 {
				t.Errorf("Check: %+v, %v", report, err)
			}
			accepted, err := AcceptAnchor(s.path, Config{Sink: s.sink})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := AcceptAnchor(s.path, Config{}); err == nil {
				t.Error("AcceptAnchor once more: no error")
			}
			s.open(t)
			if s.Epoch() != accepted.Epoch {
				t.Errorf("epoch %s, accepted was %s", s.Epoch(), accepted.Epoch)
			}
			other := storagetest.NewWorkspace("other")
			if _, err := s.Commit(t.Context(), other.PutMember("member", "admin")); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if got := accepts(t, s.sink); got != test.accepted {
				t.Errorf("the sink has %s, want %s", got, test.accepted)
			}
		})
	}
}

// accepts returns the revisions in a sink, in which an accepted store may have gone back.
func accepts(t *testing.T, path string) string {
	t.Helper()
	var revisions []string
	for text := range bytes.Lines(readFile(t, path)) {
		line, err := sink.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint(line.Mark.Revision)
		if line.Event == nil {
			name = "anchor " + name
		}
		revisions = append(revisions, name)
	}
	return strings.Join(revisions, ",")
}

// TestSinkIsTurnedOnAndOff: an existing store gives its sink every event. Without the sink it is not
// served until the operator says so.
func TestSinkIsTurnedOnAndOff(t *testing.T) {
	path, _, _ := grow(t, 3)
	file := filepath.Join(t.TempDir(), "audit")
	open := func(config Config) error {
		store, err := Open(path, config)
		if err != nil {
			return err
		}
		return store.Close()
	}
	for range 2 {
		if err := open(Config{Sink: file}); err != nil {
			t.Fatal(err)
		}
		mustHave(t, "anchor 0,1 late,2 late,3 late", file)
	}
	if _, err := os.Stat(AnchorOf(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the anchor's file is still there: %v", err)
	}
	if err := open(Config{}); !errors.Is(err, storage.ErrAnchor) || !strings.Contains(err.Error(), file) {
		t.Errorf("Open without the sink: %v, want ErrAnchor with its path", err)
	}
	if err := open(Config{Sink: SinkAsBefore}); err != nil {
		t.Error(err)
	}
	if report := mustBeSound(t, path); report.Sink != "agrees, at revision 3 of "+file {
		t.Errorf("Check: %+v", report)
	}
	if err := errors.Join(open(Config{Sink: SinkOff}), open(Config{})); err != nil {
		t.Error(err)
	}
	if report := mustBeSound(t, path); report.Sink != "none" || !strings.HasPrefix(report.Anchor, "agrees") {
		t.Errorf("Check: %+v", report)
	}
	// An explicit anchor is written beside the sink.
	elsewhere := filepath.Join(t.TempDir(), "anchor")
	if err := os.Rename(AnchorOf(path), elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := open(Config{Sink: file, Anchor: elsewhere}); err != nil {
		t.Error(err)
	}
	if mark, err := anchor.Read(elsewhere); err != nil || mark.Revision != 3 {
		t.Errorf("the anchor: %+v, %v", mark, err)
	}
	// A store that has gone is not made anew while its sink is left.
	if err := errors.Join(os.Remove(path), os.Remove(elsewhere)); err != nil {
		t.Fatal(err)
	}
	if err := open(Config{Create: CreateIfAbsent, Sink: file}); !errors.Is(err, storage.ErrAnchor) {
		t.Errorf("Open of a new store: %v, want ErrAnchor", err)
	}
}

// TestOtherFileIsNotASink: a wrong path must not cost a file.
func TestOtherFileIsNotASink(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "passwd")
	writeFile(t, file, []byte("root:x:0:0\n"))
	if _, err := Open(filepath.Join(folder, "store.db"), Config{Create: CreateIfAbsent, Sink: file}); !errors.Is(err, sink.ErrLine) {
		t.Errorf("Open: %v, want ErrLine", err)
	}
	if got := string(readFile(t, file)); got != "root:x:0:0\n" {
		t.Errorf("the file has %q", got)
	}
}

// TestSinkIsRotatedUnderLoad renames the sink again and again while many workspaces change.
func TestSinkIsRotatedUnderLoad(t *testing.T) {
	s := openSunk(t, patient)
	defer s.Close()
	var group sync.WaitGroup
	for number := range 8 {
		group.Go(func() {
			workspace := storagetest.NewWorkspace(fmt.Sprint("load", number))
			for range 20 {
				change := workspace.PutMember("member", "admin")
				if _, err := s.Commit(t.Context(), change); err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				workspace.Follow(change)
			}
		})
	}
	files := []string{}
	for number := range 5 {
		next := fmt.Sprint(s.sink, ".", number)
		if err := os.Rename(s.sink, next); err != nil {
			t.Fatal(err)
		}
		files = append(files, next)
		s.ReopenSink()
		for {
			if _, err := os.Stat(s.sink); err == nil {
				break
			}
			s.commit(t, s.workspace.PutMember("member", "admin"))
		}
	}
	group.Wait()
	revision := s.State().SinkRevision
	if got := sunk(t, append(files, s.sink)...); int64(len(got)-len(files)-1) != revision || revision < 161 {
		t.Errorf("%d lines in %d files for %d revisions", len(got), len(files)+1, revision)
	}
	for _, file := range append(files, s.sink) {
		line, err := sink.NewReader(file).Next()
		if err != nil || line.Event != nil {
			t.Errorf("%s begins with %+v, %v; want an anchor", file, line, err)
		}
	}
}

// TestOneSyncForAGroup: the lines of changes that were committed meanwhile are synced together.
func TestOneSyncForAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSunk(t, 0)
		defer s.Close()
		hold := make(chan struct{})
		s.slow.set(hold, nil, 0)
		before := s.slow.syncs
		var group sync.WaitGroup
		for number := range 20 {
			group.Go(func() {
				if _, err := s.Commit(t.Context(), storagetest.NewWorkspace(fmt.Sprint(number)).PutMember("member", "admin")); err != nil {
					t.Error(err)
				}
			})
			if number == 0 {
				synctest.Wait() // the first is in its sync
			}
		}
		synctest.Wait()
		close(hold)
		group.Wait()
		if syncs := s.slow.syncs - before; syncs != 2 {
			t.Errorf("%d syncs for 21 changes, want 2", syncs)
		}
	})
}

// TestUnknownOutcomeIsInTheSink: a change whose outcome was unknown, and that the reopened file has,
// is in the sink.
func TestUnknownOutcomeIsInTheSink(t *testing.T) {
	injected := &faults{}
	folder := t.TempDir()
	file := filepath.Join(folder, "audit")
	store := mustOpen(t, filepath.Join(folder, "store.db"), Config{Sink: file, fault: injected.fault, wait: patient})
	defer store.Close()
	workspace := storagetest.NewWorkspace("w")
	first := workspace.PutMember("member", "admin")
	if _, err := store.Commit(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(first)
	injected.set(nil, errors.New("broken"))
	unknown := workspace.CreateKey(storagetest.KeyID(1))
	if _, err := store.Commit(t.Context(), unknown); !errors.Is(err, storage.ErrOutcomeUnknown) {
		t.Fatal(err)
	}
	injected.set(nil, nil)
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(unknown)
	if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(2))); err != nil {
		t.Fatal(err)
	}
	if got := sunk(t, file); !slices.Equal(got, []string{"anchor 0", "1", "2 late", "3"}) {
		t.Errorf("the sink has %v", got)
	}
}
