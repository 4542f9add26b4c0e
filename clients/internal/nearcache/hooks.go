package nearcache

import "time"

// Hooks are told what happens in a near-cache, for metrics. Each may be nil. They are called
// from many goroutines, and what they do keeps requests waiting. Hits are only counted, as
// they are what is to be fast: read them from the state now and then.
type Hooks struct {
	// Missed is called for a validation that memory could not answer.
	Missed func()
	// Filled is called for an answer of the server, and says whether it was kept. Refused
	// fills are those that an event has overtaken, and refusals and conditions that may not
	// be kept.
	Filled func(kept bool)
	// Invalidated is called for a change that was applied, and says how long after it was
	// made: by the clocks of two machines, 0 if they say less than that. It is not called
	// for a change from before the server's start.
	Invalidated func(lag time.Duration)
	// Reset is called when events are missing and everything was dropped, as at the
	// beginning of the first session.
	Reset func()
	// SessionBegan and SessionEnded are called for each session with the server. The reason
	// is nil if the near-cache was closed.
	SessionBegan func()
	SessionEnded func(reason error)
}

func (h *Hooks) missed() {
	if h.Missed != nil {
		h.Missed()
	}
}

func (h *Hooks) filled(kept bool) {
	if h.Filled != nil {
		h.Filled(kept)
	}
}

func (h *Hooks) invalidated(lag time.Duration) {
	if h.Invalidated != nil {
		h.Invalidated(max(0, lag))
	}
}

func (h *Hooks) reset() {
	if h.Reset != nil {
		h.Reset()
	}
}

func (h *Hooks) sessionBegan() {
	if h.SessionBegan != nil {
		h.SessionBegan()
	}
}

func (h *Hooks) sessionEnded(reason error) {
	if h.SessionEnded != nil {
		h.SessionEnded(reason)
	}
}
