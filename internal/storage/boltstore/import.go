package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

const (
	// importSuffix ends the name of a file that a migration fills. No server opens a file of that name.
	importSuffix = ".migrating"
	// bucketMigration has the MigrationRecord while the file is filled. A file that is complete does not
	// have the bucket.
	bucketMigration = "migration"
	nameMigration   = "record"
	// importParts and importBytes bound what one transaction writes.
	importParts = 20_000
	importBytes = 16 << 20
)

// Import fills the file of a new store with the parts of another store. The file gets its name in
// Release. Until then it is path.migrating.
type Import struct {
	path, filling string
	config        Config

	origin storage.Origin
	// database is open while parts are taken, and tx is the transaction that is being filled.
	database *bolt.DB
	tx       *bolt.Tx
	// parts and bytes are what tx has.
	parts, bytes int
	record       *storagev1.MigrationRecord // as of the last commit
	// seen is how many parts Put has taken.
	seen int64
	// released is set if the file has its name already.
	released bool

	// What the file's heads and position are made of, from all parts.
	hasher   *integrity.Hasher
	sums     map[string]integrity.Sum
	last     map[string]importedEvent
	slot     int64
	revision int64
	pruned   int64
	newest   []byte // the newest event
}

// importedEvent is the last event of a workspace so far.
type importedEvent struct{ sequence, revision int64 }

var _ storage.Importer = (*Import)(nil)

// NewImport returns an Import into the file at path. The folder must exist.
func NewImport(path string, config Config) *Import {
	return &Import{
		path: path, filling: path + importSuffix, config: config.withDefaults(), hasher: integrity.NewHasher(),
		sums: make(map[string]integrity.Sum), last: make(map[string]importedEvent),
	}
}

// Keeps implements storage.Importer. A file keeps no settings: its one server has its own.
func (i *Import) Keeps(kind storage.PortableKind) bool { return kind != storage.PortableSettings }

// Begin implements storage.Importer.
func (i *Import) Begin(ctx context.Context, origin storage.Origin) (storage.Begun, error) {
	if err := ctx.Err(); err != nil {
		return storage.Begun{}, err
	}
	i.origin = origin
	// 1. A store that is there must be the one that this migration has made.
	if _, err := os.Lstat(i.path); err == nil {
		if err := i.isOurs(); err != nil {
			return storage.Begun{}, err
		}
		i.released = true
		if err := os.Remove(i.filling); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return storage.Begun{}, err
		}
		return storage.Begun{Copied: origin.Parts, Complete: true, Released: true}, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return storage.Begun{}, err
	}
	if _, err := os.Lstat(AnchorOf(i.path)); err == nil {
		return storage.Begun{}, fmt.Errorf("%w: %s; an anchor without its store", storage.ErrPresent, AnchorOf(i.path))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return storage.Begun{}, err
	}
	// 2. Make the file, if no earlier run has.
	if _, err := os.Lstat(i.filling); errors.Is(err, fs.ErrNotExist) {
		if err := i.create(); err != nil {
			return storage.Begun{}, err
		}
	} else if err != nil {
		return storage.Begun{}, err
	}
	// 3. Open it, and see how far it is.
	if err := i.open(); err != nil {
		return storage.Begun{}, err
	}
	complete, err := i.readRecord()
	switch {
	case err != nil:
	case complete:
		err = errors.Join(i.closeDatabase(), i.isFrom(i.filling))
	case !origin.IsOf(i.record):
		err = fmt.Errorf("%w: %s was begun from revision %d of %s", storage.ErrSourceChanged, i.filling, i.record.GetSourceRevision(), i.record.GetSourceEpoch())
	}
	if err != nil {
		return storage.Begun{}, errors.Join(err, i.closeDatabase())
	}
	if complete {
		return storage.Begun{Copied: origin.Parts, Complete: true}, nil
	}
	return storage.Begun{Copied: i.record.GetCopied()}, nil
}

// create makes the file with a record of the migration. It appears complete, or not at all.
func (i *Import) create() error {
	temporary, err := os.CreateTemp(filepath.Dir(i.path), ".keysvc-new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // the second name of a linked file, or a leftover
	if err := temporary.Close(); err != nil {
		return err
	}
	epoch, err := newEpoch(i.config.Random)
	if err != nil {
		return err
	}
	database, err := bolt.Open(temporary.Name(), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, Timeout: i.config.LockTimeout})
	if err != nil {
		return fmt.Errorf("%s: %w", temporary.Name(), during("lock, map or sync", err))
	}
	record := &storagev1.MigrationRecord{
		Epoch: epoch, BeginTime: timestamppb.New(i.config.Now()), Schema: i.origin.Schema,
		SourceEpoch: i.origin.Epoch, SourceRevision: i.origin.Position.Revision, SourceHash: i.origin.Position.Hash[:],
	}
	err = database.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucket([]byte(bucketMigration)); err != nil {
			return err
		}
		return put(tx, bucketMigration, nameMigration, record)
	})
	if err := errors.Join(err, database.Close()); err != nil {
		return fmt.Errorf("%s: %w", temporary.Name(), during("write or sync", err))
	}
	if err := os.Link(temporary.Name(), i.filling); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(filepath.Dir(i.path))
}

// open opens the file for writing.
func (i *Import) open() error {
	file, err := openDatabase(i.filling, i.config, false)
	if err != nil {
		return err
	}
	i.database = file.database
	return nil
}

func (i *Import) closeDatabase() error {
	database := i.database
	if i.database = nil; database == nil {
		return nil
	}
	if i.tx != nil {
		_ = i.tx.Rollback()
		i.tx = nil
	}
	return database.Close()
}

// readRecord reads how far the migration is.
func (i *Import) readRecord() (complete bool, err error) {
	i.record = &storagev1.MigrationRecord{}
	err = guard(func() error {
		return i.database.View(func(tx *bolt.Tx) error {
			if complete = tx.Bucket([]byte(bucketMigration)) == nil; complete {
				return nil
			}
			return damagedIfMissing(get(tx, "migration", bucketMigration, nameMigration, i.record), "migration")
		})
	})
	return complete, err
}

// isOurs returns nil if the store that is there was made from the origin.
func (i *Import) isOurs() error {
	if err := i.isFrom(i.path); err != nil {
		return fmt.Errorf("%w: %s: %w", storage.ErrPresent, i.path, err)
	}
	return nil
}

// isFrom returns nil if the complete file at path was made from the origin.
func (i *Import) isFrom(path string) error {
	file, err := openDatabase(path, i.config, true)
	if err != nil {
		return err
	}
	err = guard(func() error { return file.database.View(file.readHeader) })
	if err = errors.Join(err, file.close()); err != nil {
		return err
	}
	if !i.origin.IsRestored(file.header.GetRestored()) {
		return fmt.Errorf("%w: %s was not made from revision %d of %s", storage.ErrSourceChanged, path, i.origin.Position.Revision, i.origin.Epoch)
	}
	return nil
}

// Put implements storage.Importer.
func (i *Import) Put(ctx context.Context, part storage.Portable) error {
	i.seen++
	var writes []write
	switch part.Kind {
	case storage.PortablePolicy:
		writes = i.putPart(part, bucketPolicy, nameActive, recordID{kind: kindPolicy})
	case storage.PortableWorkspace:
		writes = i.putPart(part, bucketWorkspaces, part.WorkspaceID, recordID{kind: kindWorkspace})
	case storage.PortableMember:
		writes = i.putPart(part, bucketMembers, memberName(part.WorkspaceID, part.Name), recordID{kindMember, part.Name})
	case storage.PortableKey:
		i.slot++
		writes = i.putPart(part, bucketKeys, keyName(i.slot, part.Name, part.WorkspaceID), recordID{kindKey, part.Name})
	case storage.PortableUsage:
		name := number(i.slot)
		writes = []write{{bucketUsage, name, frame(bucketUsage, name, useOf(part.Usage).encode())}}
	case storage.PortableEvent:
		if part.Sequence != i.last[part.WorkspaceID].sequence+1 && !part.Old {
			return &storage.DamagedError{Kind: "audit event", Name: part.String(), Problem: "an event before it is missing"}
		}
		writes = i.event(part)
	case storage.PortableRefusal:
		name := number(part.Sequence)
		writes = []write{{bucketRefusals, name, frame(bucketRefusals, name, part.Payload)}}
	case storage.PortableHead:
		write, err := i.head(part)
		if err != nil {
			return err
		}
		writes = append(writes, write)
	case storage.PortableSettings:
		return fmt.Errorf("%w: a file keeps no %v", storage.ErrInvalidChange, part)
	}
	if i.seen <= i.record.GetCopied() {
		return ctx.Err() // stored by an earlier run
	}
	return i.write(ctx, writes)
}

// putPart returns the write of a record, and adds its element to the sum of its workspace.
func (i *Import) putPart(part storage.Portable, bucket, name string, id recordID) []write {
	element := i.hasher.Element(integrity.KindName(id.kind), part.WorkspaceID, id.name, integrity.HashPayload(part.Payload))
	i.sums[part.WorkspaceID] = i.sums[part.WorkspaceID].Add(element)
	return []write{{bucket, name, frame(bucket, name, part.Payload)}}
}

func (i *Import) event(part storage.Portable) []write {
	i.revision++
	before := i.last[part.WorkspaceID]
	if part.Old {
		i.pruned = i.revision
	}
	i.last[part.WorkspaceID] = importedEvent{part.Sequence, i.revision}
	i.newest = append(i.newest[:0], part.Payload...)
	name := number(i.revision)
	return []write{{bucketAudit, name, frame(bucketAudit, name, append([]byte(number(before.revision)), part.Payload...))}}
}

// head returns the write of a head, with its tag.
func (i *Import) head(part storage.Portable) (write, error) {
	record := part.Head.Record(i.last[part.WorkspaceID].revision)
	tag := tagOf(i.hasher, i.record.GetEpoch(), part.WorkspaceID, part.Head, i.sums[part.WorkspaceID])
	record.Tag, record.TagKeyVersion = tag[:], integrity.KeyVersion
	payload, err := storage.Encode(record)
	name := headName(part.WorkspaceID)
	return write{bucketHeads, name, frame(bucketHeads, name, payload)}, err
}

// write adds a part to the transaction, and commits the transaction if it has enough.
func (i *Import) write(ctx context.Context, writes []write) error {
	err := guard(func() error {
		if i.tx == nil {
			var err error
			if i.tx, err = i.database.Begin(true); err != nil {
				return err
			}
		}
		for _, each := range writes {
			bucket, err := i.tx.CreateBucketIfNotExists([]byte(each.bucket))
			if err != nil {
				return err
			}
			bucket.FillPercent = 0.9 // names ascend
			if err := bucket.Put([]byte(each.name), each.value); err != nil {
				return err
			}
			i.bytes += len(each.name) + len(each.value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if i.parts++; i.parts < importParts && i.bytes < importBytes {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return i.commit(func(tx *bolt.Tx) error {
		i.record.Copied = i.seen
		return put(tx, bucketMigration, nameMigration, i.record)
	})
}

// commit ends the transaction with what last writes.
func (i *Import) commit(last func(tx *bolt.Tx) error) error {
	tx := i.tx
	i.tx, i.parts, i.bytes = nil, 0, 0
	err := guard(func() error {
		if err := last(tx); err != nil {
			_ = tx.Rollback()
			return err
		}
		return tx.Commit()
	})
	if isNoRoomInFile(err) {
		return fmt.Errorf("%s: %w: %w", i.filling, storage.ErrFull, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", i.filling, during("write or sync", err))
	}
	return nil
}

// Complete implements storage.Importer.
func (i *Import) Complete(ctx context.Context) error {
	if i.database == nil {
		return ctx.Err() // an earlier run has
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if i.tx == nil {
		err := guard(func() (err error) {
			i.tx, err = i.database.Begin(true)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := i.commit(i.finish); err != nil {
		return err
	}
	return i.closeDatabase()
}

// finish writes what makes the file that of a store.
func (i *Import) finish(tx *bolt.Tx) error {
	if err := tx.DeleteBucket([]byte(bucketMigration)); err != nil {
		return err
	}
	for _, bucket := range buckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(bucket)); err != nil {
			return err
		}
	}
	// The change log needs its newest entry alone: the epoch is new, so every near-cache begins anew.
	if i.revision > 0 {
		event := &storagev1.AuditRecord{}
		if err := proto.Unmarshal(i.newest, event); err != nil {
			return &storage.DamagedError{Kind: "audit event", Name: fmt.Sprint(i.revision), Problem: "not a record"}
		}
		change := &storage.Change{WorkspaceID: event.GetWorkspaceId()}
		change.Kind, change.Subject = storage.FeedOf(event)
		if err := put(tx, bucketFeed, number(i.revision), change.Feed(i.revision, storage.HashAudit(i.newest))); err != nil {
			return err
		}
		// What a sink has of the events so far is not known, so they are never pruned.
		if err := putRevisionMark(tx, nameUnsunk, i.revision); err != nil {
			return err
		}
	}
	if i.pruned > 0 {
		if err := putRevisionMark(tx, namePruned, i.pruned); err != nil {
			return err
		}
	}
	position := &storagev1.PositionRecord{Revision: i.revision}
	if at := i.origin.Position.Time; !at.IsZero() {
		position.Time = timestamppb.New(at)
	}
	if err := put(tx, bucketMeta, namePosition, position); err != nil {
		return err
	}
	return put(tx, bucketMeta, nameHeader, &storagev1.HeaderRecord{
		Schema: i.origin.Schema, Epoch: i.record.GetEpoch(), CreateTime: i.record.GetBeginTime(),
		Restored: &storagev1.RestoredRecord{
			Time: i.record.GetBeginTime(), Epoch: i.origin.Epoch,
			Revision: i.origin.Position.Revision, Hash: i.origin.Position.Hash[:],
		},
	})
}

// place returns the path that the file has now.
func (i *Import) place() string {
	if i.released {
		return i.path
	}
	return i.filling
}

// Exporter implements storage.Importer.
func (i *Import) Exporter(ctx context.Context) (storage.Exporter, error) {
	return OpenExport(ctx, i.place())
}

// Check implements storage.Importer.
func (i *Import) Check(ctx context.Context) ([]string, error) {
	report, err := Check(ctx, i.place())
	return report.Problems, err
}

// Release implements storage.Importer.
func (i *Import) Release(ctx context.Context) (epoch string, revision int64, err error) {
	if !i.released {
		// Unlike a rename, a link fails if another process has made a store in the meantime.
		switch err := os.Link(i.filling, i.path); {
		case errors.Is(err, fs.ErrExist):
			return "", 0, fmt.Errorf("%w: %s", storage.ErrPresent, i.path)
		case err != nil: // some file systems have no links
			if err := os.Rename(i.filling, i.path); err != nil {
				return "", 0, err
			}
		}
		i.released = true
		if err := os.Remove(i.filling); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", 0, err
		}
		if err := syncFolder(filepath.Dir(i.path)); err != nil {
			return "", 0, err
		}
	}
	file, err := openDatabase(i.path, i.config, true)
	if err != nil {
		return "", 0, err
	}
	err = guard(func() error { return file.database.View(file.readHeader) })
	if err = errors.Join(err, file.close(), ctx.Err()); err != nil {
		return "", 0, err
	}
	return file.header.GetEpoch(), file.position.Revision, nil
}

// Discard implements storage.Importer. The file that a migration fills has a name of its own, so the store at the path is
// never touched.
func (i *Import) Discard(ctx context.Context, progress func(done, total int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	filling, err := os.Lstat(i.filling)
	made, madeErr := os.Lstat(i.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && madeErr == nil:
		return fmt.Errorf("%w: %s, and no migration into it is unfinished: there is no %s", storage.ErrPresent, i.path, i.filling)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w, and no unfinished migration: there is no %s", storage.ErrAbsent, i.filling)
	case err != nil:
		return err
	case madeErr == nil && os.SameFile(filling, made): // Release was interrupted
		return fmt.Errorf("%w: %s is finished, and %s is another name of it", storage.ErrPresent, i.path, i.filling)
	}
	// Whoever fills the file, or compares it, has the lock. A damaged file is of no use to anybody.
	file, err := openDatabase(i.filling, i.config, false)
	if err != nil && !errors.Is(err, storage.ErrDamaged) {
		return err
	}
	err = os.Remove(i.filling)
	if file != nil {
		err = errors.Join(err, file.close())
	}
	if err == nil {
		err = syncFolder(filepath.Dir(i.path))
	}
	if err == nil {
		progress(1, 1)
	}
	return err
}

// Close implements storage.Importer.
func (i *Import) Close() error { return i.closeDatabase() }
