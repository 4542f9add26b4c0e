package feed

import "time"

// Lag is how far the near-caches are that may answer from memory.
type Lag struct {
	// Sessions is how many sessions are open, and Limit how many may be.
	Sessions, Limit int
	// Leased is how many of the sessions hold a lease now. The others do not answer from memory.
	Leased int
	// Behind is how many sessions with a lease have not confirmed the newest change.
	Behind int
	// Unconfirmed is the largest number of changes that a session with a lease has not confirmed.
	Unconfirmed int
	// Oldest is when the oldest change was made that a session with a lease has not confirmed; zero
	// if all changes are confirmed, or if its time is not known.
	Oldest time.Time
	// Ahead counts the clients whose hello was ahead of the store; see Snapshot.
	Ahead int64
	// Stopping reports whether Stop was called.
	Stopping bool
}

// Lag returns how far the near-caches are.
func (h *Hub) Lag() Lag {
	now := h.config.Now()
	h.mutex.Lock()
	defer h.mutex.Unlock()
	lag := Lag{Sessions: len(h.sessions), Limit: h.config.MaxSessions, Ahead: h.ahead, Stopping: h.stopping}
	for session := range h.sessions {
		if session.leasedAt.IsZero() || now.Sub(session.leasedAt) >= session.staleness {
			continue
		}
		lag.Leased++
		if session.applied >= h.revision {
			continue
		}
		lag.Behind++
		first := h.ring.after(session.applied)
		lag.Unconfirmed = max(lag.Unconfirmed, int(h.ring.end-first))
		if first == h.ring.end || h.ring.at(first).time == 0 {
			continue
		}
		if made := time.Unix(0, h.ring.at(first).time); lag.Oldest.IsZero() || made.Before(lag.Oldest) {
			lag.Oldest = made
		}
	}
	return lag
}
