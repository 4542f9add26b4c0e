package keystest

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Faults are the rates of a link's faults. A rate of n makes a fault happen once in n calls; 0 is
// never.
type Faults struct {
	// Lost is the rate of commits that are made, but answered with ErrOutcomeUnknown.
	Lost int
	// Dropped is the rate of commits that are not made, and answered with ErrOutcomeUnknown.
	Dropped int
	// Down is the rate of lost and dropped commits that also take the store down. It then answers
	// nothing until it is loaded again.
	Down int
	// Unavailable is the rate of calls that are refused before they reach the store.
	Unavailable int
	// Broken is the rate of events at which a watch ends, as if the connection were lost.
	Broken int
}

// any reports whether any fault may happen.
func (f Faults) any() bool { return f != Faults{} }

// point is a moment at which a link may hold a call back.
type point string

const (
	atStart   point = "start"   // before the first call of a caller, whose number stands for the seat
	atCall    point = "call"    // before a caller's call of a manager
	atCommit  point = "commit"  // before a change reaches the store
	atMade    point = "made"    // before the store's answer to the change reaches the manager
	atRead    point = "read"    // before a read reaches the store
	atAnswer  point = "answer"  // before what was read reaches the manager
	atWatch   point = "watch"   // before an event reaches the projection
	atLoad    point = "load"    // before a load reaches the store
	atLoaded  point = "loaded"  // before what was loaded reaches the projection
	atBarrier point = "barrier" // before a barrier reaches the store
	atReached point = "reached" // before a barrier's answer reaches the projection
)

// pacer decides how long a link holds each call back.
type pacer interface {
	// pause returns when the call may continue, or with the context's error.
	pause(ctx context.Context, seat int, at point) error
}

// outage is the state of one store, up or down, that all links to the store share.
type outage struct {
	mutex sync.Mutex
	down  bool
	fell  chan struct{} // closed and replaced when the store goes down
}

func newOutage() *outage { return &outage{fell: make(chan struct{})} }

func (o *outage) fall() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if !o.down {
		o.down = true
		close(o.fell)
		o.fell = make(chan struct{})
	}
}

func (o *outage) rise() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.down = false
}

func (o *outage) state() (down bool, fell <-chan struct{}) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.down, o.fell
}

// link is the store as one manager sees it. It can hold back each call before and after it reaches the
// store, and make it fail. It keeps the promises of storage.Store.
type link struct {
	storage.Store

	seat    int
	pacer   pacer
	outage  *outage
	history *history
	fail    func(written bool) // takes the real store down with its next commit; nil if it cannot

	mutex  sync.Mutex
	faults Faults
	random *rand.Rand
	losing int64 // revision of the commit that was lost last
}

// bare is a store in a file without its optional behaviours, so that its barriers are read through a link,
// which holds them back.
type bare struct{ storage.Store }

// Unwrap implements storage.Wrapper.
func (l *link) Unwrap() any { return l.Store }

// happens reports whether a fault happens now, given its rate.
func (l *link) happens(pick func(Faults) int) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	n := pick(l.faults)
	return n > 0 && l.random.IntN(n) == 0
}

// set replaces the faults.
func (l *link) set(faults Faults) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.faults = faults
}

// lose makes the next commit fail with an unknown outcome, before or after it is written, and take the
// store down.
func (l *link) lose(written bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.losing, l.faults = 0, Faults{Down: 1}
	if written {
		l.faults.Lost = 1
	} else {
		l.faults.Dropped = 1
	}
}

// found ends the effect of lose, and returns the revision of the lost commit; 0 if it was not
// written.
func (l *link) found() int64 {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.faults = Faults{}
	return l.losing
}

func (l *link) lost(revision int64) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.losing = revision
}

// toStore holds a call back on its way to the store, and returns an error if the call is to fail.
func (l *link) toStore(ctx context.Context, at point) error {
	if err := l.pacer.pause(ctx, l.seat, at); err != nil {
		return err
	}
	if down, _ := l.outage.state(); down {
		return storage.ErrUnavailable
	}
	if at != atCommit && l.happens(func(f Faults) int { return f.Unavailable }) {
		return storage.ErrUnavailable
	}
	return nil
}

// read reads from the store. It holds the call back before and after the read.
func read[T any](ctx context.Context, l *link, ask func() (T, error)) (T, error) {
	var nothing T
	if err := l.toStore(ctx, atRead); err != nil {
		return nothing, err
	}
	answer, err := ask()
	if err := l.pacer.pause(ctx, l.seat, atAnswer); err != nil {
		return nothing, err
	}
	return answer, err
}

// Load implements storage.Store. If the store is down, Load brings it up.
func (l *link) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	if err := l.pacer.pause(ctx, l.seat, atLoad); err != nil {
		return storage.Position{}, err
	}
	var items []storage.Item
	position, err := l.Store.Load(ctx, func(item storage.Item) error {
		items = append(items, item)
		return nil
	})
	if err != nil {
		return position, err
	}
	l.outage.rise()
	if err := l.pacer.pause(ctx, l.seat, atLoaded); err != nil {
		return storage.Position{}, err
	}
	for _, item := range items {
		if err := visit(item); err != nil {
			return storage.Position{}, err
		}
	}
	return position, nil
}

// LoadViews implements storage.ViewLoader, for stores that have it, with whole records: views do not
// outlast a pause, and several worlds over one store must not share its numbers of keys.
func (l *link) LoadViews(ctx context.Context, expect func(storage.Expected), visit func(storage.Item) error) (storage.Position, error) {
	expect(storage.Expected{})
	return l.Load(ctx, visit)
}

// Watch implements storage.Store.
func (l *link) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		down, fell := l.outage.state()
		if down {
			yield(nil, storage.ErrUnavailable)
			return
		}
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			select {
			case <-fell:
				cancel()
			case <-ended:
			}
		}()
		for change, err := range l.Store.Watch(watching, after) {
			if err == nil {
				err = l.pacer.pause(watching, l.seat, atWatch)
			}
			if err == nil && l.happens(func(f Faults) int { return f.Broken }) {
				err = storage.ErrGap
			}
			if err != nil && ctx.Err() == nil && watching.Err() != nil {
				err = storage.ErrUnavailable
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(change, nil) {
				return
			}
		}
	}
}

// Commit implements storage.Store.
func (l *link) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if err := l.toStore(ctx, atCommit); err != nil {
		return 0, err
	}
	if l.happens(func(f Faults) int { return f.Unavailable }) {
		return 0, storage.ErrUnavailable
	}
	dropped := l.happens(func(f Faults) int { return f.Dropped })
	lost := !dropped && l.happens(func(f Faults) int { return f.Lost })
	falls := (lost || dropped) && l.happens(func(f Faults) int { return f.Down })
	if falls && l.fail != nil {
		// The real store goes down, and answers by itself that the outcome is unknown.
		l.fail(lost)
		falls, lost, dropped = false, false, false
	}
	revision, err := int64(0), storage.ErrOutcomeUnknown
	if !dropped {
		l.history.committing(change)
		revision, err = l.Store.Commit(ctx, change)
		if lost && err == nil {
			l.lost(revision)
			revision, err = 0, storage.ErrOutcomeUnknown
		}
	}
	if falls && errors.Is(err, storage.ErrOutcomeUnknown) {
		l.outage.fall()
	}
	// The commit is made, even if the caller has left.
	_ = l.pacer.pause(context.WithoutCancel(ctx), l.seat, atMade)
	return revision, err
}

// Barrier implements storage.Store.
func (l *link) Barrier(ctx context.Context) (storage.Barrier, error) {
	if err := l.toStore(ctx, atBarrier); err != nil {
		return storage.Barrier{}, err
	}
	barrier, err := l.Store.Barrier(ctx)
	if err := l.pacer.pause(ctx, l.seat, atReached); err != nil {
		return storage.Barrier{}, err
	}
	return barrier, err
}

// LocalBarrier implements storage.LocalBarrierReader, for stores that have it. It reads memory, so it is
// never held back.
func (l *link) LocalBarrier() storage.Barrier {
	local, _ := storage.As[storage.LocalBarrierReader](l.Store)
	return local.LocalBarrier()
}

// Fence implements storage.Fencer, for stores that have it. It is held back and fails like a commit whose
// outcome is known.
func (l *link) Fence(ctx context.Context, workspaceID string, head storage.Head) (int64, error) {
	if err := l.toStore(ctx, atCommit); err != nil {
		return 0, err
	}
	if l.happens(func(f Faults) int { return f.Unavailable }) {
		return 0, storage.ErrUnavailable
	}
	fencer, _ := storage.As[storage.Fencer](l.Store)
	begun := l.history.moment.Add(1)
	revision, err := fencer.Fence(ctx, workspaceID, head)
	if err == nil {
		l.history.fenced(revision, begun)
	}
	if err := l.pacer.pause(ctx, l.seat, atMade); err != nil {
		return 0, err
	}
	return revision, err
}

// stored is one record with the revision that it was read at.
type stored[R any] struct {
	record   R
	revision int64
}

// GetKey implements storage.Store.
func (l *link) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	got, err := read(ctx, l, func() (stored[*storagev1.KeyRecord], error) {
		record, revision, err := l.Store.GetKey(ctx, workspaceID, keyID)
		return stored[*storagev1.KeyRecord]{record, revision}, err
	})
	return got.record, got.revision, err
}

// FindRequest implements storage.Store.
func (l *link) FindRequest(ctx context.Context, workspaceID, requestID string) (string, int64, error) {
	got, err := read(ctx, l, func() (stored[string], error) {
		keyID, revision, err := l.Store.FindRequest(ctx, workspaceID, requestID)
		return stored[string]{keyID, revision}, err
	})
	return got.record, got.revision, err
}

// ListKeys implements storage.Store.
func (l *link) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	return read(ctx, l, func() (storage.KeyPage, error) { return l.Store.ListKeys(ctx, query) })
}

// GetMember implements storage.Store.
func (l *link) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	got, err := read(ctx, l, func() (stored[*storagev1.MemberRecord], error) {
		record, revision, err := l.Store.GetMember(ctx, workspaceID, memberID)
		return stored[*storagev1.MemberRecord]{record, revision}, err
	})
	return got.record, got.revision, err
}

// ListMembers implements storage.Store.
func (l *link) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	return read(ctx, l, func() (storage.MemberPage, error) { return l.Store.ListMembers(ctx, query) })
}
