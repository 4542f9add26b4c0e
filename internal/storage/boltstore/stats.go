package boltstore

import (
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/counters"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// times are how long commits took. The zero times are ready.
type times struct {
	commit, sync, queue counters.Histogram
}

// committed counts a transaction that was committed.
func (t *times) committed(tx *bolt.Tx, took time.Duration) {
	of := tx.Stats()
	t.commit.Observe(took)
	t.sync.Observe(of.GetWriteTime()) // pages and meta page, each with its sync
}

// fileSizes are sizes of the file in bytes, as of the newest transaction. They may be read at any time,
// also while the disk hangs.
type fileSizes struct {
	used, allocated, free atomic.Int64
}

func (f *fileSizes) set(used, allocated, free int64) {
	f.used.Store(used)
	f.allocated.Store(allocated)
	f.free.Store(free)
}

// freeBytes returns the bytes of the free pages of a file.
func freeBytes(file *opened) int64 {
	return int64(file.database.Stats().FreePageN) * int64(file.database.Info().PageSize)
}

// Stats implements storage.StatsReader. It takes no lock that is held while the disk works.
func (s *Store) Stats() storage.Stats {
	seen := &s.room.seen
	stats := storage.Stats{
		Commit: s.times.commit.Durations(), Sync: s.times.sync.Durations(), Queue: s.times.queue.Durations(),
		FileBytes: seen.allocated.Load(), UsedBytes: seen.used.Load(), FreeBytes: seen.free.Load(),
		ReserveBytes: seen.allocated.Load() - seen.used.Load(), ReserveWanted: s.room.bytes,
		Full:        s.room.full.Load(),
		SinkFailing: s.sink != nil && (s.sink.isStalled() || s.sinkTarget.full.Load()), AnchorFailing: s.anchor != nil && s.anchor.isStalled(),
	}
	var disk syscall.Statfs_t
	if syscall.Statfs(filepath.Dir(s.path), &disk) == nil {
		block := int64(disk.Bsize)
		stats.DiskFree, stats.DiskSize = int64(disk.Bavail)*block, int64(disk.Blocks)*block //nolint:gosec // less than 2^63
	}
	return stats
}
