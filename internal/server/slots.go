package server

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// slots bounds how many calls of one kind of work are in flight. Each call takes a slot. The last
// quarter is for callers that have less than a quarter of the slots each: so no caller can take
// all of them, and a caller that is alone still has three quarters.
type slots struct {
	work callers.Work
	// limit is the number of slots, and taken how many of them calls have.
	limit, taken atomic.Int64
	// begun is the number of calls since the start that found a slot, and refused that of those that
	// did not.
	begun, refused atomic.Int64
	reports        reports

	// shares has how many slots each caller has, by name. The map is not changed: share puts
	// another one in its place, with adding held.
	shares atomic.Pointer[map[string]*atomic.Int64]
	adding sync.Mutex
}

// acquire takes a slot for a caller. It returns the caller's share, for release; nil if the caller
// gets no slot.
func (s *slots) acquire(caller string) *atomic.Int64 {
	share := s.share(caller)
	own, taken, limit := share.Add(1), s.taken.Add(1), s.limit.Load()
	if quarter := limit / callerShare; taken <= limit && (own <= quarter || taken <= limit-quarter) {
		s.begun.Add(1)
		return share
	}
	s.release(share)
	s.refused.Add(1)
	return nil
}

// release gives a slot of a caller's share back.
func (s *slots) release(share *atomic.Int64) {
	share.Add(-1)
	s.taken.Add(-1)
}

const (
	// callerShare is the part of the slots of one kind that one caller leaves to others: a quarter.
	callerShare = 4
	// stayingShare is the part of max-in-flight that changes, reads and waits may be, each: a
	// quarter.
	stayingShare = 4
	// openingShare is the part of max-sessions that streams may have besides that are no sessions
	// yet: an eighth.
	openingShare = 8
	// maxWatches is the max. number of watches of health, and maxInspections that of streams that
	// tell what is served. Each is about 14 KiB.
	maxWatches, maxInspections = 512, 64
	// maxBackups is the max. number of calls for a backup. Only one of them gets its backup.
	maxBackups = 8
	// maxShares is how many callers have a share at a time. Beyond that, shares of which nothing
	// is taken are forgotten.
	maxShares = 1024
)

// share returns a caller's share.
func (s *slots) share(caller string) *atomic.Int64 {
	if share, has := (*s.shares.Load())[caller]; has {
		return share
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	before := *s.shares.Load()
	if share, has := before[caller]; has {
		return share
	}
	after, share := maps.Clone(before), new(atomic.Int64)
	if len(after) >= maxShares {
		// A call that has just looked one of them up may still take a slot of it. That slot is then
		// not counted in the caller's next share; it is counted in taken.
		maps.DeleteFunc(after, func(_ string, share *atomic.Int64) bool { return share.Load() == 0 })
	}
	after[caller] = share
	s.shares.Store(&after)
	return share
}

// reportInterval is the shortest time between two reports of refusals.
const reportInterval = time.Second

// reports bounds the rate of reports of refusals.
type reports struct {
	// at is when refusals were last reported, in Unix nanoseconds, and count how many there had been
	// by then.
	at, count atomic.Int64
}

// since returns how many calls were refused since the last report, of those since the start. It
// returns 0 if that is less than reportInterval ago.
func (r *reports) since(now time.Time, refused int64) int64 {
	last := r.at.Load()
	if last != 0 && now.UnixNano()-last < int64(reportInterval) || !r.at.CompareAndSwap(last, now.UnixNano()) {
		return 0
	}
	return refused - r.count.Swap(refused)
}

// slotTable has the slots of each kind of work, by kind; nil for probes, which have no
// bound. Because each kind has its own, validations are refused only when there are too
// many validations.
type slotTable [callers.Backup + 1]*slots

func newSlotTable(settings config.Settings) *slotTable {
	table := slotTable{} // NoWork has slots of number 0: a method that is not known is refused
	for work := range table {
		if work := callers.Work(work); work != callers.Probe {
			table[work] = &slots{work: work}
			table[work].shares.Store(&map[string]*atomic.Int64{})
		}
	}
	table.resize(settings)
	return &table
}

// resize sets the number of slots of each kind. Calls in flight keep theirs.
func (t *slotTable) resize(settings config.Settings) {
	limit := int64(settings.MaxInFlight)
	t[callers.Validation].limit.Store(limit)
	// Validations end by themselves, and at once. What may stay open holds memory as long as it
	// does, so there may be less of it.
	for _, work := range []callers.Work{callers.Change, callers.Read, callers.Wait} {
		t[work].limit.Store(max(1, limit/stayingShare))
	}
	t[callers.Watch].limit.Store(maxWatches)
	t[callers.Inspection].limit.Store(maxInspections)
	t[callers.Backup].limit.Store(maxBackups)
	// The hub bounds the sessions itself. Streams whose hello was not handled yet, or which are
	// about to end, are not among its sessions. With them, three quarters of the slots are still
	// fewer than the sessions: one caller leaves some to others.
	opening := max(1, min(limit/stayingShare, int64(settings.MaxSessions)/openingShare))
	t[callers.Session].limit.Store(int64(settings.MaxSessions) + opening)
}

// of returns the slots for a kind of work; nil if it has no bound. Unknown kinds have no
// slots.
func (t *slotTable) of(work callers.Work) *slots {
	if int(work) >= len(t) {
		work = callers.NoWork
	}
	return t[work]
}

// Calls counts the calls of one kind of work.
type Calls struct {
	// Work is the kind of work.
	Work callers.Work
	// InFlight is how many are in flight now, and Limit how many may be.
	InFlight, Limit int64
	// Refused is how many found no slot, since the start.
	Refused int64
}

// snapshot returns the counts of each kind of work that has a bound.
func (t *slotTable) snapshot() []Calls {
	var all []Calls
	for _, each := range t {
		if each != nil && each.work != callers.NoWork {
			all = append(all, Calls{Work: each.work, InFlight: each.taken.Load(), Limit: each.limit.Load(), Refused: each.refused.Load()})
		}
	}
	return all
}
