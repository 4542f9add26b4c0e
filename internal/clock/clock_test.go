package clock_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
)

var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// TestSteadyNeverGoesBack walks a wall clock that is set forth and back.
func TestSteadyNeverGoesBack(t *testing.T) {
	var wall time.Time
	now := clock.Steady(func() time.Time { return wall }, time.Time{})
	for _, step := range []struct {
		wall, want time.Duration
	}{
		{0, 0},
		{time.Second, time.Second},
		{time.Second, time.Second},
		{-time.Hour, time.Second}, // set back: stands still
		{time.Second - 1, time.Second},
		{time.Second + 1, time.Second + 1},
		{time.Hour, time.Hour},
		{0, time.Hour},
		{-100 * 365 * 24 * time.Hour, time.Hour},
		{time.Hour + 1, time.Hour + 1},
	} {
		wall = start.Add(step.wall)
		if got := now(); !got.Equal(start.Add(step.want)) {
			t.Errorf("wall at %s: got %s, want %s", step.wall, got.Sub(start), step.want)
		}
	}
}

func TestSteadyBeginsAtItsFloor(t *testing.T) {
	for _, test := range []struct {
		name              string
		floor, wall, want time.Time
	}{
		{"none", time.Time{}, start, start},
		{"behind the wall clock", start.Add(-time.Hour), start, start},
		{"at the wall clock", start, start, start},
		{"before the wall clock", start.Add(time.Hour), start, start.Add(time.Hour)},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := clock.Steady(func() time.Time { return test.wall }, test.floor)
			for range 2 {
				if got := now(); !got.Equal(test.want) {
					t.Errorf("got %s, want %s", got, test.want)
				}
			}
		})
	}
}

// TestSteadyTimesAreUTCWithoutMonotonicPart is about what the times carry with them.
func TestSteadyTimesAreUTCWithoutMonotonicPart(t *testing.T) {
	zone := time.FixedZone("elsewhere", 3600)
	now := clock.Steady(func() time.Time { return time.Now().In(zone) }, time.Time{})
	first := now()
	if first.Location() != time.UTC {
		t.Errorf("location: got %s, want UTC", first.Location())
	}
	// With a monotonic reading, Round(0) would take it away, and == see it.
	if first != first.Round(0) {
		t.Error("the time has a monotonic reading")
	}
}

// TestSteadyNeverGoesBackUnderConcurrency lets many goroutines ask while the wall clock jumps about.
// What any of them has seen, none sees go back.
func TestSteadyNeverGoesBackUnderConcurrency(t *testing.T) {
	const goroutines, questions = 8, 20_000
	var calls atomic.Int64
	now := clock.Steady(func() time.Time {
		call := calls.Add(1)
		return start.Add(time.Duration(call - call%7*1000)) // ahead on the whole, back most of the time
	}, time.Time{})
	var newest atomic.Int64
	var workers sync.WaitGroup
	for range goroutines {
		workers.Go(func() {
			for range questions {
				before := newest.Load()
				got := now().UnixNano()
				if got < before {
					t.Errorf("got %d after somebody had got %d", got, before)
					return
				}
				for seen := newest.Load(); got > seen && !newest.CompareAndSwap(seen, got); seen = newest.Load() {
				}
			}
		})
	}
	workers.Wait()
	if newest.Load() <= start.UnixNano() {
		t.Error("the clock did not move")
	}
}

func TestSteadyAllocatesNothing(t *testing.T) {
	now := clock.Steady(time.Now, time.Time{})
	if allocations := testing.AllocsPerRun(1000, func() { now() }); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}
