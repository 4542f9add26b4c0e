package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// leastRoom is how many bytes are allocated between two collections of garbage, at least. With
	// twice as much a validation costs hardly less, with half as much a twentieth more.
	leastRoom = 32 << 20
	// smallestHeap is the size of a heap up to which Go does not collect, with GOGC=100.
	smallestHeap = 4 << 20
)

// collectLess makes collections of garbage rarer than Go does by itself, for the rest of the process,
// unless the operator has set GOGC. Go collects when there is as much garbage as live heap, which is a
// few megabytes if there are few keys: a busy server would collect fifty times a second. What a
// collection costs goes by the bytes that may have pointers. So collectLess lets as much garbage gather
// as there are such bytes, and leastRoom at least. GOMEMLIMIT is a bound as ever.
var collectLess = sync.OnceFunc(func() {
	if os.Getenv("GOGC") == "" {
		adjustCollector(100)
	}
})

// adjustCollector sets GOGC, which is percent now, to what the last collection makes of it, and does so
// again after each collection.
func adjustCollector(percent int) {
	if wanted := readScan().percent(); wanted != percent {
		percent = wanted
		debug.SetGCPercent(percent)
	}
	// Nothing points to this object, so the next collection cleans it up.
	runtime.AddCleanup(new([16]byte), adjustCollector, percent)
}

// scan is what the last collection of garbage went through, in bytes.
type scan struct {
	// live is the heap that was live, and pointers the part of it that may have pointers. roots are
	// stacks and global variables.
	live, pointers, roots uint64
}

// readScan asks the runtime.
func readScan() scan {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/scan/heap:bytes"},
		{Name: "/gc/scan/stack:bytes"},
		{Name: "/gc/scan/globals:bytes"},
	}
	metrics.Read(samples)
	return scan{
		live: samples[0].Value.Uint64(), pointers: samples[1].Value.Uint64(),
		roots: samples[2].Value.Uint64() + samples[3].Value.Uint64(),
	}
}

// percent returns what GOGC must be: the room for garbage as a part of live heap and roots.
func (s scan) percent() int {
	room := max(leastRoom, s.pointers)
	base := max(s.live+s.roots, smallestHeap)
	// Go does not collect at all before there are smallestHeap * GOGC / 100 bytes.
	return int(min(room*100/base, (s.live+room)*100/smallestHeap)) + 1 //nolint:gosec // less than 1000, or about 100
}
