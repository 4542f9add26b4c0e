package counters_test

import (
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/counters"
)

func TestSetCountsWhatManyGoroutinesAdd(t *testing.T) {
	var set counters.Set
	var adding sync.WaitGroup
	for range 8 {
		adding.Go(func() {
			for range 1000 {
				set.Add(3)
			}
			set.Add(-1)
			set.Add(counters.MaxSet)
		})
	}
	adding.Wait()
	if three, last, other := set.Count(3), set.Count(counters.MaxSet-1), set.Count(0); three != 8000 || last != 16 || other != 0 {
		t.Errorf("got %d, %d and %d; want 8000, 16 and 0", three, last, other)
	}
}

func TestHistogramCountsEachDurationInItsBucket(t *testing.T) {
	var histogram counters.Histogram
	bounds := counters.Bounds()
	want := counters.Durations{}
	for index, bound := range bounds {
		histogram.Observe(bound)
		histogram.Observe(bound + 1)
		want.Buckets[index]++
		want.Buckets[index+1]++
		want.Sum += 2*bound + 1
	}
	histogram.Observe(-time.Second)
	want.Buckets[0]++
	got := histogram.Durations()
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if count := got.Count(); count != uint64(2*len(bounds)+1) {
		t.Errorf("got %d durations", count)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	var set counters.Set
	var histogram counters.Histogram
	if allocated := testing.AllocsPerRun(100, func() {
		set.Add(1)
		histogram.Observe(time.Millisecond)
	}); allocated != 0 {
		t.Errorf("counting allocates %v times", allocated)
	}
}

func BenchmarkObserve(b *testing.B) {
	var histogram counters.Histogram
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			histogram.Observe(20 * time.Microsecond)
		}
	})
}
