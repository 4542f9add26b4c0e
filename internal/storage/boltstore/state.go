package boltstore

// State says how a store stands, for those who watch over it.
type State struct {
	// Full says that the disk has no room for changes that do not narrow.
	Full bool
	// Refused is how many changes were refused since Full holds.
	Refused int64
	// AnchorStalled says that the anchor cannot be written: changes do not wait for it.
	AnchorStalled bool
	// AnchorFailures is how many writes of it have failed since it holds.
	AnchorFailures int64
	// AnchoredRevision is the newest that is in the anchor, 0 without one.
	AnchoredRevision int64
}

// State returns how the store stands.
func (s *Store) State() State {
	state := State{Full: s.room.full.Load(), Refused: s.room.refused.Load()}
	if s.anchor != nil {
		s.anchor.mutex.Lock()
		defer s.anchor.mutex.Unlock()
		state.AnchorStalled, state.AnchorFailures = s.anchor.stalled, s.anchor.failures
		state.AnchoredRevision = s.anchor.written.Revision
	}
	return state
}
