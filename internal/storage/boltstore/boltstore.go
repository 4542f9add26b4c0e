// Package boltstore keeps a store in one bbolt file, for one process.
//
// One goroutine, the committer, makes the changes (commit.go). It takes the changes in
// its queue, at most one of each workspace, and commits them in one transaction. It checks
// them against an index in memory (fileindex.go) before it writes.
//
// After a failed commit, only reopening the file shows what the file holds: if bbolt wrote
// the meta page but could not sync it, readers of the same handle see a change that a crash
// may undo. So the store goes down: the handle is closed and never used again, and the
// next Load opens the file again (reopen.go). For the same reason no read begins while a
// commit is in progress.
//
// The anchor, a small file beside the store or on another disk, remembers how far the
// store had come (anchor.go). The audit sink, a file of JSON lines, gets every audit event, and is
// an anchor as well (sink.go). integrity.go explains how a record that is stale or altered is
// detected.
package boltstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// Config is how a store is opened. The zero value is useful.
type Config struct {
	// LockTimeout is how long Open waits for another process to release the file.
	// Default: 1 s.
	LockTimeout time.Duration
	// Create tells Open whether it may make a store. Default: CreateNever.
	Create Creation
	// FeedEntries is how many feed entries are kept. Default: 65,536.
	FeedEntries int64
	// Reserve is how many bytes of the disk are kept for narrowing changes, in addition to
	// the free pages of the file. Default: 64 MiB, room for 10,000 narrowing changes. A
	// negative value keeps nothing.
	Reserve int64
	// Anchor is the path of the file that remembers how far the store had come. Default:
	// AnchorOf the store's file, which detects changes that the disk lost. An anchor on
	// another disk also detects an older copy of the store that was put in its place.
	Anchor string
	// Sink is the path of the audit sink, a file that gets a line for each audit event before the
	// change is answered. Default: none. The sink is the store's anchor: without an Anchor, no
	// anchor's file is written. A store that had a sink is not opened without it, except with
	// SinkOff or SinkAsBefore.
	Sink string
	// SinkReserve is how many bytes of the sink's disk are kept for narrowing changes. Default:
	// sink.DefaultReserve, room for 10,000. A negative value keeps nothing.
	SinkReserve int64
	// SinkMaxBytes is the length from which on the sink's file is renamed, and a new one begins.
	// Default: any length.
	SinkMaxBytes int64
	// Unanchored makes Open ignore anchor and sink: they are neither compared nor written. Tools and
	// tests that open copies set it.
	Unanchored bool
	// Unsynced makes commits durable only when the caller syncs the file after Close. A crash before
	// that may damage the file, so it must be a copy that nobody else knows yet.
	Unsynced bool
	// Random yields the epoch of a new store. Default: the system's CSPRNG.
	Random io.Reader
	// Now stamps a new store. Default: time.Now.
	Now func() time.Time
	// Log receives what the store does on its own. Default: nothing.
	Log *slog.Logger

	// fault, in tests, fails a commit before or after it was written.
	fault func(written bool) error
	// scanned, in tests, is called when a file was read, before it is opened for writing.
	scanned func()
	// pruned, in tests, is called after each slice of PruneAudit.
	pruned func()
	// upgraded, in tests, is called after each part of an upgrade.
	upgraded func(part string)
	// allocate, in tests, stands for a disk with little space.
	allocate func(file *os.File, from, to int64) error
	// copying, in tests, is called for each piece of a Snapshot, within its read transaction.
	copying func()
	// anchorFault, in tests, fails or delays a write of the anchor.
	anchorFault func(anchor.Mark) error
	// sinkDisk, in tests, fails or delays writes of the sink.
	sinkDisk sink.Disk
	// wait, in tests, is how long a change waits for anchor or sink. Default: anchorWait.
	wait time.Duration
	// anchorGiven reports whether Anchor is not the default.
	anchorGiven bool
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
	if c.wait == 0 {
		c.wait = anchorWait
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
	schema int32
	info   fs.FileInfo // of the file that was opened first

	// Locks are taken in the order reopening, writing, state, ring.mutex. No other lock is taken
	// while the mutex of anchor is held.

	// reopening admits one Load at a time to reopen the file.
	reopening gate
	// writing admits one write transaction at a time: the committer's, or one of PutUsage.
	writing gate
	// pruning admits one PruneAudit at a time. It is taken before the other locks.
	pruning gate
	// state guards the group below. The committer holds it for writing from before a
	// transaction may become visible until the index agrees with the file, so that no read
	// begins on a transaction that is not durable. That takes as long as the disk takes to sync,
	// so calls wait for state with their context.
	state    gate
	file     *opened // nil while the store is down
	index    *fileIndex
	position storage.Position
	closed   bool
	// unloaded is set when the file was reopened, until a Load has visited everything. While it
	// is set, the store answers only Load and Barrier.
	unloaded bool
	// ended is set once this process must not open the store again.
	ended error

	ring  *ring
	room  *reserve
	times times
	// sink and anchor write after the commits, in this order. Each is nil if the store has none.
	sink, anchor *anchorWriter
	sinkTarget   *sinkTarget // of sink

	// measuring makes calls of Status share one look at the disk.
	measuring singleflight.Group

	queue     chan *pendingChange
	closing   chan struct{} // closed by Close
	stopped   chan struct{} // closed when the committer has ended
	committer sync.WaitGroup
	closeOnce sync.Once
}

var (
	_ storage.Store        = (*Store)(nil)
	_ storage.ViewLoader   = (*Store)(nil)
	_ storage.SinkReopener = (*Store)(nil)
	_ storage.AuditPruner  = (*Store)(nil)
	_ storage.SinkTrimmer  = (*Store)(nil)
	_ storage.Snapshotter  = (*Store)(nil)
	_ storage.StatsReader  = (*Store)(nil)
)

// Open opens the store in the file at path. If config.Create allows it, Open makes a store
// that does not exist, with mode 0600; the folder must exist. Open upgrades a file of an
// older schema. Errors: ErrAbsent and ErrPresent, as Creation defines, ErrLocked if another
// process serves the file, ErrNewer, ErrDamaged, ErrAnchor, and those of the file system.
func Open(path string, config Config) (*Store, error) {
	config, err := config.withDefaults().withAnchors(path)
	if err != nil {
		return nil, err
	}
	if err := create(path, config); err != nil {
		return nil, err
	}
	// Every start syncs the folder: an earlier process may have been killed after it made the
	// store, or renamed an upgraded file, and before the name was durable.
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	store := &Store{
		path:      path,
		config:    config,
		room:      config.room,
		state:     newGate(),
		writing:   newGate(),
		pruning:   newGate(),
		reopening: newGate(),
		queue:     make(chan *pendingChange, 1024),
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
		if err := store.openAnchors(opened); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), opened.close())
		}
	}
	if err := removeSnapshots(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, opened.close())
	}
	store.use(opened)
	store.epoch, store.schema, store.info = opened.header.GetEpoch(), opened.header.GetSchema(), opened.info
	store.ring = newRing(opened.position)
	store.startAnchors()
	store.committer.Go(store.commitLoop)
	return store, nil
}

// use makes the store serve an opened file. state is held for writing, or the store is not
// shared yet.
func (s *Store) use(file *opened) {
	s.file, s.index, s.position = file, file.index, file.position
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
	// 1. Refuse new calls. Calls that have begun to read or write the file go on.
	s.state.Lock()
	s.closed = true
	s.state.Unlock()
	// 2. End the committer, after the group that it is committing. The wait includes handles
	// that a failed commit closes in the background.
	close(s.closing)
	s.committer.Wait()
	// 3. End the writers of sink and anchor, after the committer: the last group waits for them,
	// too. The sink hands its groups to the anchor, so it ends first.
	s.sink.stop()
	s.anchor.stop()
	// 4. Wait for a reopening in progress, which sees closed and closes its file itself.
	s.reopening.Lock()
	defer s.reopening.Unlock()
	// 5. End the watches, after all that was committed was published.
	s.ring.end(storage.ErrUnavailable)
	// 6. Close the file. bbolt waits for the readers that have begun.
	s.state.Lock()
	file := s.file
	s.file = nil
	s.state.Unlock()
	if file == nil {
		return nil
	}
	return file.close()
}
