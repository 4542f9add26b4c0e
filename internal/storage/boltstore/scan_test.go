package boltstore

import (
	"errors"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestOpenSeesAChangeMadeAfterTheFileWasRead: no process holds the lock between reading a file and
// opening it for writing.
func TestOpenSeesAChangeMadeAfterTheFileWasRead(t *testing.T) {
	for _, test := range []struct {
		name  string
		times int
		want  error
	}{{"once", 1, nil}, {"again and again", 100, storage.ErrLocked}} {
		t.Run(test.name, func(t *testing.T) {
			path := t.TempDir() + "/store.db"
			mustClose(t, mustOpen(t, path, quick))
			changed := 0
			config := quick
			config.scanned = func() {
				if changed == test.times {
					return
				}
				other := mustOpen(t, path, quick)
				workspace := storagetest.NewWorkspace("workspace-" + storagetest.KeyID(changed))
				if _, err := other.Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
					t.Fatal(err)
				}
				changed++
				mustClose(t, other)
			}
			store, err := Open(path, config)
			if !errors.Is(err, test.want) {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			if _, _, err := store.GetMember(t.Context(), "workspace-"+storagetest.KeyID(0), "member"); err != nil {
				t.Error(err)
			}
			mustClose(t, store)
		})
	}
}

// TestLoadViewsSeesWhatCameAfterOpening reads pages that the scan of the file has not seen.
func TestLoadViewsSeesWhatCameAfterOpening(t *testing.T) {
	path := t.TempDir() + "/store.db"
	store := mustOpen(t, path, quick)
	workspace := storagetest.NewWorkspace("w")
	commit := func(change *storage.Change) {
		t.Helper()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	commit(workspace.PutMember("member", "admin"))
	const keys = 300
	for index := range keys {
		commit(workspace.CreateKey(storagetest.KeyID(index)))
	}
	got := 0
	_, err := store.LoadViews(t.Context(), func(expected storage.Expected) {
		if expected.Keys != keys {
			t.Errorf("%d keys are expected", expected.Keys)
		}
	}, func(item storage.Item) error {
		if item.KeyView != nil {
			if string(item.KeyView.KeyID) != storagetest.KeyID(got) {
				t.Errorf("%s comes as number %d", item.KeyView.KeyID, got)
			}
			got++
		}
		return nil
	})
	if err != nil || got != keys {
		t.Errorf("%d keys, %v", got, err)
	}
	mustClose(t, store)
}

func mustClose(t *testing.T, store *Store) {
	t.Helper()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}
