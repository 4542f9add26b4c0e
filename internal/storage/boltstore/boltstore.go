// Package boltstore keeps a store in one bbolt file, for one process.
//
// One goroutine, the committer, writes: it takes the changes that wait, at most one
// of each workspace, and commits them in one transaction. What a transaction
// checks (heads, absent ids) it checks in memory, before it writes.
//
// A commit that fails leaves the file in a state that only reopening can tell: with
// the meta page written but not synced, readers of the same handle would see what
// may be gone after a crash. So the store goes down: the handle is closed and never
// used again, and the next Load opens the file anew. For the same reason no
// read begins while a commit is under way.
package boltstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// epochBytes is how long the random part of an epoch is.
const epochBytes = 12

// Config says how a store is opened. The zero value is useful.
type Config struct {
	// LockTimeout is how long to wait for another process to let go of the file.
	// Default: 1 s.
	LockTimeout time.Duration
	// Create says whether a store that is not there is made. Default: CreateNever.
	Create Creation
	// FeedEntries is how many entries of the change log are kept. Default: 65,536.
	FeedEntries int64
	// Reserve is how many bytes of the disk are kept for changes that narrow, beside what
	// the file has in free pages. Default: 64 MiB, which 10,000 of them fit into; none if it
	// is negative.
	Reserve int64
	// Anchor is the file that remembers how far the store had come. Default: AnchorOf the
	// store's file, which finds what the disk loses. On another disk it also finds an older
	// copy that was put in place.
	Anchor string
	// Unanchored opens a store without its anchor: nothing is compared, nothing written.
	// It is for tools and tests that look at copies.
	Unanchored bool
	// Random yields the epoch of a new store. Default: the system's CSPRNG.
	Random io.Reader
	// Now stamps a new store. Default: time.Now.
	Now func() time.Time
	// Log receives what the store does on its own. Default: nothing.
	Log *slog.Logger

	// fault, in tests, fails a commit before or after it was written.
	fault func(written bool) error
	// upgraded, in tests, is called after each part of an upgrade.
	upgraded func(part string)
	// allocate, in tests, is a disk with little room.
	allocate func(file *os.File, from, to int64) error
	// anchorFault, in tests, fails or delays a write of the anchor.
	anchorFault func(anchor.Mark) error
	// room is the reserve of the store that is opened with this config.
	room *reserve
}

func (c Config) withDefaults() Config {
	if c.LockTimeout == 0 {
		c.LockTimeout = time.Second
	}
	if c.FeedEntries == 0 {
		c.FeedEntries = 65536
	}
	if c.Reserve == 0 {
		c.Reserve = defaultReserve
	}
	if c.allocate == nil {
		c.allocate = allocate
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.room = newReserve(c)
	return c
}

// Store is a storage.Store in one file.
type Store struct {
	path   string
	config Config
	epoch  string
	info   fs.FileInfo // of the file that was opened first

	// state guards what follows. The committer holds it for writing from the moment a
	// transaction may become visible until the directory agrees with it, so that
	// nobody reads what is not durable. A sync that hangs holds it as long: calls wait for
	// it with their context.
	state     gate
	file      *opened // nil while the store is down
	directory *directory
	position  storage.Position
	closed    bool
	// unloaded is set from a reopening until a Load has visited everything: nothing else
	// is answered meanwhile.
	unloaded bool
	// ended is set once the store must not be opened again by this process.
	ended error

	ring   *ring
	room   *reserve
	anchor *anchoring // nil without one

	requests  chan *request
	closing   chan struct{} // closed by Close
	stopped   chan struct{} // closed when the committer has ended
	committer sync.WaitGroup
	closeOnce sync.Once
	// writing admits one write transaction at a time: that of the committer, or of
	// PutUsage.
	writing gate
	// reopening admits one Load at a time to the reopening of the file.
	reopening gate
}

var _ storage.Store = (*Store)(nil)

// Open opens the store in the file at path. If config.Create says so, it is made, at
// once and with mode 0600; its folder must be there. A file of an older schema is
// upgraded. Errors: ErrAbsent and ErrPresent, as Creation says, ErrLocked if another
// process serves it, ErrNewer, ErrDamaged, ErrAnchor, and those of the file system.
func Open(path string, config Config) (*Store, error) {
	config = config.withDefaults()
	if config.Anchor == "" {
		config.Anchor = AnchorOf(path)
	}
	if err := create(path, config); err != nil {
		return nil, err
	}
	// At every start: whoever made the store, or renamed an upgraded one, may have been killed
	// before its name was on the disk.
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	store := &Store{
		path:      path,
		config:    config,
		room:      config.room,
		state:     newGate(),
		writing:   newGate(),
		reopening: newGate(),
		requests:  make(chan *request, 1024),
		closing:   make(chan struct{}),
		stopped:   make(chan struct{}),
	}
	opened, err := openFile(path, config)
	if errors.Is(err, errOlder) {
		if err = upgrade(path, config); err == nil {
			opened, err = openFile(path, config)
		}
	}
	if err != nil {
		return nil, err
	}
	if !config.Unanchored {
		if store.anchor, err = openAnchor(opened, config); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), opened.close())
		}
		store.anchor.start(store.end)
	}
	store.use(opened)
	store.epoch, store.info = opened.header.GetEpoch(), opened.info
	store.ring = newRing(opened.position)
	store.committer.Go(store.commitLoop)
	return store, nil
}

// errOlder says that a file must be upgraded before it can be used.
var errOlder = errors.New("storage: of an older schema")

// opened is a file that has been opened and found good.
type opened struct {
	database  *bolt.DB
	file      *os.File    // what database reads and writes, and what its lock is on
	info      fs.FileInfo // of file
	header    *storagev1.HeaderRecord
	directory *directory
	position  storage.Position
	// allocated is how much of the file has its room on the disk, in bytes. Owned by
	// whoever holds Store.writing.
	allocated int64
}

// openFile opens an existing file, checks its pages, and reads its header and
// directory.
func openFile(path string, config Config) (*opened, error) {
	// The pages are checked under the shared lock before bbolt may use them: opening for
	// writing already does.
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
	err = guard(func() error { return result.database.View(result.read) })
	if err == nil { // not before it is known that the file is one of this schema
		err = guard(func() error { return config.room.open(result) })
	}
	if err == nil {
		err = during("sync", guard(result.settle))
	}
	if err != nil {
		// A damaged file may make closing fail too; the first error is the one that tells.
		_ = result.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	result.directory.damage.log(config.Log)
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
	if err := verifyPages(ctx, result.file, result.info.Size()); err != nil {
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
			Timeout:      config.LockTimeout,
			FreelistType: bolt.FreelistMapType,
			ReadOnly:     readOnly,
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				var err error
				// Never O_CREATE: a file that has gone meanwhile is no reason to begin a new one.
				result.file, err = os.OpenFile(name, flag&^os.O_CREATE, mode) //nolint:gosec // the operator names the file
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
	// After a panic bbolt has left the file open, and locked.
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

// settle makes durable what the file shows. What a process that died wrote last, or what
// a failed sync dropped, may be visible to this process and yet not be on the disk.
//
// The order matters. First both meta pages are written as they are, and synced with
// everything else: from then on the newest of them is on the disk, and no page that it
// uses is missing there. Only then bbolt may write, for it reuses pages that the newest
// meta page has freed: with that meta page lost, the older one would lead to them. The
// transaction without content makes sure that bbolt can write at all.
func (o *opened) settle() error {
	if err := o.rewriteMeta(); err != nil {
		return err
	}
	return o.database.Update(func(*bolt.Tx) error { return nil })
}

// rewriteMeta writes both meta pages back as they are, and syncs.
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

// close gives the file back, whatever bbolt thinks of it. It waits for readers.
func (o *opened) close() error {
	err := guard(o.database.Close)
	if closing := o.file.Close(); err == nil && !errors.Is(closing, os.ErrClosed) {
		err = closing
	}
	return err
}

// checkIsFile refuses what bbolt would take for a new file or wait for.
func checkIsFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() { // which is a mistake of whoever named it, and no damage
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

// readHeader reads header and position.
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
	// Only now it is known that the file has this version's buckets.
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
	o.position.Hash = newestHash(tx, o.position.Revision)
	return nil
}

// read checks the header and builds the directory.
func (o *opened) read(tx *bolt.Tx) error {
	if err := o.readHeader(tx); err != nil {
		return err
	}
	if o.header.GetSchema() < storage.Schema {
		return errOlder
	}
	o.directory = newDirectory()
	for _, read := range []func(*bolt.Tx) error{o.checkNewest, o.readHeads, o.readKeys, o.readMembers, o.readWorkspaces, o.verify} {
		if err := read(tx); err != nil {
			return err
		}
	}
	return nil
}

// checkNewest refuses a file whose change log or audit log goes on beyond its position:
// the position, or the root that leads to it, is older than the rest.
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

func (o *opened) readHeads(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketHeads)).ForEach(func(name, value []byte) error {
		entry := o.directory.workspace(parseHeadName(string(name)))
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

// readWorkspaces looks for workspaces without a head. Every change puts one, so
// theirs is lost, e.g. because its name is damaged; to take them for new would let
// their chain begin anew.
func (o *opened) readWorkspaces(tx *bolt.Tx) error {
	err := tx.Bucket([]byte(bucketWorkspaces)).ForEach(func(name, value []byte) error {
		o.readRecord(string(name), recordID{kind: kindWorkspace}, frameName(bucketWorkspaces, string(name)), value)
		return nil
	})
	if value := tx.Bucket([]byte(bucketPolicy)).Get([]byte(nameActive)); err == nil && value != nil {
		o.readRecord("", recordID{kind: kindPolicy}, frameName(bucketPolicy, nameActive), value)
	}
	for id, entry := range o.directory.workspaces {
		if entry.headRevision == 0 && entry.damagedHead == nil {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: id, Problem: "missing"}
			o.directory.lostHeads = append(o.directory.lostHeads, id)
		}
	}
	return err
}

func (o *opened) readMembers(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketMembers)).ForEach(func(name, value []byte) error {
		workspaceID, memberID, _ := cutMemberName(string(name))
		o.readRecord(workspaceID, recordID{kindMember, memberID}, frameName(bucketMembers, string(name)), value)
		return nil
	})
}

// readRecord adds up a record that is no key. One that cannot be read is missing from the
// sum, which shows.
func (o *opened) readRecord(workspaceID string, id recordID, framed string, value []byte) {
	entry := o.directory.workspace(workspaceID)
	if payload, err := storage.Unframe(kindName(id.kind), framed, value); err == nil {
		element, _ := elementOf(workspaceID, id, payload)
		entry.sum = entry.sum.Add(element)
		o.directory.setElement(entry, id, element.Short())
	}
}

// use makes an opened file the one that the store serves. state is held, or the
// store not yet shared.
func (s *Store) use(file *opened) {
	s.file, s.directory, s.position = file, file.directory, file.position
}

// create makes a new store at path unless there is something already. The file
// appears whole, under its final name, or not at all.
func create(path string, config Config) error {
	if absent, err := config.mayCreate(path); !absent {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".keysvc-new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // after the link this removes a second name; else a leftover
	if err := temporary.Close(); err != nil {
		return err
	}
	if err := initialise(temporary.Name(), config); err != nil {
		return err
	}
	// A link fails if somebody else was faster; then theirs is the store.
	switch err := os.Link(temporary.Name(), path); {
	case errors.Is(err, fs.ErrExist) && config.Create == CreateNew:
		return fmt.Errorf("%w: %s", storage.ErrPresent, path)
	case err != nil && !errors.Is(err, fs.ErrExist):
		return err
	}
	return nil // its name is synced by every start
}

// initialise writes an empty store into a file.
func initialise(path string, config Config) error {
	epoch := make([]byte, epochBytes)
	if _, err := io.ReadFull(config.Random, epoch); err != nil {
		return fmt.Errorf("drawing an epoch: %w", err)
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
			Epoch:      hex.EncodeToString(epoch),
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

// syncFolder makes a new name in a folder durable.
func syncFolder(path string) error {
	folder, err := os.Open(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Epoch implements storage.Store.
func (s *Store) Epoch() string { return s.epoch }

// Close implements storage.Store.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() { err = s.close() })
	return err
}

func (s *Store) close() error {
	s.state.Lock()
	s.closed = true
	s.state.Unlock()
	close(s.closing)
	s.committer.Wait()
	s.anchor.stop()
	s.reopening.Lock() // a reopening that is under way gives the file back
	defer s.reopening.Unlock()
	s.ring.end(storage.ErrUnavailable)
	s.state.Lock()
	file := s.file
	s.file = nil
	s.state.Unlock()
	if file == nil {
		return nil
	}
	return file.close()
}

// reopen opens the file anew if a failed commit took the store down.
func (s *Store) reopen(ctx context.Context) error {
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
	if err := s.checkReopened(); err != nil {
		return err
	}
	file, err := openFile(s.path, s.config)
	if err != nil {
		return fmt.Errorf("%w: reopening: %w", storage.ErrUnavailable, err)
	}
	if file.header.GetEpoch() != s.epoch || file.position.Revision < before {
		_ = file.close()
		return fmt.Errorf("%w: %s has epoch %s and revision %d, expected %s and at least %d",
			storage.ErrHistoryChanged, s.path, file.header.GetEpoch(), file.position.Revision, s.epoch, before)
	}
	if err := s.checkMark(file); err != nil {
		return errors.Join(err, file.close())
	}
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

// read runs use in a read transaction on the newest durable state. It waits for a commit
// under way, no longer than the context lasts. resolve runs first, while the directory
// agrees with that state; use must not touch the directory.
func (s *Store) read(ctx context.Context, resolve func(*directory), use func(tx *bolt.Tx) error) (storage.Position, error) {
	return s.readFile(ctx, false, resolve, use)
}

// readFile is read; loading says that it is Load's, which alone may read a reopened file.
func (s *Store) readFile(ctx context.Context, loading bool, resolve func(*directory), use func(tx *bolt.Tx) error) (storage.Position, error) {
	if err := ctx.Err(); err != nil {
		return storage.Position{}, err
	}
	var tx *bolt.Tx
	position, err := func() (storage.Position, error) {
		if err := s.state.Enter(ctx); err != nil {
			return storage.Position{}, err
		}
		defer s.state.RUnlock()
		if s.file == nil || s.closed || s.unloaded && !loading {
			return storage.Position{}, storage.ErrUnavailable
		}
		if resolve != nil {
			resolve(s.directory)
		}
		var err error
		tx, err = s.file.database.Begin(false)
		return s.position, err
	}()
	if err != nil {
		if errors.Is(err, berrors.ErrDatabaseNotOpen) {
			err = storage.ErrUnavailable
		}
		return storage.Position{}, err
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction: nothing to lose
	return position, guard(func() error { return use(tx) })
}

// guard runs f and turns a panic, as bbolt raises on damaged pages, and a fault in
// mapped memory, as a truncated file causes, into a DamagedError.
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
