// Package budget bounds what calls hold in memory, whatever their clients send and read: the
// bytes of the messages that have come and are being worked on, the bytes of the answers that are
// not written yet, the elements of a message before it is decoded, and the calls whose request is
// not complete.
//
// A Gate stands between grpc and the services. It reads each request itself, piece by piece, so
// that the bytes of a request are taken from the Budget before they come. A call that has a large
// answer lasts until grpc has written the answer, so that its bytes are given back when they are
// gone, and not before. What one call took from a Budget it gives back when it ends: there is no
// other way, so nothing can leak.
//
// Beside the budget stand, for each connection, what grpc itself buffers for a stream before its
// handler runs (the window of the stream, at most WindowBytes), and the requests and answers of at
// most small bytes.
package budget

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/scribe-mail/keysvc/internal/callers"
)

const (
	// WindowBytes is the flow-control window of a stream (RFC 9113, section 5.2): how much a client
	// may send before the server has begun to read. It is the smallest that grpc allows.
	WindowBytes = 64 << 10
	// small is the size, in bytes, up to which a message is not counted. Requests and answers of
	// validations are small: the slots of the door, and the bound on streams, bound their number.
	// grpc does not say when it has written a buffer of up to this size.
	small = 1 << 10
)

// Holder is who holds bytes of a Budget.
type Holder struct {
	// Connection is the connection of the call: grpc has one Peer for each.
	Connection *peer.Peer
	// Caller is the name of the caller; "" for an unknown caller.
	Caller string
	// Work is the kind of work of the call.
	Work callers.Work
}

// Budget is a number of bytes that calls share. Its methods may be called from many goroutines.
//
// Not every call may take the last bytes. Reads and sessions may take a byte only while less than
// half of the budget is taken, changes and waits only while less than seven eighths are, and
// validations as long as there is one: so validations are refused last. This part of the budget is
// the room of a kind of work. A connection holds at most a quarter of the budget, and all callers
// that are not known together an eighth. A caller that holds more than a quarter of a room leaves
// the last quarter of this room to others.
type Budget struct {
	mutex sync.Mutex
	limit int64
	held  int64
	// by has what each connection and each caller holds. What holds nothing is not in it.
	byConnection map[*peer.Peer]int64
	byCaller     map[string]int64
	refused      int64
	// changed is closed when bytes are given back; nil while nobody waits for that.
	changed chan struct{}
}

// New returns a Budget of a number of bytes.
func New(limit int64) *Budget {
	return &Budget{limit: limit, byConnection: make(map[*peer.Peer]int64), byCaller: make(map[string]int64)}
}

// Snapshot is the state of a Budget.
type Snapshot struct {
	// Limit is the number of bytes, and Held how many of them calls hold.
	Limit, Held int64
	// Refused is how many calls found no room, since the start.
	Refused int64
}

// Snapshot returns the state of the budget.
func (b *Budget) Snapshot() Snapshot {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return Snapshot{Limit: b.limit, Held: b.held, Refused: b.refused}
}

// room returns the part of the budget that calls of a kind of work may fill. mutex is held.
func (b *Budget) room(work callers.Work) int64 {
	switch work {
	case callers.Validation, callers.Probe:
		return b.limit
	case callers.Change, callers.Wait:
		return b.limit - b.limit/8
	case callers.Read, callers.Session, callers.Watch, callers.Inspection, callers.Backup, callers.NoWork:
	}
	return b.limit / 2
}

// admits reports whether a holder may take a number of bytes. mutex is held.
func (b *Budget) admits(holder Holder, bytes int64) bool {
	room, own := b.room(holder.Work), b.byCaller[holder.Caller]+bytes
	switch {
	case b.held+bytes > room, b.byConnection[holder.Connection]+bytes > b.limit/4:
		return false
	case holder.Caller == "":
		return own <= b.limit/8
	}
	// What one caller may hold leaves a quarter of the smallest room to others, too.
	return own <= b.limit/2-b.limit/8 && (own <= room/4 || b.held+bytes <= room-room/4)
}

// take takes a number of bytes. It reports whether there was room for them.
func (b *Budget) take(holder Holder, bytes int64) bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if !b.admits(holder, bytes) {
		b.refused++
		return false
	}
	b.add(holder, bytes)
	return true
}

// await is take that waits for room: until the context ends, or a time has passed.
func (b *Budget) await(ctx context.Context, holder Holder, bytes int64, longest time.Duration) bool {
	var late <-chan time.Time
	for {
		b.mutex.Lock()
		admitted := b.admits(holder, bytes)
		if admitted {
			b.add(holder, bytes)
		} else if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mutex.Unlock()
		if admitted {
			return true
		}
		if late == nil {
			timer := time.NewTimer(longest)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
			continue
		case <-late:
		case <-ctx.Done():
		}
		b.mutex.Lock()
		defer b.mutex.Unlock()
		b.refused++
		return false
	}
}

// force takes a number of bytes, even if there is no room for them.
func (b *Budget) force(holder Holder, bytes int64) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.add(holder, bytes)
}

// give gives back a number of bytes that the holder has taken.
func (b *Budget) give(holder Holder, bytes int64) {
	if bytes == 0 {
		return
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.add(holder, -bytes)
	b.wake()
}

// add adds a number of bytes, which may be negative, to what the holder holds. mutex is held.
func (b *Budget) add(holder Holder, bytes int64) {
	b.held += bytes
	addTo(b.byConnection, holder.Connection, bytes)
	addTo(b.byCaller, holder.Caller, bytes)
}

func addTo[Key comparable](of map[Key]int64, key Key, bytes int64) {
	if now := of[key] + bytes; now != 0 {
		of[key] = now
	} else {
		delete(of, key)
	}
}

// wake wakes the calls that wait for room. mutex is held.
func (b *Budget) wake() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}
