package boltstore

import (
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

func TestMain(m *testing.M) {
	defaultReserve = -1
	goleak.VerifyTestMain(m)
}

// quick is a Config for tests that meet a locked file, or that open copies.
var quick = Config{LockTimeout: 100 * time.Millisecond, Create: CreateIfAbsent, Unanchored: true}

func TestConformance(t *testing.T) {
	for name, config := range map[string]Config{
		"default config":             {},
		"five feed entries are kept": {FeedEntries: 5},
	} {
		t.Run(name, func(t *testing.T) { storagetest.Run(t, backend(config)) })
	}
}

// backend returns the factory of stores with a config.
func backend(config Config) storagetest.Factory {
	return func(t testing.TB) storagetest.Backend {
		path := filepath.Join(t.TempDir(), "store.db")
		return storagetest.Backend{
			Open:  func(t testing.TB) storage.Store { return mustOpen(t, path, config) },
			Check: func(t testing.TB) { mustBeSound(t, path) },
		}
	}
}

// mustOpen opens a store, makes it if it does not exist, and closes it at the end of the
// test.
func mustOpen(t testing.TB, path string, config Config) *Store {
	t.Helper()
	if config.Create == CreateNever {
		config.Create = CreateIfAbsent
	}
	store, err := Open(path, config)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return store
}

// mustBeSound fails the test if Check finds a problem in a file.
func mustBeSound(t testing.TB, path string) Report {
	t.Helper()
	report, err := Check(t.Context(), path)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	for _, problem := range report.Problems {
		t.Errorf("Check: %s", problem)
	}
	return report
}
