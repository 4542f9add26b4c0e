package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

const (
	// anchorWait is how long a change waits for the anchor at most.
	anchorWait = time.Second
	// anchorPause is how long a new key's revision may wait to be anchored, and how long
	// nothing is tried after a failure.
	anchorPause = 500 * time.Millisecond
	// anchorReminder is how often a failure that lasts is logged.
	anchorReminder = time.Minute
)

// AnchorOf returns where the anchor of a store lies unless another place is named.
func AnchorOf(path string) string { return path + ".anchor" }

// anchoring writes the anchor, behind the commits. The committer tells it what was
// committed; it answers those changes that wait for the anchor. It is the one goroutine
// that touches the anchor's file, so that a hung one holds up nobody else.
type anchoring struct {
	log      *slog.Logger
	file     *anchor.File
	write    func(anchor.Mark) error
	replaced func(error)

	mutex sync.Mutex
	// wanted is the newest committed mark, written the newest in the file.
	wanted, written anchor.Mark
	waiting         []*anchored
	// stalled is set from a write that failed or took too long to the next that
	// succeeded: nobody waits then.
	stalled  bool
	failures int64
	reminded time.Time
	stopping bool

	wake    chan struct{}
	stopped chan struct{}
}

// anchored is a group of changes that waits for its revision to be anchored.
type anchored struct {
	group    []*request
	revision int64
	timer    *time.Timer
}

// mark returns the mark of a file that was opened. Errors: DamagedError.
func (o *opened) mark() (anchor.Mark, error) {
	mark := anchor.Mark{Epoch: o.header.GetEpoch(), Revision: o.position.Revision}
	var err error
	mark.Hash, err = o.eventHash(mark.Revision)
	return mark, err
}

// eventHash returns the hash of a revision's audit event, zero for revision 0.
func (o *opened) eventHash(revision int64) (hash [32]byte, err error) {
	if revision == 0 {
		return hash, nil
	}
	err = guard(func() error {
		return o.database.View(func(tx *bolt.Tx) error {
			name := number(revision)
			if value := tx.Bucket([]byte(bucketAudit)).Get([]byte(name)); value != nil {
				event, _, err := decodeAudit(name, value)
				hash = storage.HashAudit(event.Encoded)
				return err
			}
			// The event may have been pruned; the feed has its hash.
			entry := &storagev1.FeedRecord{}
			if err := get(tx, "feed entry", bucketFeed, name, entry); err != nil {
				return damagedIfMissing(err, "audit event")
			}
			copy(hash[:], entry.GetAuditHash())
			return nil
		})
	})
	return hash, err
}

// checkAnchor compares a file that was opened with its anchor. It returns false if the
// store has none yet. Errors: ErrAnchor.
func (o *opened) checkAnchor(path string) (bool, error) {
	mark, err := readAnchor(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !o.header.GetAnchored():
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%w: the anchor %s is not there", storage.ErrAnchor, path)
	case err != nil:
		return false, fmt.Errorf("%w: the anchor %s cannot be read: %w", storage.ErrAnchor, path, err)
	}
	return true, o.compare(path, mark)
}

// compare compares a file that was opened with what its anchor says.
func (o *opened) compare(path string, mark anchor.Mark) error {
	switch {
	case mark.Epoch != o.header.GetEpoch():
		return fmt.Errorf("%w: the store has epoch %s, the anchor %s epoch %s", storage.ErrAnchor, o.header.GetEpoch(), path, mark.Epoch)
	case mark.Revision > o.position.Revision:
		return fmt.Errorf("%w: the store is at revision %d, the anchor %s at %d: the newest changes are lost",
			storage.ErrAnchor, o.position.Revision, path, mark.Revision)
	}
	hash, err := o.eventHash(mark.Revision)
	if err == nil && hash == mark.Hash {
		return nil
	}
	if err == nil {
		err = errors.New("it is another")
	}
	return fmt.Errorf("%w: the event at revision %d is not the one that the anchor %s knows: %w", storage.ErrAnchor, mark.Revision, path, err)
}

// readAnchor reads an anchor, for a few seconds at most.
func readAnchor(path string) (anchor.Mark, error) {
	type answer struct {
		mark anchor.Mark
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		mark, err := anchor.Read(path)
		read <- answer{mark, err}
	}()
	timer := time.NewTimer(5 * anchorWait)
	defer timer.Stop()
	select {
	case answer := <-read:
		return answer.mark, answer.err
	case <-timer.C:
		return anchor.Mark{}, fmt.Errorf("no answer for %s", 5*anchorWait)
	}
}

// openAnchor compares a file that was opened with its anchor, and makes one if it has none.
// It returns what writes it from then on.
func openAnchor(file *opened, config Config) (*anchoring, error) {
	found, err := file.checkAnchor(config.Anchor)
	if err != nil {
		return nil, err
	}
	mark, err := file.mark()
	if err != nil {
		return nil, err
	}
	if !found {
		if err := anchor.Create(config.Anchor, mark); err != nil {
			return nil, fmt.Errorf("making the anchor: %w", err)
		}
	}
	if !file.header.GetAnchored() {
		// Found or made: its name must be on the disk before the store asks for it.
		if err := syncFolder(filepath.Dir(config.Anchor)); err != nil {
			return nil, err
		}
		// Only now: a crash in between leaves an anchor that agrees, not one that is missed.
		file.header.Anchored = true
		err := guard(func() error {
			return file.database.Update(func(tx *bolt.Tx) error { return put(tx, bucketMeta, nameHeader, file.header) })
		})
		if err != nil {
			return nil, err
		}
	}
	opened, err := anchor.Open(config.Anchor)
	if err != nil {
		return nil, fmt.Errorf("opening the anchor: %w", err)
	}
	a := &anchoring{
		log:     config.Log,
		file:    opened,
		write:   opened.Write,
		written: opened.Mark(),
		wanted:  mark,
		wake:    make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
	if config.anchorFault != nil {
		a.write = func(mark anchor.Mark) error {
			if err := config.anchorFault(mark); err != nil {
				return err
			}
			return opened.Write(mark)
		}
	}
	return a, nil
}

// start starts the goroutine that writes. It calls replaced if it finds that another
// file was put in the anchor's place.
func (a *anchoring) start(replaced func(error)) {
	a.replaced = replaced
	go func() {
		defer close(a.stopped)
		defer a.file.Close() //nolint:errcheck // each write was synced
		for a.next() {
		}
	}()
	a.signal()
}

func (a *anchoring) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// committed takes over a group that was committed, up to a mark, and answers it: at
// once if it is nothing but new keys, which nobody can use yet to do harm if they are
// lost, or else when the mark is in the anchor.
func (a *anchoring) committed(mark anchor.Mark, group []*request) {
	if a == nil {
		answer(group)
		return
	}
	a.mutex.Lock()
	a.wanted = mark
	waits := !a.stalled && !a.stopping && !onlyCreates(group)
	if waits {
		entry := &anchored{group: group, revision: mark.Revision}
		entry.timer = time.AfterFunc(anchorWait, func() { a.expire(entry) })
		a.waiting = append(a.waiting, entry)
	}
	a.mutex.Unlock()
	a.signal()
	if !waits {
		answer(group)
	}
}

// reopened tells how far the store is after it was opened anew.
func (a *anchoring) reopened(mark anchor.Mark) {
	if a == nil {
		return
	}
	a.mutex.Lock()
	a.wanted = mark
	a.mutex.Unlock()
	a.signal()
}

// onlyCreates reports whether a group creates keys and does nothing else.
func onlyCreates(group []*request) bool {
	for _, entry := range group {
		if entry.change.Event.GetAction() != storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED {
			return false
		}
	}
	return true
}

// answer answers the changes of a group that was committed.
func answer(group []*request) {
	for _, entry := range group {
		entry.finish(entry.committed.Revision, nil)
	}
}

// next waits until there is something to write, and writes it. It returns false at the
// end.
func (a *anchoring) next() bool {
	<-a.wake
	for {
		a.mutex.Lock()
		mark, due, urgent, stopping := a.wanted, a.wanted != a.written, len(a.waiting) > 0, a.stopping
		a.mutex.Unlock()
		switch {
		case !due:
			return !stopping
		case !urgent && !stopping:
			if pause := time.NewTimer(anchorPause); !a.idle(pause) {
				continue // somebody waits, or it is the end
			}
			// What was committed meanwhile is written as well.
			a.mutex.Lock()
			mark = a.wanted
			a.mutex.Unlock()
		}
		err := a.write(mark)
		a.wrote(mark, err)
		if err != nil && stopping {
			return false
		}
	}
}

// idle waits until a timer has run out and reports true; false if it is interrupted by
// a change that waits, or by the end.
func (a *anchoring) idle(pause *time.Timer) bool {
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
			return true
		case <-a.wake:
			a.mutex.Lock()
			interrupted := len(a.waiting) > 0 || a.stopping
			a.mutex.Unlock()
			if interrupted {
				return false
			}
		}
	}
}

// wrote follows on a write.
func (a *anchoring) wrote(mark anchor.Mark, err error) {
	if errors.Is(err, anchor.ErrReplaced) {
		a.replaced(fmt.Errorf("%w: %w", storage.ErrReplaced, err))
		a.release(func(*anchored) bool { return true }, fmt.Errorf("%w: %w: %w", storage.ErrOutcomeUnknown, storage.ErrReplaced, err))
		a.mutex.Lock()
		a.written = mark // nothing is left to do
		a.mutex.Unlock()
		return
	}
	if err != nil {
		a.stall(err)
		return
	}
	a.mutex.Lock()
	a.written = mark
	if a.stalled {
		a.log.Info("the anchor is written again: changes wait for it", "revision", mark.Revision, "failures", a.failures)
	}
	a.stalled, a.failures = false, 0
	a.mutex.Unlock()
	a.release(func(entry *anchored) bool { return entry.revision <= mark.Revision }, nil)
}

// expire answers a group that has waited for long enough.
func (a *anchoring) expire(entry *anchored) {
	a.mutex.Lock()
	waits := false
	for _, each := range a.waiting {
		waits = waits || each == entry
	}
	a.mutex.Unlock()
	if waits {
		a.stall(fmt.Errorf("no answer for %s", anchorWait))
	}
}

// stall raises the alarm and answers all changes that wait.
func (a *anchoring) stall(err error) {
	a.mutex.Lock()
	a.failures++
	if now := time.Now(); !a.stalled || now.Sub(a.reminded) >= anchorReminder {
		a.reminded = now
		a.log.Error("the anchor cannot be written: changes are answered without it, and what the disk loses of them now is not noticed",
			"error", err, "failures", a.failures, "anchored_revision", a.written.Revision, "revision", a.wanted.Revision)
	}
	a.stalled = true
	a.mutex.Unlock()
	a.release(func(*anchored) bool { return true }, nil)
}

// release answers the groups that wait and are chosen: with success, or an error.
func (a *anchoring) release(chosen func(*anchored) bool, err error) {
	a.mutex.Lock()
	var released, rest []*anchored
	for _, entry := range a.waiting {
		if chosen(entry) {
			released = append(released, entry)
		} else {
			rest = append(rest, entry)
		}
	}
	a.waiting = rest
	a.mutex.Unlock()
	for _, entry := range released {
		entry.timer.Stop()
		if err == nil {
			answer(entry.group)
			continue
		}
		for _, each := range entry.group {
			each.finish(0, err)
		}
	}
}

// stop writes what is left and ends; after a second it answers whoever waits and leaves
// a write that hangs to itself.
func (a *anchoring) stop() {
	if a == nil {
		return
	}
	a.mutex.Lock()
	a.stopping = true
	a.mutex.Unlock()
	a.signal()
	ctx, cancel := context.WithTimeout(context.Background(), anchorWait)
	defer cancel()
	select {
	case <-a.stopped:
	case <-ctx.Done():
		a.stall(errors.New("it hangs at the stop"))
	}
	a.release(func(*anchored) bool { return true }, nil)
}

// end takes the store down for good: what it serves is no longer what the next start
// will open.
func (s *Store) end(err error) {
	s.state.Lock()
	defer s.state.Unlock()
	if s.ended == nil {
		s.ended = err
	}
	if s.file != nil && !s.closed {
		s.config.Log.Error("the store ends", "error", err)
		s.goDown(nil)
	}
}

// checkMark checks that a file that was opened anew has everything that was committed to
// it, and tells the anchoring how far it is. Errors: ErrHistoryChanged.
func (s *Store) checkMark(file *opened) error {
	if s.anchor == nil {
		return nil
	}
	s.anchor.mutex.Lock()
	known := s.anchor.wanted
	s.anchor.mutex.Unlock()
	if err := file.compare("in memory", known); err != nil {
		return fmt.Errorf("%w: %w", storage.ErrHistoryChanged, err)
	}
	mark, err := file.mark()
	if err != nil {
		return err
	}
	s.anchor.reopened(mark)
	return nil
}
