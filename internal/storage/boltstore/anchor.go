package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

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
	// openWait is how long opening waits for the disk of the anchor or of the sink.
	openWait = 5 * time.Second
)

// AnchorOf returns the default path of the anchor of the store at path.
func AnchorOf(path string) string { return path + ".anchor" }

// anchorWriter writes outside of the store how far the store has come, after the commits: to the
// anchor's file or to the audit sink. The committer hands it each committed group, and
// anchorWriter answers the changes of the group. Only its own goroutine writes, so a disk that
// hangs there delays nothing else.
type anchorWriter struct {
	log *slog.Logger
	to  target
	// wait is how long a group waits at most.
	wait time.Duration
	// ended is called with ErrReplaced if the next start would not find what to has written.
	ended func(error)
	// next takes over a group once it may be answered. It is the writer after this one; nil answers.
	then *anchorWriter

	// mutex guards the group below. No other lock is taken while it is held.
	mutex sync.Mutex
	// wanted is the newest committed mark, written the newest mark that to has.
	wanted, written anchor.Mark
	waiting         []*anchorWaiter
	// stalled is set from a write that fails or takes too long until the next write that
	// succeeds. While it is set, no change waits.
	stalled  bool
	failures int64
	reminded time.Time
	stopping bool

	wake chan struct{}
	// released gets a value when no group waits any more.
	released chan struct{}
	stopped  chan struct{}
	// settled is closed after the first write, or the first failure.
	settled chan struct{}
	settle  sync.Once
}

// target is what an anchorWriter writes. Only the writer's goroutine calls its methods, except
// waits and words.
type target interface {
	// write makes a mark durable. groups are the committed groups that wait for it, in order.
	write(mark anchor.Mark, groups []*anchorWaiter) error
	// tend does what is due besides.
	tend()
	// waits reports whether a group must wait until its mark is durable.
	waits(group []*pendingChange) bool
	// words returns what the log says.
	words() targetWords
	// Closer releases the target. Each write was synced.
	io.Closer
}

// targetWords is what the log says about a target.
type targetWords struct {
	// failed and restored are the messages for the first failure and for the first success after
	// it. revision is the name of the attribute for the newest durable revision.
	failed, restored, revision string
}

// anchorWaiter is a group of committed changes that waits until its mark is durable.
type anchorWaiter struct {
	group []*pendingChange
	mark  anchor.Mark
	timer *time.Timer
}

// newAnchorWriter returns a writer to a target, which has the mark written.
func newAnchorWriter(config Config, to target, written, wanted anchor.Mark) *anchorWriter {
	a := &anchorWriter{
		log: config.Log, to: to, wait: config.wait, written: written, wanted: wanted,
		wake: make(chan struct{}, 1), released: make(chan struct{}, 1), stopped: make(chan struct{}), settled: make(chan struct{}),
	}
	if written == wanted {
		a.settle.Do(func() { close(a.settled) })
	}
	return a
}

// anchorFile is the target that is the anchor's file.
type anchorFile struct {
	*anchor.File
	fault func(anchor.Mark) error // in tests
}

func (f anchorFile) write(mark anchor.Mark, _ []*anchorWaiter) error {
	if f.fault != nil {
		if err := f.fault(mark); err != nil {
			return err
		}
	}
	return f.Write(mark)
}

func (anchorFile) tend() {}

// waits implements target. If a crash takes a new key away, nobody gets more access.
func (anchorFile) waits(group []*pendingChange) bool { return !onlyCreates(group) }

func (anchorFile) words() targetWords {
	return targetWords{
		failed:   "the anchor cannot be written: changes are answered without it, and what the disk loses of them now is not noticed",
		restored: "the anchor is written again: changes wait for it",
		revision: "anchored_revision",
	}
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

// checkAnchor compares the file with its anchor. It returns false if the store has no anchor's
// file yet, or its sink is its anchor. Errors: ErrAnchor.
func (o *opened) checkAnchor(path string) (bool, error) {
	mark, err := readInTime(func() (anchor.Mark, error) { return anchor.Read(path) })
	switch {
	case errors.Is(err, fs.ErrNotExist) && (!o.header.GetAnchored() || o.header.GetSink() != ""):
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%w: the anchor %s is not there", storage.ErrAnchor, path)
	case err != nil:
		return false, fmt.Errorf("%w: the anchor %s cannot be read: %w", storage.ErrAnchor, path, err)
	}
	return true, o.compare("the anchor "+path, mark)
}

// compare compares the file with the mark of something else, which where names. Errors: ErrAnchor.
func (o *opened) compare(where string, mark anchor.Mark) error {
	switch {
	case mark.Epoch != o.header.GetEpoch():
		return fmt.Errorf("%w: the store has epoch %s, %s epoch %s", storage.ErrAnchor, o.header.GetEpoch(), where, mark.Epoch)
	case mark.Revision > o.position.Revision:
		return fmt.Errorf("%w: the store is at revision %d, %s at %d: the newest changes are lost",
			storage.ErrAnchor, o.position.Revision, where, mark.Revision)
	}
	hash, err := o.eventHash(mark.Revision)
	if err == nil && hash == mark.Hash {
		return nil
	}
	if err == nil {
		err = errors.New("the hashes differ")
	}
	return fmt.Errorf("%w: the event at revision %d is not the one that %s knows: %w", storage.ErrAnchor, mark.Revision, where, err)
}

// readInTime returns what read returns. It gives up after 5 s.
func readInTime[T any](read func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := read()
		answers <- answer{value, err}
	}()
	timer := time.NewTimer(openWait)
	defer timer.Stop()
	select {
	case answer := <-answers:
		return answer.value, answer.err
	case <-timer.C:
		var none T
		return none, fmt.Errorf("no answer for %s", openWait)
	}
}

// openAnchor makes an anchor's file if found is false, and returns the writer that keeps it up to
// date. The caller has compared the store with its anchor. Errors: DamagedError, and those of the
// file system.
func openAnchor(file *opened, config Config, found bool) (*anchorWriter, error) {
	mark, err := file.mark()
	if err != nil {
		return nil, err
	}
	// 1. Make the anchor. A crash after this step leaves an anchor that agrees with the store.
	if !found {
		if err := anchor.Create(config.Anchor, mark); err != nil {
			return nil, fmt.Errorf("making the anchor: %w", err)
		}
	}
	if !file.header.GetAnchored() {
		// 2. Make the anchor's name durable, also if a start before this one made the anchor.
		// This comes before step 3: a header that asks for an anchor whose name a crash took
		// away would refuse every later start.
		if err := syncFolder(filepath.Dir(config.Anchor)); err != nil {
			return nil, err
		}
		// 3. From now on the store cannot be opened without the anchor.
		if err := file.putHeader(func(header *storagev1.HeaderRecord) { header.Anchored = true }); err != nil {
			return nil, err
		}
	}
	opened, err := anchor.Open(config.Anchor)
	if err != nil {
		return nil, fmt.Errorf("opening the anchor: %w", err)
	}
	return newAnchorWriter(config, anchorFile{opened, config.anchorFault}, opened.Mark(), mark), nil
}

// putHeader changes the header, in memory and in the file.
func (o *opened) putHeader(change func(*storagev1.HeaderRecord)) error {
	header := proto.CloneOf(o.header)
	change(header)
	err := guard(func() error {
		return o.database.Update(func(tx *bolt.Tx) error { return put(tx, bucketMeta, nameHeader, header) })
	})
	if err == nil {
		o.header = header
	}
	return err
}

// start starts the goroutine that writes. The goroutine calls ended if the anchor's path no longer
// names the file that was opened. then is the writer that gets a group after this one, nil if none.
func (a *anchorWriter) start(ended func(error), then *anchorWriter) {
	if a == nil {
		return
	}
	a.ended, a.then = ended, then
	go func() {
		defer close(a.stopped)
		defer a.to.Close() //nolint:errcheck // each write was synced
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
// changes: at once if the target does not ask to wait, or once the target has the mark.
func (a *anchorWriter) committed(mark anchor.Mark, group []*pendingChange) {
	if a == nil {
		answer(group)
		return
	}
	a.mutex.Lock()
	if mark.Revision > a.wanted.Revision { // the writer before this one may hand over out of order
		a.wanted = mark
	}
	waits := !a.stalled && !a.stopping && a.to.waits(group)
	if waits {
		waiter := &anchorWaiter{group: group, mark: mark}
		waiter.timer = time.AfterFunc(a.wait, func() { a.expire(waiter) })
		a.waiting = append(a.waiting, waiter)
	}
	a.mutex.Unlock()
	a.signal()
	if !waits {
		a.then.committed(mark, group)
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
		a.to.tend()
		a.mutex.Lock()
		due, urgent, stopping := a.wanted != a.written, len(a.waiting) > 0, a.stopping
		a.mutex.Unlock()
		switch {
		case !due:
			return !stopping
		case !urgent && !stopping && a.hasSettled():
			if pause := time.NewTimer(anchorPause); !a.idle(pause) {
				continue // a change waits, or the writer has to end
			}
		}
		// The write covers what was committed during the pause.
		a.mutex.Lock()
		mark, groups := a.wanted, slices.Clone(a.waiting)
		a.mutex.Unlock()
		err := a.to.write(mark, groups)
		a.wrote(mark, err)
		if err != nil && stopping {
			return false
		}
	}
}

// hasSettled reports whether there was a write, or a failure.
func (a *anchorWriter) hasSettled() bool {
	select {
	case <-a.settled:
		return true
	default:
		return false
	}
}

// isStalled reports whether no change waits.
func (a *anchorWriter) isStalled() bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.stalled
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
		a.ended(fmt.Errorf("%w: %w", storage.ErrReplaced, err))
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
		a.log.Info(a.to.words().restored, "revision", mark.Revision, "failures", a.failures) //nolint:sloglint // a constant of the target
	}
	a.stalled, a.failures = false, 0
	a.mutex.Unlock()
	a.settle.Do(func() { close(a.settled) })
	a.release(func(waiter *anchorWaiter) bool { return waiter.mark.Revision <= mark.Revision }, nil)
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
		a.stall(fmt.Errorf("no answer for %s", a.wait))
	}
}

// stall logs the failure, at most once per anchorReminder, and answers all changes that
// wait.
func (a *anchorWriter) stall(err error) {
	a.mutex.Lock()
	a.failures++
	if now := time.Now(); !a.stalled || now.Sub(a.reminded) >= anchorReminder {
		a.reminded = now
		words := a.to.words()
		a.log.Error(words.failed, "error", err, "failures", a.failures, words.revision, a.written.Revision, "revision", a.wanted.Revision) //nolint:sloglint // a constant of the target
	}
	a.stalled = true
	a.mutex.Unlock()
	a.settle.Do(func() { close(a.settled) })
	a.release(func(*anchorWaiter) bool { return true }, nil)
}

// awaitWritten waits until no group waits for the target, at most for a time. It returns how many changes
// were answered meanwhile. Only one goroutine may call it.
func (a *anchorWriter) awaitWritten(limit time.Duration) (answered int) {
	if a == nil || limit <= 0 {
		return 0
	}
	before := a.waitingChanges()
	if before == 0 {
		return 0
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		waiting := a.waitingChanges()
		if waiting == 0 {
			return before
		}
		select {
		case <-a.released:
		case <-timer.C:
			return before - waiting
		}
	}
}

// waitingChanges returns the number of changes that wait for the target.
func (a *anchorWriter) waitingChanges() (changes int) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for _, waiter := range a.waiting {
		changes += len(waiter.group)
	}
	return changes
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
	if len(rest) == 0 {
		select {
		case a.released <- struct{}{}:
		default:
		}
	}
	for _, waiter := range released {
		waiter.timer.Stop()
		if err == nil {
			a.then.committed(waiter.mark, waiter.group)
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
