package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// smallestHeap is the size of a heap up to which Go does not collect, with GOGC=100.
	smallestHeap = 4 << 20
	// collectionInterval is how long it should take from one collection of garbage to the next. The
	// room for garbage is what is allocated in that time, but leastRoom at least, and at most mostRoom, or
	// as much as the live heap if that is large. With few keys and twice as much as mostRoom a validation
	// costs hardly less, with half as much a twentieth more. With 1,000,000 keys a collection lasts 7 to 20
	// ms, in which validations wait: beside lists, four of them a second made the p99.
	// The room does not shrink before it is roomShare times too large: memory that is returned to the
	// system, and soon needed again, costs more than collections do.
	collectionInterval = time.Second
	leastRoom          = 4 << 20
	mostRoom           = 32 << 20
	// manyKeys is from which live heap on the room may be as large as that.
	manyKeys  = 64 << 20
	roomShare = 4
)

// collectLess makes collections of garbage rarer than Go does by itself, for the rest of the process,
// unless the operator has set GOGC. Go collects when there is as much garbage as live heap, which is a
// few megabytes if there are few keys: a busy server would collect fifty times a second. What a
// collection costs goes by the bytes that may have pointers. So collectLess lets as much garbage gather
// as there are such bytes, and up to mostRoom if much is allocated. GOMEMLIMIT is a bound as ever.
var collectLess = sync.OnceFunc(func() {
	if os.Getenv("GOGC") == "" {
		adjustCollector(collector{percent: 100, at: time.Now()})
	}
})

// collector is what was seen, and set, when the last collection had ended.
type collector struct {
	// percent is GOGC, and room what there is for garbage without regard to pointers.
	percent int
	room    uint64
	// allocated is how many bytes had been allocated since the start of the process.
	allocated uint64
	at        time.Time
}

// adjustCollector sets GOGC to what the last collection makes of it, and does so again after each
// collection.
func adjustCollector(before collector) {
	seen := readScan()
	now := collector{allocated: seen.allocated, at: time.Now()}
	now.room = roomFor(before.room, seen.allocated-before.allocated, now.at.Sub(before.at), seen.mostRoom())
	now.percent = seen.percent(now.room)
	if now.percent != before.percent {
		debug.SetGCPercent(now.percent)
	}
	// Nothing points to this object, so the next collection cleans it up.
	runtime.AddCleanup(new([16]byte), adjustCollector, now)
}

// scan is what the last collection of garbage went through, in bytes.
type scan struct {
	// live is the heap that was live, and pointers the part of it that may have pointers. roots are
	// stacks and global variables. allocated is how much was allocated since the start of the process.
	live, pointers, roots, allocated uint64
}

// readScan asks the runtime.
func readScan() scan {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/scan/heap:bytes"},
		{Name: "/gc/scan/stack:bytes"},
		{Name: "/gc/scan/globals:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(samples)
	return scan{
		live: samples[0].Value.Uint64(), pointers: samples[1].Value.Uint64(),
		roots: samples[2].Value.Uint64() + samples[3].Value.Uint64(), allocated: samples[4].Value.Uint64(),
	}
}

// roomFor returns the room for garbage after so many bytes were allocated in the time since the last
// collection, at most a number of bytes. before is the room until now.
func roomFor(before, allocated uint64, passed time.Duration, most uint64) uint64 {
	wanted := float64(allocated) * float64(collectionInterval) / float64(max(passed, time.Millisecond))
	room := max(leastRoom, uint64(min(float64(most), wanted)))
	if room < before && before < roomShare*room {
		return before
	}
	return room
}

// mostRoom returns the most room that there may be for garbage. With few keys it stays mostRoom: a live
// heap that an attack made must not bring more room with it.
func (s scan) mostRoom() uint64 {
	if s.live < manyKeys {
		return mostRoom
	}
	return s.live
}

// percent returns what GOGC must be: the room for garbage, or for as much as may have pointers, as a
// part of live heap and roots.
func (s scan) percent(room uint64) int {
	room = max(room, s.pointers)
	base := max(s.live+s.roots, smallestHeap)
	// Go does not collect at all before there are smallestHeap * GOGC / 100 bytes.
	return int(min(room*100/base, (s.live+room)*100/smallestHeap)) + 1 //nolint:gosec // less than 1000, or about 100
}
