package boltstore

// State is the state of a store, for monitoring.
type State struct {
	// Full reports whether the disk has space for narrowing changes only.
	Full bool
	// Refused is the number of changes that were refused since Full became true.
	Refused int64
	// AnchorStalled reports whether the anchor cannot be written. Then changes do not wait for it.
	AnchorStalled bool
	// AnchorFailures is the number of failed writes since AnchorStalled became true.
	AnchorFailures int64
	// AnchoredRevision is the newest revision that the anchor has, 0 without an anchor.
	AnchoredRevision int64
}

// State returns the state of the store.
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
