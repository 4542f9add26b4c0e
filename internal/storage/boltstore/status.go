package boltstore

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/scribe-mail/keysvc/internal/storage"
)

var _ storage.StatusReader = (*Store)(nil)

// Status implements storage.StatusReader. While the disk hangs, a read of it may never end. So a
// goroutine reads, and all calls share one.
func (s *Store) Status(ctx context.Context) storage.Status {
	status := storage.Status{Silent: true}
	measured := s.measuring.DoChan("", func() (any, error) { return s.measure(), nil })
	select {
	case result := <-measured:
		status, _ = result.Val.(storage.Status) // measure returns nothing else
	case <-ctx.Done():
	}
	status.Full, status.ReserveBytes = s.room.full.Load(), s.room.bytes
	status.Anchor, status.Sink = s.anchor.status(), s.sink.status()
	if s.sinkTarget != nil {
		status.Sink.Full = s.sinkTarget.full.Load()
	}
	return status
}

// measure returns what only the disk knows. It waits for a commit in progress.
func (s *Store) measure() storage.Status {
	var status storage.Status
	s.state.RLock()
	status.Down = s.file == nil || s.unloaded || s.closed
	if s.file != nil { // bbolt panics if its file is closed
		status.FreeBytes = int64(s.file.database.Stats().FreePageN) * int64(s.file.database.Info().PageSize)
	}
	s.state.RUnlock()
	if info, err := os.Stat(s.path); err == nil {
		status.FileBytes = info.Size()
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(s.path), &disk); err == nil {
		block := int64(disk.Bsize)
		status.DiskFreeBytes = int64(disk.Bavail) * block //nolint:gosec // G115: a disk has fewer than 2^63 bytes
		status.DiskBytes = int64(disk.Blocks) * block     //nolint:gosec // G115: as above
	}
	return status
}

// status returns the state of what the writer writes. On nil it is off.
func (a *anchorWriter) status() storage.Follower {
	if a == nil {
		return storage.Follower{}
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return storage.Follower{On: true, Failing: a.stalled, Revision: a.written.Revision}
}
