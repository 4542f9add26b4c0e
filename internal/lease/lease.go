// Package lease bounds how long a process may answer from memory. Near-caches, the server's table
// of their leases, and a server that answers from its projection all use it. docs/coherence.md
// derives the rules; C1, S3 and so on are their numbers.
//
// The package reads no clock: the caller passes times.
package lease

import (
	"sync"
	"sync/atomic"
	"time"
)

// Elapsed returns the time that has passed between two readings of one clock: by its monotonic
// part or by its wall part, whichever is larger (C3). The monotonic part does not count while a
// machine sleeps. The wall part goes back if somebody sets the clock back. Wall clocks must
// show a year from 1678 to 2262.
func Elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), time.Duration(to.UnixNano()-from.UnixNano()))
}

// Lease is a time during which a process may answer without asking. The zero Lease is over.
type Lease struct {
	from   time.Time
	length time.Duration
}

// New returns a lease that begins at a time and has a length.
func New(from time.Time, length time.Duration) Lease { return Lease{from: from, length: length} }

// Holds reports whether the lease holds at a time. It does not hold before its own beginning,
// because no sound clock shows such a time.
func (l Lease) Holds(now time.Time) bool {
	if l.length <= 0 {
		return false
	}
	elapsed := Elapsed(l.from, now)
	return elapsed >= 0 && elapsed < l.length
}

// Left returns how long the lease holds from now on; 0 if it does not hold.
func (l Lease) Left(now time.Time) time.Duration {
	if !l.Holds(now) {
		return 0
	}
	return l.length - Elapsed(l.from, now)
}

// Freshness is a lease that is renewed again and again. The owner reads its clock and asks for a
// barrier. When the barrier is reached, the owner has seen everything that was acknowledged before
// it asked. The lease then counts from the reading of the clock.
//
// Its methods may be called from many goroutines.
type Freshness struct {
	current atomic.Pointer[Lease]

	mutex sync.Mutex
	nonce uint64
	asked time.Time
	// open reports whether nonce was asked and not yet answered.
	open bool
}

// Ask notes that a barrier is about to be asked for, and returns the nonce of that question.
// The caller reads now before it sends the question (C1). Only the newest question counts.
func (f *Freshness) Ask(now time.Time) (nonce uint64) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.nonce++
	f.asked, f.open = now, true
	return f.nonce
}

// Answered notes that a barrier was reached, and that everything before it was seen. The lease
// then has the given length, from the time passed to Ask. Answered reports whether nonce is that
// of the newest question; if it is not, nothing changes.
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

// Open returns when the newest question was asked, and reports whether it is still unanswered.
func (f *Freshness) Open() (asked time.Time, open bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.asked, f.open
}

// Drop ends the lease. The answer to an open question then starts no lease (C9).
func (f *Freshness) Drop() {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.open = false
	f.current.Store(nil)
}

// Current returns the lease. Read it before the data that it is to vouch for (C2).
func (f *Freshness) Current() Lease {
	if lease := f.current.Load(); lease != nil {
		return *lease
	}
	return Lease{}
}
