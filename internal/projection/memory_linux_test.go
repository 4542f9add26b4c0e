package projection

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var measureImports = flag.Bool("imports", false, "let a tenth of the keys of TestMeasureHeap be imported")

var measure = flag.Int("measure", 0, "number of keys of TestMeasureHeap; 0 skips it")

// population is a source of many keys: 10 of each member and 100 of each workspace, a tenth of them
// in rotation, a tenth with networks, and all of them used.
type population struct {
	difference // for the methods that are not used

	keys     int
	payloads [][]byte
}

func (p *population) LoadViews(_ context.Context, expect func(storage.Expected), visit func(storage.Item) error) (storage.Position, error) {
	expect(storage.Expected{Keys: p.keys})
	if err := visit(storage.Item{Policy: &storagev1.PolicyRecord{Document: policy.Default().Document()}}); err != nil {
		return storage.Position{}, err
	}
	for number := range (p.keys + 99) / 100 {
		id := fmt.Sprintf("workspace-%06d", number)
		err := visit(storage.Item{Workspace: &storagev1.WorkspaceRecord{
			WorkspaceId: id, Incarnation: fmt.Sprintf("WWWWWWWWWWWWWWWW%06d", number), CreateTime: timestamppb.New(diffTime),
		}})
		if err != nil {
			return storage.Position{}, err
		}
		if err := visit(storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: id}}); err != nil {
			return storage.Position{}, err
		}
	}
	for number := range (p.keys + 9) / 10 {
		if err := visit(storage.Item{Member: p.member(number)}); err != nil {
			return storage.Position{}, err
		}
	}
	var view storage.KeyView
	for number := range p.keys {
		if err := view.Parse(p.payloads[number]); err != nil {
			return storage.Position{}, err
		}
		view.LastUsed = diffTime.UnixNano()
		if err := visit(storage.Item{KeyView: &view}); err != nil {
			return storage.Position{}, err
		}
	}
	return storage.Position{Revision: 1}, nil
}

func (p *population) member(number int) *storagev1.MemberRecord {
	return &storagev1.MemberRecord{
		WorkspaceId: fmt.Sprintf("workspace-%06d", number/10), MemberId: fmt.Sprintf("member-%07d", number),
		Incarnation: fmt.Sprintf("MMMMMMMMMMMMMMM%07d", number), WorkspaceIncarnation: fmt.Sprintf("WWWWWWWWWWWWWWWW%06d", number/10),
		Role: "member", State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE, UpdateTime: timestamppb.New(diffTime),
	}
}

// key returns a key's record. The keys of all members come in turns, as they do in a store.
func (p *population) key(number int) *storagev1.KeyRecord {
	of := p.member(number % ((p.keys + 9) / 10))
	hash := func(scheme byte) []byte {
		sum := make([]byte, 32)
		copy(sum, fmt.Sprintf("%d %d", scheme, number))
		return sum
	}
	record := &storagev1.KeyRecord{
		KeyId: fmt.Sprintf("Key%013d", number), WorkspaceId: of.GetWorkspaceId(), MemberId: of.GetMemberId(),
		WorkspaceIncarnation: of.GetWorkspaceIncarnation(), MemberIncarnation: of.GetIncarnation(), Sequence: int64(number + 1),
		Name: "a key", Scopes: []string{"emails:read", "signatures:read"}, CreateTime: timestamppb.New(diffTime.Truncate(time.Microsecond)),
		Secrets:   []*storagev1.SecretRecord{{Scheme: 3, Hash: hash(1), CreateTime: timestamppb.New(diffTime), ExpireTime: timestamppb.New(diffTime.Truncate(time.Microsecond).AddDate(1, 0, 0))}},
		CreatedBy: &storagev1.ChangedByRecord{Caller: "caller"}, ChangeSequence: int64(number + 1),
	}
	switch number % 10 {
	case 0:
		record.Secrets = append(record.Secrets, &storagev1.SecretRecord{Scheme: 3, Hash: hash(2), ExpireTime: timestamppb.New(diffTime), OverlapEndTime: timestamppb.New(diffTime)})
	case 2:
		if *measureImports {
			record.Secrets[0].Scheme = 4
			record.Imported = &storagev1.ImportRecord{ImportTime: timestamppb.New(diffTime), Hash: record.GetSecrets()[0].GetHash()}
		}
	case 1:
		record.AllowedCidrs = []string{fmt.Sprintf("10.%d.%d.0/24", number/100%256, number/25600%256)}
	}
	return record
}

func newPopulation(tb testing.TB, keys int) *population {
	tb.Helper()
	p := &population{keys: keys, payloads: make([][]byte, keys)}
	for number := range keys {
		payload, err := storage.Encode(p.key(number))
		if err != nil {
			tb.Fatal(err)
		}
		p.payloads[number] = payload
	}
	return p
}

// TestMeasureHeap prints what the projection takes for each key, and how long a load takes. It fails
// for no figure.
func TestMeasureHeap(t *testing.T) {
	if *measure == 0 {
		t.Skip("prints figures; run with -measure 1000000")
	}
	source := newPopulation(t, *measure)
	heap := func() (bytes, objects uint64) {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc, stats.HeapObjects
	}
	bytes, objects := heap()
	p := New(source, nil)
	// Nothing else may use the processor while the load is measured.
	collector := debug.SetGCPercent(-1)
	began := processor(t)
	if _, err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := processor(t) - began
	debug.SetGCPercent(collector)
	after, objectsAfter := heap()
	// The records lie in memory, so what is left is what parsing them takes.
	var view storage.KeyView
	began = processor(t)
	for _, payload := range source.payloads {
		if err := view.Parse(payload); err != nil {
			t.Fatal(err)
		}
	}
	parsing := processor(t) - began
	t.Logf("%d keys: %.1f bytes and %.4f objects of heap a key; %s of processor for a load, %s of them for parsing", *measure,
		float64(after-bytes)/float64(*measure), float64(objectsAfter-objects)/float64(*measure), took, parsing)
	s := p.state
	t.Logf("%d lives, %d sets of scopes, %d limits, %d names, %d bytes of texts",
		s.lives.Len(), s.scopes.entries.Len(), s.limits.entries.Len(), s.names.entries.Len(), s.texts.Bytes())
	runtime.KeepAlive(p)
}

// processor returns the processor time that this process has used.
func processor(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkFind looks up 1,000 tokens among few keys and among many.
func BenchmarkFind(b *testing.B) {
	for _, keys := range []int{1000, 1_000_000} {
		source := newPopulation(b, keys)
		p := New(source, nil)
		if _, err := p.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
		ids := make([]string, 1000)
		for index := range ids {
			ids[index] = fmt.Sprintf("Key%013d", index*(keys/1000))
		}
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			b.ReportAllocs()
			for index := 0; b.Loop(); index++ {
				if found := p.Find(ids[index%1000]); !found.Exists {
					b.Fatal("lost")
				}
			}
		})
	}
}

// TestHeapOfAKey holds what the projection takes for each key, ids included: after a load, and after
// all keys were created one after the other.
func TestHeapOfAKey(t *testing.T) {
	if race.Enabled() {
		t.Skip("the race detector needs memory of its own")
	}
	const keys = 100_000
	source := newPopulation(t, keys)
	loaded := heapOf(t, func() *Projection {
		p := New(source, nil)
		if _, err := p.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		return p
	})
	grown := heapOf(t, func() *Projection {
		p := New(source, nil)
		if _, err := source.LoadViews(t.Context(), func(storage.Expected) {}, p.state.add); err != nil {
			t.Fatal(err)
		}
		return p
	})
	t.Logf("%.1f bytes a key after a load, %.1f after %d changes", loaded/keys, grown/keys, keys)
	const bound = 87.0
	if loaded > bound*keys || grown > 1.1*bound*keys {
		t.Errorf("%.1f bytes a key after a load, want at most %.0f; %.1f after changes, want a tenth more at most", loaded/keys, bound, grown/keys)
	}
}

// heapOf returns how many bytes of the heap something keeps.
func heapOf(t *testing.T, build func() *Projection) float64 {
	t.Helper()
	kept := func() int64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := kept()
	built := build()
	after := kept()
	runtime.KeepAlive(built)
	return float64(after - before)
}
