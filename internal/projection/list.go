package projection

import (
	"slices"
	"sync"
)

// list is the numbers of the keys or members of a workspace, in the order in which they came: for
// keys that is the order of their sequences, because Load and changes bring them in this order.
// Projection.mutex guards a list.
type list struct {
	numbers []uint32
	walks   []*cursor
}

// cursor is the place of a walk over a list that gives way. Removals before the place move it, so
// that no number is skipped or visited twice.
type cursor struct{ place int }

// walking guards list.walks while Projection.mutex is held for reading.
var walking sync.Mutex

// add appends a number.
func (l *list) add(number uint32) {
	if len(l.numbers) == cap(l.numbers) {
		// append alone would double the list, and most lists would be a third empty. It gives as much
		// as the allocator has for the size.
		grown := append([]uint32(nil), make([]uint32, len(l.numbers)+max(4, len(l.numbers)/8))...)
		l.numbers = grown[:copy(grown, l.numbers)]
	}
	l.numbers = append(l.numbers, number)
}

// remove removes a number that is in the list. Most removals are of the oldest keys.
func (l *list) remove(number uint32) {
	place := slices.Index(l.numbers, number)
	if place < 0 {
		return
	}
	for _, walk := range l.walks {
		if place < walk.place {
			walk.place--
		}
	}
	if place == 0 {
		l.numbers = l.numbers[1:]
		return
	}
	l.numbers = slices.Delete(l.numbers, place, place+1)
}

// begin begins a walk. Projection.mutex is held for reading.
func (l *list) begin() *cursor {
	walking.Lock()
	defer walking.Unlock()
	here := &cursor{}
	l.walks = append(l.walks, here)
	return here
}

// end ends a walk. Projection.mutex is held for reading.
func (l *list) end(here *cursor) {
	walking.Lock()
	defer walking.Unlock()
	l.walks = slices.DeleteFunc(l.walks, func(each *cursor) bool { return each == here })
}
