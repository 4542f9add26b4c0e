package boltstore

import (
	"cmp"
	"slices"
)

// pageBuffers are the memory that pages are read into. What was taken stays as it is until reset.
type pageBuffers struct {
	buffers [][]byte
	taken   int
	// order is used again by each fetch.
	order []int
}

// take returns a buffer.
func (b *pageBuffers) take(size int) []byte {
	if b.taken == len(b.buffers) {
		b.buffers = append(b.buffers, nil)
	}
	buffer := &b.buffers[b.taken]
	b.taken++
	if cap(*buffer) < size {
		*buffer = make([]byte, size)
	}
	return (*buffer)[:size]
}

// reset makes all buffers free again.
func (b *pageBuffers) reset() { b.taken = 0 }

const (
	// maxGap is the max number of pages between two pages that are read together: reading so many
	// takes as long as another system call.
	maxGap = 8
	// maxRun is about the max number of pages that are read together, so that they are still in the
	// processor's cache when they are checked.
	maxRun = 64
)

// fetch reads the first pages of subtrees, those that lie near each other together. A page beyond the
// end is nil.
func (p *pageWalk) fetch(trees []subtree) ([][]byte, error) {
	read := make([][]byte, len(trees))
	byPlace := p.buffers.order[:0]
	for index := range trees {
		if trees[index].id < p.count {
			byPlace = append(byPlace, index)
		}
	}
	p.buffers.order = byPlace
	slices.SortFunc(byPlace, func(a, b int) int { return cmp.Compare(trees[a].id, trees[b].id) })
	for len(byPlace) > 0 {
		first, run := trees[byPlace[0]].id, 1
		last := first
		for ; run < len(byPlace); run++ {
			next := trees[byPlace[run]].id
			if next > last+maxGap || next >= first+maxRun {
				break
			}
			last = next
		}
		buffer := p.buffers.take(int(last-first+1) * int(p.size))                    //nolint:gosec // at most maxRun pages
		if err := readFull(p.file, buffer, first, int64(first)*p.size); err != nil { //nolint:gosec // below the high water mark
			return nil, err
		}
		for _, index := range byPlace[:run] {
			read[index] = buffer[int64(trees[index].id-first)*p.size:][:p.size] //nolint:gosec // within the run
		}
		byPlace = byPlace[run:]
	}
	return read, nil
}
