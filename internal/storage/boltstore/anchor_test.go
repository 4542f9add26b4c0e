package boltstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// grow makes a store with an anchor and n changes, keeps copies of both files from before
// the last change, and closes the store.
func grow(t *testing.T, n int) (path string, olderStore, olderAnchor []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	workspace := storagetest.NewWorkspace("w")
	for number := range n {
		olderStore, _ = os.ReadFile(path)
		olderAnchor, _ = os.ReadFile(AnchorOf(path))
		store, err := Open(path, Config{Create: CreateIfAbsent})
		if err != nil {
			t.Fatal(err)
		}
		change := workspace.PutMember("member", "admin")
		if number > 0 {
			change = workspace.CreateKey(storagetest.KeyID(number))
		}
		_, err = store.Commit(t.Context(), change)
		if err = errors.Join(err, store.Close()); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	return path, olderStore, olderAnchor
}

// TestAnchorRefusesAStoreThatLostChanges opens stores that disagree with their anchors. Open
// refuses them. After AcceptAnchor the store has a new epoch, and Open opens it.
func TestAnchorRefusesAStoreThatLostChanges(t *testing.T) {
	other, _, _ := grow(t, 5)
	for name, change := range map[string]func(t *testing.T, path string, olderStore, olderAnchor []byte) string{
		"older copy of the store": func(t *testing.T, path string, olderStore, _ []byte) string {
			t.Helper()
			writeFile(t, path, olderStore)
			return "the newest changes are lost"
		},
		"another store": func(t *testing.T, path string, _, _ []byte) string {
			t.Helper()
			writeFile(t, path, readFile(t, other))
			return "epoch"
		},
		"another event at the anchor's revision": func(t *testing.T, path string, _, _ []byte) string {
			t.Helper()
			mark, err := anchor.Read(AnchorOf(path))
			if err != nil {
				t.Fatal(err)
			}
			mark.Revision--
			if err := anchor.Replace(AnchorOf(path), mark); err != nil {
				t.Fatal(err)
			}
			return "the event at revision 4"
		},
		"no anchor": func(t *testing.T, path string, _, _ []byte) string {
			t.Helper()
			if err := os.Remove(AnchorOf(path)); err != nil {
				t.Fatal(err)
			}
			return "is not there"
		},
		"damaged anchor": func(t *testing.T, path string, _, _ []byte) string {
			t.Helper()
			writeFile(t, AnchorOf(path), make([]byte, 8192))
			return "cannot be read"
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, olderStore, olderAnchor := grow(t, 5)
			want := change(t, path, olderStore, olderAnchor)
			before := readFile(t, path)
			for range 2 {
				_, err := Open(path, Config{Create: CreateIfAbsent})
				if !errors.Is(err, storage.ErrAnchor) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("Open: %v, want ErrAnchor with %q", err, want)
				}
			}
			report, err := Check(t.Context(), path)
			if err != nil || report.Anchor == "" || (len(report.Problems) == 0) != (name == "no anchor") {
				t.Errorf("Check: %+v, %v", report, err)
			}
			epoch := report.Epoch
			accepted, err := AcceptAnchor(path, Config{})
			if err != nil || accepted.Epoch == epoch || accepted.Position != report.Position {
				t.Fatalf("AcceptAnchor: %+v, %v; the epoch was %s", accepted, err, epoch)
			}
			if _, err := AcceptAnchor(path, Config{}); err == nil {
				t.Error("AcceptAnchor once more: no error")
			}
			if string(before) == string(readFile(t, path)) {
				t.Error("AcceptAnchor left the store as it was")
			}
			store := mustOpen(t, path, Config{})
			if store.Epoch() != accepted.Epoch {
				t.Errorf("epoch %s, accepted was %s", store.Epoch(), accepted.Epoch)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			if report := mustBeSound(t, path); !strings.HasPrefix(report.Anchor, "agrees") {
				t.Errorf("Check: %+v", report)
			}
		})
	}
}

// TestStoreAheadOfItsAnchorIsServed: a crash after a commit leaves the anchor behind.
func TestStoreAheadOfItsAnchorIsServed(t *testing.T) {
	path, _, olderAnchor := grow(t, 5)
	writeFile(t, AnchorOf(path), olderAnchor)
	store := mustOpen(t, path, Config{})
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if mark, err := anchor.Read(AnchorOf(path)); err != nil || mark.Revision != 5 {
		t.Errorf("after the stop the anchor is %+v, %v; want revision 5", mark, err)
	}
}

// TestStoreWithoutAnchorGetsOne opens a store of an earlier version, and a store whose process
// ended after it had made the anchor and before the header said so.
func TestStoreWithoutAnchorGetsOne(t *testing.T) {
	path, _ := small(t)
	bare := readFile(t, path)
	for _, half := range []bool{false, true} {
		writeFile(t, path, bare)
		if !half {
			_ = os.Remove(AnchorOf(path))
		}
		store := mustOpen(t, path, Config{})
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		mustBeSound(t, path)
		if err := os.Rename(AnchorOf(path), AnchorOf(path)+".kept"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Config{Create: CreateIfAbsent}); !errors.Is(err, storage.ErrAnchor) {
			t.Errorf("Open without the anchor: %v, want ErrAnchor", err)
		}
		if err := os.Rename(AnchorOf(path)+".kept", AnchorOf(path)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnchorWithoutStoreRefusesANewStore: an operator whose store has disappeared must not
// get an empty one.
func TestAnchorWithoutStoreRefusesANewStore(t *testing.T) {
	path, _, _ := grow(t, 2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Config{Create: CreateIfAbsent}); !errors.Is(err, storage.ErrAnchor) {
		t.Errorf("Open: %v, want ErrAnchor", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a store was made: %v", err)
	}
}

// slowAnchor is a Config.anchorFault with which a test delays or fails writes.
type slowAnchor struct {
	mutex  sync.Mutex
	err    error
	hold   chan struct{}
	writes []anchor.Mark
}

func (s *slowAnchor) fault(mark anchor.Mark) error {
	s.mutex.Lock()
	s.writes = append(s.writes, mark)
	hold, err := s.hold, s.err
	s.mutex.Unlock()
	if hold != nil {
		<-hold
	}
	return err
}

func (s *slowAnchor) set(hold chan struct{}, err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.hold, s.err = hold, err
}

func (s *slowAnchor) newest() int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.writes) == 0 {
		return -1
	}
	return s.writes[len(s.writes)-1].Revision
}

// anchoredStore opens a store that has a slow anchor and a workspace with a member. commit
// commits a change and returns how long that took.
func anchoredStore(t *testing.T) (_ *Store, _ *slowAnchor, _ *storagetest.Workspace, commit func(change *storage.Change) time.Duration) {
	t.Helper()
	slow := &slowAnchor{}
	store, err := Open(filepath.Join(t.TempDir(), "store.db"), Config{Create: CreateIfAbsent, anchorFault: slow.fault})
	if err != nil {
		t.Fatal(err)
	}
	workspace := storagetest.NewWorkspace("w")
	commit = func(change *storage.Change) time.Duration {
		t.Helper()
		began := time.Now()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Errorf("Commit: %v", err)
		}
		workspace.Follow(change)
		return time.Since(began)
	}
	commit(workspace.PutMember("member", "admin"))
	return store, slow, workspace, commit
}

// TestChangesWaitForTheAnchor: every change but a new key is answered once the anchor has
// it. The anchor has a new key within a second.
func TestChangesWaitForTheAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, slow, workspace, commit := anchoredStore(t)
		defer store.Close()
		if got := slow.newest(); got != 1 {
			t.Errorf("a member was put at revision 1, and the anchor is at %d", got)
		}
		create := workspace.CreateKey(storagetest.KeyID(1))
		if took := commit(create); took != 0 || slow.newest() != 1 {
			t.Errorf("a new key took %v, and the anchor is at %d", took, slow.newest())
		}
		time.Sleep(time.Second)
		if got := slow.newest(); got != 2 {
			t.Errorf("after a second the anchor is at %d, want 2", got)
		}
		commit(workspace.CreateKey(storagetest.KeyID(2)))
		commit(workspace.RevokeKey(create.PutKeys[0]))
		if got := slow.newest(); got != 4 {
			t.Errorf("a key was revoked at revision 4, and the anchor is at %d", got)
		}
		if got := store.State(); got.AnchorStalled || got.AnchoredRevision != 4 {
			t.Errorf("State: %+v", got)
		}
	})
}

// TestHungAnchorDelaysOneChangeByASecond: the first change waits for a second, the changes
// after it do not wait, and new keys never do. Once the anchor is written again, changes
// wait again.
func TestHungAnchorDelaysOneChangeByASecond(t *testing.T) {
	for name, broken := range map[string]error{"hangs": nil, "is full": errors.New("no space left")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, slow, workspace, commit := anchoredStore(t)
				defer store.Close()
				hold := make(chan struct{})
				want := time.Second
				if broken != nil {
					close(hold)
					want = 0
				}
				slow.set(hold, broken)
				if took := commit(workspace.PutMember("member", "manager")); took != want {
					t.Errorf("the first change took %v, want %v", took, want)
				}
				if got := store.State(); !got.AnchorStalled || got.AnchoredRevision != 1 {
					t.Errorf("State: %+v, want an alarm", got)
				}
				for number := range 5 {
					if took := commit(workspace.PutMember("member", "admin")); took != 0 {
						t.Errorf("a later change took %v", took)
					}
					if took := commit(workspace.CreateKey(storagetest.KeyID(number))); took != 0 {
						t.Errorf("a new key took %v", took)
					}
				}
				slow.set(nil, nil)
				if broken == nil {
					close(hold)
				}
				time.Sleep(time.Second)
				if got := store.State(); got.AnchorStalled || got.AnchoredRevision != 12 {
					t.Errorf("State: %+v, want revision 12 and no alarm", got)
				}
				hold = make(chan struct{})
				slow.set(hold, nil)
				if took := commit(workspace.PutMember("member", "manager")); took != time.Second {
					t.Errorf("a change took %v, want a second", took)
				}
				close(hold)
			})
		})
	}
}

// TestCloseDoesNotWaitForAHungAnchor: Close takes a second, and answers the changes that
// wait.
func TestCloseDoesNotWaitForAHungAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, slow, workspace, commit := anchoredStore(t)
		hold := make(chan struct{})
		slow.set(hold, nil)
		began := time.Now()
		var group sync.WaitGroup
		group.Go(func() { commit(workspace.PutMember("member", "manager")) })
		synctest.Wait()
		if err := store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		group.Wait()
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		close(hold)
	})
}

// TestReplacedAnchorEndsTheStore replaces or deletes the anchor. A change that waits for it
// is not acknowledged, and the store ends.
func TestReplacedAnchorEndsTheStore(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"replaced": func(path string) error { return anchor.Replace(path, anchor.Mark{Epoch: "epoch"}) },
		"deleted":  os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			store := mustOpen(t, path, Config{})
			workspace := storagetest.NewWorkspace("w")
			change := workspace.PutMember("member", "admin")
			if _, err := store.Commit(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			workspace.Follow(change)
			if err := replace(AnchorOf(path)); err != nil {
				t.Fatal(err)
			}
			_, err := store.Commit(t.Context(), workspace.PutMember("member", "manager"))
			if !errors.Is(err, storage.ErrOutcomeUnknown) || !errors.Is(err, storage.ErrReplaced) {
				t.Errorf("Commit: %v, want ErrOutcomeUnknown and ErrReplaced", err)
			}
			if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrHistoryChanged) {
				t.Errorf("Load: %v, want ErrHistoryChanged", err)
			}
		})
	}
}
