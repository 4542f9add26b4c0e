package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/scribe-mail/keysvc/internal/barrier"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// barrierTimeout bounds one read of the store's barrier. It outlives an election of the store's leader, in which no
// read is answered: the calls that wait have deadlines of their own.
const barrierTimeout = 5 * time.Second

// Fresh returns once the projection shows every change that any process acknowledged before the
// call. To answer from the projection, call Fresh first.
//
// Why this is enough: a change is acknowledged after it was committed. A barrier is a
// linearizable read of the newest committed revision. A barrier that begins after the call
// therefore covers every change that was acknowledged before the call.
//
// Errors: storage.ErrUnavailable; the context's; storage.ErrHistoryChanged, which ends Follow
// as well.
func (p *Projection) Fresh(ctx context.Context) error {
	// 1. Read what is applied before the barrier begins: a barrier that begins later cannot lie
	//    before it, unless the store has lost changes.
	before := p.applied.Load()
	// 2. Read a barrier that begins after the call.
	read, err := p.barriers.next(ctx)
	if err != nil {
		return err
	}
	// 3. If the store has fewer changes than were applied, or another change at a revision that was
	//    applied last, end Follow: nothing that the projection shows is certain any more.
	if err := barrier.Compare(read, *before, *p.applied.Load()); err != nil {
		p.endFollow(err)
		return err
	}
	// 4. Wait until the projection shows the barrier's revision.
	return p.WaitFor(ctx, read.Revision)
}

// WaitFor returns once the projection shows a revision, or with the context's error.
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
	// reached is closed when the projection shows the revision.
	reached chan struct{}
}

// advance makes the revision of the state known, and wakes the calls that wait for it. mutex is
// held, and state was set before.
func (p *Projection) advance(applied storage.Barrier) {
	p.applied.Store(&applied)
	for waiting := range p.waiters {
		if waiting.revision <= applied.Revision {
			delete(p.waiters, waiting)
			close(waiting.reached)
		}
	}
}

// endFollow ends Follow with an error.
func (p *Projection) endFollow(err error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	if p.stopFollowing != nil {
		p.stopFollowing(err)
	}
}

// barriers reads the store's barrier. Calls share the reads, as barrier.Queue has it.
type barriers struct {
	store storage.BarrierReader
	// local is the store, if reading its barrier is free; then no read is shared.
	local storage.LocalBarrierReader
	queue barrier.Queue
}

func newBarriers(store storage.BarrierReader) *barriers {
	local, _ := storage.As[storage.LocalBarrierReader](store)
	return &barriers{store: store, local: local}
}

// next returns a barrier that began after the call.
func (b *barriers) next(ctx context.Context) (storage.Barrier, error) {
	if b.local != nil {
		return b.local.LocalBarrier(), nil
	}
	mine, send := b.queue.Join()
	if send {
		go b.send() //nolint:gosec // G118: many calls share the read, so none of their contexts ends it; barrierTimeout does
	}
	select {
	case <-mine.Done():
		return mine.Result()
	case <-ctx.Done():
		return storage.Barrier{}, ctx.Err()
	}
}

// send sends one read after another until no call waits. One goroutine runs it.
func (b *barriers) send() {
	for read := b.queue.Take(); read != nil; read = b.queue.Take() {
		ctx, cancel := context.WithTimeout(context.Background(), barrierTimeout)
		newest, err := b.store.Barrier(ctx)
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: the store's barrier took longer than %s", storage.ErrUnavailable, barrierTimeout)
		}
		cancel()
		read.Finish(newest, err)
	}
}
