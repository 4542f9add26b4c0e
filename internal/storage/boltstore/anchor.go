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
	// anchorWait is the max time that a change waits for the anchor.
	anchorWait = time.Second
	// anchorPause is how long the revision of a new key may wait until the anchor has it,
	// and how long the writer waits after a failed write.
	anchorPause = 500 * time.Millisecond
	// anchorReminder is how often a failure that lasts is logged.
	anchorReminder = time.Minute
)

// AnchorOf returns the default path of the anchor of the store at path.
func AnchorOf(path string) string { return path + ".anchor" }

// anchorWriter writes the anchor after the commits. The committer hands it each committed
// group, and anchorWriter answers the changes of the group. Only its own goroutine writes the
// anchor's file, so a disk that hangs there delays nothing else.
type anchorWriter struct {
	log      *slog.Logger
	file     *anchor.File
	write    func(anchor.Mark) error
	replaced func(error)

	// mutex guards the group below. No other lock is taken while it is held.
	mutex sync.Mutex
	// wanted is the newest committed mark, written the newest mark in the file.
	wanted, written anchor.Mark
	waiting         []*anchorWaiter
	// stalled is set from a write that fails or takes too long until the next write that
	// succeeds. While it is set, no change waits for the anchor.
	stalled  bool
	failures int64
	reminded time.Time
	stopping bool

	wake    chan struct{}
	stopped chan struct{}
}

// anchorWaiter is a group of committed changes that waits until the anchor has its
// revision.
type anchorWaiter struct {
	group    []*pendingChange
	revision int64
	timer    *time.Timer
}

// mark returns how far the file has come. Errors: DamagedError.
func (o *opened) mark() (anchor.Mark, error) {
	mark := anchor.Mark{Epoch: o.header.GetEpoch(), Revision: o.position.Revision}
	var err error
	mark.Hash, err = o.eventHash(mark.Revision)
	return mark, err
}

// eventHash calls the function eventHash in a transaction of its own.
func (o *opened) eventHash(revision int64) (hash [32]byte, err error) {
	err = guard(func() error {
		return o.database.View(func(tx *bolt.Tx) error {
			hash, err = eventHash(tx, revision)
			return err
		})
	})
	return hash, err
}

// checkAnchor compares the file with its anchor. It returns false if the store has no
// anchor yet. Errors: ErrAnchor.
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

// compare compares the file with a mark that was read from path. Errors: ErrAnchor.
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
		err = errors.New("the hashes differ")
	}
	return fmt.Errorf("%w: the event at revision %d is not the one that the anchor %s knows: %w", storage.ErrAnchor, mark.Revision, path, err)
}

// readAnchor reads an anchor. It gives up after 5 s.
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

// openAnchor compares the file with its anchor, makes an anchor if the store has none, and
// returns the writer that keeps it up to date. Errors: ErrAnchor, DamagedError, and those
// of the file system.
func openAnchor(file *opened, config Config) (*anchorWriter, error) {
	// 1. Compare. A store that disagrees with its anchor is not touched.
	found, err := file.checkAnchor(config.Anchor)
	if err != nil {
		return nil, err
	}
	mark, err := file.mark()
	if err != nil {
		return nil, err
	}
	// 2. Make the anchor. A crash after this step leaves an anchor that agrees with the store.
	if !found {
		if err := anchor.Create(config.Anchor, mark); err != nil {
			return nil, fmt.Errorf("making the anchor: %w", err)
		}
	}
	if !file.header.GetAnchored() {
		// 3. Make the anchor's name durable, also if a start before this one made the anchor.
		// This comes before step 4: a header that asks for an anchor whose name a crash took
		// away would refuse every later start.
		if err := syncFolder(filepath.Dir(config.Anchor)); err != nil {
			return nil, err
		}
		// 4. From now on the store cannot be opened without the anchor.
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
	a := &anchorWriter{
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

// start starts the goroutine that writes. The goroutine calls replaced if the anchor's path no
// longer names the file that was opened.
func (a *anchorWriter) start(replaced func(error)) {
	a.replaced = replaced
	go func() {
		defer close(a.stopped)
		defer a.file.Close() //nolint:errcheck // each write was synced
		for a.next() {
		}
	}()
	a.signal()
}

func (a *anchorWriter) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// committed takes over a committed group, whose newest revision is in mark, and answers its
// changes. A group that only creates keys is answered at once: if a crash takes a new key
// away, nobody gets more access. Any other group is answered once the anchor has the mark.
func (a *anchorWriter) committed(mark anchor.Mark, group []*pendingChange) {
	if a == nil {
		answer(group)
		return
	}
	a.mutex.Lock()
	a.wanted = mark
	waits := !a.stalled && !a.stopping && !onlyCreates(group)
	if waits {
		waiter := &anchorWaiter{group: group, revision: mark.Revision}
		waiter.timer = time.AfterFunc(anchorWait, func() { a.expire(waiter) })
		a.waiting = append(a.waiting, waiter)
	}
	a.mutex.Unlock()
	a.signal()
	if !waits {
		answer(group)
	}
}

// reopened tells the writer how far the store has come, after the file was opened again.
func (a *anchorWriter) reopened(mark anchor.Mark) {
	if a == nil {
		return
	}
	a.mutex.Lock()
	a.wanted = mark
	a.mutex.Unlock()
	a.signal()
}

// onlyCreates reports whether all changes of a group create keys.
func onlyCreates(group []*pendingChange) bool {
	for _, pending := range group {
		if pending.change.Event.GetAction() != storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED {
			return false
		}
	}
	return true
}

// answer acknowledges the changes of a committed group.
func answer(group []*pendingChange) {
	for _, pending := range group {
		pending.finish(pending.committed.Revision, nil)
	}
}

// next waits until there is something to write, and writes it. It returns false once the
// writer has to end.
func (a *anchorWriter) next() bool {
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
				continue // a change waits, or the writer has to end
			}
			// The write covers what was committed during the pause.
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

// idle waits until a timer has run out and reports true. It reports false if a change
// begins to wait for the anchor, or the writer has to end.
func (a *anchorWriter) idle(pause *time.Timer) bool {
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

// wrote handles the outcome of a write.
func (a *anchorWriter) wrote(mark anchor.Mark, err error) {
	if errors.Is(err, anchor.ErrReplaced) {
		a.replaced(fmt.Errorf("%w: %w", storage.ErrReplaced, err))
		a.release(func(*anchorWaiter) bool { return true }, fmt.Errorf("%w: %w: %w", storage.ErrOutcomeUnknown, storage.ErrReplaced, err))
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
	a.release(func(waiter *anchorWaiter) bool { return waiter.revision <= mark.Revision }, nil)
}

// expire stalls the writer if a group still waits after anchorWait.
func (a *anchorWriter) expire(waiter *anchorWaiter) {
	a.mutex.Lock()
	waits := false
	for _, each := range a.waiting {
		waits = waits || each == waiter
	}
	a.mutex.Unlock()
	if waits {
		a.stall(fmt.Errorf("no answer for %s", anchorWait))
	}
}

// stall logs the failure, at most once per anchorReminder, and answers all changes that
// wait.
func (a *anchorWriter) stall(err error) {
	a.mutex.Lock()
	a.failures++
	if now := time.Now(); !a.stalled || now.Sub(a.reminded) >= anchorReminder {
		a.reminded = now
		a.log.Error("the anchor cannot be written: changes are answered without it, and what the disk loses of them now is not noticed",
			"error", err, "failures", a.failures, "anchored_revision", a.written.Revision, "revision", a.wanted.Revision)
	}
	a.stalled = true
	a.mutex.Unlock()
	a.release(func(*anchorWaiter) bool { return true }, nil)
}

// release answers the waiting groups that are chosen: with success if err is nil, or with
// err.
func (a *anchorWriter) release(chosen func(*anchorWaiter) bool, err error) {
	a.mutex.Lock()
	var released, rest []*anchorWaiter
	for _, waiter := range a.waiting {
		if chosen(waiter) {
			released = append(released, waiter)
		} else {
			rest = append(rest, waiter)
		}
	}
	a.waiting = rest
	a.mutex.Unlock()
	for _, waiter := range released {
		waiter.timer.Stop()
		if err == nil {
			answer(waiter.group)
			continue
		}
		for _, each := range waiter.group {
			each.finish(0, err)
		}
	}
}

// stop lets the writer write what is left, and ends it. After anchorWait it answers the
// groups that still wait, and gives up on a write that hangs.
func (a *anchorWriter) stop() {
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
		a.stall(errors.New("a write hangs while the store closes"))
	}
	a.release(func(*anchorWaiter) bool { return true }, nil)
}
