package boltstore

import (
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// RecordFile reads the records in the file of a store that no process serves. It changes nothing.
type RecordFile struct{ file *opened }

// OpenRecords opens a file and examines it as Verify does. Until the caller closes it, no process can
// serve the file. Errors: ErrDamaged for a file that is not sound, ErrLocked, ErrNewer, ErrOlder, the
// context's, and those of the file system.
func OpenRecords(ctx context.Context, path string) (*RecordFile, error) {
	scanned := &scan{}
	file, err := openPagesInto(ctx, path, Config{}.withDefaults(), scanned)
	if err != nil {
		return nil, err
	}
	err = guard(func() error {
		return file.database.View(func(tx *bolt.Tx) error { return file.read(ctx, tx, scanned) })
	})
	if err == nil {
		err = file.index.damage.first()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.close())
	}
	return &RecordFile{file}, nil
}

// ErrOlder is the error of OpenRecords for a file of an older schema. Open upgrades such a file.
var ErrOlder = errOlder

// Epoch returns the identity of the store's history.
func (f *RecordFile) Epoch() string { return f.file.header.GetEpoch() }

// Position returns how far the store had come.
func (f *RecordFile) Position() storage.Position { return f.file.position }

// Load visits all records, as Store.Load does.
func (f *RecordFile) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	err := guard(func() error {
		return f.file.database.View(func(tx *bolt.Tx) error { return load(ctx, tx, f.file.index.damage, visit) })
	})
	return f.file.position, err
}

// Close closes the file.
func (f *RecordFile) Close() error { return f.file.close() }

// BeginRestored makes the file at path, which is a copy of a store, a store of its own: it gets a new
// epoch, so that no cache takes it for the other one, and neither anchor nor sink. sunk is the
// position of the newest line of the other store's audit sink: if Open is given that sink, and the
// sink has no later line, the sink goes on with the new epoch. The epoch of sunk is empty if no sink was
// read. holds is set if keys will be held: programs that do not know that refuse the file. No process may serve the file. Errors: those of AcceptAnchor.
func BeginRestored(path string, config Config, sunk anchor.Mark, holds bool) (epoch string, err error) {
	config = config.withDefaults()
	file, err := openFile(path, config)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	if epoch, err = newEpoch(config.Random); err != nil {
		return "", err
	}
	from, err := file.mark()
	if err != nil {
		return "", err
	}
	header := proto.CloneOf(file.header)
	header.Anchored, header.Sink = false, ""
	if holds {
		header.Schema = storage.SchemaHeld
	}
	header.Restored = &storagev1.RestoredRecord{
		Time: timestamppb.New(config.Now()), Epoch: from.Epoch, Revision: from.Revision, Hash: from.Hash[:],
		SinkEpoch: sunk.Epoch, SinkRevision: sunk.Revision, SinkHash: sunk.Hash[:],
	}
	file.header = header
	return epoch, guard(func() error {
		return file.database.Update(func(tx *bolt.Tx) error {
			// What the sink has of the events so far is not known, so they are never pruned.
			if err := putRevisionMark(tx, nameUnsunk, from.Revision); err != nil {
				return err
			}
			return file.setEpoch(tx, epoch)
		})
	})
}

// goesOn reports whether the newest line of a sink is the one that the sink had when the store was
// restored: then the sink goes on with the store's epoch, from the mark that is returned on.
func (o *opened) goesOn(newest anchor.Mark) (from anchor.Mark, goesOn bool) {
	restored := o.header.GetRestored()
	if restored == nil || o.header.GetSink() != "" || newest.Epoch == "" ||
		newest.Epoch != restored.GetSinkEpoch() || newest.Revision != restored.GetSinkRevision() || string(newest.Hash[:]) != string(restored.GetSinkHash()) {
		return anchor.Mark{}, false
	}
	from = anchor.Mark{Epoch: o.header.GetEpoch(), Revision: restored.GetRevision()}
	copy(from.Hash[:], restored.GetHash())
	return from, true
}
