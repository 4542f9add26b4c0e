// Package lease holds the rules of freshness: how long somebody who was told the truth
// may go on saying it. A near-cache lives by them, a server keeps account of the leases
// it gave, and a replica of the server that answers from its projection is bound by the
// same ones. docs/coherence.md derives them; C1, S3 and so on are its rules.
//
// The package touches no clock: times come from the caller.
package lease

import (
	"sync"
	"sync/atomic"
	"time"
)

// Elapsed returns how much time has passed between two readings of one clock: the
// larger of what its monotonic and its wall part say (C3). The one misses a machine's
// sleep, the other somebody who turns the clock back. Wall clocks must show a year from
// 1678 to 2262.
func Elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), time.Duration(to.UnixNano()-from.UnixNano()))
}

// Lease says until when something may be told without asking. The zero Lease is over.
type Lease struct {
	from   time.Time
	length time.Duration
}

// New returns a lease that begins at a time and has a length.
func New(from time.Time, length time.Duration) Lease { return Lease{from: from, length: length} }

// Holds says whether the lease holds at a time. A time before its beginning is one that
// the clock should not have shown: it does not.
func (l Lease) Holds(now time.Time) bool {
	if l.length <= 0 {
		return false
	}
	elapsed := Elapsed(l.from, now)
	return elapsed >= 0 && elapsed < l.length
}

// Left returns how long the lease will hold from now on; 0 if it does not.
func (l Lease) Left(now time.Time) time.Duration {
	if !l.Holds(now) {
		return 0
	}
	return l.length - Elapsed(l.from, now)
}

// Freshness is the lease of one who asks for it again and again: a near-cache, or a
// replica. Each time it reads its clock, asks for a barrier, and when the answer has
// come, knows that it has seen everything that was acknowledged before it asked.
//
// Its methods may be called from many goroutines.
type Freshness struct {
	current atomic.Pointer[Lease]

	mutex sync.Mutex
	nonce uint64
	asked time.Time
	// open says that nonce was asked and not answered.
	open bool
}

// Ask notes that a barrier is about to be asked for, and returns what tells it from
// others. now was read before the question is sent (C1). Only the newest question
// counts.
func (f *Freshness) Ask(now time.Time) (nonce uint64) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.nonce++
	f.asked, f.open = now, true
	return f.nonce
}

// Answered notes that a barrier was reached and everything before it seen. The lease has
// the given length from when it was asked for. It says whether it was the newest question;
// if not, nothing changes.
func (f *Freshness) Answered(nonce uint64, length time.Duration) bool {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if !f.open || nonce != f.nonce {
		return false
	}
	f.open = false
	lease := New(f.asked, length)
	f.current.Store(&lease)
	return true
}

// Open returns when the newest question was asked, and whether its answer is still to come.
func (f *Freshness) Open() (asked time.Time, open bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.asked, f.open
}

// Drop ends the lease, and makes the answer to an open question count for nothing (C9).
func (f *Freshness) Drop() {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.open = false
	f.current.Store(nil)
}

// Current returns the lease as it is. Read it before what it is to vouch for (C2).
func (f *Freshness) Current() Lease {
	if lease := f.current.Load(); lease != nil {
		return *lease
	}
	return Lease{}
}
