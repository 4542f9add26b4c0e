package boltstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// TestOpenMakesAStoreOnlyIfConfigured: a store that is made where another one was expected
// answers every token with "unknown".
func TestOpenMakesAStoreOnlyIfConfigured(t *testing.T) {
	for _, test := range []struct {
		name          string
		create        Creation
		store, anchor bool
		want          error
	}{
		{"nothing, by default", CreateNever, false, false, storage.ErrAbsent},
		{"nothing, an unknown value", Creation(99), false, false, storage.ErrAbsent},
		{"an anchor, by default", CreateNever, false, true, storage.ErrAnchor},
		{"nothing, if absent", CreateIfAbsent, false, false, nil},
		{"nothing, a new one", CreateNew, false, false, nil},
		{"an anchor, if absent", CreateIfAbsent, false, true, storage.ErrAnchor},
		{"an anchor, a new one", CreateNew, false, true, storage.ErrAnchor},
		{"a store, by default", CreateNever, true, false, nil},
		{"a store, if absent", CreateIfAbsent, true, false, nil},
		{"a store, a new one", CreateNew, true, false, storage.ErrPresent},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			if test.store {
				if err := mustOpen(t, path, quick).Close(); err != nil {
					t.Fatal(err)
				}
			}
			if test.anchor {
				writeFile(t, path+".anchor", nil)
			}
			store, err := Open(path, Config{Create: test.create})
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v, want %v with the path", err, test.want)
			}
			if err == nil {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			}
			_, err = os.Lstat(path)
			if made := err == nil; made != (test.store || test.want == nil) {
				t.Errorf("after it, the file: %v", err)
			}
		})
	}
}

// locker is a source of random bytes. When Open reads the epoch of a new store from it, it locks
// the store's file.
type locker struct {
	t      *testing.T
	folder string
	file   *os.File
}

func (l *locker) Read(random []byte) (int, error) {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.folder, ".keysvc-new-*"))
	if err != nil || len(files) != 1 {
		l.t.Fatalf("being made are %q, %v", files, err)
	}
	if l.file, err = os.Open(files[0]); err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_EX); err != nil {
		l.t.Fatal(err)
	}
	return len(random), nil
}

// TestOpenDoesNotWaitForALockOnANewStore: if the lock is not free, Open soon returns an error.
func TestOpenDoesNotWaitForALockOnANewStore(t *testing.T) {
	random := &locker{t: t, folder: t.TempDir()}
	path := filepath.Join(random.folder, "store.db")
	opened := make(chan error, 1)
	go func() {
		store, err := Open(path, Config{Create: CreateNew, Random: random, LockTimeout: 100 * time.Millisecond})
		if err == nil {
			_ = store.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err == nil || !strings.Contains(err.Error(), ".keysvc-new-") || !strings.Contains(err.Error(), "lock") {
			t.Errorf("Open: %v, want an error that names the file", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Open hangs")
	}
	_ = random.file.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the store is there: %v", err)
	}
}

func TestSystemErrorsNameTheStep(t *testing.T) {
	bare := during("sync", syscall.EIO)
	if !errors.Is(bare, syscall.EIO) || bare.Error() != "sync: input/output error" {
		t.Errorf("got %v", bare)
	}
	named := &fs.PathError{Op: "write", Path: "file", Err: syscall.EIO}
	for _, err := range []error{nil, named, storage.ErrLocked} {
		if got := during("sync", err); !errors.Is(got, err) || got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
