package boltstore

import (
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// Verify examines the file of a store that no process serves as a start does, and changes nothing: the
// pages, the checksum of every record, and that the records of each workspace are those that its head
// stands for. It returns the store's position. Check finds more, and takes many times the memory. If
// ctx has a giveway.Work, Verify works on one processor and gives way. Errors: ErrDamaged for a file
// that is not sound, ErrLocked, ErrNewer, the context's, and those of the file system.
func Verify(ctx context.Context, path string) (position storage.Position, err error) {
	scanned := &scan{}
	file, err := openPagesInto(ctx, path, Config{}.withDefaults(), scanned)
	if err != nil {
		return storage.Position{}, err
	}
	err = guard(func() error {
		return file.database.View(func(tx *bolt.Tx) error { return file.read(ctx, tx, scanned) })
	})
	if err == nil {
		err = file.index.damage.first()
	}
	if closed := file.close(); err == nil {
		err = closed
	}
	if err != nil {
		return storage.Position{}, fmt.Errorf("%s: %w", path, err)
	}
	return file.position, nil
}
