package lease

import (
	"slices"
	"sync"
	"time"
)

// Table holds the leases that a server gave. It knows which clients may still answer from before a
// revision, that is, without reflecting it, and until when (S3, S4). If other servers may give leases
// as well, the table bounds those (R9 of docs/replication.md). Its methods may be called from many
// goroutines.
//
// The table errs on the long side. A client must not use its lease for too long, so the client
// counts with Elapsed. The server must not forget a lease too early, so a wall clock that jumps
// ahead must not end the lease in the table: if a time has a monotonic part, only that part counts,
// and a lease also holds before its own beginning.
type Table struct {
	// shared is set if other servers may give leases.
	shared bool

	// mutex guards what follows, and the fields of every Holder. It is taken after the mutex of
	// feed.Hub, and nothing is locked under it.
	mutex sync.Mutex
	// length is that of the leases of holders that enter now, with what withMargin adds.
	length time.Duration
	// replaced has, for each length that was replaced, when the last lease of other servers ends that has
	// it.
	replaced []time.Time
	holders  map[*Holder]struct{}
	// departed are the holders that left without giving up their leases, in the order in which
	// they left. A holder is forgotten once no lease that it had can hold any more.
	departed []departure
}

// departure is a holder that left, and when.
type departure struct {
	holder *Holder
	at     time.Time
}

// Holder is one client process in a Table. Its methods may be called from many goroutines.
type Holder struct {
	table *Table
	// length is that of the holder's leases.
	length time.Duration
	// leased reports whether the holder was ever given a lease. arrived is when the newest lease
	// was asked for.
	leased  bool
	arrived time.Time
	// applied is the revision up to which the holder has applied every change.
	applied int64
	gaveUp  bool
	// changed is closed when applied grows or the lease is given up; nil while no goroutine
	// waits for that.
	changed chan struct{}
}

// Config is what a Table begins with.
type Config struct {
	// Started is when the server process took over the store.
	Started time.Time
	// Length is that of the leases.
	Length time.Duration
	// Longest is the length that leases from before Started may have, if it is larger than Length.
	Longest time.Duration
	// Shared is set if other servers over the same store may give leases.
	Shared bool
}

// withMargin adds a thousandth to the length of a lease: the client's clock may run slower than the
// server's.
func withMargin(length time.Duration) time.Duration { return length + length/1000 }

// NewTable returns the table of a server process. The table assumes that the process before it gave
// one lease just before the start (S4).
func NewTable(config Config) *Table {
	table := &Table{shared: config.Shared, length: withMargin(config.Length), holders: make(map[*Holder]struct{})}
	longest := max(config.Length, config.Longest)
	if table.shared {
		// The leases of the process before are among those of other servers. A length that was replaced
		// before the start is not in any lease that was asked for after it (R9).
		table.replaced = []time.Time{config.Started.Add(withMargin(longest))}
		return table
	}
	unknown := &Holder{table: table, length: withMargin(longest)}
	table.holders[unknown] = struct{}{}
	unknown.Extend(config.Started)
	unknown.Leave(config.Started)
	return table
}

// SetLength changes the length of the leases of all holders that enter from now on. longest is the
// length that leases of other servers may have had until now, if it is larger than the present one.
func (t *Table) SetLength(length, longest time.Duration, now time.Time) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.replaced = slices.DeleteFunc(t.replaced, func(end time.Time) bool { return !now.Before(end) })
	// R9: other servers gave leases of the length before only until the change was committed, which was
	// before now. So the last of them ends a whole length from now at the latest. Leases of a length
	// that was in force for a moment, between two changes of which this server has seen the second
	// alone, are bounded by longest.
	t.replaced = append(t.replaced, now.Add(max(t.length, withMargin(longest))))
	t.length = withMargin(length)
}

// Enter adds a holder, which has no lease yet. Its leases will have the present length.
func (t *Table) Enter() *Holder {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	holder := &Holder{table: t, length: t.length}
	t.holders[holder] = struct{}{}
	return holder
}

// Extend gives the holder a lease. arrived is when the holder's request for the lease arrived. The
// caller calls Extend and reads the revision that answers the request under one lock, so that no
// change is published between the two.
func (h *Holder) Extend(arrived time.Time) {
	h.table.mutex.Lock()
	defer h.table.mutex.Unlock()
	if h.gaveUp || h.leased && arrived.Before(h.arrived) {
		return
	}
	h.arrived, h.leased = arrived, true
}

// Applied notes that the holder has applied every change up to a revision.
func (h *Holder) Applied(revision int64) {
	h.table.mutex.Lock()
	defer h.table.mutex.Unlock()
	if revision > h.applied {
		h.applied = revision
		h.signal()
	}
}

// GiveUp removes a holder that has given up its lease.
func (h *Holder) GiveUp() {
	h.table.mutex.Lock()
	defer h.table.mutex.Unlock()
	h.leased, h.gaveUp = false, true
	delete(h.table.holders, h)
	h.signal()
}

// Leave removes a holder whose connection ended without GiveUp. Its lease goes on until it ends
// by itself.
func (h *Holder) Leave(now time.Time) {
	t := h.table
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if _, present := t.holders[h]; !present {
		return
	}
	delete(t.holders, h)
	t.forget(now)
	if h.holds(now) {
		t.departed = append(t.departed, departure{h, now})
	}
}

// forget drops the departed holders whose leases are over. mutex is held.
func (t *Table) forget(now time.Time) {
	for len(t.departed) > 0 && now.Sub(t.departed[0].at) >= t.departed[0].holder.length && !t.departed[0].holder.holds(now) {
		t.departed[0] = departure{}
		t.departed = t.departed[1:]
	}
}

// holds reports whether the holder may have a lease at a time. The table's mutex is held.
func (h *Holder) holds(now time.Time) bool {
	return h.leased && now.Sub(h.arrived) < h.length
}

// signal wakes every goroutine that waits for the holder. The table's mutex is held.
func (h *Holder) signal() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Oldest returns the age of the oldest lease that holds at a time; 0 if none does.
func (t *Table) Oldest(now time.Time) time.Duration {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	var oldest time.Duration
	look := func(holder *Holder) {
		if holder.holds(now) {
			oldest = max(oldest, now.Sub(holder.arrived))
		}
	}
	for holder := range t.holders {
		look(holder)
	}
	for _, departed := range t.departed {
		look(departed.holder)
	}
	return oldest
}

// Pending is one holder that may still answer from before a revision, or all holders of other servers
// together.
type Pending struct {
	holder   *Holder // nil for those of other servers
	until    time.Time
	revision int64
	// arrived is that of the lease that held when the Pending was made. Later leases do not count:
	// they reflect the revision.
	arrived time.Time
}

// Pending returns how many holders have applied a revision, and the holders that may still
// answer from before it. Call it after the revision was published: leases that are given later
// reflect the revision, so only the leases that hold now are pending. If other servers may give leases,
// theirs are pending as one. Then the caller has read a barrier of the store since the revision was
// committed, and the table knows every length up to that barrier.
func (t *Table) Pending(revision int64, now time.Time) (applied int, pending []Pending) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.forget(now)
	count := func(holder *Holder) {
		switch {
		case holder.applied >= revision:
			applied++
		case holder.holds(now):
			pending = append(pending, Pending{holder: holder, revision: revision, arrived: holder.arrived})
		}
	}
	if t.shared {
		pending = append(pending, Pending{until: t.othersEnd(now)})
	}
	for holder := range t.holders {
		count(holder)
	}
	for _, departed := range t.departed {
		if departed.holder.holds(now) {
			count(departed.holder)
		}
	}
	return applied, pending
}

// othersEnd returns when the last lease ends that another server can have given before a change that
// is committed by now. mutex is held.
func (t *Table) othersEnd(now time.Time) time.Time {
	// R9: such a lease was asked for before the change was committed, so before now. It has the present
	// length, or one that was replaced; then it was asked for before that.
	end := now.Add(t.length)
	for _, other := range t.replaced {
		if other.After(end) {
			end = other
		}
	}
	return end
}

// Status is the state of a Pending.
type Status uint8

// The values of Status.
const (
	// Open: the holder may still answer from before the revision.
	Open Status = iota
	// Applied: the holder has applied the revision, or given up its lease.
	Applied
	// Lapsed: the lease is over.
	Lapsed
)

// Status returns the state of the pending holder. While it is Open, left is the time after which it
// is not Open any more, and changed is closed if the holder reports something earlier; it is nil if
// nothing can be reported. Call Status again then.
func (p Pending) Status(now time.Time) (status Status, left time.Duration, changed <-chan struct{}) {
	if p.holder == nil { // other servers report nothing to this one
		if left := p.until.Sub(now); left > 0 {
			return Open, left, nil
		}
		return Lapsed, 0, nil
	}
	t := p.holder.table
	t.mutex.Lock()
	defer t.mutex.Unlock()
	left = p.holder.length - now.Sub(p.arrived)
	switch {
	case p.holder.applied >= p.revision, p.holder.gaveUp:
		return Applied, 0, nil
	case left <= 0:
		return Lapsed, 0, nil
	}
	if p.holder.changed == nil {
		p.holder.changed = make(chan struct{})
	}
	return Open, left, p.holder.changed
}
