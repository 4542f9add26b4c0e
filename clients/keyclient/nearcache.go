package keyclient

import "time"

// NearCacheHooks are called when something happens in a near-cache, for metrics. A hook may be
// nil. Hooks are called from many goroutines, and requests wait while they run. There is no
// hook for a hit, because a hit must be fast: read the number of hits from NearCacheState now
// and then.
type NearCacheHooks struct {
	// Missed is called for a validation that memory could not answer.
	Missed func()
	// Filled is called for an answer of the server. kept reports whether its grant was kept. It is
	// false for an answer that an event has overtaken, for a refusal, and for a grant with a
	// condition that this version does not know.
	Filled func(kept bool)
	// Invalidated is called for a change that was applied. lag is the time since the change was
	// made, by the clocks of two machines, and never less than 0. The hook is not called for a
	// change from before the server's start.
	Invalidated func(lag time.Duration)
	// Reset is called when everything was dropped because events are missing. It is also called
	// when the first session begins.
	Reset func()
	// SessionBegan and SessionEnded are called for each session with the server. reason is nil
	// if the near-cache was closed.
	SessionBegan func()
	SessionEnded func(reason error)
}

// NearCacheState is the state of a near-cache, for metrics and troubleshooting.
type NearCacheState struct {
	// Connected reports whether there is a session with keysvc. Sessions is how many there have
	// been.
	Connected bool
	Sessions  int64
	// Epoch and Revision are up to where changes were applied. Generation is how often
	// everything was dropped.
	Epoch      string
	Revision   int64
	Generation uint64
	// Fresh is how long memory may still answer if no more messages come from keysvc; 0 if it may
	// not answer. Staleness is the server's bound, the length of a lease.
	Fresh, Staleness time.Duration
	// Entries is the number of tokens in memory, Bytes the approximate memory that they take, and
	// Watches the number of streams that are watched.
	Entries, Bytes, Watches int
	// Hits were answered from memory, Misses were not.
	Hits, Misses int64
	// Kept counts answers of keysvc whose grant was kept, Unkept all other answers that were used,
	// and Repeated answers that an event had overtaken, so that keysvc was asked again.
	Kept, Unkept, Repeated int64
	// Refused counts refusals that were repeated from memory, within a second.
	Refused int64
	// Events counts applied changes, Dropped the entries that were dropped for them, and Resets
	// how often everything was dropped.
	Events, Dropped, Resets int64
}

// NearCache returns the state of the near-cache; the zero state without a near-cache. The call
// takes some microseconds.
func (c *Client) NearCache() NearCacheState {
	if c.cache == nil {
		return NearCacheState{}
	}
	return NearCacheState(c.cache.Snapshot())
}
