package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

func TestSecondOpenIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, Config{})
	mustBeLocked(t, path)
	if err := store.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	mustOpen(t, path, quick)
}

// mustBeLocked fails the test if opening or checking does not return ErrLocked within 5 s.
func mustBeLocked(t *testing.T, path string) {
	t.Helper()
	began := time.Now()
	if _, err := Open(path, quick); !errors.Is(err, storage.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("Open: %v, want ErrLocked with the path", err)
	}
	if _, err := Check(t.Context(), path); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("Check: %v, want ErrLocked", err)
	}
	// Check waits for a second, like a server.
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to find the file locked", took)
	}
}

// serveVariable makes the test binary serve a file until its input ends.
const serveVariable = "KEYSVC_TEST_SERVE"

func TestHelperServe(t *testing.T) {
	path := os.Getenv(serveVariable)
	if path == "" {
		return // for TestSecondProcessIsLockedOutUntilTheFirstIsKilled only
	}
	store, err := Open(path, quick)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	workspace := storagetest.NewWorkspace("w")
	if _, err := store.Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = store.Close()
}

// TestSecondProcessIsLockedOutUntilTheFirstIsKilled: after the kill the file has everything
// that was committed.
func TestSecondProcessIsLockedOutUntilTheFirstIsKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	process := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHelperServe$")
	process.Env = append(os.Environ(), serveVariable+"="+path)
	input, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close() // it is killed below
	output, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if lines.Text() == "serving" {
			break
		}
	}
	mustBeLocked(t, path)
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait()
	store := mustOpen(t, path, quick)
	if _, _, err := store.GetMember(t.Context(), "w", "member"); err != nil {
		t.Errorf("GetMember: %v", err)
	}
}

// TestTwoChecksShareTheFile checks a file twice at the same time: the lock is shared, and
// nothing is changed.
func TestTwoChecksShareTheFile(t *testing.T) {
	path, _ := small(t)
	before := readFile(t, path)
	held, err := openPages(t.Context(), path, quick.withDefaults())
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	report := mustBeSound(t, path)
	if err := held.close(); err != nil {
		t.Fatal(err)
	}
	if string(readFile(t, path)) != string(before) {
		t.Error("Check changed the file")
	}
	want := Report{
		Schema: storage.Schema, Epoch: report.Epoch, Position: report.Position,
		Workspaces: 3, Members: 3, Keys: 6, AuditEvents: 14, FeedEntries: 14,
		Anchor: "none yet: the next start makes one", Sink: "none",
	}
	if fmt.Sprintf("%+v", report) != fmt.Sprintf("%+v", want) || report.Position.Revision != 14 || len(report.Epoch) != 24 {
		t.Errorf("Check: %+v, want %+v", report, want)
	}
}

func TestNewFileHasMode0600(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "store.db")
	mustOpen(t, path, Config{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v; want 0600", info.Mode(), err)
	}
	mustBeAlone(t, folder)
}

// mustBeAlone fails the test if a folder has other files than the store's.
func mustBeAlone(t *testing.T, folder string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != "store.db" && entry.Name() != "store.db.anchor" {
			t.Errorf("%s was left in the folder", entry.Name())
		}
	}
}

// TestConcurrentOpensMakeOneStore opens a new store many times at the same time. One call opens
// it, and the others return ErrLocked.
func TestConcurrentOpensMakeOneStore(t *testing.T) {
	for range 5 {
		folder := t.TempDir()
		path := filepath.Join(folder, "store.db")
		const openers = 8
		var mutex sync.Mutex
		var opened []*Store
		var group sync.WaitGroup
		for range openers {
			group.Go(func() {
				store, err := Open(path, Config{LockTimeout: 300 * time.Millisecond, Create: CreateIfAbsent})
				mutex.Lock()
				defer mutex.Unlock()
				switch {
				case err == nil:
					opened = append(opened, store)
				case !errors.Is(err, storage.ErrLocked):
					t.Errorf("Open: %v, want ErrLocked", err)
				}
			})
		}
		group.Wait()
		if len(opened) != 1 {
			t.Fatalf("%d openers serve the store", len(opened))
		}
		workspace := storagetest.NewWorkspace("w")
		if _, err := opened[0].Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
			t.Errorf("Commit: %v", err)
		}
		if err := opened[0].Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		mustBeAlone(t, folder)
		mustBeSound(t, path)
	}
}

// TestFailedCreationLeavesNothing fails while the new file is being written.
func TestFailedCreationLeavesNothing(t *testing.T) {
	folder := t.TempDir()
	if _, err := Open(filepath.Join(folder, "store.db"), Config{Random: strings.NewReader("short"), Create: CreateIfAbsent}); err == nil {
		t.Error("Open: no error without randomness")
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

func TestFilesOfOthersAreRefusedUnchanged(t *testing.T) {
	folder := t.TempDir()
	path, _ := small(t)
	good := readFile(t, path)
	page := os.Getpagesize()
	files := map[string][]byte{
		"empty":            {},
		"one byte":         {0},
		"text":             []byte("this is not a store\n"),
		"zeros":            make([]byte, 8*page),
		"garbage":          []byte(strings.Repeat("garbage!", page)),
		"no meta pages":    append(make([]byte, 2*page), good[2*page:]...),
		"one page":         good[:page],
		"less than a page": good[:100],
		"two pages":        good[:2*page],
	}
	for name, content := range files {
		path := filepath.Join(folder, name)
		writeFile(t, path, content)
		if _, err := Open(path, quick); !errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Open: %v, want ErrDamaged with the path", name, err)
		}
		if report, err := Check(t.Context(), path); err != nil || len(report.Problems) == 0 {
			t.Errorf("%s: Check: %+v, %v; want a problem", name, report, err)
		}
		if got := readFile(t, path); string(got) != string(content) {
			t.Errorf("%s: the file was changed", name)
		}
	}
	// A folder is a wrong argument, and no damage.
	asFolder := folder + " is a folder; a store is a file"
	if _, err := Open(folder, quick); errors.Is(err, storage.ErrDamaged) || err == nil || err.Error() != asFolder {
		t.Errorf("Open of a folder: %v, want %s", err, asFolder)
	}
	if report, err := Check(t.Context(), folder); err == nil || err.Error() != asFolder {
		t.Errorf("Check of a folder: %+v, %v, want %s", report, err, asFolder)
	}
	missing := filepath.Join(folder, "missing")
	if _, err := Check(t.Context(), missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check of a file that is not there: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check created a file: %v", err)
	}
	if _, err := Open(filepath.Join(missing, "store.db"), quick); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open in a folder that is not there: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Check(ended, path); !errors.Is(err, context.Canceled) {
		t.Errorf("Check with an ended context: %v", err)
	}
}

func TestOpenInAReadOnlyFolderFails(t *testing.T) {
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		folder = "/proc" // root may write everywhere, but not there
	}
	if _, err := Open(filepath.Join(folder, "store.db"), quick); err == nil {
		t.Error("Open: no error in a folder that cannot be written")
	}
}

func TestUnknownSchemasAreRefused(t *testing.T) {
	for schema, want := range map[int32]error{
		storage.Newest + 1: storage.ErrNewer,
		1000:               storage.ErrNewer,
		0:                  storage.ErrDamaged,
		-1:                 storage.ErrDamaged,
	} {
		path, _ := small(t)
		edit(t, path, func(tx *bolt.Tx) error {
			// A newer version may have other buckets.
			if err := tx.DeleteBucket([]byte(bucketFeed)); err != nil {
				return err
			}
			nested, err := tx.CreateBucket([]byte("new"))
			if err != nil {
				return err
			}
			if _, err := nested.CreateBucket([]byte("nested")); err != nil {
				return err
			}
			return put(tx, bucketMeta, nameHeader, &storagev1.HeaderRecord{Schema: schema, Epoch: "epoch"})
		})
		if _, err := Open(path, quick); !errors.Is(err, want) {
			t.Errorf("Open of schema %d: %v, want %v", schema, err, want)
		}
		report, err := Check(t.Context(), path)
		if want == storage.ErrNewer && !errors.Is(err, want) || want != storage.ErrNewer && len(report.Problems) == 0 {
			t.Errorf("Check of schema %d: %+v, %v", schema, report, err)
		}
	}
}

// edit changes a file behind the store's back.
func edit(t testing.TB, path string, change func(tx *bolt.Tx) error) {
	t.Helper()
	database, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(database.Update(change), database.Close()); err != nil {
		t.Fatal(err)
	}
}

// small makes a store with three workspaces of a member and two keys each, and a policy.
// Some records were changed later, so that the file has free pages.
func small(t testing.TB) (path string, heads map[string]storage.Head) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	store, err := Open(path, Config{Random: strings.NewReader("twelve bytes"), Create: CreateIfAbsent, Unanchored: true})
	if err != nil {
		t.Fatal(err)
	}
	heads = make(map[string]storage.Head)
	commit := func(change *storage.Change) {
		t.Helper()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		heads[change.WorkspaceID] = storagetest.After(change)
	}
	commit(storagetest.ApplyPolicy(storage.Head{}, "first policy"))
	for index, id := range []string{"acme", "beta", "gamma"} {
		workspace := storagetest.NewWorkspace(id)
		do := func(change *storage.Change) {
			t.Helper()
			commit(change)
			workspace.Follow(change)
		}
		do(workspace.PutMember("member", "admin"))
		create := workspace.CreateKey(storagetest.KeyID(10*index), "request")
		do(create)
		do(workspace.CreateKey(storagetest.KeyID(10*index + 1)))
		do(workspace.RevokeKey(create.PutKeys[0]))
	}
	commit(storagetest.ApplyPolicy(heads[""], "second policy"))
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return path, heads
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
