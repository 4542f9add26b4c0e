package projection

import (
	"slices"
	"sync"

	"github.com/scribe-mail/keysvc/internal/flat"
)

// The keys and members of a workspace are lists of their numbers, in the order in which they came:
// for keys that is the order of their sequences, because Load and changes bring them in this order.
// Projection.mutex guards the lists.

// cursor is the place of a walk over a list that gives way. Removals before the place move it, so
// that no number is skipped or visited twice.
type cursor struct {
	list  *flat.List
	place int
	// numbers are the next numbers of the list, as long as state.removals is removals.
	numbers  []uint32
	near     flat.Near
	removals uint64
}

// walking guards state.walking while Projection.mutex is held for reading.
var walking sync.Mutex

// remove removes a number that is in a list. Most removals are of the oldest keys.
func (s *state) remove(l *flat.List, number uint32) {
	place := s.lists.Remove(l, number)
	if place < 0 {
		return
	}
	s.removals++
	for _, walk := range s.walking {
		if walk.list == l && place < walk.place {
			walk.place--
		}
	}
}

// begin begins a walk. Projection.mutex is held for reading.
func (s *state) begin(l *flat.List) *cursor {
	walking.Lock()
	defer walking.Unlock()
	here := &cursor{list: l, removals: s.removals}
	s.walking = append(s.walking, here)
	return here
}

// end ends a walk. Projection.mutex is held for reading.
func (s *state) end(here *cursor) {
	walking.Lock()
	defer walking.Unlock()
	s.walking = slices.DeleteFunc(s.walking, func(each *cursor) bool { return each == here })
}

// next returns the next number of a walk; 0 at the end. Projection.mutex is held for reading.
func (s *state) next(here *cursor) uint32 {
	if here.removals != s.removals {
		here.removals, here.near, here.numbers = s.removals, flat.Near{}, here.numbers[:0]
	}
	if len(here.numbers) == 0 {
		here.numbers, here.near = s.lists.From(here.list, here.place, here.near, here.numbers[:0])
		if len(here.numbers) == 0 {
			return 0
		}
	}
	number := here.numbers[0]
	here.numbers = here.numbers[1:]
	here.place++
	return number
}
