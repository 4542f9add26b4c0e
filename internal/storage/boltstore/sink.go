package boltstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// The audit sink follows the store: after the commit of a group its events are written to the
// sink, in revision order, and synced once. Only then are the changes answered. The anchorWriter
// does this, with a sinkTarget.
//
// While the sink cannot be written, narrowing changes are answered without it, and other changes
// are refused before their commit. The lines that are missing are read from the store once the sink
// can be written again, at the latest at the next start. So the sink gets every event once, in
// order.

// Special values of Config.Sink.
const (
	// SinkOff opens a store that had a sink, and that agrees with it, without one from now on.
	SinkOff = "off"
	// SinkAsBefore opens a store with the sink that it had when it was opened last, if any.
	SinkAsBefore = "as before"
)

// errOvertaken is the error of a write whose changes were answered before it had ended. The lines
// are written again, and say so.
var errOvertaken = errors.New("the write took too long")

// withAnchors returns the config with the paths of anchor and sink.
func (c Config) withAnchors(path string) (Config, error) {
	c.anchorGiven = c.Anchor != ""
	if !c.anchorGiven {
		c.Anchor = AnchorOf(path)
	}
	if c.Sink == "" || c.Sink == SinkOff || c.Sink == SinkAsBefore {
		return c, nil
	}
	var err error
	// The header names the sink, and the next start may have another working directory.
	c.Sink, err = filepath.Abs(c.Sink)
	return c, err
}

// sinkTarget is the target that is the audit sink.
type sinkTarget struct {
	file *sink.File
	log  *slog.Logger
	// read returns the events of the store from one revision to another, in order. It may return
	// fewer, with the revision that it ends at.
	read func(from, to int64) ([]sunkEvent, int64, error)
	// overtaken reports whether the changes that waited were answered in the meantime.
	overtaken func() bool
	// failed is set from a failed write until the file was opened again.
	failed bool
	// handled is a revision up to which every event is in the sink, or cannot be read. 0 after a
	// failure.
	handled int64
	// lines are those that were added and not written yet, the last of which has the position last.
	lines []byte
	last  anchor.Mark

	// maxBytes is the length from which on a new file begins, 0 for any. After a failure nextRoll says
	// when to try again.
	maxBytes int64
	nextRoll time.Time

	// rotate is set by a call that asks for the file to be opened again.
	rotate atomic.Bool
	// full reports whether the disk has space for narrowing changes only.
	full    atomic.Bool
	refused atomic.Int64
	// probe is when an attempt is due to find out whether there is space again, in Unix nanoseconds.
	probe atomic.Int64
}

// sunkEvent is an event for the sink.
type sunkEvent struct {
	revision int64
	event    storage.AuditEvent
}

// waits implements target. Without its event in the sink, not even a new key is acknowledged.
func (*sinkTarget) waits([]*pendingChange) bool { return true }

func (*sinkTarget) words() targetWords {
	return targetWords{
		failed:   "the audit sink cannot be written: only changes that take something away are made, and their lines follow later",
		restored: "the audit sink is written again, and has every event: all changes are made",
		revision: "sink_revision",
	}
}

// Close implements target.
func (t *sinkTarget) Close() error { return t.file.Close() }

// tend implements target. It opens the file again if that was asked for, and allocates disk space.
func (t *sinkTarget) tend() {
	if t.failed {
		return // write opens the file again
	}
	if t.rotate.Swap(false) {
		if err := t.file.Rotate(); err != nil {
			t.log.Error("the audit sink stays in its present file: the next one cannot be made", "path", t.file.Path(), "error", err)
		} else {
			t.log.Info("the audit sink was opened again", "path", t.file.Path(), "revision", t.file.Mark().Revision)
		}
	}
	t.roll()
	t.file.Reserve()
	t.noteRoom()
}

// roll begins a new file if the present one is too long.
func (t *sinkTarget) roll() {
	if t.maxBytes <= 0 || t.file.Size() < t.maxBytes || time.Now().Before(t.nextRoll) {
		return
	}
	if err := t.file.Roll(); err != nil {
		t.nextRoll = time.Now().Add(anchorReminder)
		t.log.Error("the audit sink stays in its present file, which is too long: the next one cannot be made", "path", t.file.Path(), "error", err)
		return
	}
	t.log.Info("the audit sink goes on in a new file", "path", t.file.Path(), "revision", t.file.Mark().Revision)
}

// noteRoom takes over whether the disk has space.
func (t *sinkTarget) noteRoom() {
	switch isFull := t.file.Full(); {
	case isFull && !t.full.Swap(true):
		t.log.Warn("the disk of the audit sink has no room: only changes that take something away are made", "path", t.file.Path())
	case !isFull && t.full.Swap(false):
		t.log.Info("the disk of the audit sink has room again: all changes are made", "path", t.file.Path())
	}
}

// write implements target. It writes the lines of all events after the newest in the sink, up to
// mark.
func (t *sinkTarget) write(mark anchor.Mark, groups []*anchorWaiter) error {
	// 1. After a failure, open the file again and cut what the failed write left. After a rotation
	// without a signal, go over to the next file.
	if t.failed {
		if err := t.file.Reopen(); err != nil {
			return err
		}
		t.failed = false
	} else if t.file.Moved() {
		t.log.Warn("the audit sink was deleted or replaced; it goes on in the file that its path names", "path", t.file.Path())
		if err := t.file.Rotate(); err != nil {
			return err
		}
	}
	// 2. Write the events of the waiting groups. What comes before them, after a failure, is read
	// from the store.
	next := max(t.file.Mark().Revision, t.handled) + 1
	t.lines = t.lines[:0]
	for _, waiter := range groups {
		for _, pending := range waiter.group {
			revision := pending.committed.Revision
			if revision < next {
				continue
			}
			if revision > next {
				if err := t.flush(t.confirm); err != nil {
					return err
				}
				if err := t.catchUp(mark.Epoch, next, revision-1); err != nil {
					return err
				}
			}
			if err := t.add(pending.line(mark.Epoch), t.confirm); err != nil {
				return err
			}
			next = revision + 1
		}
	}
	if err := t.flush(t.confirm); err != nil {
		return err
	}
	// 3. Write the events of the changes that were answered without the sink.
	if err := t.catchUp(mark.Epoch, next, mark.Revision); err != nil {
		return err
	}
	t.handled = mark.Revision
	t.noteRoom()
	return nil
}

// line returns the line of a committed change, whose hash is known.
func (p *pendingChange) line(epoch string) sink.Line {
	return sink.Line{
		Mark: anchor.Mark{Epoch: epoch, Revision: p.committed.Revision, Hash: p.committed.Head.Head.Hash},
		Time: p.committed.Time, Event: &storage.AuditEvent{Record: p.change.Event, Encoded: p.event},
	}
}

// confirm refuses lines whose changes were answered before the lines were durable: they have to say
// that they are late.
func (t *sinkTarget) confirm() error {
	if t.overtaken() {
		return errOvertaken
	}
	return nil
}

// add adds a line, and writes the lines that were added once they are many.
func (t *sinkTarget) add(line sink.Line, confirm func() error) error {
	var err error
	if t.lines, err = line.Append(t.lines); err != nil {
		return err
	}
	t.last = line.Mark
	if len(t.lines) < sink.MaxBatch {
		return nil
	}
	return t.flush(confirm)
}

// flush makes the lines durable that were added.
func (t *sinkTarget) flush(confirm func() error) error {
	if len(t.lines) == 0 {
		return nil
	}
	if err := t.file.Append(t.lines, t.last, confirm); err != nil {
		t.failed, t.handled = true, 0
		return err
	}
	t.lines = t.lines[:0]
	return nil
}

// catchUp writes the events from one revision to another as the store has them. Their lines are
// late.
func (t *sinkTarget) catchUp(epoch string, from, to int64) error {
	for from <= to {
		// The events are read before they are written: a transaction that is open for as long as the
		// disk of the sink takes would hold up the commits.
		events, end, err := t.read(from, to)
		if err != nil {
			return fmt.Errorf("reading the events for the audit sink: %w", err)
		}
		for _, each := range events {
			if err := t.add(sink.EventLine(epoch, each.revision, each.event, true), nil); err != nil {
				return err
			}
		}
		if err := t.flush(nil); err != nil {
			return err
		}
		from = end + 1
	}
	return nil
}

// eventsBetween reads the events from one revision to another, at most about sink.MaxBatch bytes of
// them, and the revision that it ended at. Events that were pruned are left out, and so are
// unreadable ones, which the log has.
func eventsBetween(tx *bolt.Tx, from, to int64, log *slog.Logger) (events []sunkEvent, end int64) {
	size := 0
	cursor := tx.Bucket([]byte(bucketAudit)).Cursor()
	for name, value := cursor.Seek([]byte(number(from))); name != nil; name, value = cursor.Next() {
		revision, err := parseNumber(name)
		if err != nil || revision > to {
			break // Check reports a name that is not a number
		}
		event, _, err := decodeAudit(string(name), value)
		if err != nil {
			log.Error("an audit event cannot be read, and is missing in the audit sink", "revision", revision, "error", err)
			continue
		}
		events = append(events, sunkEvent{revision, event})
		if size += len(value); size >= sink.MaxBatch {
			return events, revision
		}
	}
	return events, to
}

// eventsBetween calls the function eventsBetween in a transaction of its own.
func (o *opened) eventsBetween(from, to int64, log *slog.Logger) (events []sunkEvent, end int64, err error) {
	err = guard(func() error {
		return o.database.View(func(tx *bolt.Tx) error {
			events, end = eventsBetween(tx, from, to, log)
			return nil
		})
	})
	return events, end, err
}

// eventsBetween calls the function eventsBetween on the newest durable state.
func (s *Store) eventsBetween(from, to int64) (events []sunkEvent, end int64, err error) {
	// The sink may read a reopened file before a Load has: it must get what nobody was told, too. And
	// it reads while the store closes, to catch up.
	s.state.RLock()
	file := s.file
	var tx *bolt.Tx
	if file != nil {
		tx, err = file.database.Begin(false)
	}
	s.state.RUnlock()
	if file == nil || err != nil {
		return nil, 0, errors.Join(storage.ErrUnavailable, err)
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction: nothing to lose
	err = guard(func() error {
		events, end = eventsBetween(tx, from, to, s.config.Log)
		return nil
	})
	return events, end, err
}

// sinkTail is the end of a store's sink, which may be in several files.
type sinkTail struct {
	// path is where the next line belongs. tail is the end of this file.
	path string
	tail sink.Tail
	// newest is the position of the newest line; its epoch is empty if there is no line. from is the
	// file with that line.
	newest anchor.Mark
	from   string
}

// findSink looks for the sink at path: the file of this name, or what it was renamed to. Errors: those
// of the file system.
func findSink(path string) (sinkTail, error) {
	return readInTime(func() (sinkTail, error) {
		found := sinkTail{path: path}
		if path == "" {
			return found, nil
		}
		name, tail, err := sink.Newest(path)
		if errors.Is(err, fs.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		found.newest, found.from = tail.Newest, name
		if name == path {
			found.tail = tail
		}
		return found, nil
	})
}

// checkSink compares the file with its sink: what is to be written at path, or the sink that the
// header names if path is empty. A store that has a sink does not begin another one: the one that it
// leaves behind would grow stale, and an old copy of the store would agree with it. Errors: ErrAnchor.
func (o *opened) checkSink(path string) (sinkTail, error) {
	named := o.header.GetSink()
	found, err := findSink(cmp.Or(path, named))
	switch {
	case err != nil:
		return found, fmt.Errorf("%w: the audit sink %s cannot be read: %w", storage.ErrAnchor, path, err)
	case found.newest.Epoch != "":
		if _, goesOn := o.goesOn(found.newest); goesOn {
			return found, nil
		}
		return found, o.compare("the audit sink "+found.from, found.newest)
	case named != "" && path != "" && path != named:
		return found, fmt.Errorf("%w: the store has the audit sink %s, and there is none at %s: give the former, or move it there first",
			storage.ErrAnchor, named, path)
	case named != "":
		return found, fmt.Errorf("%w: the audit sink %s is not there", storage.ErrAnchor, named)
	}
	return found, nil
}

// openAnchors compares a file with its anchor and its sink, and opens both for writing, as the
// config says. Errors: ErrAnchor, DamagedError, and those of the file system.
func (s *Store) openAnchors(file *opened) error {
	config, before := s.config, file.header.GetSink()
	if config.Sink == SinkAsBefore {
		config.Sink = before
	}
	// 1. Compare. A store that disagrees is not touched.
	found, err := file.checkAnchor(config.Anchor)
	if err != nil {
		return err
	}
	var sunk sinkTail
	switch config.Sink {
	case "", SinkOff:
		if before != "" && config.Sink == "" {
			return fmt.Errorf("%w: the store has an audit sink, %s, and %w", storage.ErrAnchor, before, storage.ErrSinkNotGiven)
		}
		if _, err := file.checkSink(""); err != nil {
			return err
		}
	default:
		if sunk, err = file.checkSink(config.Sink); err != nil {
			return err
		}
		// 2. Open the sink. The first time it gets all events that the store has.
		if err := s.openSink(file, sunk); err != nil {
			return err
		}
	}
	// 3. Open the anchor's file, if it is wanted.
	if s.sink == nil || config.anchorGiven {
		if s.anchor, err = openAnchor(file, config, found); err != nil {
			return errors.Join(err, s.closeSink())
		}
	}
	// 4. Note in the header which sink the store has. This comes after the steps that make what
	// the header asks for.
	if now := s.sinkPath(); now != before {
		err := file.putHeader(func(header *storagev1.HeaderRecord) { header.Anchored, header.Sink = true, now })
		if err != nil {
			return errors.Join(err, s.closeSink())
		}
	}
	// 5. An anchor's file that nobody writes any more would grow stale. It agreed in step 1.
	if s.sink != nil && s.anchor == nil && found {
		if err := os.Remove(config.Anchor); err != nil {
			config.Log.Warn("the anchor's file is not needed any more, and cannot be removed", "path", config.Anchor, "error", err)
		}
	}
	return nil
}

// openSink opens the sink for writing. A sink that the header does not name gets all events that
// the store has.
func (s *Store) openSink(file *opened, found sinkTail) error {
	mark, err := file.mark()
	if err != nil {
		return err
	}
	log := s.config.Log
	if found.tail.Altered > 0 {
		log.Error("lines of the audit sink are not what was written; keysvc audit verify names them", "path", found.path, "lines", found.tail.Altered)
	}
	if cut := found.tail.Size - found.tail.End; cut > 0 {
		log.Warn("the end of the audit sink is torn, as after a crash; it is written again", "path", found.path, "bytes", cut)
	}
	last := found.tail.Last
	if last.Epoch == "" { // a new file repeats the position of the one before
		last = found.newest
	}
	if last.Epoch == "" {
		last.Epoch = mark.Epoch
	}
	opened, err := readInTime(func() (*sink.File, error) {
		return sink.Open(found.path, found.tail, last, sink.Options{Reserve: s.config.SinkReserve, Disk: s.config.sinkDisk, Now: s.config.Now})
	})
	if err != nil {
		return fmt.Errorf("opening the audit sink %s: %w", found.path, err)
	}
	if !opened.Supported() {
		log.Warn("the file system of the audit sink cannot allocate disk space ahead: when it is full, only some changes that take something away are still made",
			"path", found.path)
	}
	s.sinkTarget = &sinkTarget{file: opened, log: log, maxBytes: s.config.SinkMaxBytes, read: func(from, to int64) ([]sunkEvent, int64, error) {
		return file.eventsBetween(from, to, log)
	}}
	if file.header.GetSink() == "" {
		if from, goesOn := file.goesOn(found.newest); goesOn {
			if last, err = from, opened.BeginEpoch(from); err != nil {
				return errors.Join(fmt.Errorf("writing the audit sink %s: %w", found.path, err), opened.Close())
			}
		}
		if err := s.sinkTarget.catchUp(mark.Epoch, last.Revision+1, mark.Revision); err != nil {
			return errors.Join(fmt.Errorf("writing the audit sink %s: %w", found.path, err), opened.Close())
		}
		last = mark
		log.Info("the audit sink has every event", "path", found.path, "revision", mark.Revision)
	}
	s.sink = newAnchorWriter(s.config, s.sinkTarget, last, mark)
	s.sinkTarget.overtaken = s.sink.isStalled
	return nil
}

// closeSink closes a sink that was opened and not started.
func (s *Store) closeSink() error {
	if s.sinkTarget == nil {
		return nil
	}
	return s.sinkTarget.Close()
}

// sinkPath returns the path of the sink, empty if the store has no sink.
func (s *Store) sinkPath() string {
	if s.sinkTarget == nil {
		return ""
	}
	return s.sinkTarget.file.Path()
}

// startAnchors starts the writers of sink and anchor. It waits until the sink has every event of
// the store, or until the first failure.
func (s *Store) startAnchors() {
	s.anchor.start(s.end, nil)
	if s.sink == nil {
		return
	}
	s.sinkTarget.read = s.eventsBetween
	s.sink.start(s.end, s.anchor)
	timer := time.NewTimer(openWait)
	defer timer.Stop()
	select {
	case <-s.sink.settled:
	case <-timer.C:
		s.sink.stall(fmt.Errorf("no answer for %s", openWait))
	}
}

// committed hands a committed group to the writers of sink and anchor, which answer it.
func (s *Store) committed(mark anchor.Mark, group []*pendingChange) {
	if s.sink != nil {
		s.sink.committed(mark, group)
		return
	}
	s.anchor.committed(mark, group)
}

// admitToSink refuses a change that does not narrow while the sink cannot be written or has no room
// for it. The error is ErrSink.
func (s *Store) admitToSink(change *storage.Change) error {
	if s.sink == nil || change.Narrows {
		return nil
	}
	full := s.sinkTarget.full.Load()
	if !full && !s.sink.isStalled() {
		return nil
	}
	s.sinkTarget.refused.Add(1)
	if now := time.Now().UnixNano(); full {
		if next := s.sinkTarget.probe.Load(); now >= next && s.sinkTarget.probe.CompareAndSwap(next, now+int64(roomInterval)) {
			s.sink.signal() // tend looks whether there is space again
		}
	}
	return storage.ErrSink
}

// admitted refuses the changes of a group that admitToSink refuses, and returns the others.
func (s *Store) admitted(group []*pendingChange) []*pendingChange {
	return slices.DeleteFunc(group, func(pending *pendingChange) bool {
		err := s.admitToSink(pending.change)
		if err != nil {
			pending.finish(0, err)
		}
		return err != nil
	})
}

// ReopenSink goes over to the file that the path of the audit sink names, after the present file was
// renamed. It returns before that is done.
func (s *Store) ReopenSink() {
	if s.sink != nil {
		s.sinkTarget.rotate.Store(true)
		s.sink.signal()
	}
}

// TrimSink implements storage.SinkTrimmer.
func (s *Store) TrimSink(ctx context.Context, before time.Time) (removed []string, err error) {
	path := s.sinkPath()
	if path == "" || s.sink.isStalled() {
		return nil, nil
	}
	expired, err := sink.Expired(path, before)
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
