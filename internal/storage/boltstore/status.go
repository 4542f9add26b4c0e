package boltstore

import (
	"context"

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
	status.Schema = s.schema
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
	s.state.RUnlock()
	stats := s.Stats()
	status.FileBytes, status.FreeBytes = stats.FileBytes, stats.FreeBytes
	status.DiskFreeBytes, status.DiskBytes = stats.DiskFree, stats.DiskSize
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
