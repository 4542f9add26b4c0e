package refusals_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/refusals"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// stream is a store of refusals in memory.
type stream struct {
	records []*storagev1.RefusalRecord
	err     error
	// hang makes PutRefusals wait until its context ends.
	hang bool
}

func (s *stream) PutRefusals(ctx context.Context, records []*storagev1.RefusalRecord) error {
	if s.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.err == nil {
		s.records = append(s.records, records...)
	}
	return s.err
}

// bench is a collector with a clock that stands still.
type bench struct {
	*refusals.Collector

	stream stream
	now    time.Time
	log    strings.Builder
}

func newBench() *bench {
	b := &bench{now: time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)}
	b.Collector = refusals.New(&b.stream, func() time.Time { return b.now }, slog.New(slog.NewTextHandler(&b.log, nil)))
	return b
}

func (b *bench) flush(t *testing.T, all bool) {
	t.Helper()
	if err := b.Flush(t.Context(), all); err != nil {
		t.Fatal(err)
	}
}

// change is a refused change of a key.
func change(number int) refusals.Refusal {
	return refusals.Refusal{
		Kind: storagev1.RefusalKind_REFUSAL_KIND_CHANGE, Method: "keysvc.v1.KeyService/RevokeKey", Caller: "backend",
		Credential: "uid 7", Actor: "ann", Peer: "192.0.2.1", WorkspaceID: "acme", KeyID: fmt.Sprint(number), MemberID: "bob",
		Code: "ABORTED", Reason: "CONFLICT",
	}
}

func TestEqualRefusalsAreOneRecord(t *testing.T) {
	b := newBench()
	b.Add(change(1), "first", 1)
	b.now = b.now.Add(300 * time.Millisecond)
	b.Add(change(1), "second", 2)
	b.flush(t, false)
	want := &storagev1.RefusalRecord{
		Count: 3, Kind: storagev1.RefusalKind_REFUSAL_KIND_CHANGE, Method: "keysvc.v1.KeyService/RevokeKey", Caller: "backend",
		CallerCredential: "uid 7", ActorMemberId: "ann", Peer: "192.0.2.1", RequestId: "first",
		WorkspaceId: "acme", KeyId: "1", MemberId: "bob", Code: "ABORTED", Reason: "CONFLICT",
	}
	if len(b.stream.records) != 1 {
		t.Fatalf("got %v", b.stream.records)
	}
	got := b.stream.records[0]
	if !got.GetLastTime().AsTime().Equal(b.now) || !got.GetTime().AsTime().Equal(b.now.Add(-300*time.Millisecond)) {
		t.Errorf("from %v to %v", got.GetTime().AsTime(), got.GetLastTime().AsTime())
	}
	if got.Time, got.LastTime = nil, nil; got.String() != want.String() {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRepeatedRefusalsAreCountedForAMinute: a program that goes on does not push all other refusals
// out of the stream.
func TestRepeatedRefusalsAreCountedForAMinute(t *testing.T) {
	b := newBench()
	for range 180 {
		b.Add(change(1), "r", 1)
		b.flush(t, false)
		b.now = b.now.Add(time.Second)
	}
	var counts []int64
	for _, record := range b.stream.records {
		counts = append(counts, record.GetCount())
	}
	if fmt.Sprint(counts) != "[1 60 60]" {
		t.Errorf("records with the counts %v", counts)
	}
	b.flush(t, true)
	if last := b.stream.records[len(b.stream.records)-1]; len(b.stream.records) != 4 || last.GetCount() != 59 {
		t.Errorf("at the end: %d records, the last: %v", len(b.stream.records), last)
	}
}

func TestOnlySomeDifferentRefusalsOfASecondAreKept(t *testing.T) {
	b := newBench()
	const different = 1000
	for number := range different {
		b.Add(change(number), "r", 1)
	}
	b.Add(change(0), "again", 1) // is known
	b.flush(t, false)
	total := int64(0)
	for index, record := range b.stream.records {
		total += record.GetCount()
		if others := record.GetKind() == storagev1.RefusalKind_REFUSAL_KIND_OTHERS; others != (index == refusals.PerSecond) || others && record.GetKeyId()+record.GetRequestId()+record.GetCaller() != "" {
			t.Errorf("record %d: %v", index, record)
		}
	}
	if len(b.stream.records) != refusals.PerSecond+1 || total != different+1 {
		t.Errorf("%d records about %d refusals", len(b.stream.records), total)
	}
	// In the next second there is room for others.
	b.now = b.now.Add(time.Second)
	b.Add(change(different), "r", 1)
	b.flush(t, false)
	if last := b.stream.records[len(b.stream.records)-1]; last.GetKeyId() != fmt.Sprint(different) {
		t.Errorf("a second later: %v", last)
	}
}

// TestAFloodThatLastsIsBounded: a flood of different refusals that lasts makes no more than ten records a
// second known, and forgets them after a minute.
func TestAFloodThatLastsIsBounded(t *testing.T) {
	b := newBench()
	seconds, total := 200, int64(0)
	for second := range seconds {
		for number := range 100 {
			b.Add(change(100*second+number), "r", 1)
		}
		b.flush(t, false)
		b.now = b.now.Add(time.Second)
	}
	b.flush(t, true)
	for _, record := range b.stream.records {
		total += record.GetCount()
	}
	if most := (refusals.PerSecond + 1) * seconds; len(b.stream.records) > most || len(b.stream.records) < refusals.PerSecond*seconds/2 || total != int64(100*seconds) {
		t.Errorf("%d records about %d refusals", len(b.stream.records), total)
	}
}

// TestWhatCannotBeWrittenIsCounted: a full disk loses the records, and not their number. It is
// logged once.
func TestWhatCannotBeWrittenIsCounted(t *testing.T) {
	b := newBench()
	b.stream.err = storage.ErrFull
	for number := range 3 {
		b.Add(change(number), "r", 2)
		if err := b.Flush(t.Context(), false); !errors.Is(err, storage.ErrFull) {
			t.Fatalf("Flush: %v", err)
		}
		b.now = b.now.Add(2 * time.Second)
	}
	if logged := strings.Count(b.log.String(), "refusals could not be recorded"); logged != 1 {
		t.Errorf("logged %d times:\n%s", logged, b.log.String())
	}
	b.stream.err = nil
	b.Add(change(7), "r", 1)
	b.flush(t, false)
	b.flush(t, true)
	if len(b.stream.records) != 2 || b.stream.records[0].GetKeyId() != "7" ||
		b.stream.records[1].GetKind() != storagev1.RefusalKind_REFUSAL_KIND_OTHERS || b.stream.records[1].GetCount() != 6 {
		t.Errorf("got %v", b.stream.records)
	}
}

// TestRunWritesWithinASecondOrTwo also shows that a store that hangs makes nobody wait.
func TestRunWritesWithinASecondOrTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &stream{}
		collector := refusals.New(store, time.Now, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { collector.Run(ctx); close(ended) }()
		collector.Add(change(1), "r", 1)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if len(store.records) != 1 {
			t.Errorf("after a second: %v", store.records)
		}
		store.hang = true
		began := time.Now()
		for number := range 100 {
			collector.Add(change(number), "r", 1)
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("beside a store that hangs it took %v", took)
		}
		cancel()
		<-ended
	})
}
