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
	"slices"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Config says how a store is opened. The zero value is useful.
type Config struct {
	// LockTimeout is how long to wait for another process to let go of the file.
	// Default: 1 s.
	LockTimeout time.Duration
	// Create says whether a store that is not there is made. Default: CreateNever.
	Create Creation
	// FeedEntries is how many entries of the change log are kept. Default: 65,536.
	FeedEntries int64
	// Random yields the epoch of a new store. Default: the system's CSPRNG.
	Random io.Reader
	// Now stamps a new store. Default: time.Now.
	Now func() time.Time
	// Log receives what the store does on its own. Default: nothing.
	Log *slog.Logger

	// fault, in tests, fails a commit before or after it was written.
	fault func(written bool) error
}

func (c Config) withDefaults() Config {
	if c.LockTimeout == 0 {
		c.LockTimeout = time.Second
	}
	if c.FeedEntries == 0 {
		c.FeedEntries = 65536
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
	return c
}

// Store is a storage.Store in one file.
type Store struct {
	path   string
	config Config
	epoch  string

	// state guards what follows. The committer holds it for writing from the moment a
	// transaction may become visible until the directory agrees with it, so that
	// nobody reads what is not durable.
	state     sync.RWMutex
	file      *opened // nil while the store is down
	directory *directory
	position  storage.Position
	closed    bool

	ring *ring

	requests  chan *request
	closing   chan struct{} // closed by Close
	stopped   chan struct{} // closed when the committer has ended
	committer sync.WaitGroup
	closeOnce sync.Once
	// writing admits one write transaction at a time: that of the committer, or of
	// PutUsage.
	writing sync.Mutex
	// reopening admits one Load at a time to the reopening of the file.
	reopening sync.Mutex
}

var _ storage.Store = (*Store)(nil)

// Open opens the store in the file at path. If config.Create says so, it is made, at
// once and with mode 0600; its folder must be there. Errors: ErrAbsent and ErrPresent, as
// Creation says, ErrLocked if another process serves it, ErrNewer, ErrDamaged, and those
// of the file system.
func Open(path string, config Config) (*Store, error) {
	config = config.withDefaults()
	if err := create(path, config); err != nil {
		return nil, err
	}
	store := &Store{
		path:     path,
		config:   config,
		requests: make(chan *request, 1024),
		closing:  make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	opened, err := openFile(path, config)
	if err != nil {
		return nil, err
	}
	store.use(opened)
	store.epoch = opened.header.GetEpoch()
	store.ring = newRing(opened.position.Revision)
	store.committer.Go(store.commitLoop)
	return store, nil
}

// opened is a file that has been opened and found good.
type opened struct {
	database  *bolt.DB
	file      *os.File // what database reads and writes, and what its lock is on
	header    *storagev1.HeaderRecord
	directory *directory
	position  storage.Position
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
	if err == nil {
		err = during("sync", guard(result.settle))
	}
	if err != nil {
		// A damaged file may make closing fail too; the first error is the one that tells.
		_ = result.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
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
	info, err := result.file.Stat()
	if err == nil {
		err = verifyPages(ctx, result.file, info.Size())
	}
	if err != nil {
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
		return result, nil
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

// settle commits a transaction without content. What a process that died wrote last
// may be visible to the next one and yet not be on the disk; a meta page that
// follows on it, and is durable, makes that so.
func (o *opened) settle() error {
	return o.database.Update(func(*bolt.Tx) error { return nil })
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
	if o.header.GetSchema() < 1 || o.header.GetEpoch() == "" {
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
	return nil
}

// read checks the header and builds the directory.
func (o *opened) read(tx *bolt.Tx) error {
	if err := o.readHeader(tx); err != nil {
		return err
	}
	o.directory = newDirectory()
	if err := o.readHeads(tx); err != nil {
		return err
	}
	if err := o.readKeys(tx); err != nil {
		return err
	}
	return o.readWorkspaces(tx)
}

func (o *opened) readHeads(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketHeads)).ForEach(func(name, value []byte) error {
		entry := o.directory.workspace(parseHeadName(string(name)))
		record := &storagev1.HeadRecord{}
		entry.head, entry.damagedHead = decodeHead(string(name), value, record)
		entry.headRevision = record.GetRevision()
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
	err := tx.Bucket([]byte(bucketWorkspaces)).ForEach(func(name, _ []byte) error {
		o.directory.workspace(string(name))
		return nil
	})
	if err == nil && tx.Bucket([]byte(bucketPolicy)).Get([]byte(nameActive)) != nil {
		o.directory.workspace("")
	}
	for id, entry := range o.directory.workspaces {
		if entry.headRevision == 0 && entry.damagedHead == nil {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: id, Problem: "missing"}
			o.directory.lostHeads = append(o.directory.lostHeads, id)
		}
	}
	slices.Sort(o.directory.lostHeads)
	return err
}

func (o *opened) readKeys(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketKeys)).ForEach(func(name, value []byte) error {
		slot, keyID, workspaceID, err := parseKeyName(name)
		if err != nil {
			return &storage.DamagedError{Kind: "key", Name: hex.EncodeToString(name), Problem: err.Error()}
		}
		if _, twice := o.directory.keys[keyID]; twice {
			return &storage.DamagedError{Kind: "key", Name: keyID, Problem: "stored twice"}
		}
		o.directory.addKey(workspaceID, keyID, slot)
		payload, err := storage.Unframe("key", frameName(bucketKeys, string(name)), value)
		if err != nil {
			return nil //nolint:nilerr // a damaged key is answered as such where it is read
		}
		requestIDs, err := requestIDsOf(payload)
		if err != nil {
			return &storage.DamagedError{Kind: "key", Name: keyID, Problem: err.Error()}
		}
		o.directory.setRequestIDs(keyID, requestIDs)
		return nil
	})
}

// use makes an opened file the one that the store serves. state is held, or the
// store not yet shared.
func (s *Store) use(file *opened) {
	s.file, s.directory, s.position = file, file.directory, file.position
}

// create makes a new store at path unless there is something already. The file
// appears whole, under its final name, or not at all.
func create(path string, config Config) error {
	if absent, err := config.Create.mayCreate(path); !absent {
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
	return syncFolder(filepath.Dir(path))
}

// initialise writes an empty store into a file.
func initialise(path string, config Config) error {
	epoch := make([]byte, 12)
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
func (s *Store) reopen() error {
	s.reopening.Lock()
	defer s.reopening.Unlock()
	s.state.RLock()
	up, closed, before := s.file != nil, s.closed, s.position.Revision
	s.state.RUnlock()
	if closed {
		return storage.ErrUnavailable
	}
	if up {
		return nil
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
	s.state.Lock()
	defer s.state.Unlock()
	if s.closed {
		return errors.Join(storage.ErrUnavailable, file.close())
	}
	s.use(file)
	s.ring.restart(file.position.Revision)
	s.config.Log.Info("store reopened", "revision", file.position.Revision)
	return nil
}

// read runs use in a read transaction on the newest durable state. resolve runs
// first, while the directory agrees with that state; use must not touch the
// directory.
func (s *Store) read(ctx context.Context, resolve func(*directory), use func(tx *bolt.Tx) error) (storage.Position, error) {
	if err := ctx.Err(); err != nil {
		return storage.Position{}, err
	}
	var tx *bolt.Tx
	position, err := func() (storage.Position, error) {
		s.state.RLock()
		defer s.state.RUnlock()
		if s.file == nil || s.closed {
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
