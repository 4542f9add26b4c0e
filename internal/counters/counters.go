// Package counters counts on paths that many goroutines take at once. Counting takes a few
// nanoseconds, allocates nothing and takes no lock: there are several cells for one number, and
// goroutines that run at the same time most likely use different ones. Reading adds the cells up.
package counters

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// cellBits is the binary logarithm of the number of cells.
const cellBits, cells = 4, 1 << cellBits

// The smallest stack of a goroutine has 2 KiB. spread brings neighbours far from each other (2^64
// divided by the golden ratio).
const stackBits, spread = 11, 0x9E3779B97F4A7C15

// cell returns the cell of a goroutine: where its stack lies chooses it. So one goroutine mostly uses
// the same cell, whose cache line its processor has.
func cell() uint64 {
	var here byte
	place := uint64(uintptr(unsafe.Pointer(&here))) >> stackBits //nolint:gosec // G103: the address is a number, and nothing is read there
	return place * spread >> (64 - cellBits)
}

// MaxSet is how many numbers a Set can have.
const MaxSet = 16

// Set is up to MaxSet numbers that only grow. The zero Set is all zero.
type Set struct {
	cells [cells][MaxSet]atomic.Uint64
}

// Add adds one to a number, which is named by its index. An index that the Set does not have counts
// for the last number.
func (s *Set) Add(index int) {
	if index < 0 || index >= MaxSet {
		index = MaxSet - 1
	}
	s.cells[cell()][index].Add(1)
}

// Count returns a number.
func (s *Set) Count(index int) uint64 {
	var count uint64
	for each := range s.cells {
		count += s.cells[each][index].Load()
	}
	return count
}

// bounds are the upper bounds of the buckets of a Histogram. The last bucket has none.
var bounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Bounds returns the upper bounds of the buckets of a Histogram, ascending. A duration that is equal
// to a bound is within it. One more bucket, the last, has no bound.
func Bounds() []time.Duration { return append([]time.Duration(nil), bounds[:]...) }

// Histogram is how long something took, counted in buckets. The zero Histogram is empty.
type Histogram struct {
	cells [cells]histogramCell
}

type histogramCell struct {
	buckets [len(bounds) + 1]atomic.Uint64
	sum     atomic.Int64
	_       [5]uint64 // whole cache lines
}

// Observe counts a duration. A negative one counts as zero.
func (h *Histogram) Observe(took time.Duration) {
	took = max(took, 0)
	bucket := 0
	for bucket < len(bounds) && took > bounds[bucket] {
		bucket++
	}
	at := &h.cells[cell()]
	at.buckets[bucket].Add(1)
	at.sum.Add(int64(took))
}

// Durations is what a Histogram has counted.
type Durations struct {
	// Buckets are how many durations were within each bound of Bounds and above the one before it, and
	// at last those above all bounds.
	Buckets [len(bounds) + 1]uint64
	// Sum is the sum of all durations.
	Sum time.Duration
}

// Count returns how many durations there were.
func (d *Durations) Count() uint64 {
	var count uint64
	for _, each := range d.Buckets {
		count += each
	}
	return count
}

// Durations returns what was counted so far.
func (h *Histogram) Durations() Durations {
	var all Durations
	for each := range h.cells {
		for bucket := range all.Buckets {
			all.Buckets[bucket] += h.cells[each].buckets[bucket].Load()
		}
		all.Sum += time.Duration(h.cells[each].sum.Load())
	}
	return all
}
