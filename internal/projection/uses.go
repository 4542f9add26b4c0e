package projection

import (
	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// A state is the usage.Table of the words that were found in it.
var _ usage.Table = (*state)(nil)

// lastOf returns the Last of a key.
func (s *state) lastOf(keyID string, number uint32) usage.Last {
	id, _ := flat.Pack(keyID)
	return usage.LastOf(s, s.words.At(number), id)
}

// Replaced implements usage.Table.
func (s *state) Replaced() bool { return s.replaced.Load() }

// Find implements usage.Table.
func (s *state) Find(id flat.ID) usage.Last {
	p := s.projection
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	keyID := id.String()
	number := p.state.find(keyID)
	if number == 0 {
		return usage.Last{}
	}
	return p.state.lastOf(keyID, number)
}

// Words implements usage.Table. It gives way as walks do.
func (s *state) Words(ids []flat.ID, visit func(id flat.ID, word *usage.Word)) {
	p := s.projection
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	for index, id := range ids {
		if number := p.state.find(id.String()); number != 0 {
			visit(id, p.state.words.At(number))
		}
		if index%stride == stride-1 {
			p.giveWay()
		}
	}
}

// keepUses takes over the last uses from an older state, because they may not be stored yet.
func (s *state) keepUses(older *state) {
	for number := uint32(1); number <= older.highest; number++ {
		if !older.has(number) {
			continue
		}
		here := number
		if s.ids != older.ids {
			here = s.find(older.ids.ID(number))
		}
		if s.has(here) {
			s.words.At(here).Follow(older.words.At(number))
		}
	}
}
