package boltstore

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// BenchmarkCommit creates keys with 64 callers. Callers of one workspace take turns, as the
// verbs do: one change of a workspace is in progress at a time.
func BenchmarkCommit(b *testing.B) {
	const callers = 64
	for _, workspaces := range []int{1, callers} {
		b.Run(fmt.Sprintf("callers=%d/workspaces=%d", callers, workspaces), func(b *testing.B) {
			store := mustOpen(b, filepath.Join(b.TempDir(), "store.db"), Config{})
			type turn struct {
				sync.Mutex
				*storagetest.Workspace
			}
			turns := make([]*turn, workspaces)
			for index := range turns {
				turns[index] = &turn{Workspace: storagetest.NewWorkspace(fmt.Sprintf("workspace-%d", index))}
				change := turns[index].PutMember("member", "admin")
				if _, err := store.Commit(b.Context(), change); err != nil {
					b.Fatal(err)
				}
				turns[index].Follow(change)
			}
			var next atomic.Int64
			var group sync.WaitGroup
			b.ResetTimer()
			for caller := range callers {
				group.Go(func() {
					turn := turns[caller%workspaces]
					for {
						number := int(next.Add(1))
						if number > b.N {
							return
						}
						turn.Lock()
						change := turn.CreateKey(storagetest.KeyID(number))
						_, err := store.Commit(b.Context(), change)
						if err == nil {
							turn.Follow(change)
						}
						turn.Unlock()
						if err != nil {
							b.Errorf("Commit: %v", err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkOpen opens a store of 100,000 keys: the check of its pages, and the
// index.
func BenchmarkOpen(b *testing.B) {
	const workspaces, keys = 100, 100_000
	path := filepath.Join(b.TempDir(), "store.db")
	store := mustOpen(b, path, Config{})
	var group sync.WaitGroup
	for index := range workspaces {
		group.Go(func() {
			workspace := storagetest.NewWorkspace(fmt.Sprintf("workspace-%d", index))
			change := workspace.PutMember("member", "admin")
			for key := 0; ; key++ {
				if _, err := store.Commit(b.Context(), change); err != nil {
					b.Errorf("Commit: %v", err)
					return
				}
				workspace.Follow(change)
				if key == keys/workspaces {
					return
				}
				change = workspace.CreateKey(storagetest.KeyID(index*keys + key))
			}
		})
	}
	group.Wait()
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("pages", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			if err := verifyPages(b.Context(), bytes.NewReader(content), int64(len(content))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			store, err := Open(path, Config{})
			if err != nil {
				b.Fatal(err)
			}
			if err := store.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		store := mustOpen(b, path, Config{})
		for b.Loop() {
			if _, err := store.Load(b.Context(), func(storage.Item) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			if report, err := Check(b.Context(), path); err != nil || len(report.Problems) > 0 {
				b.Fatal(report, err)
			}
		}
	})
}
