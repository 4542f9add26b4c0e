// Package barrier shares reads of a store's barrier between calls, and compares what they return with
// what a process has applied. docs/replication.md has the rules; R1 and so on are their numbers.
//
// The package starts no goroutine and reads no store: the caller sends the reads. So a simulation can
// drive it step by step.
package barrier

import (
	"fmt"
	"sync"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// Queue shares reads: all calls that wait share the read that is sent next. No call joins a read that
// was sent, because the read may have begun before the acknowledgement of a change that the call must
// see (R2). The zero Queue is empty. Its methods may be called from many goroutines.
type Queue struct {
	mutex sync.Mutex
	// sending reports whether somebody takes reads and sends them.
	sending bool
	// waiting is the read that is sent next; nil if no call waits.
	waiting *Read
}

// Read is one read of the barrier.
type Read struct {
	done    chan struct{}
	barrier storage.Barrier
	err     error
}

// Join returns the read that is sent next. If send is set, nobody sends reads at present: the caller must
// see to it that somebody calls Take until it returns nil.
func (q *Queue) Join() (read *Read, send bool) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	if q.waiting == nil {
		q.waiting = &Read{done: make(chan struct{})}
	}
	send = !q.sending
	q.sending = true
	return q.waiting, send
}

// Take returns the read to send now. From here on no call can join it. It is nil if no call waits.
func (q *Queue) Take() *Read {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	next := q.waiting
	q.waiting, q.sending = nil, next != nil
	return next
}

// Finish notes the answer to a read, and wakes the calls that share it. It is called once.
func (r *Read) Finish(barrier storage.Barrier, err error) {
	r.barrier, r.err = barrier, err
	close(r.done)
}

// Done is closed when the read is finished.
func (r *Read) Done() <-chan struct{} { return r.done }

// Result returns the answer to a finished read.
func (r *Read) Result() (storage.Barrier, error) { return r.barrier, r.err }

// Compare returns an error that wraps storage.ErrHistoryChanged if a barrier speaks of another history than
// the one that a process has applied (R7): if it lies before what was applied when the barrier began,
// or has another change at a revision that was applied last. before is what was applied before the barrier
// began, and now what is applied at present. A hash of zeros is not known, and differs from none.
func Compare(read, before, now storage.Barrier) error {
	if read.Revision >= before.Revision && !read.Differs(before) && !read.Differs(now) {
		return nil
	}
	return fmt.Errorf("%w: the change log is at revision %d, after %d was applied, or holds another change there",
		storage.ErrHistoryChanged, read.Revision, max(before.Revision, now.Revision))
}
