package usage_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// store keeps the times that are written, and fails if fail is set.
type store struct {
	mutex  sync.Mutex
	times  map[string]time.Time
	writes int
	fail   error
}

func (s *store) PutUsage(_ context.Context, uses []storage.Usage) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.writes++
	if s.fail != nil {
		return s.fail
	}
	if s.times == nil {
		s.times = make(map[string]time.Time)
	}
	for _, use := range uses {
		s.times[use.KeyID] = use.Time
	}
	return nil
}

// written returns how many writes there were.
func (s *store) written() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.writes
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestLastNeverGoesBack(t *testing.T) {
	last := usage.NewLast("k")
	if !last.Time().IsZero() {
		t.Errorf("a new one says %v", last.Time())
	}
	if !last.Raise(noon) || last.Raise(noon) || last.Raise(noon.Add(-time.Hour)) {
		t.Error("it moved where it should not, or did not where it should")
	}
	if !last.Time().Equal(noon) {
		t.Errorf("got %v", last.Time())
	}
}

// TestUsesOfAKeyAreMergedIntoOneWrite: a thousand uses are one time.
func TestUsesOfAKeyAreMergedIntoOneWrite(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	last := usage.NewLast("k")
	for second := range 1000 {
		recorder.Used(last, noon.Add(time.Duration(second)*time.Second))
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]time.Time{"k": noon.Add(999 * time.Second)}
	if s.writes != 1 || !maps.EqualFunc(s.times, want, time.Time.Equal) {
		t.Errorf("%d writes, %v", s.writes, s.times)
	}
}

// TestManyKeysTakeFewWrites: a write holds the times of thousands of keys.
func TestManyKeysTakeFewWrites(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	const keys = 1_000_000
	for number := range keys {
		recorder.Used(usage.NewLast(fmt.Sprint(number)), noon)
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.times) != keys || s.writes > 250 {
		t.Errorf("%d times in %d writes", len(s.times), s.writes)
	}
}

func TestFailedWriteIsRepeatedByTheNextFlush(t *testing.T) {
	s := &store{fail: errors.New("no disk")}
	recorder := usage.NewRecorder(s, nil)
	last := usage.NewLast("k")
	recorder.Used(last, noon)
	if err := recorder.Flush(t.Context()); !errors.Is(err, s.fail) {
		t.Errorf("got %v", err)
	}
	s.fail = nil
	recorder.Used(last, noon.Add(time.Second))
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.times["k"].Equal(noon.Add(time.Second)) {
		t.Errorf("got %v", s.times)
	}
}

// TestNothingIsLostBetweenFlushes: a use during a flush is written by that flush or the next.
func TestNothingIsLostBetweenFlushes(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	lasts := make([]*usage.Last, 8)
	var users sync.WaitGroup
	for number := range lasts {
		lasts[number] = usage.NewLast(fmt.Sprint(number))
		users.Go(func() {
			for step := range 2000 {
				recorder.Used(lasts[number], noon.Add(time.Duration(step)))
			}
		})
	}
	for range 100 {
		if err := recorder.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	users.Wait()
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for number, last := range lasts {
		if !s.times[fmt.Sprint(number)].Equal(last.Time()) {
			t.Errorf("key %d: stored %v, used %v", number, s.times[fmt.Sprint(number)], last.Time())
		}
	}
}

func TestRunFlushesAtEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		recorder := usage.NewRecorder(s, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { recorder.Run(ctx, time.Minute) })
		recorder.Used(usage.NewLast("k"), noon)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if writes := s.written(); writes != 0 {
			t.Errorf("%d writes before the interval", writes)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if writes := s.written(); writes != 1 {
			t.Errorf("%d writes after the interval", writes)
		}
		cancel()
		running.Wait()
	})
}
