package boltstore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestStatsTellOfCommitsAndOfTheDisk fills a disk: the reserve is what is kept, and the store says that
// it is full.
func TestStatsTellOfCommitsAndOfTheDisk(t *testing.T) {
	const reserve = 192 << 10
	path, disk := filepath.Join(t.TempDir(), "store.db"), &disk{}
	disk.room.Store(reserve + 128<<10)
	store := mustOpen(t, path, Config{Reserve: reserve, allocate: disk.allocate, LockTimeout: quick.LockTimeout})
	if stats := store.Stats(); stats.Commit.Count() != 0 || stats.UsedBytes == 0 || stats.ReserveBytes < reserve || stats.Full {
		t.Errorf("at the start: %+v", stats)
	}
	workspace := storagetest.NewWorkspace("w")
	member := workspace.PutMember("member", "admin")
	if _, err := store.Commit(t.Context(), member); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(member)
	created := len(fill(t, store, workspace))

	stats := store.Stats()
	if commits := stats.Commit.Count(); commits != uint64(created)+1 || stats.Sync.Count() != commits || stats.Queue.Count() < commits {
		t.Errorf("%d commits, %d syncs and %d changes from the queue; want %d", commits, stats.Sync.Count(), stats.Queue.Count(), created+1)
	}
	if stats.Sync.Sum <= 0 || stats.Sync.Sum > stats.Commit.Sum {
		t.Errorf("syncs took %s of %s", stats.Sync.Sum, stats.Commit.Sum)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !stats.Full || stats.ReserveWanted != reserve || stats.FileBytes != info.Size() || stats.UsedBytes+stats.ReserveBytes != stats.FileBytes {
		t.Errorf("full, with a file of %d bytes: %+v", info.Size(), stats)
	}
	if stats.DiskFree <= 0 || stats.DiskSize < stats.DiskFree || stats.SinkFailing || stats.AnchorFailing {
		t.Errorf("the disk and what follows: %+v", stats)
	}
}
