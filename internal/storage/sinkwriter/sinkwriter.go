// Package sinkwriter writes the audit sink of a store that several processes serve. One of them writes at a
// time, after the answers of changes, by following the store's audit events.
//
// A lock beside the sink's file keeps two writers apart that overlap for a moment. The next one goes on after the last
// line of the file. If the file does not have all lines, because another process wrote another file, it
// goes on at the position that the store remembers, in a new file. The store's position is raised only
// once the lines are durable. So no event is left out, and what is pruned is in a sink.
package sinkwriter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

const (
	// gather is how long lines are gathered before they are made durable together.
	gather = 100 * time.Millisecond
	// raiseInterval is how often the position in the store is raised, at most. The next writer of a file that is
	// shared goes by the file.
	raiseInterval = 10 * time.Second
	// lockInterval is how often a writer looks whether the lock is free.
	lockInterval = 200 * time.Millisecond
)

// LockSuffix is at the end of the name of the file that a Writer locks. Before it is the path of the sink.
const LockSuffix = ".lock"

// Store is the part of a store that a Writer needs. It must offer storage.AuditFollower.
type Store interface {
	storage.AuditReader
	// Epoch returns the identity of the store's history.
	Epoch() string
}

// Config says what a Writer writes, and where.
type Config struct {
	// Store is what is followed. Required.
	Store Store
	// Path is the path of the sink's file. Required.
	Path string
	// MaxBytes is the length from which on a new file begins; 0 for any.
	MaxBytes int64
	// Log receives what operators should know. Default: nothing.
	Log *slog.Logger
}

// Writer writes a sink.
type Writer struct {
	config   Config
	follower storage.AuditFollower
	// reopen is set by a call that asks for the file to be opened again.
	reopen atomic.Bool

	mutex  sync.Mutex
	status storage.Follower
}

// New returns a Writer, which writes nothing yet. It makes the path absolute.
func New(config Config) (*Writer, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	follower, has := storage.As[storage.AuditFollower](config.Store)
	if !has {
		return nil, errors.New("the audit events of this store cannot be followed")
	}
	var err error
	if config.Path, err = filepath.Abs(config.Path); err != nil {
		return nil, err
	}
	return &Writer{config: config, follower: follower, status: storage.Follower{On: true}}, nil
}

// Status returns how the sink is. Its revision is 0 unless this process writes it.
func (w *Writer) Status() storage.Follower {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.status
}

// ReopenSink implements storage.SinkReopener: with the next line the Writer goes over to the file that the path names.
func (w *Writer) ReopenSink() { w.reopen.Store(true) }

// TrimSink implements storage.SinkTrimmer.
func (w *Writer) TrimSink(ctx context.Context, before time.Time) (removed []string, err error) {
	expired, err := sink.Expired(w.config.Path, before)
	for _, name := range expired {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if err := os.Remove(name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	return removed, err
}

// Run writes until the context ends. It tries again after each failure.
func (w *Writer) Run(ctx context.Context) {
	retries := backoff.New(100*time.Millisecond, 10*time.Second)
	for ctx.Err() == nil {
		err := w.write(ctx, retries.Reset)
		if ctx.Err() != nil {
			break
		}
		w.failing(ctx, err)
		retries.Wait(ctx)
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.status = storage.Follower{On: true} // what another process writes is not known
}

// failing notes a failure, and logs the first.
func (w *Writer) failing(ctx context.Context, err error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if !w.status.Failing {
		w.config.Log.ErrorContext(ctx, "the audit sink cannot be written; its lines follow later, and are not lost", "path", w.config.Path, "error", err)
	}
	w.status.Failing = true
}

// written notes up to where the sink is durable.
func (w *Writer) written(file *sink.File) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.status.Failing {
		w.config.Log.Info("the audit sink is written again", "path", w.config.Path, "revision", file.Mark().Revision)
	}
	w.status = storage.Follower{On: true, Full: file.Full(), Revision: file.Mark().Revision}
}

// write is Run until the first failure. worked is called once lines were written.
func (w *Writer) write(ctx context.Context, worked func()) error {
	unlock, err := lock(ctx, w.config.Path+LockSuffix)
	if err != nil {
		return err
	}
	defer unlock()
	file, rest, err := w.open(ctx)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // each write was synced
	w.written(file)
	own, end := context.WithCancel(ctx)
	defer end()
	// 1. Follow the events in a goroutine, so that those that come at once are written at once.
	events, failed := make(chan storage.AuditEvent, 1024), make(chan error, 1)
	go func() {
		defer close(events)
		for event, err := range w.follower.FollowAudit(own, file.Mark().Revision) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case events <- event:
			case <-own.Done():
				return
			}
		}
	}()
	// 2. Write what was gathered. When the context ends, what has come is written.
	b := &batch{writer: w, file: file, raised: file.Mark().Revision}
	for _, event := range rest {
		if err := b.add(event); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(gather)
	defer ticker.Stop()
	for {
		select {
		case event, open := <-events:
			if !open {
				err := errors.Join(b.flush(), b.raise(ctx))
				select {
				case because := <-failed:
					return errors.Join(err, because)
				default:
					return errors.Join(err, ctx.Err())
				}
			}
			if err := b.add(event); err != nil {
				return err
			}
		case <-ticker.C:
			had := len(b.lines) > 0
			if err := b.flush(); err != nil {
				return err
			}
			if had {
				worked()
			}
			if time.Since(b.at) > raiseInterval {
				// A full etcd is no reason to write no lines.
				if err := b.raise(ctx); err != nil && !errors.Is(err, storage.ErrFull) {
					return err
				}
			}
		}
	}
}

// batch is what was gathered and is not durable yet.
type batch struct {
	writer *Writer
	file   *sink.File
	lines  []byte
	last   anchor.Mark
	// raised is the position that the store has, and at when it was raised last.
	raised int64
	at     time.Time
}

// add adds the line of an event.
func (b *batch) add(event storage.AuditEvent) (err error) {
	// Each line is late: it is written after its change was acknowledged.
	line := sink.EventLine(b.writer.config.Store.Epoch(), event.Revision, event, true)
	if b.lines, err = line.Append(b.lines); err != nil {
		return err
	}
	b.last = line.Mark
	if len(b.lines) >= sink.MaxBatch {
		return b.flush()
	}
	return nil
}

// flush makes the gathered lines durable.
func (b *batch) flush() error {
	if b.writer.reopen.Swap(false) || b.file.Moved() {
		if err := b.file.Rotate(); err != nil {
			return err
		}
	}
	if len(b.lines) == 0 {
		return nil
	}
	if maximum := b.writer.config.MaxBytes; maximum > 0 && b.file.Size() >= maximum {
		if err := b.file.Roll(); err != nil {
			return err
		}
	}
	if err := b.file.Append(b.lines, b.last, nil); err != nil {
		return err
	}
	b.lines = b.lines[:0]
	b.writer.written(b.file)
	return nil
}

// raise stores the position of the last durable line.
func (b *batch) raise(ctx context.Context) error {
	b.at = time.Now()
	mark := b.file.Mark()
	if mark.Revision <= b.raised {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := b.writer.follower.PutSinkPosition(ctx, storage.Barrier{Revision: mark.Revision, Hash: mark.Hash}); err != nil {
		return err
	}
	b.raised = mark.Revision
	return nil
}

// open opens the file where its next line belongs. rest are the events of the revision of its last line that the
// sink does not have: events that were imported together have one revision.
func (w *Writer) open(ctx context.Context) (file *sink.File, rest []storage.AuditEvent, err error) {
	position, err := w.follower.SinkPosition(ctx)
	if err != nil {
		return nil, nil, err
	}
	epoch := w.config.Store.Epoch()
	known := anchor.Mark{Epoch: epoch, Revision: position.Revision, Hash: position.Hash}
	name, tail, err := sink.Newest(w.config.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.begin(ctx, known)
	case err != nil:
		return nil, nil, err
	case tail.Newest.Epoch == epoch && tail.Newest.Revision >= known.Revision:
		// 1. The file has all lines that any process has written. The store must have its last event.
		if rest, err = w.compare(ctx, tail.Newest); err != nil {
			return nil, nil, err
		}
		if name != w.config.Path { // it was renamed, and the next one was not begun
			file, err = sink.Open(w.config.Path, sink.Tail{}, tail.Newest, sink.Options{})
		} else {
			file, err = sink.Open(w.config.Path, tail, tail.Last, sink.Options{})
		}
		return file, rest, err
	}
	// 2. Other lines are in another file, or the store is another one. What is here stays, under another name.
	if name == w.config.Path {
		if err := os.Rename(name, name+time.Now().UTC().Format(".20060102T150405.000000000Z")); err != nil {
			return nil, nil, err
		}
	}
	w.config.Log.WarnContext(ctx, "the audit sink goes on in a new file: another process has written lines that are not here",
		"path", w.config.Path, "has", tail.Newest.Revision, "after", known.Revision)
	return w.begin(ctx, known)
}

// begin begins a file after the position that the store remembers.
func (w *Writer) begin(ctx context.Context, known anchor.Mark) (file *sink.File, rest []storage.AuditEvent, err error) {
	// The position itself was compared by the writer that has stored it.
	if rest, err = w.compare(ctx, known); err != nil && !errors.Is(err, storage.ErrAnchor) {
		return nil, nil, err
	}
	file, err = sink.Open(w.config.Path, sink.Tail{}, known, sink.Options{})
	return file, rest, err
}

// Compare compares the store with the last line of the sink, if the file has all lines that any process has written, as far as
// that is known. The error is ErrAnchor if the store does not have the event of that line: it was put back, or
// is another one. Other errors are those of the store and of the file system.
func (w *Writer) Compare(ctx context.Context) error {
	position, err := w.follower.SinkPosition(ctx)
	if err != nil {
		return err
	}
	_, tail, err := sink.Newest(w.config.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case tail.Newest.Epoch != w.config.Store.Epoch() || tail.Newest.Revision < position.Revision:
		return nil
	}
	_, err = w.compare(ctx, tail.Newest)
	return err
}

// compare compares the store with the last line of the sink, and returns the events after it that have the same revision. The error is ErrAnchor if the store does not have
// the line's event: it was put back, or is another one.
func (w *Writer) compare(ctx context.Context, mark anchor.Mark) (rest []storage.AuditEvent, err error) {
	if mark.Revision == 0 {
		return nil, nil
	}
	// Events that were imported together have one revision, and are one page.
	page, err := w.config.Store.ScanAuditEvents(ctx, storage.AuditQuery{All: true, After: mark.Revision - 1, Before: mark.Revision + 1, Limit: 1})
	if err != nil {
		return nil, err
	}
	last := slices.IndexFunc(page.Events, func(event storage.AuditEvent) bool { return storage.HashAudit(event.Encoded) == mark.Hash })
	if last < 0 {
		return nil, fmt.Errorf("%w: it does not have the event of revision %d as the last line of the audit sink %s has it: an older copy of the store may have been put back",
			storage.ErrAnchor, mark.Revision, w.config.Path)
	}
	rest = page.Events[:last] // the newest first
	slices.Reverse(rest)
	return rest, nil
}

// lock takes the lock of a sink, and returns what gives it back. It waits until the context ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(lockInterval)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil // closing unlocks
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), file.Close())
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		}
	}
}
