package server

import (
	"testing"
	"time"
)

func TestGarbageIsCollectedWhenALoadHasEnded(t *testing.T) {
	const mib = 1 << 20
	began := time.Unix(1_800_000_000, 0)
	tests := map[string]struct {
		before, now heap
		passed      time.Duration
		due         bool
	}{
		"garbage after an attack":              {heap{3, 200 * mib, 1000 * mib}, heap{3, 200 * mib, 1050 * mib}, 5 * time.Second, true},
		"the last collection was just now":     {heap{3, 20 * mib, 0}, heap{3, 20 * mib, 100 * mib}, 5*time.Second - 1, false},
		"the runtime has collected meanwhile":  {heap{3, 20 * mib, 0}, heap{4, 20 * mib, 100 * mib}, time.Hour, false},
		"little was allocated":                 {heap{3, 1 * mib, 0}, heap{3, 1 * mib, 16*mib - 1}, time.Hour, false},
		"little beside what is live":           {heap{3, 500 * mib, 0}, heap{3, 500 * mib, 124 * mib}, time.Hour, false},
		"a quarter of what is live is garbage": {heap{3, 500 * mib, 0}, heap{3, 500 * mib, 125 * mib}, time.Hour, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var collected collections
			if collected.due(test.before, began) {
				t.Error("due at the first look")
			}
			if due := collected.due(test.now, began.Add(test.passed)); due != test.due {
				t.Errorf("due: %t, want %t", due, test.due)
			}
		})
	}
}

func TestTheRuntimeTellsAboutTheHeap(t *testing.T) {
	// A metric that this version of Go does not have would panic.
	if now := readHeap(); now.allocated == 0 {
		t.Errorf("got %+v", now)
	}
}
