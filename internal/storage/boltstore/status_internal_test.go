package boltstore

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// TestStatusDoesNotWaitForADiskThatHangs: a commit that hangs holds the lock that a look at the file
// needs. One goroutine waits for it, however many ask.
func TestStatusDoesNotWaitForADiskThatHangs(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "keysvc.db"), Config{Create: CreateNew})
	if err != nil {
		t.Fatal(err)
	}
	well := s.Status(t.Context())
	if well.Silent || well.Down || well.Full || well.FileBytes == 0 || well.DiskBytes == 0 || well.DiskFreeBytes > well.DiskBytes ||
		!well.Anchor.On || well.Anchor.Failing || well.Sink != (storage.Follower{}) {
		t.Errorf("got %+v", well)
	}
	s.state.Lock() // as the committer does while the disk syncs
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if hangs := s.Status(ended); !hangs.Silent || hangs.FileBytes != 0 || hangs.ReserveBytes != well.ReserveBytes || !hangs.Anchor.On {
			t.Errorf("got %+v", hangs)
		}
	}
	s.state.Unlock()
	// Whoever asks next shares the look that has begun, and gets an answer.
	if again := s.Status(t.Context()); again.Silent || again.FileBytes != well.FileBytes {
		t.Errorf("got %+v", again)
	}
	s.sink = &anchorWriter{stalled: true}
	s.sinkTarget = &sinkTarget{}
	s.sinkTarget.full.Store(true)
	s.room.full.Store(true)
	if broken := s.Status(t.Context()); !broken.Full || broken.Sink != (storage.Follower{On: true, Failing: true, Full: true}) {
		t.Errorf("got %+v", broken)
	}
	s.sink, s.sinkTarget = nil, nil
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if closed := s.Status(t.Context()); !closed.Down {
		t.Errorf("got %+v", closed)
	}
}
