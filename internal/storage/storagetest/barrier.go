package storagetest

import (
	"context"
	"errors"
	"sync"

	"github.com/scribe-mail/keysvc/internal/storage"
)

var barrierTests = []test{
	{"FollowsEachChange", testBarrierFollows},
	{"CoversWhatWasAcknowledged", testBarrierCovers},
	{"HonoursItsContext", testBarrierContext},
}

// barrier returns the store's barrier.
func (s *suite) barrier() storage.Barrier {
	s.Helper()
	barrier, err := s.store.Barrier(s.ctx)
	if err != nil {
		s.Fatalf("Barrier: %v", err)
	}
	return barrier
}

func testBarrierFollows(s *suite) {
	if got := s.barrier(); got != (storage.Barrier{}) {
		s.Errorf("Barrier of a new store: %v", got)
	}
	workspace := s.begin("w")
	for number := range 5 {
		change := workspace.CreateKey(KeyID(number))
		revision := s.do(workspace, change)
		want := storage.Barrier{Revision: revision, Hash: After(change).Hash}
		if got := s.barrier(); got != want {
			s.Errorf("Barrier: %v, want %v", got, want)
		}
		position, err := s.store.Load(s.ctx, func(storage.Item) error { return nil })
		if err != nil || position.Revision != want.Revision || position.Hash != want.Hash {
			s.Errorf("Load: revision %d with hash %x, %v; want those of the barrier, %v", position.Revision, position.Hash, err, want)
		}
		s.refused(workspace.CreateKey(KeyID(number)+"x"), storage.ErrInvalidChange)
		if got := s.barrier(); got != want {
			s.Errorf("Barrier after a refused change: %v, want %v", got, want)
		}
	}
	before := s.barrier()
	s.reopen()
	if got := s.barrier(); got != before {
		s.Errorf("Barrier, reopened: %v, want %v", got, before)
	}
	position, err := s.store.Load(s.ctx, func(storage.Item) error { return nil })
	if err != nil || position.Revision != before.Revision || position.Hash != before.Hash {
		s.Errorf("Load: revision %d with hash %x, %v; want those of the barrier, %v", position.Revision, position.Hash, err, before)
	}
}

// testBarrierCovers changes the store from several goroutines, and reads a barrier after
// each acknowledgement. The barrier is never before the acknowledged change.
func testBarrierCovers(s *suite) {
	const workspaces, rounds = 4, 20
	var running sync.WaitGroup
	for index := range workspaces {
		workspace := s.begin(KeyID(index))
		running.Go(func() {
			for number := range rounds {
				change := workspace.CreateKey(KeyID(index*rounds + number))
				revision, err := s.store.Commit(s.ctx, change)
				if err != nil {
					s.Errorf("Commit: %v", err)
					return
				}
				s.model.Apply(change, revision)
				workspace.Follow(change)
				if got, err := s.store.Barrier(s.ctx); err != nil || got.Revision < revision {
					s.Errorf("Barrier: %v, %v after revision %d was acknowledged", got, err, revision)
				}
			}
		})
	}
	running.Wait()
}

func testBarrierContext(s *suite) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.store.Barrier(ctx); !errors.Is(err, context.Canceled) {
		s.Errorf("Barrier: %v, want the context's error", err)
	}
}
