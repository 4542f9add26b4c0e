package server

import (
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// room bounds how many calls of one kind are in flight.
type room struct {
	work callers.Work
	most atomic.Int64

	now     atomic.Int64
	refused atomic.Int64
	// said is when the log was last told that calls are refused, in Unix nanoseconds, and
	// told how many had been refused then.
	said, told atomic.Int64
}

// enter takes a place. It reports whether one was free.
func (r *room) enter() bool {
	if r.now.Add(1) <= r.most.Load() {
		return true
	}
	r.now.Add(-1)
	r.refused.Add(1)
	return false
}

// leave gives a place back.
func (r *room) leave() { r.now.Add(-1) }

// silence is how long the log hears nothing after it was told that calls are refused.
const silence = time.Second

// tell returns how many calls were refused since the log was last told, 0 if that was just
// now.
func (r *room) tell(now time.Time) int64 {
	said := r.said.Load()
	if now.UnixNano()-said < int64(silence) && said != 0 || !r.said.CompareAndSwap(said, now.UnixNano()) {
		return 0
	}
	refused := r.refused.Load()
	return refused - r.told.Swap(refused)
}

// rooms has one room for each kind of work, by kind; probes need none. So validations are
// refused only when there are too many validations.
type rooms [callers.Session + 1]*room

func newRooms(settings config.Settings) *rooms {
	all := rooms{callers.NoWork: {}}
	for work := range all {
		if work := callers.Work(work); work != callers.NoWork && work != callers.Probe {
			all[work] = &room{work: work}
		}
	}
	all.resize(settings)
	return &all
}

// resize sets how many calls of each kind may be in flight. Calls that are in flight go on.
func (r *rooms) resize(settings config.Settings) {
	most := int64(settings.MaxInFlight)
	for _, work := range []callers.Work{callers.Validation, callers.Change, callers.Read, callers.Wait} {
		r[work].most.Store(most)
	}
	// Those that have not said hello yet, or are about to leave, are no sessions to the hub,
	// which counts for itself.
	r[callers.Session].most.Store(int64(settings.MaxSessions) + most)
}

// of returns the room for a kind of work; nil if it has no bound.
func (r *rooms) of(work callers.Work) *room {
	if int(work) >= len(r) {
		work = callers.NoWork
	}
	return r[work]
}

// Calls is how the calls of one kind stand.
type Calls struct {
	// Work is the kind.
	Work callers.Work
	// InFlight is how many there are now, and Most how many there may be.
	InFlight, Most int64
	// Refused is how many found no room, since the start.
	Refused int64
}

// snapshot returns how calls stand, one kind after the other.
func (r *rooms) snapshot() []Calls {
	var all []Calls
	for _, room := range r {
		if room != nil && room.work != callers.NoWork {
			all = append(all, Calls{Work: room.work, InFlight: room.now.Load(), Most: room.most.Load(), Refused: room.refused.Load()})
		}
	}
	return all
}
