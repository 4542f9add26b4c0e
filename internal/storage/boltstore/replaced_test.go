package boltstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestReplacedFileEndsTheStore replaces the file that is served, also by a copy of itself,
// or deletes it. The next change is not acknowledged, and this process never opens the
// store again.
func TestReplacedFileEndsTheStore(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, path string){
		"renamed over it": func(t *testing.T, path string) {
			t.Helper()
			writeFile(t, path+".copy", readFile(t, path))
			if err := os.Rename(path+".copy", path); err != nil {
				t.Fatal(err)
			}
		},
		"deleted": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, write := range []string{"Commit", "PutUsage", "Load while it is down"} {
			t.Run(name+"/"+write, func(t *testing.T) {
				injected := &faults{}
				path := filepath.Join(t.TempDir(), "store.db")
				store := mustOpen(t, path, Config{fault: injected.fault, LockTimeout: quick.LockTimeout})
				workspace := storagetest.NewWorkspace("w")
				change := workspace.PutMember("member", "admin")
				if _, err := store.Commit(t.Context(), change); err != nil {
					t.Fatal(err)
				}
				workspace.Follow(change)
				if write == "Load while it is down" {
					injected.set(errors.New("broken"), nil)
					if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(1))); !errors.Is(err, storage.ErrOutcomeUnknown) {
						t.Fatalf("Commit: %v", err)
					}
					injected.set(nil, nil)
				}
				replace(t, path)
				switch write {
				case "Commit":
					_, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(1)))
					if !errors.Is(err, storage.ErrOutcomeUnknown) || !errors.Is(err, storage.ErrReplaced) {
						t.Errorf("Commit: %v, want ErrOutcomeUnknown and ErrReplaced", err)
					}
				case "PutUsage":
					err := store.PutUsage(t.Context(), nil)
					if !errors.Is(err, storage.ErrOutcomeUnknown) || !errors.Is(err, storage.ErrReplaced) {
						t.Errorf("PutUsage: %v, want ErrOutcomeUnknown and ErrReplaced", err)
					}
				}
				for range 2 {
					if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrHistoryChanged) || !errors.Is(err, storage.ErrReplaced) {
						t.Errorf("Load: %v, want ErrReplaced, an ErrHistoryChanged", err)
					}
				}
			})
		}
	}
}
