package bench

import (
	"math/bits"
	"testing"
	"time"
)

// histogram counts durations, with an error of less than 1 %. The zero value is empty.
type histogram struct {
	counts [2560]int64
	total  int64
	max    time.Duration
}

// Each power of two has histogramParts buckets. Below twice that, each nanosecond has its own.
const histogramBits, histogramParts = 6, 1 << 6

func (h *histogram) add(took time.Duration) {
	value := uint64(max(0, took))
	shift := max(0, bits.Len64(value)-histogramBits-1)
	h.counts[min(len(h.counts)-1, shift*histogramParts+int(value>>shift))]++
	h.total++
	h.max = max(h.max, took)
}

func (h *histogram) merge(other *histogram) {
	for index, count := range other.counts {
		h.counts[index] += count
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// at returns the duration that a share of the sample does not exceed; 0 for no sample.
func (h *histogram) at(share float64) time.Duration {
	rank, seen := int64(share*float64(h.total)), int64(0)
	for index, count := range h.counts {
		if seen += count; seen > rank || seen == h.total && count > 0 {
			shift := max(0, index/histogramParts-1)
			return min(h.max, time.Duration((float64(index-shift*histogramParts)+0.5)*float64(uint64(1)<<shift)))
		}
	}
	return 0
}

func TestHistogramIsExactToOnePercent(t *testing.T) {
	var whole, half histogram
	for value := time.Duration(1); value <= 100_000; value++ {
		if value%2 == 0 {
			half.add(value * 100)
		} else {
			whole.add(value * 100)
		}
	}
	whole.merge(&half)
	for share, want := range map[float64]float64{0.5: 5_000_000, 0.99: 9_900_000, 0.999: 9_990_000} {
		if got := float64(whole.at(share)); got < want*0.99 || got > want*1.01 {
			t.Errorf("%v: got %v, want %v", share, got, want)
		}
	}
	if new(histogram).at(0.5) != 0 || whole.at(1) != 10_000_000 && float64(whole.at(1)) < 9_900_000 {
		t.Errorf("empty %v, max %v", new(histogram).at(0.5), whole.at(1))
	}
}
