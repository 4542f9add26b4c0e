package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"syscall"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// errOlder is the error for a file that must be upgraded before it can be used.
var errOlder = errors.New("storage: the file has an older schema; a start of the server upgrades it")

// opened is a file that was opened and found sound.
type opened struct {
	database *bolt.DB
	file     *os.File    // the descriptor of database, which also holds the lock
	info     fs.FileInfo // of file
	header   *storagev1.HeaderRecord
	index    *fileIndex
	position storage.Position
	// allocated is how many bytes of the file, from its beginning, have disk space. Store.writing
	// guards it.
	allocated int64
}

// openFile opens an existing file, checks its pages, reads its header and index, and makes
// durable what it read.
func openFile(path string, config Config) (*opened, error) {
	// 1. Check the pages, and read the values. Nothing is written to a file of another schema.
	result, scanned, err := openScanned(path, config)
	if err != nil {
		return nil, err
	}
	// 2. Compare what was read: positions, links and tags.
	err = guard(func() error {
		return result.database.View(func(tx *bolt.Tx) error { return result.read(context.Background(), tx, scanned) })
	})
	// 3. Reserve disk space, before anything has to be written.
	if err == nil {
		err = guard(func() error { return config.room.open(result) })
	}
	// 4. Make durable what was read, before anybody is told about it.
	if err == nil {
		err = during("sync", guard(result.makeDurable))
	}
	if err != nil {
		// Closing a damaged file may fail too. The first error is the one that helps.
		_ = result.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	result.index.damage.log(config.Log)
	return result, nil
}

// openScanned opens a file for writing whose pages were checked and whose values were read.
func openScanned(path string, config Config) (*opened, *scan, error) {
	const attempts = 3
	for range attempts {
		// 1. Check and read, with the file open for reading only: bbolt uses pages as soon as it opens a
		// file for writing.
		scanned := &scan{}
		checked, err := openPagesInto(context.Background(), path, config, scanned)
		if err != nil {
			return nil, nil, err
		}
		before, err := checked.metaPages()
		if err := errors.Join(err, checked.close()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if config.scanned != nil {
			config.scanned()
		}
		// 2. Open for writing. In between nobody held the lock, so another process may have changed the file.
		// A change writes a meta page.
		result, err := openDatabase(path, config, false)
		if err != nil {
			return nil, nil, err
		}
		after, err := result.metaPages()
		if err == nil && os.SameFile(checked.info, result.info) && bytes.Equal(before, after) {
			return result, scanned, nil
		}
		if err := errors.Join(err, result.close()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil, nil, fmt.Errorf("%w: %s: another process changes it again and again", storage.ErrLocked, path)
}

// metaPages returns the two meta pages.
func (o *opened) metaPages() ([]byte, error) {
	meta := make([]byte, 2*o.database.Info().PageSize)
	_, err := o.file.ReadAt(meta, 0)
	return meta, err
}

// openPages opens a file for reading and checks its pages.
func openPages(ctx context.Context, path string, config Config) (*opened, error) {
	return openPagesInto(ctx, path, config, nil)
}

// openPagesInto is openPages, and hands the values to a scan, unless it is nil.
func openPagesInto(ctx context.Context, path string, config Config, into *scan) (*opened, error) {
	if err := checkIsFile(path); err != nil {
		return nil, err
	}
	result, err := openDatabase(path, config, true)
	if err != nil {
		return nil, err
	}
	if err := verifyAndScan(ctx, result.file, result.info.Size(), into); err != nil {
		_ = result.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return result, nil
}

// openDatabase opens a file with bbolt.
func openDatabase(path string, config Config, readOnly bool) (*opened, error) {
	result := &opened{}
	err := guard(func() error {
		var err error
		result.database, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout:         config.LockTimeout,
			FreelistType:    bolt.FreelistMapType,
			ReadOnly:        readOnly,
			NoSync:          config.Unsynced && !readOnly,
			InitialMmapSize: mapped(path, readOnly),
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				var err error
				// Never O_CREATE: a file that has disappeared must not become an empty store.
				result.file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
				return result.file, err
			},
		})
		return err
	})
	if err == nil {
		if result.info, err = result.file.Stat(); err == nil {
			return result, nil
		}
		_ = result.close()
	}
	// bbolt leaves the file open and locked after a panic.
	if result.file != nil {
		_ = result.file.Close()
	}
	var system syscall.Errno
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s", storage.ErrLocked, path)
	case errors.Is(err, storage.ErrDamaged), errors.As(err, &system):
		return nil, fmt.Errorf("%s: %w", path, during("lock or map", err))
	default:
		return nil, fmt.Errorf("%w: %s is not a store of keysvc: %w", storage.ErrDamaged, path, err)
	}
}

// mapAhead is how many bytes beyond the end of a file are mapped into memory. It takes addresses, and
// no memory.
const mapAhead = 1 << 30

// mapped returns how many bytes of a file bbolt maps when it opens the file; 0 leaves that to bbolt.
// When a file outgrows what is mapped, a commit waits until all read transactions have ended, and so
// does every read that begins then: a Snapshot would hold up revokes.
func mapped(path string, readOnly bool) int {
	info, err := os.Stat(path)
	if readOnly || err != nil || math.MaxInt < math.MaxInt64 {
		return 0 // opening the file reports the error; a process with 32 bits has no addresses to spare
	}
	return int(info.Size() + mapAhead)
}

// makeDurable makes durable what this process reads from the file. A change that another
// process wrote before it died, or that a failed sync dropped, can be visible and yet be
// missing on the disk.
func (o *opened) makeDurable() error {
	// 1. Write both meta pages as they are, and sync the whole file. From then on the newest
	// meta page is on the disk, and so is every page that it uses.
	if err := o.rewriteMeta(); err != nil {
		return err
	}
	// 2. Let bbolt write a transaction without content, to find out whether it can. This
	// comes second because bbolt reuses the pages that the newest meta page has freed: if
	// that meta page were lost, the older one would lead to overwritten pages.
	return o.database.Update(func(*bolt.Tx) error { return nil })
}

// rewriteMeta writes both meta pages as they are, and syncs the file.
func (o *opened) rewriteMeta() error {
	meta, err := o.metaPages()
	if err != nil {
		return err
	}
	if _, err := o.file.WriteAt(meta, 0); err != nil {
		return err
	}
	return o.file.Sync()
}

// close closes the file, also if bbolt fails to. It waits for readers.
func (o *opened) close() error {
	err := guard(o.database.Close)
	if closing := o.file.Close(); err == nil && !errors.Is(closing, os.ErrClosed) {
		err = closing
	}
	return err
}

// checkIsFile refuses what bbolt would fill as a new file (an empty file) or wait for (a pipe).
func checkIsFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() { // a wrong argument, and no damage
		return fmt.Errorf("%s is a folder; a store is a file", path)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", storage.ErrDamaged, path)
	}
	if info.Size() == 0 {
		return fmt.Errorf("%w: %s is empty", storage.ErrDamaged, path)
	}
	return nil
}

// readHeader reads the header and the position.
func (o *opened) readHeader(tx *bolt.Tx) error {
	if tx.Bucket([]byte(bucketMeta)) == nil {
		return &storage.DamagedError{Kind: "bucket", Name: bucketMeta, Problem: "missing"}
	}
	o.header = &storagev1.HeaderRecord{}
	if err := get(tx, "header", bucketMeta, nameHeader, o.header); err != nil {
		return damagedIfMissing(err, "header")
	}
	if o.header.GetSchema() > storage.Newest {
		return fmt.Errorf("%w: schema %d, this version knows up to %d", storage.ErrNewer, o.header.GetSchema(), storage.Newest)
	}
	if o.header.GetSchema() < storage.SchemaFirst || o.header.GetEpoch() == "" {
		return &storage.DamagedError{Kind: "header", Name: nameHeader, Problem: "no schema or epoch"}
	}
	// The buckets are checked after the schema, because a newer schema may have others.
	for _, bucket := range buckets {
		if tx.Bucket([]byte(bucket)) == nil {
			return &storage.DamagedError{Kind: "bucket", Name: bucket, Problem: "missing"}
		}
	}
	position := &storagev1.PositionRecord{}
	if err := get(tx, "position", bucketMeta, namePosition, position); err != nil {
		return damagedIfMissing(err, "position")
	}
	o.position = storage.Position{Revision: position.GetRevision()}
	if position.GetTime() != nil {
		o.position.Time = position.GetTime().AsTime()
	}
	o.position.Hash, _ = eventHash(tx, o.position.Revision) // zero if it is not known
	return nil
}

// read checks the header, and checks the records against the heads. The index is that of scanned; nil
// makes read scan what the transaction shows.
func (o *opened) read(ctx context.Context, tx *bolt.Tx, scanned *scan) (err error) {
	if err := o.readHeader(tx); err != nil {
		return err
	}
	if o.header.GetSchema() < storage.Schema {
		return errOlder
	}
	if scanned == nil {
		if scanned, err = scanTransaction(ctx, tx, o.file); err != nil {
			return err
		}
	}
	if err := o.checkNewest(tx); err != nil {
		return err
	}
	if scanned.problem != nil {
		return scanned.problem
	}
	if scanned.index == nil {
		return &storage.DamagedError{Kind: "header", Name: nameHeader, Problem: "it was read in two ways"}
	}
	o.index = scanned.index
	o.index.markLostHeads()
	o.verify(tx, scanned.links)
	return nil
}

// checkNewest refuses a file whose feed or audit events go beyond its position: the
// position, or the page that leads to it, is older than the rest.
func (o *opened) checkNewest(tx *bolt.Tx) error {
	for _, bucket := range []string{bucketFeed, bucketAudit} {
		name, _ := tx.Bucket([]byte(bucket)).Cursor().Last()
		if revision, err := parseNumber(name); name != nil && err == nil && revision > o.position.Revision {
			return &storage.DamagedError{
				Kind: "position", Name: namePosition,
				Problem: fmt.Sprintf("it is at revision %d, and bucket %s holds revision %d", o.position.Revision, bucket, revision),
			}
		}
	}
	return nil
}

// markLostHeads marks workspaces without a head. Every change puts a head, so a missing head was lost,
// for example because its name is damaged. Such a workspace must not count as new: its chain of
// events would begin again.
func (d *fileIndex) markLostHeads() {
	for id, entry := range d.workspaces {
		if entry.headRevision == 0 && entry.damagedHead == nil {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: id, Problem: "missing"}
			d.lostHeads = append(d.lostHeads, id)
		}
	}
}

// guard runs f and returns a panic as a DamagedError: bbolt panics on damaged pages, and
// reading mapped memory of a truncated file faults.
func guard(f func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if cause := recover(); cause != nil {
			err = &storage.DamagedError{Kind: "file", Problem: fmt.Sprint(cause)}
		}
	}()
	return f()
}

// get reads one record. Errors: ErrNotFound, DamagedError.
func get(tx *bolt.Tx, kind, bucket, name string, record proto.Message) error {
	value := tx.Bucket([]byte(bucket)).Get([]byte(name))
	if value == nil {
		return storage.ErrNotFound
	}
	return storage.Decode(kind, frameName(bucket, name), value, record)
}

// put writes one record.
func put(tx *bolt.Tx, bucket, name string, record proto.Message) error {
	payload, err := storage.Encode(record)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(bucket)).Put([]byte(name), frame(bucket, name, payload))
}

func damagedIfMissing(err error, kind string) error {
	if errors.Is(err, storage.ErrNotFound) {
		return &storage.DamagedError{Kind: kind, Name: kind, Problem: "missing"}
	}
	return err
}
