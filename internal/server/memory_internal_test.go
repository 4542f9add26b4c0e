package server

import (
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
		"garbage after an attack":              {heap{3, 200 * mib, 1000 * mib, 0, 0}, heap{3, 200 * mib, 1050 * mib, 0, 0}, returnAfter, true},
		"the last collection was just now":     {heap{3, 20 * mib, 0, 0, 0}, heap{3, 20 * mib, 100 * mib, 0, 0}, returnAfter - 1, false},
		"the runtime has collected meanwhile":  {heap{3, 20 * mib, 0, 0, 0}, heap{4, 20 * mib, 100 * mib, 0, 0}, time.Hour, false},
		"little was allocated":                 {heap{3, 1 * mib, 0, 0, 0}, heap{3, 1 * mib, 4*mib - 1, 0, 0}, time.Hour, false},
		"little beside what is live":           {heap{3, 500 * mib, 0, 0, 0}, heap{3, 500 * mib, 124 * mib, 0, 0}, time.Hour, false},
		"a quarter of what is live is garbage": {heap{3, 500 * mib, 0, 0, 0}, heap{3, 500 * mib, 125 * mib, 0, 0}, time.Hour, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var seen heaps
			if seen.due(test.before, began) {
				t.Error("due at the first look")
			}
			if due := seen.due(test.now, began.Add(test.passed)); due != test.due {
				t.Errorf("due: %t, want %t", due, test.due)
			}
		})
	}
}

func TestFreeMemoryIsReturnedWhenALoadHasEnded(t *testing.T) {
	tests := map[string]struct {
		live uint64
		idle []uint64
		due  int // the look at which memory is returned first; -1 for never
	}{
		"free after an attack":            {10 * mib, []uint64{30 * mib, 30 * mib, 30 * mib}, 2},
		"used again by a steady load":     {10 * mib, []uint64{30 * mib, 30 * mib, 1 * mib, 30 * mib, 30 * mib, 1 * mib}, -1},
		"little":                          {1 * mib, []uint64{8*mib - 1, 8*mib - 1, 8*mib - 1, 8*mib - 1}, -1},
		"little beside what is live":      {100 * mib, []uint64{49 * mib, 49 * mib, 49 * mib, 49 * mib}, -1},
		"as much as half of what is live": {100 * mib, []uint64{50 * mib, 50 * mib, 50 * mib}, 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var seen heaps
			due := -1
			for look, idle := range test.idle {
				now := heap{cycles: uint64(look), live: test.live, idle: idle}
				if seen.due(now, time.Unix(1_800_000_000+int64(look), 0)) && due < 0 {
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
		if seen.due(heap{cycles: uint64(look), live: 10 * mib, crowd: crowd}, time.Unix(1_800_000_000+int64(look), 0)) {
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

func TestMemoryIsNotReturnedAllTheTime(t *testing.T) {
	var seen heaps
	count := 0
	for second := range int64(40) {
		now := heap{cycles: uint64(second), live: 10 * mib, idle: 100 * mib}
		if seen.due(now, time.Unix(1_800_000_000+second, 0)) {
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
