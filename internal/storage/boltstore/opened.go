package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
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
	// keyCount is how many keys the file has, as far as that is known before they are read.
	keyCount int
	// allocated is how many bytes of the file, from its beginning, have disk space. Store.writing
	// guards it.
	allocated int64
}

// openFile opens an existing file, checks its pages, reads its header and index, and makes
// durable what it read.
func openFile(path string, config Config) (*opened, error) {
	// 1. Check the pages, with the file open for reading only: bbolt uses pages as soon as it
	// opens a file for writing.
	checked, err := openPages(context.Background(), path, config)
	if err != nil {
		return nil, err
	}
	if err := checked.close(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	result, err := openDatabase(path, config, false)
	if err != nil {
		return nil, err
	}
	result.keyCount = checked.keyCount
	// 2. Read header, records and events. Nothing is written to a file of another schema.
	err = guard(func() error { return result.database.View(result.read) })
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

// openPages opens a file for reading and checks its pages.
func openPages(ctx context.Context, path string, config Config) (*opened, error) {
	if err := checkIsFile(path); err != nil {
		return nil, err
	}
	result, err := openDatabase(path, config, true)
	if err != nil {
		return nil, err
	}
	if result.keyCount, err = verifyPages(ctx, result.file, result.info.Size()); err != nil {
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
	meta := make([]byte, 2*o.database.Info().PageSize)
	if _, err := o.file.ReadAt(meta, 0); err != nil {
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
	if o.header.GetSchema() > storage.Schema {
		return fmt.Errorf("%w: schema %d, this version knows up to %d", storage.ErrNewer, o.header.GetSchema(), storage.Schema)
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

// read checks the header, builds the index, and checks the records against the heads.
func (o *opened) read(tx *bolt.Tx) error {
	if err := o.readHeader(tx); err != nil {
		return err
	}
	if o.header.GetSchema() < storage.Schema {
		return errOlder
	}
	o.index = newFileIndex(o.keyCount)
	for _, read := range []func(*bolt.Tx) error{o.checkNewest, o.readHeads, o.readKeys, o.readMembers, o.readWorkspaces, o.verify} {
		if err := read(tx); err != nil {
			return err
		}
	}
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

// readHeads adds the heads to the index.
func (o *opened) readHeads(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketHeads)).ForEach(func(name, value []byte) error {
		entry := o.index.workspace(parseHeadName(string(name)))
		record := &storagev1.HeadRecord{}
		entry.head, entry.damagedHead = decodeHead(string(name), value, record)
		entry.headRevision, entry.tag = record.GetRevision(), record.GetTag()
		if version := record.GetTagKeyVersion(); version > integrity.KeyVersion {
			return fmt.Errorf("%w: head tags of version %d, this version knows up to %d", storage.ErrNewer, version, integrity.KeyVersion)
		}
		if entry.damagedHead == nil && len(entry.tag) != len(integrity.Hash{}) {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: entry.id, Problem: "it has no tag"}
		}
		if entry.headRevision > o.position.Revision {
			return &storage.DamagedError{Kind: "position", Name: namePosition, Problem: "a head is ahead of it"}
		}
		return nil
	})
}

// readWorkspaces adds the records of workspaces and of the policy to the index. It also
// marks workspaces without a head. Every change puts a head, so a missing head was lost, for
// example because its name is damaged. Such a workspace must not count as new: its chain of
// events would begin again.
func (o *opened) readWorkspaces(tx *bolt.Tx) error {
	err := tx.Bucket([]byte(bucketWorkspaces)).ForEach(func(name, value []byte) error {
		o.readRecord(string(name), recordID{kind: kindWorkspace}, frameName(bucketWorkspaces, string(name)), value)
		return nil
	})
	if value := tx.Bucket([]byte(bucketPolicy)).Get([]byte(nameActive)); err == nil && value != nil {
		o.readRecord("", recordID{kind: kindPolicy}, frameName(bucketPolicy, nameActive), value)
	}
	for id, entry := range o.index.workspaces {
		if entry.headRevision == 0 && entry.damagedHead == nil {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: id, Problem: "missing"}
			o.index.lostHeads = append(o.index.lostHeads, id)
		}
	}
	return err
}

// readMembers adds the members to the index, and to the sum of each workspace. They are read on all
// processors, in ranges of equally many workspaces.
func (o *opened) readMembers(tx *bolt.Tx) error {
	ranges := memberRanges(slices.Sorted(maps.Keys(o.index.workspaces)))
	var adding sync.Mutex // guards the index
	return inParallel(len(ranges), func(_, part int) error {
		var read []memberRead
		err := ranges[part].each(tx.Bucket([]byte(bucketMembers)), func(name, value []byte) error {
			workspaceID, memberID, _ := cutMemberName(string(name))
			member := memberRead{workspaceID: workspaceID, memberID: memberID}
			if payload, err := storage.Unframe(integrity.KindMember, frameName(bucketMembers, string(name)), value); err == nil {
				member.element, _ = elementOf(workspaceID, recordID{kindMember, memberID}, payload)
				member.readable = true
			}
			read = append(read, member)
			return nil
		})
		adding.Lock()
		defer adding.Unlock()
		for _, member := range read {
			o.addRecord(member.workspaceID, recordID{kindMember, member.memberID}, member.element, member.readable)
		}
		return err
	})
}

// memberRead is one member's record.
type memberRead struct {
	workspaceID, memberID string
	readable              bool
	element               integrity.Element
}

// memberRanges divides the names of members. The ids of workspaces are sorted.
func memberRanges(workspaceIDs []string) []nameRange {
	const workspaces = 256 // of one range
	ranges := []nameRange{{}}
	for index := workspaces; index < len(workspaceIDs); index += workspaces {
		bound := []byte(memberName(workspaceIDs[index], ""))
		ranges[len(ranges)-1].high = bound
		ranges = append(ranges, nameRange{low: bound})
	}
	return ranges
}

// readRecord adds a record other than a key to the index, and to the workspace's sum. An
// unreadable record is not added: then the sum does not match the head's tag.
func (o *opened) readRecord(workspaceID string, id recordID, framed string, value []byte) {
	var element integrity.Element
	payload, err := storage.Unframe(kindName(id.kind), framed, value)
	if err == nil {
		element, _ = elementOf(workspaceID, id, payload)
	}
	o.addRecord(workspaceID, id, element, err == nil)
}

// addRecord adds the element of a record to the index, and to the workspace's sum.
func (o *opened) addRecord(workspaceID string, id recordID, element integrity.Element, readable bool) {
	entry := o.index.workspace(workspaceID)
	if readable {
		entry.sum = entry.sum.Add(element)
		o.index.setElement(entry, id, element.Short())
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
