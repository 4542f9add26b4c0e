package server

import (
	"context"
	"runtime"
	"runtime/metrics"
	"time"
)

const (
	// collectAfter is the shortest time between a garbage collection and one that returnMemory
	// begins.
	collectAfter = 5 * time.Second
	// leastGarbage is the fewest bytes that must have been allocated since the last collection.
	leastGarbage = 16 << 20
	// garbageShare is the part of the live heap that must have been allocated since the last
	// collection: a quarter. Go by itself waits for as much as the live heap.
	garbageShare = 4
)

// returnMemory collects garbage when a load has ended. Go collects when the heap has grown to twice
// what was live at the last collection. If that was in the middle of an attack, a quiet server
// would keep the attack's memory for minutes. A server with much to do collects more often than
// that by itself, and returnMemory does nothing.
func (s *Server) returnMemory(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var collected collections
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			if collected.due(readHeap(), now) {
				runtime.GC()
			}
		}
	}
}

// heap is what the runtime tells about the heap.
type heap struct {
	// cycles is how many collections have ended, and live how many bytes were live at the last of
	// them. allocated is how many bytes were allocated since the start.
	cycles, live, allocated uint64
}

// readHeap asks the runtime.
func readHeap() heap {
	samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	return heap{cycles: samples[0].Value.Uint64(), live: samples[1].Value.Uint64(), allocated: samples[2].Value.Uint64()}
}

// collections remembers the last collection.
type collections struct {
	// last is the heap when the last collection was noticed, at a time. at is zero before the first
	// look.
	last heap
	at   time.Time
}

// due reports whether it is time to collect.
func (c *collections) due(now heap, at time.Time) bool {
	if c.at.IsZero() || now.cycles != c.last.cycles {
		c.last, c.at = now, at
		return false
	}
	return at.Sub(c.at) >= collectAfter && now.allocated-c.last.allocated >= max(leastGarbage, now.live/garbageShare)
}
