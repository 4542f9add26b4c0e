package projection

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// barrierTimeout bounds one read of the store's barrier.
const barrierTimeout = time.Second

// Fresh returns once the projection shows every change that was acknowledged, by any
// process, before the call. Whatever is said from the projection is said after it.
//
// It asks the store for a barrier that begins after the call, and waits until the
// projection has come to it. Errors: storage.ErrUnavailable, the context's, and
// storage.ErrHistoryChanged, which ends Follow as well.
func (p *Projection) Fresh(ctx context.Context) error {
	// What was applied before the barrier began cannot lie beyond it.
	before := p.applied.Load()
	barrier, err := p.barriers.next(ctx)
	if err != nil {
		return err
	}
	if barrier.Revision < before.Revision || barrier.Revision == before.Revision && differ(barrier.Hash, before.Hash) {
		err := fmt.Errorf("%w: the change log is at revision %d, after %d was applied, or holds another change there",
			storage.ErrHistoryChanged, barrier.Revision, before.Revision)
		p.lose(err)
		return err
	}
	return p.WaitFor(ctx, barrier.Revision)
}

// differ reports whether two hashes are known and not the same.
func differ(a, b [32]byte) bool {
	return a != b && a != [32]byte{} && b != [32]byte{}
}

// WaitFor returns once the projection has come to revision, or with the context's
// error.
func (p *Projection) WaitFor(ctx context.Context, revision int64) error {
	if p.Revision() >= revision {
		return nil
	}
	p.mutex.Lock()
	if p.state.revision >= revision {
		p.mutex.Unlock()
		return nil
	}
	waiting := &waiter{revision: revision, reached: make(chan struct{})}
	p.waiters[waiting] = struct{}{}
	p.mutex.Unlock()
	select {
	case <-waiting.reached:
		return nil
	case <-ctx.Done():
		p.mutex.Lock()
		delete(p.waiters, waiting)
		p.mutex.Unlock()
		return ctx.Err()
	}
}

// waiter is one call that waits for a revision.
type waiter struct {
	revision int64
	// reached is closed when the projection has come to revision.
	reached chan struct{}
}

// advance makes a state's revision known, and wakes the calls that wait for it. mutex is
// held, and the state is in its place.
func (p *Projection) advance(applied storage.Barrier) {
	p.applied.Store(&applied)
	for waiting := range p.waiters {
		if waiting.revision <= applied.Revision {
			delete(p.waiters, waiting)
			close(waiting.reached)
		}
	}
}

// lose ends Follow with an error.
func (p *Projection) lose(err error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	if p.stopFollowing != nil {
		p.stopFollowing(err)
	}
}

// barriers shares reads of the store's barrier: calls that wait share the next read. No
// call joins a read that has been sent, for that may have begun before a change was
// acknowledged which the call has to reflect.
type barriers struct {
	store storage.BarrierReader
	// local is the store if its barrier costs nothing; then nothing is shared.
	local storage.LocalBarrierReader

	mutex sync.Mutex
	// reading says that a read has been sent.
	reading bool
	// waiting is the read that will be sent when that one has ended; nil if nobody waits.
	waiting *barrierRead
}

// barrierRead is one read of the barrier.
type barrierRead struct {
	// done is closed when the outcome is there.
	done    chan struct{}
	barrier storage.Barrier
	err     error
}

func newBarriers(store storage.BarrierReader) *barriers {
	local, _ := storage.LocalBarrierOf(store)
	return &barriers{store: store, local: local}
}

// next returns a barrier that began after the call.
func (b *barriers) next(ctx context.Context) (storage.Barrier, error) {
	if b.local != nil {
		return b.local.LocalBarrier(), nil
	}
	b.mutex.Lock()
	if b.waiting == nil {
		b.waiting = &barrierRead{done: make(chan struct{})}
	}
	mine := b.waiting
	if !b.reading {
		b.reading = true
		go b.read() //nolint:gosec // G118: many calls share the read, so none of their contexts ends it; barrierTimeout does
	}
	b.mutex.Unlock()
	select {
	case <-mine.done:
		return mine.barrier, mine.err
	case <-ctx.Done():
		return storage.Barrier{}, ctx.Err()
	}
}

// read sends one read after the other until nobody waits.
func (b *barriers) read() {
	for {
		b.mutex.Lock()
		// Taken before it is sent: from here on nobody can join it.
		next := b.waiting
		b.waiting, b.reading = nil, next != nil
		b.mutex.Unlock()
		if next == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), barrierTimeout)
		next.barrier, next.err = b.store.Barrier(ctx)
		if next.err != nil && ctx.Err() != nil {
			next.err = fmt.Errorf("%w: the store's barrier took longer than %s", storage.ErrUnavailable, barrierTimeout)
		}
		cancel()
		close(next.done)
	}
}
