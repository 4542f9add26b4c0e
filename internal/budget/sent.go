package budget

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"
)

// goneTimeout bounds the wait for grpc to let go of an answer after the call has ended. grpc
// never says so for an answer that it had begun to write when its connection ended.
const goneTimeout = 3 * time.Second

// sent is an answer that grpc has been given to write. It is the pool that its buffer goes back to
// once the answer is written, or dropped.
type sent struct {
	budget *Budget
	holder Holder
	// bytes is what the answer holds; 0 once that was given back.
	bytes atomic.Int64
	// shared is set if the buffer belongs to other answers as well.
	shared bool
	gone   chan struct{}
}

// newSent returns an answer that has taken a number of bytes.
func newSent(budget *Budget, holder Holder, bytes int64) *sent {
	s := &sent{budget: budget, holder: holder, gone: make(chan struct{})}
	s.bytes.Store(bytes)
	return s
}

// buffer returns an answer's bytes as grpc takes them. The capacity of data is more than small.
func (s *sent) buffer(data *[]byte) mem.BufferSlice {
	return mem.BufferSlice{mem.NewBuffer(data, s)}
}

// Get implements mem.BufferPool. Nobody asks a sent for a buffer.
func (s *sent) Get(length int) *[]byte { return buffers.Get(length) }

// Put implements mem.BufferPool: grpc has written the answer, or has dropped it.
func (s *sent) Put(data *[]byte) {
	if !s.shared {
		buffers.Put(data)
	}
	s.release()
	close(s.gone)
}

// release gives back what the answer holds, once.
func (s *sent) release() { s.budget.give(s.holder, s.bytes.Swap(0)) }

// isGone reports whether grpc has let go of the answer.
func (s *sent) isGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// wait returns when grpc has let go of the answer. After ctx, that of the call, has ended, it waits
// for goneTimeout at most, and not at all if stopping has ended. Then what the answer holds counts
// as given back.
func (s *sent) wait(ctx, stopping context.Context) {
	defer s.release()
	select {
	case <-s.gone:
		return
	case <-ctx.Done():
	}
	timer := time.NewTimer(goneTimeout)
	defer timer.Stop()
	select {
	case <-s.gone:
	case <-timer.C:
	case <-stopping.Done():
	}
}
