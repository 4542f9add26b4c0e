package flat

import "math/bits"

// Index finds the numbers of records by a hash of their names. It has neither names nor hashes:
// its caller compares, and computes a hash again when a part of the index grows.
//
// The index is many small open-addressing tables (segments) with linear probing. The hash picks
// the segment. A segment grows by an eighth, so it is between 0.8 and 0.9 full, and only the
// records of one segment are hashed again in one insertion. The hash must depend on a random seed,
// because callers choose names.
//
// A slot has 4 bytes: the number, and 4 bits of the hash that spare most comparisons with records
// of another hash.
type Index struct {
	segments []segment
	// shift makes the number of a segment from a hash.
	shift int
}

// segment is one table. Its slots are 0 if they are empty.
type segment struct {
	slots []uint32
	count uint32
}

const (
	// MaxNumber is the max number that an Index can hold.
	MaxNumber = 1<<numberBits - 1

	numberBits = 28
	// segmentRecords is about how many records a segment is meant to have.
	segmentRecords = 1024
	minSegments    = 16
	maxSegments    = 1 << 16
)

// NewIndex returns an index for about that many records. It may get more or fewer: the number only
// says into how many segments the index is divided. No memory is taken for records that do not come.
func NewIndex(expected int) *Index {
	count := minSegments
	for count < maxSegments && count*segmentRecords < expected {
		count *= 2
	}
	return &Index{segments: make([]segment, count), shift: 64 - bits.Len(uint(count-1))}
}

// Reserve makes room for about that many records, if they come soon.
func (x *Index) Reserve(expected int) {
	each := expected / len(x.segments)
	for index := range x.segments {
		if part := &x.segments[index]; part.count == 0 && each > 0 {
			part.slots = slotsFor(each + each/6)
		}
	}
}

// slotsFor returns at least that many slots: as many as the allocator gives for the same memory.
func slotsFor(count int) []uint32 {
	slots := append([]uint32(nil), make([]uint32, count)...)
	slots = slots[:cap(slots)]
	clear(slots)
	return slots
}

// tagged returns a number with the bits of its hash.
func tagged(hash uint64, number uint32) uint32 {
	return number | uint32(hash>>32)<<numberBits
}

// home returns where a hash belongs in a table.
func home(hash uint64, slots []uint32) int {
	return int(hash & 0xffffffff * uint64(len(slots)) >> 32)
}

// Find returns the number with this hash for which is returns true, or 0.
func (x *Index) Find(hash uint64, is func(number uint32) bool) uint32 {
	slots := x.segments[hash>>x.shift].slots
	if len(slots) == 0 {
		return 0
	}
	tag := tagged(hash, 0)
	for at := home(hash, slots); slots[at] != 0; {
		if number := slots[at] & MaxNumber; slots[at] == tag|number && is(number) {
			return number
		}
		if at++; at == len(slots) {
			at = 0
		}
	}
	return 0
}

// Insert adds a number from 1 to MaxNumber. It does not look whether the index has the number.
// hashOf returns the hash of a number that the index has.
func (x *Index) Insert(hash uint64, number uint32, hashOf func(number uint32) uint64) {
	part := &x.segments[hash>>x.shift]
	if size := len(part.slots); int(part.count) >= size*9/10 {
		part.resize(max(8, size+size/8), hashOf)
	}
	part.insert(hash, number)
	part.count++
}

func (s *segment) insert(hash uint64, number uint32) {
	at := home(hash, s.slots)
	for s.slots[at] != 0 {
		if at++; at == len(s.slots) {
			at = 0
		}
	}
	s.slots[at] = tagged(hash, number)
}

// resize moves the segment to another number of slots.
func (s *segment) resize(size int, hashOf func(number uint32) uint64) {
	before := s.slots
	s.slots = slotsFor(size)
	for _, slot := range before {
		if number := slot & MaxNumber; number != 0 {
			s.insert(hashOf(number), number)
		}
	}
}

// Remove removes a number, and reports whether the index had it.
func (x *Index) Remove(hash uint64, number uint32, hashOf func(number uint32) uint64) bool {
	part := &x.segments[hash>>x.shift]
	slots := part.slots
	if len(slots) == 0 {
		return false
	}
	// 1. Find the slot.
	gap := home(hash, slots)
	for slots[gap] != tagged(hash, number) {
		if slots[gap] == 0 {
			return false
		}
		gap = (gap + 1) % len(slots)
	}
	// 2. Close the gap: a search ends at an empty slot, so a number that is found by passing the gap
	//    moves into it. That leaves a gap further on.
	for at := (gap + 1) % len(slots); slots[at] != 0; at = (at + 1) % len(slots) {
		if start := home(hashOf(slots[at]&MaxNumber), slots); !between(start, gap, at) {
			slots[gap], gap = slots[at], at
		}
	}
	slots[gap] = 0
	part.count--
	// 3. Give memory back once the segment is nearly empty.
	if len(slots) > 16 && int(part.count) < len(slots)/4 {
		part.resize(len(slots)/2, hashOf)
	}
	return true
}

// between reports whether start lies after gap and not after at, in a table that wraps around.
func between(start, gap, at int) bool {
	if gap <= at {
		return gap < start && start <= at
	}
	return gap < start || start <= at
}
