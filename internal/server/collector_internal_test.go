package server

import (
	"runtime"
	"testing"
)

func TestGarbageGathersByTheBytesWithPointers(t *testing.T) {
	tests := map[string]struct {
		scan scan
		// goal is the size at which the next collection ends, in bytes.
		goal uint64
	}{
		"a process that has just begun":  {scan{}, leastRoom},
		"few keys":                       {scan{live: 4 * mib, pointers: 3 * mib, roots: mib}, 4*mib + leastRoom},
		"many keys without pointers":     {scan{live: 400 * mib, pointers: 10 * mib, roots: mib}, 400*mib + leastRoom},
		"much that a collection visits":  {scan{live: 400 * mib, pointers: 300 * mib, roots: mib}, 700 * mib},
		"much, and nothing but pointers": {scan{live: 4000 * mib, pointers: 4000 * mib, roots: mib}, 8000 * mib},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			percent := uint64(test.scan.percent()) //nolint:gosec // not negative
			// As runtime/mgcpacer.go has it.
			goal := max(test.scan.live+(test.scan.live+test.scan.roots)*percent/100, smallestHeap*percent/100)
			if slack := max(test.scan.live/50, mib); goal > test.goal+slack || goal < test.goal-slack {
				t.Errorf("%d %%: collects at %d MiB, want %d", percent, goal/mib, test.goal/mib)
			}
		})
	}
}

func TestTheRuntimeTellsWhatCollectionsVisit(t *testing.T) {
	runtime.GC()
	if seen := readScan(); seen.live == 0 || seen.pointers == 0 || seen.roots == 0 {
		t.Errorf("got %+v", seen)
	}
}
