package boltstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// faults is a Config.fault that a test sets.
type faults struct {
	mutex  sync.Mutex
	before error
	after  error
	// commits counts the transactions.
	commits atomic.Int64
}

func (f *faults) set(before, after error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.before, f.after = before, after
}

func (f *faults) fault(written bool) error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if written {
		return f.after
	}
	f.commits.Add(1)
	return f.before
}

// TestFailedCommitIsUnknownUntilReopened fails a commit before or after it was written. The
// outcome is unknown and the store is down. After it was reopened, the outcome is one of
// the two, and stays.
func TestFailedCommitIsUnknownUntilReopened(t *testing.T) {
	broken := errors.New("the disk is broken")
	for name, test := range map[string]struct {
		before, after error
		visible       bool
	}{
		"fails before it was written": {before: broken},
		"fails after it was written":  {after: broken, visible: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			path := filepath.Join(t.TempDir(), "store.db")
			injected := &faults{}
			store := mustOpen(t, path, Config{fault: injected.fault})
			model := storagetest.NewModel()
			workspace := storagetest.NewWorkspace("w")
			commit := func(change *storage.Change) {
				t.Helper()
				revision, err := store.Commit(ctx, change)
				if err != nil {
					t.Fatalf("Commit: %v", err)
				}
				model.Apply(change, revision)
				workspace.Follow(change)
			}
			commit(workspace.PutMember("member", "admin"))
			commit(workspace.CreateKey(storagetest.KeyID(1)))

			watched := make(chan error, 1)
			started := make(chan struct{})
			go func() {
				for change, err := range store.Watch(ctx, storage.Barrier{Revision: 1}) {
					if err != nil {
						watched <- err
						return
					}
					if change.Revision == 2 {
						close(started)
					}
				}
			}()
			<-started

			injected.set(test.before, test.after)
			failed := workspace.CreateKey(storagetest.KeyID(2), "request")
			if _, err := store.Commit(ctx, failed); !errors.Is(err, storage.ErrOutcomeUnknown) || !errors.Is(err, broken) {
				t.Fatalf("Commit: %v, want ErrOutcomeUnknown with its cause", err)
			}
			injected.set(nil, nil)
			if err := <-watched; !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("Watch ended: %v, want ErrUnavailable", err)
			}
			mustBeDown(t, store, workspace)

			// Load reopens the file, and finds one of the two outcomes.
			if _, err := store.Load(ctx, func(storage.Item) error { return nil }); err != nil {
				t.Fatalf("Load: %v", err)
			}
			if test.visible {
				model.Apply(failed, 3)
				workspace.Follow(failed)
			}
			model.Compare(t, store)
			storagetest.Check(t, store)
			// The outcome stays, and the store serves again.
			after := model.Revision()
			commit(workspace.CreateKey(storagetest.KeyID(3)))
			for change, err := range store.Watch(ctx, storage.Barrier{Revision: after}) {
				if err != nil || change.Revision != after+1 {
					t.Errorf("Watch: %+v, %v; want revision %d", change, err, after+1)
				}
				break
			}
			model.Compare(t, store)
			if err := store.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			mustBeSound(t, path)
			store = mustOpen(t, path, Config{})
			model.Compare(t, store)
		})
	}
}

// mustBeDown fails the test if any method but Load and Barrier does not return
// ErrUnavailable.
func mustBeDown(t *testing.T, store *Store, workspace *storagetest.Workspace) {
	t.Helper()
	ctx := t.Context()
	query := storage.Query{WorkspaceID: workspace.ID, Limit: 1}
	for name, call := range map[string]func() error{
		"Watch": func() error {
			for _, err := range store.Watch(ctx, storage.Barrier{Revision: 2}) {
				return err
			}
			return nil
		},
		"Commit": func() error {
			_, err := store.Commit(ctx, workspace.PutMember("other", "admin"))
			return err
		},
		"GetKey":          func() error { _, _, err := store.GetKey(ctx, "w", storagetest.KeyID(1)); return err },
		"FindRequest":     func() error { _, _, err := store.FindRequest(ctx, "w", "request"); return err },
		"ListKeys":        func() error { _, err := store.ListKeys(ctx, query); return err },
		"GetMember":       func() error { _, _, err := store.GetMember(ctx, "w", "member"); return err },
		"ListMembers":     func() error { _, err := store.ListMembers(ctx, query); return err },
		"ListAuditEvents": func() error { _, err := store.ListAuditEvents(ctx, query); return err },
		"ScanAuditEvents": func() error { _, err := store.ScanAuditEvents(ctx, storage.AuditQuery{All: true}); return err },
	} {
		if err := call(); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s while the store is down: %v, want ErrUnavailable", name, err)
		}
	}
}

// TestReaderOutlivesFailedCommit fails a commit while a reader holds the file. The reader
// reads to its end, and the store can be reopened afterwards.
func TestReaderOutlivesFailedCommit(t *testing.T) {
	ctx := t.Context()
	injected := &faults{}
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{fault: injected.fault, LockTimeout: 100 * time.Millisecond})
	workspace := storagetest.NewWorkspace("w")
	change := workspace.PutMember("member", "admin")
	if _, err := store.Commit(ctx, change); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(change)
	injected.set(errors.New("broken"), nil)
	items := 0
	_, err := store.Load(ctx, func(storage.Item) error {
		if items++; items == 1 {
			if _, err := store.Commit(ctx, workspace.CreateKey(storagetest.KeyID(1))); !errors.Is(err, storage.ErrOutcomeUnknown) {
				t.Errorf("Commit: %v, want ErrOutcomeUnknown", err)
			}
			// The old handle is still in use.
			if _, err := store.Load(ctx, func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("Load: %v, want ErrUnavailable", err)
			}
		}
		return nil
	})
	if err != nil || items != 3 {
		t.Errorf("Load: %d items, %v", items, err)
	}
	injected.set(nil, nil)
	for {
		_, err := store.Load(ctx, func(storage.Item) error { return nil })
		if err == nil {
			break
		}
		if !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, storage.ErrLocked) {
			t.Fatalf("Load: %v", err)
		}
	}
	if _, err := store.Commit(ctx, workspace.CreateKey(storagetest.KeyID(1))); err != nil {
		t.Errorf("Commit: %v", err)
	}
}

// TestCloseSucceedsWhileDown closes a store that is down.
func TestCloseSucceedsWhileDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	injected := &faults{}
	injected.set(nil, errors.New("broken"))
	store := mustOpen(t, path, Config{fault: injected.fault})
	if _, err := store.Commit(t.Context(), storagetest.NewWorkspace("w").PutMember("member", "admin")); !errors.Is(err, storage.ErrOutcomeUnknown) {
		t.Fatalf("Commit: %v", err)
	}
	if err := store.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Load: %v, want ErrUnavailable", err)
	}
	mustOpen(t, path, quick) // the file is no longer locked
}

// TestReopeningAnotherFileIsErrHistoryChanged puts another file in place while the store is
// down.
func TestReopeningAnotherFileIsErrHistoryChanged(t *testing.T) {
	injected := &faults{}
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, Config{fault: injected.fault})
	workspace := storagetest.NewWorkspace("w")
	change := workspace.PutMember("member", "admin")
	if _, err := store.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(change)
	older := readFile(t, path)
	change = workspace.CreateKey(storagetest.KeyID(1))
	if _, err := store.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(change)
	newer := readFile(t, path)
	injected.set(errors.New("broken"), nil)
	if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(2))); !errors.Is(err, storage.ErrOutcomeUnknown) {
		t.Fatalf("Commit: %v", err)
	}
	injected.set(nil, nil)
	other, _ := small(t)
	for name, content := range map[string][]byte{"an older one": older, "another store's": readFile(t, other)} {
		// The file is locked only while the old handle is being closed.
		err := error(storage.ErrLocked)
		for errors.Is(err, storage.ErrLocked) {
			writeFile(t, path, content)
			_, err = store.Load(t.Context(), func(storage.Item) error { return nil })
		}
		if !errors.Is(err, storage.ErrHistoryChanged) {
			t.Errorf("Load of %s: %v, want ErrHistoryChanged", name, err)
		}
	}
	writeFile(t, path, newer)
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); err != nil {
		t.Errorf("Load of what was served: %v", err)
	}
}

// TestWaitingChangesShareATransaction lets the changes of many workspaces wait during one commit.
// They share a transaction, with at most one change of each workspace.
func TestWaitingChangesShareATransaction(t *testing.T) {
	ctx := t.Context()
	const workspaces = 100
	hold, holding := make(chan struct{}), make(chan struct{})
	var commits atomic.Int64
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{fault: func(written bool) error {
		if !written && commits.Add(1) == 1 {
			close(holding)
			<-hold
		}
		return nil
	}})
	var group sync.WaitGroup
	put := func(id string) {
		group.Go(func() {
			if _, err := store.Commit(ctx, storagetest.NewWorkspace(id).PutMember("member", "admin")); err != nil {
				t.Errorf("Commit: %v", err)
			}
		})
	}
	put("first")
	<-holding
	for index := range workspaces {
		put(fmt.Sprintf("w%d", index))
	}
	// Two changes of one workspace: the later one is a conflict.
	var conflicts atomic.Int64
	group.Go(func() {
		_, err := store.Commit(ctx, storagetest.NewWorkspace("again").PutMember("member", "admin"))
		if errors.Is(err, storage.ErrConflict) {
			conflicts.Add(1)
		}
	})
	group.Go(func() {
		_, err := store.Commit(ctx, storagetest.NewWorkspace("again").PutMember("member", "manager"))
		if errors.Is(err, storage.ErrConflict) {
			conflicts.Add(1)
		}
	})
	for len(store.queue) < workspaces+2 {
		runtime.Gosched()
	}
	close(hold)
	group.Wait()
	if got := commits.Load(); got != 2 {
		t.Errorf("%d transactions for %d changes, want 2", got, workspaces+2)
	}
	if got := conflicts.Load(); got != 1 {
		t.Errorf("%d of two changes at the same head were refused, want 1", got)
	}
	// bbolt's own counter shows one transaction for each group.
	before := transaction(t, store)
	key := storagetest.NewWorkspace("single")
	if _, err := store.Commit(ctx, key.PutMember("member", "admin")); err != nil {
		t.Fatal(err)
	}
	if after := transaction(t, store); after != before+1 {
		t.Errorf("one change took %d transactions", after-before)
	}
}

// TestKeyIsCreatedOnceInOneGroup lets several workspaces create the same key in one
// transaction. One of them succeeds.
func TestKeyIsCreatedOnceInOneGroup(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "store.db")
	hold, holding := make(chan struct{}), make(chan struct{})
	var begun atomic.Bool
	var holds atomic.Bool
	store := mustOpen(t, path, Config{fault: func(written bool) error {
		if !written && holds.Load() && begun.CompareAndSwap(false, true) {
			close(holding)
			<-hold
		}
		return nil
	}})
	const workspaces = 4
	all := make([]*storagetest.Workspace, workspaces)
	for index := range all {
		all[index] = storagetest.NewWorkspace(fmt.Sprintf("w%d", index))
		change := all[index].PutMember("member", "admin")
		if _, err := store.Commit(ctx, change); err != nil {
			t.Fatal(err)
		}
		all[index].Follow(change)
	}
	holds.Store(true)
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := store.Commit(ctx, storagetest.NewWorkspace("first").PutMember("member", "admin")); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
	<-holding
	var created atomic.Int64
	for _, workspace := range all {
		group.Go(func() {
			var exists *storage.ExistsError
			switch _, err := store.Commit(ctx, workspace.CreateKey(storagetest.KeyID(1))); {
			case err == nil:
				created.Add(1)
			case !errors.As(err, &exists):
				t.Errorf("Commit: %v, want an ExistsError", err)
			}
		})
	}
	for len(store.queue) < workspaces {
		runtime.Gosched()
	}
	close(hold)
	group.Wait()
	if got := created.Load(); got != 1 {
		t.Errorf("the key was created in %d workspaces", got)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, path)
}

func transaction(t *testing.T, store *Store) (id int) {
	t.Helper()
	err := store.file.database.View(func(tx *bolt.Tx) error {
		id = tx.ID()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPickTakesOneChangePerWorkspaceWithinBounds covers the fairness and the bounds of
// groups.
func TestPickTakesOneChangePerWorkspaceWithinBounds(t *testing.T) {
	waits := func(workspace string, size int) *pendingChange {
		return &pendingChange{change: &storage.Change{WorkspaceID: workspace}, size: size, done: make(chan struct{})}
	}
	var queued []*pendingChange
	for range 600 {
		queued = append(queued, waits("hot", 1))
	}
	queued = append(queued, waits("cold", 1))
	gone := waits("gone", 1)
	gone.state.Store(withdrawn)
	queued = append(queued, gone)
	group, rest := pick(queued)
	if len(group) != 2 || len(rest) != 599 {
		t.Errorf("%d picked, %d left; a hot workspace must not keep others out", len(group), len(rest))
	}
	queued = nil
	for index := range maxGroup + 10 {
		queued = append(queued, waits(fmt.Sprint(index), 1))
	}
	if group, rest = pick(queued); len(group) != maxGroup || len(rest) != 10 {
		t.Errorf("%d picked, %d left", len(group), len(rest))
	}
	queued = nil
	for index := range 20 {
		queued = append(queued, waits(fmt.Sprint(index), storage.MaxChangeBytes))
	}
	if group, rest = pick(queued); len(group) != maxGroupBytes/storage.MaxChangeBytes || len(group)+len(rest) != 20 {
		t.Errorf("%d large ones picked, %d left", len(group), len(rest))
	}
}

func TestFeedKeepsTheConfiguredNumberOfEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, Config{FeedEntries: 7})
	workspace := storagetest.NewWorkspace("w")
	for index := range 30 {
		change := workspace.PutMember("member", fmt.Sprint(index))
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if report := mustBeSound(t, path); report.FeedEntries != 7 || report.AuditEvents != 30 {
		t.Errorf("%d feed entries and %d audit events are left, want 7 and 30", report.FeedEntries, report.AuditEvents)
	}
	// A changed number of entries takes effect with the next change.
	store = mustOpen(t, path, Config{FeedEntries: 3})
	if _, err := store.Commit(t.Context(), workspace.PutMember("member", "last")); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if report := mustBeSound(t, path); report.FeedEntries != 3 {
		t.Errorf("%d feed entries are left, want 3", report.FeedEntries)
	}
}

// TestListFeedLeavesOutWhatPrecedesDamage: feed entries before a damaged or missing one are
// left out.
func TestListFeedLeavesOutWhatPrecedesDamage(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(*bolt.Bucket) error
		want   []int64
	}{
		"none":         {func(*bolt.Bucket) error { return nil }, []int64{3, 4, 5, 6}},
		"one missing":  {func(b *bolt.Bucket) error { return b.Delete([]byte(number(4))) }, []int64{5, 6}},
		"one damaged":  {func(b *bolt.Bucket) error { return b.Put([]byte(number(4)), []byte("what?")) }, []int64{5, 6}},
		"misplaced":    {func(b *bolt.Bucket) error { return b.Put([]byte(number(4)), b.Get([]byte(number(3)))) }, []int64{5, 6}},
		"last missing": {func(b *bolt.Bucket) error { return b.Delete([]byte(number(6))) }, nil},
		"last damaged": {func(b *bolt.Bucket) error { return b.Put([]byte(number(6)), nil) }, nil},
		"odd name":     {func(b *bolt.Bucket) error { return b.Put([]byte("\xff"), nil) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			store := mustOpen(t, path, Config{FeedEntries: 4})
			workspace := storagetest.NewWorkspace("w")
			for index := range 6 {
				change := workspace.PutMember("member", fmt.Sprint(index))
				if _, err := store.Commit(t.Context(), change); err != nil {
					t.Fatal(err)
				}
				workspace.Follow(change)
			}
			if err := store.file.database.Update(func(tx *bolt.Tx) error { return test.damage(tx.Bucket([]byte(bucketFeed))) }); err != nil {
				t.Fatal(err)
			}
			records, err := store.ListFeed(t.Context(), 100)
			var got []int64
			for _, record := range records {
				got = append(got, record.GetRevision())
			}
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %d, %v; want %d", got, err, test.want)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestWatchBeyondTheRingIsErrGap watches from a revision that the ring no longer has.
func TestWatchBeyondTheRingIsErrGap(t *testing.T) {
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{})
	for revision := int64(1); revision <= ringSize+1; revision++ {
		store.ring.publish(&storage.Committed{Revision: revision})
	}
	for _, err := range store.Watch(t.Context(), storage.Barrier{}) {
		if !errors.Is(err, storage.ErrGap) {
			t.Errorf("Watch: %v, want ErrGap", err)
		}
	}
	want := int64(ringSize/2 + 1)
	for change, err := range store.Watch(t.Context(), storage.Barrier{Revision: want - 1}) {
		if err != nil || change.Revision != want {
			t.Fatalf("Watch: %+v, %v; want revision %d", change, err, want)
		}
		if want++; want > ringSize+1 {
			break
		}
	}
}

// TestAllKeysAreListedNewestFirst covers the order across workspaces, which is exact in
// this backend.
func TestAllKeysAreListedNewestFirst(t *testing.T) {
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{})
	var workspaces []*storagetest.Workspace
	for _, id := range []string{"b", "a", "c"} {
		workspace := storagetest.NewWorkspace(id)
		change := workspace.PutMember("member", "admin")
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
		workspaces = append(workspaces, workspace)
	}
	const keys = 20
	for index := range keys {
		workspace := workspaces[index*7%3]
		change := workspace.CreateKey(storagetest.KeyID(index))
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	for index, key := range storagetest.ListKeys(t, store, "", 3) {
		if want := storagetest.KeyID(keys - 1 - index); key.GetKeyId() != want {
			t.Errorf("key %d of all is %s, want %s", index, key.GetKeyId(), want)
		}
	}
}

// TestCommitRefusesKeysThatContradictTheIndex covers changes that only this backend
// refuses.
func TestCommitRefusesKeysThatContradictTheIndex(t *testing.T) {
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{})
	workspace, other := storagetest.NewWorkspace("w"), storagetest.NewWorkspace("other")
	for _, w := range []*storagetest.Workspace{workspace, other} {
		change := w.PutMember("member", "admin")
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		w.Follow(change)
	}
	create := workspace.CreateKey(storagetest.KeyID(1))
	if _, err := store.Commit(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(create)
	stolen := other.CreateKey(storagetest.KeyID(1))
	stolen.AbsentKeyIDs = nil
	old := workspace.CreateKey(storagetest.KeyID(2))
	old.AbsentKeyIDs, old.PutKeys[0].Sequence = nil, 1
	missing := workspace.DeleteKey(&storagev1.KeyRecord{WorkspaceId: "w", KeyId: storagetest.KeyID(3)})
	for name, change := range map[string]*storage.Change{
		"a key of another workspace": stolen, "a new key with an old sequence": old, "a key to delete that is not there": missing,
	} {
		if _, err := store.Commit(t.Context(), change); !errors.Is(err, storage.ErrInvalidChange) {
			t.Errorf("%s: %v, want ErrInvalidChange", name, err)
		}
	}
	if position, err := store.Load(t.Context(), func(storage.Item) error { return nil }); err != nil || position.Revision != 3 || !position.Time.Equal(create.Event.GetTime().AsTime()) {
		t.Errorf("Load: %+v, %v; refused changes must leave no trace", position, err)
	}
}
