package server

import (
	"runtime"
	"testing"
	"time"
)

func TestGarbageGathersByTheBytesWithPointers(t *testing.T) {
	tests := map[string]struct {
		scan scan
		room uint64
		// goal is the size at which the next collection ends, in bytes.
		goal uint64
	}{
		"a process that has just begun":  {scan{}, leastRoom, leastRoom},
		"few keys":                       {scan{live: 4 * mib, pointers: 3 * mib, roots: mib}, 32 * mib, 36 * mib},
		"many keys without pointers":     {scan{live: 400 * mib, pointers: 10 * mib, roots: mib}, 32 * mib, 432 * mib},
		"much that a collection visits":  {scan{live: 400 * mib, pointers: 300 * mib, roots: mib}, 32 * mib, 700 * mib},
		"much, and nothing but pointers": {scan{live: 4000 * mib, pointers: 4000 * mib, roots: mib}, 32 * mib, 8000 * mib},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			percent := uint64(test.scan.percent(test.room))
			// As runtime/mgcpacer.go has it.
			goal := max(test.scan.live+(test.scan.live+test.scan.roots)*percent/100, smallestHeap*percent/100)
			if slack := max(test.scan.live/50, mib); goal > test.goal+slack || goal < test.goal-slack {
				t.Errorf("%d %%: collects at %d MiB, want %d", percent, goal/mib, test.goal/mib)
			}
		})
	}
}

func TestRoomForGarbageIsWhatASecondAllocates(t *testing.T) {
	for _, test := range []struct {
		before, allocated uint64
		passed            time.Duration
		want              uint64
	}{
		{0, 0, 0, leastRoom},
		{leastRoom, 8 * mib, time.Minute, leastRoom},
		{leastRoom, 20 * mib, 2 * time.Second, 10 * mib},
		{leastRoom, 4 * mib, 20 * time.Millisecond, mostRoom},
		{mostRoom, 20 * mib, 2 * time.Second, mostRoom}, // not much less
		{mostRoom, 32 * mib, 5 * time.Second, 32 * mib / 5},
		{mostRoom, 4 * mib, 4 * time.Second, leastRoom},
	} {
		if got := roomFor(test.before, test.allocated, test.passed, mostRoom); got != test.want {
			t.Errorf("%d MiB in %s, after a room of %d: %d, want %d", test.allocated/mib, test.passed, test.before/mib, got, test.want)
		}
	}
}

// With many keys a collection takes longer, so there are fewer of them.
func TestRoomForGarbageGrowsWithTheLiveHeap(t *testing.T) {
	for live, want := range map[uint64]uint64{4 * mib: mostRoom, 60 * mib: mostRoom, 200 * mib: 200 * mib} {
		if got := roomFor(leastRoom, 4000*mib, time.Second, (scan{live: live}).mostRoom()); got != want {
			t.Errorf("%d MiB live: %d MiB, want %d", live/mib, got/mib, want/mib)
		}
	}
}

func TestTheRuntimeTellsWhatCollectionsVisit(t *testing.T) {
	runtime.GC()
	if seen := readScan(); seen.live == 0 || seen.pointers == 0 || seen.roots == 0 || seen.allocated == 0 {
		t.Errorf("got %+v", seen)
	}
}
