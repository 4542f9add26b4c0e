package flat

import (
	"encoding/binary"
	"iter"
	"slices"
)

// List is numbers in the order in which they were added. The numbers lie in Lists. The zero List is
// empty.
type List struct {
	// head and tail are the first and the last block; 0 if the list is empty.
	head, tail uint32
	// last is the last number, and count how many there are.
	last, count uint32
}

// Len returns how many numbers the list has.
func (l *List) Len() int { return int(l.count) }

// Lists has the numbers of many List, at one to three bytes a number if a list has dozens and its
// numbers do not lie far apart. The zero Lists are empty.
//
// A list is a chain of blocks. A block has its first number, and for each other number the
// difference to the one before it, as a varint.
type Lists struct{ blocks Arena[listBlock] }

// blockBytes makes a block 64 bytes.
const blockBytes = 50

type listBlock struct {
	next, previous uint32 // 0 means no block
	first          uint32
	used, count    uint8
	differences    [blockBytes]byte
}

// numbers appends the numbers of the block to a slice.
func (b *listBlock) numbers(to []uint32) []uint32 {
	number := b.first
	to = append(to, number)
	for at := 0; at < int(b.used); {
		// Most differences have one byte.
		code, size := uint64(b.differences[at]), 1
		if code >= 0x80 {
			code, size = binary.Uvarint(b.differences[at:b.used])
		}
		at += size
		number += difference(code)
		to = append(to, number)
	}
	return to
}

// Of four codes three are for differences from 0 on, and one is for those below, because most
// differences are positive: -32 to 95 have one byte, -4,096 to 12,287 two.
func codeOf(difference int64) uint64 {
	if difference < 0 {
		return uint64(-difference)*4 - 1
	}
	return uint64(difference)/3*4 + uint64(difference)%3
}

// difference is the inverse of codeOf, modulo 2^32.
func difference(code uint64) uint32 {
	if code%4 == 3 {
		return -uint32(code/4 + 1) //nolint:gosec // G115: modulo 2^32
	}
	return uint32(code/4*3 + code%4) //nolint:gosec // G115: modulo 2^32
}

// add appends a number that follows another, and reports whether it fits.
func (b *listBlock) add(number, last uint32) bool {
	var code [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(code[:], codeOf(int64(number)-int64(last)))
	if int(b.used)+size > blockBytes {
		return false
	}
	copy(b.differences[b.used:], code[:size])
	b.used += uint8(size) //nolint:gosec // G115: at most blockBytes
	b.count++
	return true
}

// set makes the block hold these numbers, and reports whether they fit. There is at least one.
func (b *listBlock) set(numbers []uint32) bool {
	made := listBlock{next: b.next, previous: b.previous, first: numbers[0], count: 1}
	for index, number := range numbers[1:] {
		if !made.add(number, numbers[index]) {
			return false
		}
	}
	*b = made
	return true
}

// Add appends a number to a list.
func (s *Lists) Add(l *List, number uint32) {
	if l.count == 0 || !s.blocks.At(l.tail).add(number, l.last) {
		added := s.blocks.Add()
		*s.blocks.At(added) = listBlock{previous: l.tail, first: number, count: 1}
		if l.tail == 0 {
			l.head = added
		} else {
			s.blocks.At(l.tail).next = added
		}
		l.tail = added
	}
	l.last = number
	l.count++
}

// Remove removes a number from a list, and returns the place that it had; -1 if the list does not
// have it.
func (s *Lists) Remove(l *List, number uint32) (place int) {
	var room [2 * (blockBytes + 1)]uint32
	for at := l.head; at != 0; at = s.blocks.At(at).next {
		numbers := s.blocks.At(at).numbers(room[:0])
		for index, each := range numbers {
			if each == number {
				s.removeAt(l, at, append(numbers[:index], numbers[index+1:]...))
				return place + index
			}
		}
		place += len(numbers)
	}
	return -1
}

// removeAt makes a block hold one number less: those that are left.
func (s *Lists) removeAt(l *List, at uint32, left []uint32) {
	l.count--
	block := s.blocks.At(at)
	if len(left) == 0 {
		s.unlink(l, at)
	} else {
		// The difference between the neighbors of the removed number has no more bytes than its two
		// differences had, so what is left fits.
		block.set(left)
		s.merge(l, block.previous, at)
		if s.blocks.At(at).count > 0 { // it was not merged into the previous one
			s.merge(l, at, s.blocks.At(at).next)
		}
	}
	l.last = 0
	if l.tail != 0 {
		numbers := s.blocks.At(l.tail).numbers(left[:0])
		l.last = numbers[len(numbers)-1]
	}
}

// merge moves the numbers of a block into the one before it, if they fit. Either may be 0.
func (s *Lists) merge(l *List, first, second uint32) {
	if first == 0 || second == 0 || int(s.blocks.At(first).used)+int(s.blocks.At(second).used) >= blockBytes {
		return
	}
	var room [2 * (blockBytes + 1)]uint32
	if s.blocks.At(first).set(s.blocks.At(second).numbers(s.blocks.At(first).numbers(room[:0]))) {
		s.unlink(l, second)
	}
}

// unlink takes a block out of its list.
func (s *Lists) unlink(l *List, at uint32) {
	block := *s.blocks.At(at)
	if block.previous == 0 {
		l.head = block.next
	} else {
		s.blocks.At(block.previous).next = block.next
	}
	if block.next == 0 {
		l.tail = block.previous
	} else {
		s.blocks.At(block.next).previous = block.previous
	}
	s.blocks.Free(at)
}

// From appends numbers of a list from a place on to a slice: at least one, if there is one, and as
// many as can be had at once. near is zero, or what From returned for an earlier place of the list,
// which must not have been changed by Remove since. With it, the place is found at once.
func (s *Lists) From(l *List, place int, near Near, to []uint32) ([]uint32, Near) {
	if near.block == 0 {
		near = Near{block: l.head}
	}
	for near.block != 0 && near.place+int(s.blocks.At(near.block).count) <= place {
		near = Near{s.blocks.At(near.block).next, near.place + int(s.blocks.At(near.block).count)}
	}
	if near.block == 0 {
		return to, Near{}
	}
	var room [blockBytes + 1]uint32
	return append(to, s.blocks.At(near.block).numbers(room[:0])[place-near.place:]...), near
}

// Near is a block of a list and its place.
type Near struct {
	block uint32
	place int
}

// Backward returns the numbers of a list in reverse order. If skip returns true for a number, no
// number behind it is wanted, and some of them are left out.
func (s *Lists) Backward(l *List, skip func(number uint32) bool) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		var room [blockBytes + 1]uint32
		skipping := true
		for at := l.tail; at != 0; at = s.blocks.At(at).previous {
			if skipping = skipping && skip(s.blocks.At(at).first); skipping {
				continue
			}
			numbers := s.blocks.At(at).numbers(room[:0])
			for _, number := range slices.Backward(numbers) {
				if !yield(number) {
					return
				}
			}
		}
	}
}

// Blocks returns how many blocks of 64 bytes are in use.
func (s *Lists) Blocks() int { return s.blocks.Len() }
