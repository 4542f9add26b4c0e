package lease

import (
	"sync"
	"time"
)

// Ledger is the account that a server keeps of the leases that it gave: who may still be
// answering from before a revision, and until when (S3, S4). Its methods may be called
// from many goroutines.
//
// It errs on the long side. Elapsed is for those who live by a lease and must not use it
// for too long; here a wall clock that jumps ahead must not end a lease that its holder
// still has. So only the monotonic part of the times counts, where they have one, and a
// time before the beginning of a lease is one at which it holds.
type Ledger struct {
	length time.Duration

	mutex   sync.Mutex
	holders map[*Holder]struct{}
	// departed are holders that left without a word, in the order in which they did. They
	// are forgotten once no lease from before they left can hold.
	departed []departure
}

// departure is a holder that left.
type departure struct {
	holder *Holder
	at     time.Time
}

// Holder is one who was given leases.
type Holder struct {
	ledger *Ledger
	// arrived is when the question for the newest lease came; meaningless without leased.
	arrived time.Time
	leased  bool
	// applied is the revision up to which the holder has seen everything.
	applied int64
	gaveUp  bool
	// changed is closed and replaced when applied grows or the lease is given up; nil as
	// long as nobody waits.
	changed chan struct{}
}

// NewLedger returns the ledger of a server that was started at a time and gives leases of
// a length. Of the process before it, it knows only that it may have given one (S4).
func NewLedger(started time.Time, length time.Duration) *Ledger {
	ledger := &Ledger{
		length:  length + length/1000, // the client counts from sending, on another clock
		holders: make(map[*Holder]struct{}),
	}
	unknown := ledger.Enter()
	unknown.Extend(started)
	unknown.Leave(started)
	return ledger
}

// Enter begins the account of a holder, who has no lease.
func (l *Ledger) Enter() *Holder {
	holder := &Holder{ledger: l}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.holders[holder] = struct{}{}
	return holder
}

// Extend notes a lease. arrived is when the holder's question for it came. It is called
// in one step with reading the barrier that answers the question.
func (h *Holder) Extend(arrived time.Time) {
	h.ledger.mutex.Lock()
	defer h.ledger.mutex.Unlock()
	if h.gaveUp || h.leased && arrived.Before(h.arrived) {
		return
	}
	h.arrived, h.leased = arrived, true
}

// Applied notes that the holder has seen everything up to a revision.
func (h *Holder) Applied(revision int64) {
	h.ledger.mutex.Lock()
	defer h.ledger.mutex.Unlock()
	if revision > h.applied {
		h.applied = revision
		h.signal()
	}
}

// GiveUp ends the account of a holder who has said that its lease is over.
func (h *Holder) GiveUp() {
	h.ledger.mutex.Lock()
	defer h.ledger.mutex.Unlock()
	h.leased, h.gaveUp = false, true
	delete(h.ledger.holders, h)
	h.signal()
}

// Leave ends the account of a holder who went without a word, now: its lease goes on.
func (h *Holder) Leave(now time.Time) {
	l := h.ledger
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if _, present := l.holders[h]; !present {
		return
	}
	delete(l.holders, h)
	l.forget(now)
	if h.holds(now) {
		l.departed = append(l.departed, departure{h, now})
	}
}

// forget drops those who left so long ago that their leases are over. mutex is held.
func (l *Ledger) forget(now time.Time) {
	for len(l.departed) > 0 && now.Sub(l.departed[0].at) >= l.length && !l.departed[0].holder.holds(now) {
		l.departed[0] = departure{}
		l.departed = l.departed[1:]
	}
}

// holds says whether the holder may have a lease at a time. The ledger's mutex is held.
func (h *Holder) holds(now time.Time) bool {
	return h.leased && now.Sub(h.arrived) < h.ledger.length
}

// signal wakes who waits for the holder. The ledger's mutex is held.
func (h *Holder) signal() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Debt is one holder who may still answer from before a revision.
type Debt struct {
	holder   *Holder
	revision int64
	// arrived is when the question for the lease came that is owed.
	arrived time.Time
}

// Debts returns how many holders have applied a revision, and who may still answer from
// before it. It is called after the revision was published: a lease that is given later
// stands behind it, and only those that hold now are owed.
func (l *Ledger) Debts(revision int64, now time.Time) (applied int, debts []Debt) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.forget(now)
	count := func(holder *Holder) {
		switch {
		case holder.applied >= revision:
			applied++
		case holder.holds(now):
			debts = append(debts, Debt{holder: holder, revision: revision, arrived: holder.arrived})
		}
	}
	for holder := range l.holders {
		count(holder)
	}
	for _, departed := range l.departed {
		if departed.holder.holds(now) {
			count(departed.holder)
		}
	}
	return applied, debts
}

// Settlement is how a Debt stands.
type Settlement uint8

// The settlements.
const (
	// Open: the holder may still answer from before the revision.
	Open Settlement = iota
	// Applied: the holder has applied the revision, or given its lease up.
	Applied
	// Lapsed: the lease is over.
	Lapsed
)

// Settled says how the debt stands. While it is Open, left is how long it can remain so,
// and changed is closed when the holder has said something: ask again then.
func (d Debt) Settled(now time.Time) (settlement Settlement, left time.Duration, changed <-chan struct{}) {
	l := d.holder.ledger
	l.mutex.Lock()
	defer l.mutex.Unlock()
	left = l.length - now.Sub(d.arrived)
	switch {
	case d.holder.applied >= d.revision, d.holder.gaveUp:
		return Applied, 0, nil
	case left <= 0:
		return Lapsed, 0, nil
	}
	if d.holder.changed == nil {
		d.holder.changed = make(chan struct{})
	}
	return Open, left, d.holder.changed
}
