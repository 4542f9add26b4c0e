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
	// SinkStalled reports whether the audit sink cannot be written, SinkFull whether its disk has
	// space for narrowing changes only. In either case only narrowing changes are made.
	SinkStalled, SinkFull bool
	// SinkFailures is the number of failed writes since SinkStalled became true. SinkRefused is the
	// number of changes that were refused because of the sink since the start.
	SinkFailures, SinkRefused int64
	// SinkRevision is the newest revision that the sink has, 0 without a sink.
	SinkRevision int64
}

// State returns the state of the store.
func (s *Store) State() State {
	state := State{Full: s.room.full.Load(), Refused: s.room.refused.Load()}
	if s.anchor != nil {
		state.AnchoredRevision, state.AnchorStalled, state.AnchorFailures = s.anchor.state()
	}
	if s.sink != nil {
		state.SinkRevision, state.SinkStalled, state.SinkFailures = s.sink.state()
		state.SinkFull, state.SinkRefused = s.sinkTarget.full.Load(), s.sinkTarget.refused.Load()
	}
	return state
}

// state returns the newest revision that was written, whether the writer is stalled, and how many
// writes have failed since then.
func (a *anchorWriter) state() (revision int64, stalled bool, failures int64) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.written.Revision, a.stalled, a.failures
}
