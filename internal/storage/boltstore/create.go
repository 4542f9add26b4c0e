package boltstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// Creation tells Open whether it may make a store. A new store is empty and knows no token, so
// Open does not make one by default.
type Creation int

// The values of Creation.
const (
	// CreateNever opens an existing store. If it does not exist, Open returns storage.ErrAbsent.
	CreateNever Creation = iota
	// CreateIfAbsent opens the store, and makes it if it does not exist.
	CreateIfAbsent
	// CreateNew makes a store. If it exists, Open returns storage.ErrPresent.
	CreateNew
)

// mayCreate reports whether Open has to make a store at path. An anchor without a store
// shows that a store has disappeared: mayCreate then returns storage.ErrAnchor, whatever
// Create is.
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
		if c.Sink != "" && c.Sink != SinkOff && c.Sink != SinkAsBefore {
			switch name, _, err := sink.Newest(c.Sink); {
			case err == nil:
				return false, fmt.Errorf("%w: %s has gone, and its audit sink %s is left", storage.ErrAnchor, path, name)
			case !errors.Is(err, fs.ErrNotExist):
				return false, err
			}
		}
	}
	if c.Create != CreateNew && c.Create != CreateIfAbsent {
		return false, fmt.Errorf("%w: %s", storage.ErrAbsent, path)
	}
	return true, nil
}

// during adds the step that failed to an error that does not name it: bbolt returns the errors
// of locks, maps and syncs as bare error numbers, and ErrTimeout for a lock.
func during(step string, err error) error {
	var number syscall.Errno
	var named *fs.PathError
	if !errors.As(err, &number) && !errors.Is(err, berrors.ErrTimeout) || errors.As(err, &named) {
		return err
	}
	return fmt.Errorf("%s: %w", step, err)
}

// create makes a new store at path if mayCreate says so. The file appears complete under
// its final name, or not at all.
func create(path string, config Config) error {
	if absent, err := config.mayCreate(path); !absent {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".keysvc-new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // the second name of a linked file, or a leftover
	if err := temporary.Close(); err != nil {
		return err
	}
	if err := initialise(temporary.Name(), config); err != nil {
		return err
	}
	// Unlike a rename, a link fails if another process has made a store in the meantime. Then
	// that store is opened.
	switch err := os.Link(temporary.Name(), path); {
	case errors.Is(err, fs.ErrExist) && config.Create == CreateNew:
		return fmt.Errorf("%w: %s", storage.ErrPresent, path)
	case err != nil && !errors.Is(err, fs.ErrExist):
		return err
	}
	return nil // Open syncs the folder
}

// initialise writes an empty store into an empty file.
func initialise(path string, config Config) error {
	epoch, err := newEpoch(config.Random)
	if err != nil {
		return err
	}
	database, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, Timeout: config.LockTimeout})
	if err != nil {
		return fmt.Errorf("%s: %w", path, during("lock, map or sync", err))
	}
	err = database.Update(func(tx *bolt.Tx) error {
		for _, bucket := range buckets {
			if _, err := tx.CreateBucket([]byte(bucket)); err != nil {
				return err
			}
		}
		header := &storagev1.HeaderRecord{
			Schema:     storage.Schema,
			Epoch:      epoch,
			CreateTime: timestamppb.New(config.Now()),
		}
		if err := put(tx, bucketMeta, nameHeader, header); err != nil {
			return err
		}
		return put(tx, bucketMeta, namePosition, &storagev1.PositionRecord{})
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", path, during("write or sync", err))
	}
	return errors.Join(err, database.Close())
}

// syncFolder makes the names in a folder durable.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// newEpoch returns a random epoch: 12 bytes in hexadecimal.
func newEpoch(random io.Reader) (string, error) {
	epoch := make([]byte, 12)
	if _, err := io.ReadFull(random, epoch); err != nil {
		return "", fmt.Errorf("drawing an epoch: %w", err)
	}
	return hex.EncodeToString(epoch), nil
}
