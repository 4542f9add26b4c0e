package flat_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/scribe-mail/keysvc/internal/flat"
)

func TestListsHoldWhatSlicesHold(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var lists flat.Lists
	var some [5]flat.List
	var want [len(some)][]uint32
	number := func() uint32 {
		if random.IntN(3) == 0 {
			return random.Uint32()
		}
		return 1 + random.Uint32N(300)
	}
	all := func(list *flat.List) (got []uint32) {
		var near flat.Near
		for len(got) < list.Len() {
			before := len(got)
			if got, near = lists.From(list, len(got), near, got); len(got) == before {
				t.Fatalf("From returned nothing at %d of %d", before, list.Len())
			}
		}
		return got
	}
	for round := range 20_000 {
		which := random.IntN(len(some))
		list := &some[which]
		switch adds := round/2_000%2 == 0; {
		case adds == (random.IntN(10) > 0):
			added := number()
			if !slices.Contains(want[which], added) {
				lists.Add(list, added)
				want[which] = append(want[which], added)
			}
		default:
			removed := number()
			if len(want[which]) > 0 && random.IntN(4) > 0 {
				removed = want[which][random.IntN(len(want[which]))]
			}
			place := slices.Index(want[which], removed)
			if got := lists.Remove(list, removed); got != place {
				t.Fatalf("round %d: Remove(%d) = %d, want %d", round, removed, got, place)
			}
			if place >= 0 {
				want[which] = slices.Delete(want[which], place, place+1)
			}
		}
		if list.Len() != len(want[which]) {
			t.Fatalf("round %d: %d numbers, want %d", round, list.Len(), len(want[which]))
		}
		if round%10 > 0 {
			continue
		}
		if got := all(list); !slices.Equal(got, want[which]) {
			t.Fatalf("round %d: got %v, want %v", round, got, want[which])
		}
		from := random.IntN(len(want[which]) + 1)
		if got, _ := lists.From(list, from, flat.Near{}, nil); !slices.Equal(got, want[which][from:min(len(want[which]), from+len(got))]) || len(got) == 0 && from < len(want[which]) {
			t.Fatalf("round %d: from %d got %v", round, from, got)
		}
		backward := slices.Collect(lists.Backward(list, func(uint32) bool { return false }))
		slices.Reverse(backward)
		if !slices.Equal(backward, want[which]) {
			t.Fatalf("round %d: backward got %v, want %v", round, backward, want[which])
		}
	}
}

// Backward leaves numbers out only if they are behind a number that is not wanted.
func TestListsBackwardSkips(t *testing.T) {
	var lists flat.Lists
	var list flat.List
	for number := range uint32(1000) {
		lists.Add(&list, number+1)
	}
	looked := 0
	got := slices.Collect(lists.Backward(&list, func(number uint32) bool { looked++; return number > 500 }))
	if got[len(got)-1] != 1 || got[0] < 500 || got[0] > 560 || len(got) != int(got[0]) || looked > 20 {
		t.Errorf("%d numbers from %d to %d, %d looks", len(got), got[0], got[len(got)-1], looked)
	}
}

// A list most of whose numbers are removed, in any order, gives its memory back.
func TestListsMergeBlocks(t *testing.T) {
	const all = 5_000
	everyThirtieth := func(backward bool) (removed []int) {
		for number := range all {
			if number%30 > 0 {
				removed = append(removed, number)
			}
		}
		if backward {
			slices.Reverse(removed)
		}
		return removed
	}
	for name, removed := range map[string][]int{
		"at random": rand.New(rand.NewPCG(3, 4)).Perm(all)[:all/30*29],
		"ascending": everyThirtieth(false), "descending": everyThirtieth(true),
	} {
		var lists flat.Lists
		var list flat.List
		for number := range uint32(all) {
			lists.Add(&list, number+1)
		}
		before := lists.Blocks()
		for _, number := range removed {
			lists.Remove(&list, uint32(number+1))
		}
		if after := lists.Blocks(); before > 100 || after > 10 {
			t.Errorf("%s: %d blocks for %d numbers, %d for %d of them", name, before, all, after, list.Len())
		}
	}
}
