package nearcache

import "time"

// Hooks are the functions of keyclient.NearCacheHooks. A nil function is not called.
type Hooks struct {
	Missed       func()
	Filled       func(kept bool)
	Invalidated  func(lag time.Duration)
	Reset        func()
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
