package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	berrors "go.etcd.io/bbolt/errors"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// Creation says whether Open may make a store. A new store is empty, so that every
// token is unknown to it: it is made only for somebody who says so.
type Creation int

// The values of Creation.
const (
	// CreateNever opens a store that is there; Open returns storage.ErrAbsent if none is.
	CreateNever Creation = iota
	// CreateIfAbsent makes a store if none is there.
	CreateIfAbsent
	// CreateNew makes a store; Open returns storage.ErrPresent if one is there.
	CreateNew
)

// mayCreate reports whether a store is to be made at path. An anchor without a store
// tells of one that has gone: there it returns storage.ErrAnchor, whatever Create says.
func (c Config) mayCreate(path string) (bool, error) {
	_, err := os.Lstat(path)
	switch {
	case err == nil && c.Create == CreateNew:
		return false, fmt.Errorf("%w: %s", storage.ErrPresent, path)
	case err == nil:
		return false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if !c.Unanchored {
		switch _, err := os.Lstat(c.Anchor); {
		case err == nil:
			return false, fmt.Errorf("%w: %s has gone, and its anchor %s is left", storage.ErrAnchor, path, c.Anchor)
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	if c.Create != CreateNew && c.Create != CreateIfAbsent {
		return false, fmt.Errorf("%w: %s", storage.ErrAbsent, path)
	}
	return true, nil
}

// during says what was being done in an error that does not: one of the system that is no
// more than its number, as bbolt returns those of locks, maps and syncs, and a lock that
// could not be had.
func during(step string, err error) error {
	var number syscall.Errno
	var named *fs.PathError
	if !errors.As(err, &number) && !errors.Is(err, berrors.ErrTimeout) || errors.As(err, &named) {
		return err
	}
	return fmt.Errorf("%s: %w", step, err)
}
