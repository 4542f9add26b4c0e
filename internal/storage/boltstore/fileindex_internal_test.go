package boltstore

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/scribe-mail/keysvc/internal/race"
)

// A slot that does not fit into a packedKey comes from a damaged name, or from a very old store.
func TestDirectoryKeepsSlotsThatAreFarApart(t *testing.T) {
	index := newFileIndex(0)
	entry := index.workspace("acme")
	slots := []int64{7, 8, 7 + math.MaxUint32 - 1, 7 + math.MaxUint32, 7 + math.MaxUint32 + 1, 1 << 40, math.MaxInt64 - 1}
	for number, slot := range slots {
		if !index.addKey(entry, fmt.Sprintf("Key%013d", number), slot, uint64(number)) {
			t.Fatal("added twice")
		}
	}
	for number, slot := range slots {
		if at, found := index.key(fmt.Sprintf("Key%013d", number)); !found || at.slot != slot || at.element != uint64(number) || at.workspace != entry {
			t.Errorf("key %d: got %+v, %t, want slot %d", number, at, found, slot)
		}
	}
	want := slices.Clone(slots)
	slices.Reverse(want)
	if page := index.page(entry, math.MaxInt64, 100); !slices.Equal(page, want) {
		t.Errorf("page %v, want %v", page, want)
	}
	if page := index.page(entry, 1<<40, 1); !slices.Equal(page, want[2:4]) {
		t.Errorf("page before %d: %v, want %v", int64(1<<40), page, want[2:4])
	}
	index.removeKey("Key0000000000005", nil)
	index.removeKey("Key0000000000001", nil)
	if page := index.page(entry, math.MaxInt64, 100); !slices.Equal(page, []int64{want[0], want[2], want[3], want[4], want[6]}) {
		t.Errorf("page %v after two were removed from %v", page, want)
	}
	if len(index.farSlots) != 3 {
		t.Errorf("%d far slots, want 3", len(index.farSlots))
	}
}

// TestHeapOfTheDirectory holds what the directory takes for each key, ids included.
func TestHeapOfTheDirectory(t *testing.T) {
	if race.Enabled() {
		t.Skip("the race detector needs memory of its own")
	}
	const keys = 100_000
	kept := func() int64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := kept()
	index := newFileIndex(0)
	for number := range keys {
		entry := index.workspace(fmt.Sprintf("workspace-%06d", number%(keys/100)))
		index.addKey(entry, fmt.Sprintf("Key%013d", number), int64(number+1), 1)
	}
	each := float64(kept()-before) / keys
	runtime.KeepAlive(index)
	t.Logf("%.1f bytes a key", each)
	if each > 44 {
		t.Errorf("%.1f bytes a key, want at most 44", each)
	}
}
