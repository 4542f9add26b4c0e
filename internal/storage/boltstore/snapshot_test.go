package boltstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// keep writes a snapshot into a file of a folder of its own, and closes it.
func keep(t *testing.T, snapshot storage.Snapshot) (path string) {
	t.Helper()
	content, err := io.ReadAll(snapshot.Content)
	if err = errors.Join(err, snapshot.Content.Close()); err != nil {
		t.Fatal(err)
	}
	if int64(len(content)) != snapshot.Size {
		t.Errorf("the copy has %d bytes, want %d", len(content), snapshot.Size)
	}
	path = filepath.Join(t.TempDir(), "copy.db")
	writeFile(t, path, content)
	return path
}

// filled makes a store with a workspace of some keys.
func filled(t *testing.T, path string, config Config, keys int) (*Store, *storagetest.Workspace) {
	t.Helper()
	store, workspace := mustOpen(t, path, config), storagetest.NewWorkspace("w")
	for number := range keys + 1 {
		change := workspace.PutMember("member", "admin")
		if number > 0 {
			change = workspace.CreateKey(storagetest.KeyID(number))
		}
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	return store, workspace
}

// TestSnapshotIsTheStoreAtItsRevision takes snapshots while changes are made, some of them between two
// pieces of a copy. Each is sound, and is the store at the revision that it names.
func TestSnapshotIsTheStoreAtItsRevision(t *testing.T) {
	var store *Store
	var workspace *storagetest.Workspace
	created := 200
	create := func() {
		created++
		change := workspace.CreateKey(storagetest.KeyID(created))
		if _, err := store.Commit(context.Background(), change); err != nil {
			t.Error(err)
		}
		workspace.Follow(change)
	}
	copying := false
	config := Config{copying: func() {
		if copying {
			create()
		}
	}}
	store, workspace = filled(t, filepath.Join(t.TempDir(), "store.db"), config, created)
	for range 5 {
		before := store.position
		copying = true
		snapshot, err := store.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		copying = false
		create()
		if snapshot.Position != before || snapshot.Epoch != store.Epoch() {
			t.Errorf("a snapshot of %+v in epoch %s, want %+v in %s", snapshot.Position, snapshot.Epoch, before, store.Epoch())
		}
		report := mustBeSound(t, keep(t, snapshot))
		if report.Position != before || report.Epoch != store.Epoch() || int64(report.Keys) != before.Revision-1 {
			t.Errorf("the copy has %+v with %d keys in epoch %s, want %+v", report.Position, report.Keys, report.Epoch, before)
		}
	}
}

// TestSnapshotHoldsNoTransaction: however long a copy is read, pages that changes free are used again.
func TestSnapshotHoldsNoTransaction(t *testing.T) {
	store, _ := filled(t, filepath.Join(t.TempDir(), "store.db"), Config{}, 10)
	snapshot, err := store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Content.Close()
	if open := store.file.database.Stats().OpenTxN; open != 0 {
		t.Errorf("%d read transactions are open", open)
	}
}

// TestCommitsDoNotWaitForASnapshot grows a store beyond what bbolt would map by itself, within a copy:
// without mapAhead a commit waits for the end of the copy's transaction.
func TestCommitsDoNotWaitForASnapshot(t *testing.T) {
	var store *Store
	var workspace *storagetest.Workspace
	copying := false
	config := Config{copying: func() {
		if copying {
			return
		}
		copying = true
		committed := make(chan error, 1)
		go func() {
			for number := range 50 { // no page that they free is used again, so the file grows by pages for each
				change := workspace.CreateKey(storagetest.KeyID(1000 + number))
				if _, err := store.Commit(context.Background(), change); err != nil {
					committed <- err
					return
				}
				workspace.Follow(change)
			}
			committed <- nil
		}()
		select {
		case err := <-committed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("commits wait for the copy")
		}
	}}
	store, workspace = filled(t, filepath.Join(t.TempDir(), "store.db"), config, 10)
	snapshot, err := store.Snapshot(t.Context())
	if err != nil || !copying {
		t.Fatalf("Snapshot: %v", err)
	}
	mustBeSound(t, keep(t, snapshot))
}

// unnamed returns how many files of a folder this process has open that have no name any more. Where
// there is no /proc, it finds none.
func unnamed(folder string) (found int) {
	open, _ := os.ReadDir("/proc/self/fd")
	for _, descriptor := range open {
		name, _ := os.Readlink(filepath.Join("/proc/self/fd", descriptor.Name()))
		if strings.HasPrefix(name, folder) && strings.HasSuffix(name, " (deleted)") {
			found++
		}
	}
	return found
}

// TestSnapshotThatFailsLeavesNothing: no file and no transaction is left, and changes go on.
func TestSnapshotThatFailsLeavesNothing(t *testing.T) {
	for name, want := range map[string]error{"no room": storage.ErrNoSpace, "cancelled": context.Canceled, "a panic": storage.ErrDamaged} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			folder := t.TempDir()
			store, workspace := filled(t, filepath.Join(folder, "store.db"), Config{copying: func() {
				switch name {
				case "cancelled":
					cancel()
				case "a panic":
					panic("damaged")
				}
			}}, 200) // more than one piece
			if name == "no room" {
				store.room.allocate = func(*os.File, int64, int64) error { return syscall.ENOSPC }
			}
			if _, err := store.Snapshot(ctx); !errors.Is(err, want) {
				t.Errorf("Snapshot: %v, want %v", err, want)
			}
			store.room.allocate = allocate
			if open := store.file.database.Stats().OpenTxN; open != 0 {
				t.Errorf("%d read transactions are open", open)
			}
			if left, _ := filepath.Glob(filepath.Join(folder, "*snapshot*")); len(left) > 0 || unnamed(folder) > 0 {
				t.Errorf("left behind: %q, and %d files without a name", left, unnamed(folder))
			}
			if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(1000))); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSnapshotMakesRoomForChanges: when the disk is full, a copy that is being read ends, and no other
// begins.
func TestSnapshotMakesRoomForChanges(t *testing.T) {
	disk := &disk{}
	disk.room.Store(1 << 30)
	store, workspace := filled(t, filepath.Join(t.TempDir(), "store.db"), Config{Reserve: 192 << 10, allocate: disk.allocate}, 0)
	snapshot, err := store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Content.Close()
	if _, err := io.ReadFull(snapshot.Content, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	disk.room.Store(0)
	fill(t, store, workspace)
	if _, err := io.ReadAll(snapshot.Content); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("reading on a full disk: %v, want ErrNoSpace", err)
	}
	if _, err := store.Snapshot(t.Context()); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("Snapshot on a full disk: %v, want ErrNoSpace", err)
	}
}

// TestSnapshotNeedsRoomBesideIt: a disk that the copy would nearly fill gets none.
func TestSnapshotNeedsRoomBesideIt(t *testing.T) {
	store, _ := filled(t, filepath.Join(t.TempDir(), "store.db"), Config{}, 1)
	store.room.bytes = 1 << 60
	if _, err := store.Snapshot(t.Context()); !errors.Is(err, storage.ErrNoSpace) || !strings.Contains(err.Error(), "MiB are free") {
		t.Errorf("Snapshot: %v, want ErrNoSpace with how much is free", err)
	}
	store.room.bytes = 0
}

// TestOpenRemovesTheSnapshotOfACrash: a process that is killed before it has taken the name away leaves
// an empty file, which the next start removes. A file with a content is somebody's.
func TestOpenRemovesTheSnapshotOfACrash(t *testing.T) {
	folder := t.TempDir()
	path, empty, other := filepath.Join(folder, "store.db"), filepath.Join(folder, snapshotPrefix+"1"), filepath.Join(folder, snapshotPrefix+"2")
	store, _ := filled(t, path, Config{}, 1)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, empty, nil)
	writeFile(t, other, []byte("mine"))
	mustOpen(t, path, Config{})
	if _, err := os.Lstat(empty); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if content := readFile(t, other); string(content) != "mine" {
		t.Errorf("a file of somebody else has %q", content)
	}
}

// TestSnapshotEndsWhenTheStoreGoesDown: the store can be opened again only when the copy's transaction
// has ended.
func TestSnapshotEndsWhenTheStoreGoesDown(t *testing.T) {
	var store *Store
	var workspace *storagetest.Workspace
	failing, copying := false, false
	config := Config{
		fault: func(bool) error {
			if failing {
				return errors.New("the disk fails")
			}
			return nil
		},
		copying: func() {
			if copying {
				return
			}
			copying, failing = true, true
			if _, err := store.Commit(context.Background(), workspace.CreateKey(storagetest.KeyID(1000))); !errors.Is(err, storage.ErrOutcomeUnknown) {
				t.Errorf("Commit: %v, want ErrOutcomeUnknown", err)
			}
			failing = false
		},
	}
	store, workspace = filled(t, filepath.Join(t.TempDir(), "store.db"), config, 10)
	if _, err := store.Snapshot(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Snapshot: %v, want ErrUnavailable", err)
	}
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); err != nil {
		t.Fatal(err)
	}
	snapshot, err := store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, keep(t, snapshot))
}

// TestCopyThatIsPutBackIsRefused: a start on a copy that is behind the anchor fails.
func TestCopyThatIsPutBackIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store, workspace := filled(t, path, Config{}, 5)
	snapshot, err := store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copied := keep(t, snapshot)
	_, err = store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(100)))
	if err = errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, readFile(t, copied))
	if _, err := Open(path, Config{}); !errors.Is(err, storage.ErrAnchor) {
		t.Errorf("Open: %v, want ErrAnchor", err)
	}
	if _, err := AcceptAnchor(path, Config{}); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, Config{})
}

// TestOpenCopyReadsAFileThatNobodyServes: the copy is the store, the file stays as it is, and a file
// that is served is refused.
func TestOpenCopyReadsAFileThatNobodyServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store, _ := filled(t, path, Config{}, 5)
	position := store.position
	if _, err := OpenCopy(t.Context(), path); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("OpenCopy of a file that is served: %v, want ErrLocked", err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, path)
	opened, err := OpenCopy(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if opened.Position != position || opened.Epoch != store.Epoch() {
		t.Errorf("a copy of %+v in epoch %s, want %+v in %s", opened.Position, opened.Epoch, position, store.Epoch())
	}
	if report := mustBeSound(t, keep(t, opened)); report.Position != position {
		t.Errorf("the copy is at %+v, want %+v", report.Position, position)
	}
	if string(before) != string(readFile(t, path)) {
		t.Error("the file was changed")
	}
}

// TestVerifyFindsWhatAStartFinds: a damaged page, a missing record and a lost head; and nothing in a sound
// file, which stays as it is.
func TestVerifyFindsWhatAStartFinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store, _ := filled(t, path, Config{}, 50)
	position := store.position
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, path)
	work := giveway.NewBackground(t.Context(), func() int64 { return 0 })
	for name, ctx := range map[string]context.Context{"in parallel": t.Context(), "giving way": work} {
		got, err := Verify(ctx, path)
		if err != nil || got != position || string(before) != string(readFile(t, path)) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, position)
		}
		for damage, change := range map[string]func(tx *bolt.Tx) error{
			"a missing key": func(tx *bolt.Tx) error {
				bucket := tx.Bucket([]byte(bucketKeys))
				name, _ := bucket.Cursor().First()
				return bucket.Delete(name)
			},
			"a lost head": func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketHeads)).Delete([]byte(headName("w"))) },
		} {
			writeFile(t, path, before)
			edit(t, path, change)
			if _, err := Verify(ctx, path); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("%s, %s: %v, want ErrDamaged", name, damage, err)
			}
		}
		broken := bytes.Clone(before)
		for at := 2 * os.Getpagesize(); at < len(broken)/2; at += os.Getpagesize() {
			broken[at] ^= 1
		}
		writeFile(t, path, broken)
		if _, err := Verify(ctx, path); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s, damaged pages: %v, want ErrDamaged", name, err)
		}
		writeFile(t, path, before)
	}
}
