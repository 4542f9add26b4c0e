package server

import (
	"slices"
	"testing"
	"time"
)

const mib = 1 << 20

func TestGarbageIsCollectedWhenALoadHasEnded(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	tests := map[string]struct {
		before, now heap
		passed      time.Duration
		due         bool
	}{
		"garbage after an attack":              {heap{cycles: 3, live: 200 * mib, allocated: 1000 * mib}, heap{cycles: 3, live: 200 * mib, allocated: 1050 * mib}, returnAfter, true},
		"the last collection was just now":     {heap{cycles: 3, live: 20 * mib}, heap{cycles: 3, live: 20 * mib, allocated: 100 * mib}, returnAfter - 1, false},
		"the runtime has collected meanwhile":  {heap{cycles: 3, live: 20 * mib}, heap{cycles: 4, live: 20 * mib, allocated: 100 * mib}, time.Hour, false},
		"little was allocated":                 {heap{cycles: 3, live: 1 * mib}, heap{cycles: 3, live: 1 * mib, allocated: 4*mib - 1}, time.Hour, false},
		"little beside what is live":           {heap{cycles: 3, live: 500 * mib}, heap{cycles: 3, live: 500 * mib, allocated: 124 * mib}, time.Hour, false},
		"a quarter of what is live is garbage": {heap{cycles: 3, live: 500 * mib}, heap{cycles: 3, live: 500 * mib, allocated: 125 * mib}, time.Hour, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var seen heaps
			if collect, release := seen.due(test.before, began); collect || release {
				t.Error("due at the first look")
			}
			if collect, release := seen.due(test.now, began.Add(test.passed)); collect != test.due || release {
				t.Errorf("due: %t, want %t; memory returned while there is work: %t", collect, test.due, release)
			}
			// As much was allocated in the same time, but before the look that comes last.
			seen = heaps{}
			seen.due(test.before, began)
			seen.due(test.now, began.Add(time.Nanosecond))
			if collect, release := seen.due(test.now, began.Add(test.passed)); collect != test.due || release != test.due {
				t.Errorf("due in a quiet server: %t, and to return memory: %t, want %t", collect, release, test.due)
			}
		})
	}
}

func TestFreeMemoryIsReturnedWhenALoadHasEnded(t *testing.T) {
	tests := map[string]struct {
		live uint64
		idle []uint64
		// work is how many bytes are allocated from one look to the next, and room how many may be
		// before the next collection.
		work, room uint64
		due        int // the look at which memory is returned first; -1 for never
	}{
		"free after an attack":            {live: 10 * mib, idle: []uint64{30 * mib, 30 * mib, 30 * mib}, due: 2},
		"used again by a steady load":     {live: 10 * mib, idle: []uint64{30 * mib, 30 * mib, 1 * mib, 30 * mib, 30 * mib, 1 * mib}, due: -1},
		"little":                          {live: 1 * mib, idle: []uint64{8*mib - 1, 8*mib - 1, 8*mib - 1, 8*mib - 1}, due: -1},
		"little beside what is live":      {live: 100 * mib, idle: []uint64{49 * mib, 49 * mib, 49 * mib, 49 * mib}, due: -1},
		"as much as half of what is live": {live: 100 * mib, idle: []uint64{50 * mib, 50 * mib, 50 * mib}, due: 2},
		"the room of a slow load":         {live: 10 * mib, idle: []uint64{32 * mib, 30 * mib, 28 * mib, 26 * mib}, work: 2 * mib, room: 24 * mib, due: -1},
		"more than the room of a load":    {live: 10 * mib, idle: []uint64{80 * mib, 78 * mib, 76 * mib}, work: 2 * mib, room: 24 * mib, due: 2},
		"the room of a quiet server":      {live: 10 * mib, idle: []uint64{31 * mib, 31 * mib, 31 * mib, 31 * mib}, work: mib - 1, room: 24 * mib, due: 3},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var seen heaps
			due := -1
			for look, idle := range test.idle {
				now := heap{cycles: uint64(look), live: test.live, idle: idle, room: test.room, allocated: test.work * uint64(look)}
				if _, release := seen.due(now, time.Unix(1_800_000_000+int64(look), 0)); release && due < 0 {
					due = look
				}
			}
			if due != test.due {
				t.Errorf("due at look %d, want %d", due, test.due)
			}
		})
	}
}

func TestMemoryIsReturnedWhenACrowdHasLeft(t *testing.T) {
	var seen heaps
	due := -1
	for look, crowd := range []uint64{1 * mib, 30 * mib, 20 * mib, 30 * mib, 22*mib + 1, 22 * mib, 21 * mib, 21 * mib, 21 * mib} {
		if _, release := seen.due(heap{cycles: uint64(look), live: 10 * mib, crowd: crowd}, time.Unix(1_800_000_000+int64(look), 0)); release {
			if due >= 0 {
				t.Errorf("due again at look %d", look)
			}
			due = look
		}
	}
	if due != 6 { // at look 5, 8 MiB have gone; at look 2 they come back
		t.Errorf("due at look %d", due)
	}
}

// TestMemoryIsReturnedWhenABurstHasEnded has a load that goes on after an attack, and a runtime that
// collects by itself.
func TestMemoryIsReturnedWhenABurstHasEnded(t *testing.T) {
	tests := map[string]struct {
		work []uint64 // bytes that are allocated from one look to the next
		due  []int
	}{
		"a burst in a steady load":            {[]uint64{2, 2, 30, 2, 2, 2, 2, 2, 2, 2, 2}, []int{6}},
		"a load that falls slowly":            {[]uint64{30, 20, 10, 8, 7, 7, 7, 2}, []int{7}},
		"bursts with short pauses":            {[]uint64{30, 2, 2, 30, 2, 2, 30, 2, 2, 30}, nil},
		"a small burst":                       {[]uint64{1, 7, 1, 1, 1, 1, 1}, nil},
		"a burst soon after memory came back": {[]uint64{30, 2, 2, 2, 30, 2, 2, 2, 2}, []int{4, 8}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var seen heaps
			var due []int
			now := heap{live: 10 * mib}
			for look, work := range append([]uint64{0}, test.work...) {
				now.cycles++
				now.allocated += work * mib
				if _, release := seen.due(now, time.Unix(1_800_000_000+int64(look), 0)); release {
					due = append(due, look)
				}
			}
			if !slices.Equal(due, test.due) {
				t.Errorf("due at looks %v, want %v", due, test.due)
			}
		})
	}
}

func TestMemoryIsNotReturnedAllTheTime(t *testing.T) {
	var seen heaps
	count := 0
	for second := range int64(40) {
		now := heap{cycles: uint64(second), live: 10 * mib, idle: 100 * mib}
		if _, release := seen.due(now, time.Unix(1_800_000_000+second, 0)); release {
			count++
		}
	}
	if count < 9 || count > 10 {
		t.Errorf("memory was returned %d times in 40 s", count)
	}
}

func TestTheRuntimeTellsAboutTheHeap(t *testing.T) {
	// A metric that this version of Go does not have would panic.
	if now := readHeap(); now.allocated == 0 || now.live == 0 && now.cycles > 0 {
		t.Errorf("got %+v", now)
	}
}
