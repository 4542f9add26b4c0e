package boltstore

import (
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// reopen opens the file again if a failed commit took the store down.
func (s *Store) reopen(ctx context.Context) error {
	// 1. One caller reopens. The others wait, and then find the store up.
	if err := s.reopening.Claim(ctx); err != nil {
		return err
	}
	defer s.reopening.Unlock()
	if err := s.state.Enter(ctx); err != nil {
		return err
	}
	up, closed, before := s.file != nil, s.closed, s.position.Revision
	s.state.RUnlock()
	if closed {
		return storage.ErrUnavailable
	}
	if up {
		return nil
	}
	// 2. Check that the path still names the file that was served, before bbolt may write to
	// whatever the path names.
	if err := s.checkReopened(); err != nil {
		return err
	}
	// 3. Open. This makes durable what the file shows (opened.makeDurable), so that what the
	// next Load shows cannot be undone by a crash.
	file, err := openFile(s.path, s.config)
	if err != nil {
		return fmt.Errorf("%w: reopening: %w", storage.ErrUnavailable, err)
	}
	// 4. Check that everything that was acknowledged is in the file.
	if file.header.GetEpoch() != s.epoch || file.position.Revision < before {
		_ = file.close()
		return fmt.Errorf("%w: %s has epoch %s and revision %d, expected %s and at least %d",
			storage.ErrHistoryChanged, s.path, file.header.GetEpoch(), file.position.Revision, s.epoch, before)
	}
	if err := s.checkMark(file); err != nil {
		return errors.Join(err, file.close())
	}
	// 5. Use the file. Only Load may read it until a projection has seen all of it: the change
	// of the failed commit may be in it, and no watcher has seen that change.
	s.state.Lock()
	defer s.state.Unlock()
	if s.closed {
		return errors.Join(storage.ErrUnavailable, file.close())
	}
	s.use(file)
	s.unloaded = true
	s.config.Log.InfoContext(ctx, "store reopened", "revision", file.position.Revision)
	return nil
}

// loaded ends the restriction to Load after a Load has visited all of a reopened file. from is
// the index that the Load began with. If the file was reopened again since then, the
// restriction stays.
func (s *Store) loaded(from *fileIndex) {
	s.state.Lock()
	defer s.state.Unlock()
	if s.unloaded && s.index == from && s.file != nil && !s.closed {
		s.unloaded = false
		s.ring.restart(s.position)
	}
}

// checkMark checks that a reopened file has everything that was committed to it, and tells the
// writers of sink and anchor how far the file has come. Errors: ErrHistoryChanged, DamagedError.
func (s *Store) checkMark(file *opened) error {
	first := s.sink
	if first == nil {
		first = s.anchor
	}
	if first == nil {
		return nil
	}
	first.mutex.Lock()
	known := first.wanted
	first.mutex.Unlock()
	if err := file.compare("the memory of this process", known); err != nil {
		return fmt.Errorf("%w: %w", storage.ErrHistoryChanged, err)
	}
	mark, err := file.mark()
	if err != nil {
		return err
	}
	s.sink.reopened(mark)
	s.anchor.reopened(mark)
	return nil
}

// end takes the store down for good: the next start would not open the file, or the anchor,
// that this process has open.
func (s *Store) end(err error) {
	s.state.Lock()
	defer s.state.Unlock()
	if s.ended == nil {
		s.ended = err
	}
	if s.file != nil && !s.closed {
		s.config.Log.Error("the store ends", "error", err)
		s.goDown(nil)
	}
}

// goDown takes the store down after a failed commit. It closes the handle in the
// background, because closing waits for the readers that have begun. state is held for
// writing.
func (s *Store) goDown(tx *bolt.Tx) {
	file := s.file
	s.file = nil
	s.ring.end(storage.ErrUnavailable)
	s.committer.Go(func() {
		if tx != nil {
			if err := guard(tx.Rollback); errors.Is(err, storage.ErrDamaged) {
				// bbolt panicked, possibly with its own lock held, so that closing the handle would wait
				// forever. Closing the descriptor releases the lock on the file.
				_ = file.file.Close()
				return
			}
		}
		_ = file.close()
	})
}
