// Package flat has the parts that tables of millions of records in memory are made of. None of
// them has a pointer for each record, so the garbage collector has nothing to visit, and none of
// them copies everything when it grows, so no single insertion takes long.
//
//   - Arena holds records of one size in chunks that never move. A record has a number.
//   - Index finds numbers by a hash, at about five bytes a record.
//   - IDs gives each key id a number, at about 17 bytes a key. Several tables can share it.
//   - Lists has lists of numbers, at one to three bytes a number.
//   - Texts holds short texts, with four bytes for each that a record refers to.
//
// Numbers begin at 1, so a record can say "none" with 0.
package flat

// chunkRecords is how many records a chunk has. A chunk of records of 4n bytes has whole pages.
const chunkRecords = 2048

// Chunks are records that never move. The zero Chunks are empty.
type Chunks[Record any] struct {
	chunks []*[chunkRecords]Record
}

// At returns the record of a number. Grow must have been called with this number or a higher one.
func (c *Chunks[Record]) At(number uint32) *Record {
	return &c.chunks[number/chunkRecords][number%chunkRecords]
}

// Grow makes At valid for a number and all lower ones. New records are zero.
func (c *Chunks[Record]) Grow(number uint32) {
	for int(number/chunkRecords) >= len(c.chunks) {
		c.chunks = append(c.chunks, new([chunkRecords]Record))
	}
}

// Has reports whether At is valid for a number.
func (c *Chunks[Record]) Has(number uint32) bool { return int(number/chunkRecords) < len(c.chunks) }

// Arena gives out records with numbers from 1 on, and gives out freed ones again. The zero Arena
// is empty.
type Arena[Record any] struct {
	Chunks[Record]

	highest uint32
	free    []uint32
}

// Add returns the number of a record that is zero.
func (a *Arena[Record]) Add() uint32 {
	if last := len(a.free) - 1; last >= 0 {
		number := a.free[last]
		a.free = a.free[:last]
		return number
	}
	a.highest++
	a.Grow(a.highest)
	return a.highest
}

// Free makes a record zero and gives its number out again later.
func (a *Arena[Record]) Free(number uint32) {
	var zero Record
	*a.At(number) = zero
	a.free = append(a.free, number)
}

// Highest returns the highest number that was given out.
func (a *Arena[Record]) Highest() uint32 { return a.highest }

// Len returns how many records are in use.
func (a *Arena[Record]) Len() int { return int(a.highest) - len(a.free) }
