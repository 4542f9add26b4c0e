package flat_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/race"
)

func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func randomID(random *rand.Rand) string {
	text := make([]byte, 16)
	for index := range text {
		text[index] = base62[random.IntN(62)]
	}
	return string(text)
}

func TestIDsArePackedAndUnpacked(t *testing.T) {
	r := random(t)
	for index := range 10_000 {
		text := randomID(r)
		switch index {
		case 0:
			text = strings.Repeat("z", 16)
		case 1:
			text = strings.Repeat("0", 16)
		}
		id, is := flat.Pack(text)
		if !is || id.String() != text {
			t.Fatalf("%q became %q, %t", text, id, is)
		}
	}
	for _, text := range []string{"", "short", strings.Repeat("0", 17), strings.Repeat("0", 15) + "-", "\x00" + strings.Repeat("0", 15), strings.Repeat("0", 15) + "é"} {
		if _, is := flat.Pack(text); is {
			t.Errorf("%q was packed", text)
		}
	}
}

func TestArenaGivesFreedRecordsOutAgain(t *testing.T) {
	var arena flat.Arena[int64]
	for want := uint32(1); want <= 10_000; want++ {
		if got := arena.Add(); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
		*arena.At(want) = int64(want)
	}
	for number := uint32(2); number <= 10_000; number += 2 {
		arena.Free(number)
	}
	for range 5000 {
		if number := arena.Add(); number%2 != 0 || *arena.At(number) != 0 {
			t.Fatalf("got %d, holding %d", number, *arena.At(number))
		}
	}
	if arena.Len() != 10_000 || arena.Highest() != 10_000 || *arena.At(9999) != 9999 {
		t.Errorf("%d records up to %d", arena.Len(), arena.Highest())
	}
}

// TestIndexEqualsAMap compares an index with a map over random insertions and removals. Many
// hashes are equal in part, so that probing goes far and wraps around.
func TestIndexEqualsAMap(t *testing.T) {
	for name, narrow := range map[string]uint64{"spread": 1<<64 - 1, "few homes": 0xf0000001ff, "one segment": 1<<40 - 1} {
		t.Run(name, func(t *testing.T) {
			r := random(t)
			index := flat.NewIndex(1)
			hashes := make(map[uint32]uint64)
			hashOf := func(number uint32) uint64 { return hashes[number] }
			var present []uint32
			most := 4000
			if name == "few homes" {
				most = 700
			}
			for round := range race.Rounds(100_000, 10_000) {
				if grows := round/5000%2 == 0; len(present) < most && (grows && r.IntN(4) > 0 || !grows && r.IntN(4) == 0 || len(present) == 0) {
					number := 1 + r.Uint32N(flat.MaxNumber)
					if _, has := hashes[number]; has {
						continue
					}
					hashes[number] = r.Uint64() & narrow
					index.Insert(hashes[number], number, hashOf)
					present = append(present, number)
				} else {
					at := r.IntN(len(present))
					number := present[at]
					present = slices.Delete(present, at, at+1)
					if !index.Remove(hashes[number], number, hashOf) || index.Remove(hashes[number], number, hashOf) {
						t.Fatalf("round %d: %d was not there once", round, number)
					}
					hash := hashes[number]
					delete(hashes, number)
					if index.Find(hash, func(other uint32) bool { return other == number }) != 0 {
						t.Fatalf("round %d: %d is still there", round, number)
					}
				}
				if round%1000 == 0 {
					for number, hash := range hashes {
						if index.Find(hash, func(other uint32) bool { return other == number }) != number {
							t.Fatalf("round %d: %d was lost", round, number)
						}
					}
				}
			}
		})
	}
}

// TestIDsEqualTwoSets compares an IDs with a set for each holder.
func TestIDsEqualTwoSets(t *testing.T) {
	r := random(t)
	ids := flat.NewIDs(100)
	held := map[flat.Holder]map[string]uint32{flat.Store: {}, flat.Projection: {}}
	names := make([]string, 300)
	for index := range names {
		names[index] = randomID(r)
		if index%10 == 0 {
			names[index] = fmt.Sprintf("not base62 %d", index)
		}
	}
	for round := range race.Rounds(50_000, 5_000) {
		name, by := names[r.IntN(len(names))], flat.Holder(r.IntN(2))
		number, has := held[by][name]
		if r.IntN(2) == 0 {
			hold := func() (uint32, bool) { return ids.Hold(name, by) }
			if r.IntN(2) == 0 { // half of the guesses may be right
				guess := ids.Find(name, 1-by) + r.Uint32N(2)*r.Uint32N(400)
				hold = func() (uint32, bool) { return ids.HoldNear(name, guess, by) }
			}
			got, before := hold()
			if before != has || has && got != number {
				t.Fatalf("round %d: hold: got %d, %t; want %d, %t", round, got, before, number, has)
			}
			held[by][name] = got
		} else if has {
			ids.Release(number, by)
			ids.Release(number, by)
			delete(held[by], name)
		}
		for _, by := range []flat.Holder{flat.Store, flat.Projection} {
			number := held[by][name]
			if got := ids.Find(name, by); got != number {
				t.Fatalf("round %d: found %d, want %d", round, got, number)
			}
			if number != 0 && ids.ID(number) != name {
				t.Fatalf("round %d: %d is %q, want %q", round, number, ids.ID(number), name)
			}
		}
		if store, other := held[flat.Store][name], held[flat.Projection][name]; store != 0 && other != 0 && store != other {
			t.Fatalf("round %d: two numbers", round)
		}
	}
	both := maps.Clone(held[flat.Store])
	maps.Copy(both, held[flat.Projection])
	if ids.Len() != len(both) {
		t.Errorf("%d ids, want %d", ids.Len(), len(both))
	}
}

func TestIDsMayBeSharedByGoroutines(t *testing.T) {
	ids := flat.NewIDs(0)
	var users sync.WaitGroup
	for worker := range 4 {
		users.Go(func() {
			by := flat.Holder(worker % 2)
			for step := range 2000 {
				name := fmt.Sprintf("Key%013d", step/2*2+worker/2)
				number, _ := ids.Hold(name, by)
				if ids.Find(name, by) != number || ids.ID(number) != name {
					t.Errorf("%s was lost", name)
				}
				if step%3 == 0 {
					ids.Release(number, by)
				}
			}
		})
	}
	users.Wait()
}

// owners are records with texts.
type owners struct {
	places map[uint32]*flat.Text
	texts  *flat.Texts
}

func newOwners() *owners {
	o := &owners{places: make(map[uint32]*flat.Text)}
	o.texts = flat.NewTexts(func(record uint32) *flat.Text { return o.places[record] })
	return o
}

// TestTextsEqualAMap also checks that memory does not grow while texts come and go, and that a text
// that was returned is never changed.
func TestTextsEqualAMap(t *testing.T) {
	r := random(t)
	o := newOwners()
	want := make(map[uint32]string)
	type taken struct{ got, want string }
	var early []taken
	for round := range race.Rounds(400_000, 40_000) {
		record := r.Uint32N(2000)
		if place := o.places[record]; place != nil {
			if got := o.texts.Get(*place); got != want[record] {
				t.Fatalf("round %d: got %q, want %q", round, got, want[record])
			}
			if round%1000 == 0 {
				early = append(early, taken{o.texts.Get(*place), strings.Clone(want[record])})
			}
			dropped := *place
			delete(o.places, record)
			delete(want, record)
			o.texts.Drop(dropped)
		} else {
			text := strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(100))
			if r.IntN(5000) == 0 {
				text = strings.Repeat("long", 20_000)
			}
			place := o.texts.Add(record, text)
			o.places[record], want[record] = &place, text
		}
	}
	for record, text := range want {
		if got := o.texts.Get(*o.places[record]); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	for _, each := range early {
		if each.got != each.want {
			t.Fatalf("a text was changed from %q to %q", each.want, each.got)
		}
	}
	// About 1000 texts of 55 bytes are there, some of them long.
	if bytes := o.texts.Bytes(); bytes > 1<<20 {
		t.Errorf("%d bytes for %d texts", bytes, len(want))
	}
	if o.texts.Get(0) != "" {
		t.Error("no text is a text")
	}
	o.texts.Drop(0)
}

// TestFlatPartsTakeNoPointerForEachRecord is about how many objects the garbage collector sees.
func TestFlatPartsTakeNoPointerForEachRecord(t *testing.T) {
	const keys = 200_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ids := flat.NewIDs(keys)
	for number := range keys {
		ids.Hold(fmt.Sprintf("Key%013d", number), flat.Projection)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	objects := int64(after.Mallocs-after.Frees) - int64(before.Mallocs-before.Frees)
	if objects > keys/20 {
		t.Errorf("%d objects for %d keys", objects, keys)
	}
	t.Logf("%.1f bytes a key", float64(after.HeapAlloc-before.HeapAlloc)/keys)
	runtime.KeepAlive(ids)
}

func BenchmarkFind(b *testing.B) {
	for _, keys := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			ids := flat.NewIDs(keys)
			var names []string
			for number := range keys {
				name := fmt.Sprintf("Key%013d", number)
				ids.Hold(name, flat.Projection)
				if number%(keys/1000) == 0 {
					names = append(names, name)
				}
			}
			b.ReportAllocs()
			for index := 0; b.Loop(); index++ {
				if ids.Find(names[index%len(names)], flat.Projection) == 0 {
					b.Fatal("lost")
				}
			}
		})
	}
}

// FuzzPack: what is packed is unpacked to the same.
func FuzzPack(f *testing.F) {
	f.Add("0123456789ABCDEF")
	f.Add("zzzzzzzzzzzzzzzz")
	f.Add("0123456789ABCDE-")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if id, is := flat.Pack(text); is && id.String() != text {
			t.Errorf("%q became %q", text, id)
		}
	})
}

// TestHoldAllEqualsHold holds ids in groups, some of them twice.
func TestHoldAllEqualsHold(t *testing.T) {
	r := random(t)
	one, other := flat.NewIDs(100), flat.NewIDs(100)
	var names []string
	for range race.Rounds(200, 50) {
		var ids []flat.ID
		var group []string
		for range r.IntN(200) {
			name := randomID(r)
			if len(names) > 0 && r.IntN(4) == 0 {
				name = names[r.IntN(len(names))]
			}
			id, _ := flat.PackBytes([]byte(name))
			ids, group, names = append(ids, id), append(group, name), append(names, name)
		}
		next := 0
		one.HoldAll(ids, flat.Store, func(index int, number uint32, before bool) {
			wantNumber, wantBefore := other.Hold(group[index], flat.Store)
			if index != next || number != wantNumber || before != wantBefore {
				t.Fatalf("%d: %s got %d, %t; want %d, %t", index, group[index], number, before, wantNumber, wantBefore)
			}
			next++
		})
		if next != len(ids) {
			t.Fatalf("%d of %d", next, len(ids))
		}
	}
	for _, name := range names {
		if one.Find(name, flat.Store) != other.Find(name, flat.Store) {
			t.Fatal(name)
		}
	}
}
