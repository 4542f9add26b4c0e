package server

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// returnAfter is the shortest time between a garbage collection and one that returnMemory
	// begins, and between two times when returnMemory returns memory.
	returnAfter = 4 * time.Second
	// leastGarbage is the fewest bytes that must have been allocated since the last collection, and
	// garbageShare the part of the live heap: a quarter. Go by itself waits for as much as the live
	// heap.
	leastGarbage = 4 << 20
	garbageShare = 4
	// leastIdle is the fewest bytes of free memory that are returned, and idleShare the part of the
	// live heap: a half. A server with steady work uses it again before idleLooks looks are over,
	// one each second.
	leastIdle = 8 << 20
	idleShare = 2
	idleLooks = 3
	// quiet is how few bytes a server allocates from one look to the next that has nothing to do: about
	// a hundred calls.
	quiet = 1 << 20
	// leastCrowd is the size of a crowd whose end is noticed, in bytes, and crowdLooks for how many
	// looks it must have been gone.
	leastCrowd = 8 << 20
	crowdLooks = 2
	// leastBurst is how many bytes are allocated from one look to the next at least in a burst of
	// work. A burst has ended when less than burstShare of them, a quarter, have been allocated from
	// one look to the next for burstLooks looks.
	leastBurst = 8 << 20
	burstShare = 4
	burstLooks = 3
	// bytesPerConnection and bytesPerStream are about what each costs.
	bytesPerConnection, bytesPerStream = 32 << 10, 14 << 10
)

// returnMemory collects garbage and returns free memory to the system when a load has ended. By itself
// Go collects when there is much garbage (see collectLess), and returns memory slowly. After an attack,
// a quiet server would keep the attack's memory for minutes.
func (s *Server) returnMemory(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var seen heaps
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			heap := readHeap()
			heap.crowd = uint64(s.connections.Counts().Open*bytesPerConnection) + //nolint:gosec // not negative
				uint64(max(0, s.connections.Streams())*bytesPerStream+s.budget.Snapshot().Held) //nolint:gosec // not negative
			collect, release := seen.due(heap, now)
			if collect {
				runtime.GC() // what pools hold is dropped at the second collection
			}
			if release {
				debug.FreeOSMemory() // which begins with one
			}
		}
	}
}

// heap is what the runtime tells about the heap.
type heap struct {
	// cycles is how many collections have ended, and live how many bytes were live at the last of
	// them. allocated is how many bytes were allocated since the start, and idle how many are free
	// and were not returned to the system. crowd is about how many bytes connections, streams, and
	// messages take. room is how many bytes may be allocated before the next collection.
	cycles, live, allocated, idle, crowd, room uint64
}

// readHeap asks the runtime.
func readHeap() heap {
	samples := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
	}
	metrics.Read(samples)
	goal, used := samples[4].Value.Uint64(), samples[5].Value.Uint64()
	return heap{
		cycles: samples[0].Value.Uint64(), live: samples[1].Value.Uint64(), allocated: samples[2].Value.Uint64(),
		idle: samples[3].Value.Uint64(), room: goal - min(goal, used),
	}
}

// heaps remembers what was seen of the heap.
type heaps struct {
	// last is the heap when the last collection was noticed, at a time, which is zero before the
	// first look.
	last heap
	at   time.Time
	// allocated is how many bytes had been allocated since the start at the last look.
	allocated uint64
	// idle is for how many looks much memory has been free, and returned when memory was returned.
	idle     int
	returned time.Time
	// most is the largest crowd since memory was returned, and gone for how many looks the crowd has
	// been much smaller.
	most uint64
	gone int
	// burst is the most that was allocated from one look to the next since memory was returned, and
	// calm for how many looks it has been much less.
	burst uint64
	calm  int
}

// due reports whether it is time to collect garbage, and whether it is time to return memory as well.
// It must be called once a second.
func (h *heaps) due(now heap, at time.Time) (collect, release bool) {
	// A server with something to do uses free memory again before the next collection.
	var work uint64
	if !h.at.IsZero() {
		work = now.allocated - h.allocated
	}
	isQuiet, spare := !h.at.IsZero() && work < quiet, now.idle
	if !isQuiet {
		spare -= min(spare, now.room)
	}
	h.allocated = now.allocated
	if h.burst = max(h.burst, work); h.burst >= leastBurst && work < h.burst/burstShare {
		h.calm++
	} else {
		h.calm = 0
	}
	if spare >= max(leastIdle, now.live/idleShare) {
		h.idle++
	} else {
		h.idle = 0
	}
	garbage := false
	if h.at.IsZero() || now.cycles != h.last.cycles {
		h.last, h.at = now, at
	} else {
		garbage = at.Sub(h.at) >= returnAfter && now.allocated-h.last.allocated >= max(leastGarbage, now.live/garbageShare)
	}
	if h.most = max(h.most, now.crowd); h.most-now.crowd >= leastCrowd {
		h.gone++
	} else {
		h.gone = 0
	}
	ended := garbage && isQuiet || h.idle >= idleLooks || h.gone >= crowdLooks || h.calm >= burstLooks
	if !ended || at.Sub(h.returned) < returnAfter {
		return garbage, false
	}
	h.returned, h.idle, h.most, h.gone, h.burst, h.calm = at, 0, now.crowd, 0, work, 0
	return true, true
}
