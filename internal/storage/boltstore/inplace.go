package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// checkInPlace returns ErrReplaced if path no longer names the file that was opened, which held
// describes. If another file was renamed over it, changes would be acknowledged in a file that
// nobody can open again.
func checkInPlace(path string, held fs.FileInfo) error {
	named, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s is gone", storage.ErrReplaced, path)
	case err != nil:
		return err
	case !os.SameFile(named, held):
		return fmt.Errorf("%w: %s is another file than the one that was opened", storage.ErrReplaced, path)
	}
	return nil
}

// checkCommitted checks, before a commit is acknowledged, that it went into the file that
// the next start will open. state is held for writing.
func (s *Store) checkCommitted() error {
	if s.ended != nil {
		return s.ended
	}
	err := checkInPlace(s.path, s.info)
	if errors.Is(err, storage.ErrReplaced) {
		s.ended = err
	}
	return err
}

// checkReopened checks that the path names the file that was served.
func (s *Store) checkReopened() error {
	s.state.Lock()
	defer s.state.Unlock()
	err := s.checkCommitted()
	if err != nil && !errors.Is(err, storage.ErrReplaced) {
		return fmt.Errorf("%w: reopening: %w", storage.ErrUnavailable, err)
	}
	return err
}
