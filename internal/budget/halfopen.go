package budget

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// HalfOpenTimeout is how long a request may take to come.
	HalfOpenTimeout = 10 * time.Second
	// tick is how often calls are looked at.
	tick = time.Second
	// lists is the number of lists of half-open calls, and listLength how many calls each may have:
	// together 1024 calls, which hold about 11 MiB. A connection is always on the same list, so one
	// connection has at most listLength half-open calls.
	listBits   = 3
	lists      = 1 << listBits
	listLength = 128
)

// halfOpen knows the calls whose request is not complete. A call that is half-open for
// HalfOpenTimeout is ended. If there are too many, the connection with the most of them loses the one
// that has been half-open for the longest time. Its methods may be called from many goroutines.
type halfOpen struct {
	// surplus is the status of a call that makes room for another.
	surplus *status.Status
	// now counts ticks.
	now   atomic.Int64
	lists [lists]halfOpenList
}

// halfOpenList is a list of half-open calls, the oldest first.
type halfOpenList struct {
	mutex          sync.Mutex
	oldest, newest *halfOpenCall
	length         int
	// counted is room to count the calls of each connection, when there are too many.
	counted map[*peer.Peer]int
	_       [64]byte // so that two lists do not share a cache line
}

// halfOpenCall is a call in a list. The fields are guarded by the list's mutex.
type halfOpenCall struct {
	list         *halfOpenList
	connection   *peer.Peer
	older, newer *halfOpenCall
	since        int64
	transport    transportStream
}

func newHalfOpen(surplus *status.Status) *halfOpen {
	return &halfOpen{surplus: surplus}
}

// listOf returns the list of a connection.
func (h *halfOpen) listOf(connection *peer.Peer) *halfOpenList {
	// Every call comes here, so this is a multiplication and not a hash (Knuth's, by the golden
	// ratio). Peers are not moved in memory.
	address := uint64(uintptr(unsafe.Pointer(connection))) //nolint:gosec // only a number is made of it
	return &h.lists[address*0x9e3779b97f4a7c15>>(64-listBits)]
}

// begin notes that the request of a call has begun to come.
func (h *halfOpen) begin(call *halfOpenCall, connection *peer.Peer, transport transportStream) {
	list := h.listOf(connection)
	list.mutex.Lock()
	var surplus transportStream
	if list.length >= listLength {
		makesRoom := list.surplus(connection)
		surplus = makesRoom.transport
		list.remove(makesRoom)
	}
	call.list, call.connection, call.transport, call.since = list, connection, transport, h.now.Load()
	call.older = list.newest
	if call.older != nil {
		call.older.newer = call
	} else {
		list.oldest = call
	}
	list.newest = call
	list.length++
	list.mutex.Unlock()
	if surplus != nil {
		_ = surplus.WriteStatus(h.surplus) // a call that is over is not told
	}
}

// surplus returns the oldest call of the connection that has the most, the newcomer's call included.
// mutex is held, and the list is full.
func (l *halfOpenList) surplus(newcomer *peer.Peer) *halfOpenCall {
	if l.counted == nil {
		l.counted = make(map[*peer.Peer]int)
	}
	clear(l.counted)
	most, largest := 0, newcomer
	l.counted[newcomer] = 1
	for call := l.oldest; call != nil; call = call.newer {
		l.counted[call.connection]++
		if count := l.counted[call.connection]; count > most {
			most, largest = count, call.connection
		}
	}
	for call := l.oldest; call != nil; call = call.newer {
		if call.connection == largest {
			return call
		}
	}
	return l.oldest
}

// end notes that the request of a call is complete, or that the call is over.
func (h *halfOpen) end(call *halfOpenCall) {
	list := call.list
	list.mutex.Lock()
	if call.transport != nil {
		list.remove(call)
	}
	list.mutex.Unlock()
}

// remove takes a call off the list. mutex is held.
func (l *halfOpenList) remove(call *halfOpenCall) {
	if call.older != nil {
		call.older.newer = call.newer
	} else {
		l.oldest = call.newer
	}
	if call.newer != nil {
		call.newer.older = call.older
	} else {
		l.newest = call.older
	}
	call.older, call.newer, call.transport, call.connection = nil, nil, nil, nil
	l.length--
}

// lateHalfOpen is the status of a call whose request did not come in time.
var lateHalfOpen = status.New(codes.DeadlineExceeded, "the request did not come within "+HalfOpenTimeout.String())

// run ends calls that are half-open for too long, until the context ends.
func (h *halfOpen) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			h.sweep(h.now.Add(1) - int64(HalfOpenTimeout/tick))
		case <-ctx.Done():
			return
		}
	}
}

// sweep ends the calls that began before a tick.
func (h *halfOpen) sweep(before int64) {
	var late []transportStream
	for index := range h.lists {
		list := &h.lists[index]
		list.mutex.Lock()
		for list.oldest != nil && list.oldest.since < before {
			late = append(late, list.oldest.transport)
			list.remove(list.oldest)
		}
		list.mutex.Unlock()
	}
	for _, each := range late {
		_ = each.WriteStatus(lateHalfOpen) // a call that is over is not told
	}
}

// length returns how many calls are half-open.
func (h *halfOpen) length() (calls int) {
	for index := range h.lists {
		list := &h.lists[index]
		list.mutex.Lock()
		calls += list.length
		list.mutex.Unlock()
	}
	return calls
}
