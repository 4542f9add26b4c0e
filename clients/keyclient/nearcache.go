package keyclient

import "time"

// NearCacheHooks are told what happens in a near-cache, for metrics. Each may be nil. They are called
// from many goroutines, and what they do keeps requests waiting. Hits are only counted, as
// they are what is to be fast: read them from the state now and then.
type NearCacheHooks struct {
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

// NearCacheState is how a near-cache stands, for metrics and for people.
type NearCacheState struct {
	// Connected says that there is a session with keysvc, and Sessions how many there were.
	Connected bool
	Sessions  int64
	// Epoch and Revision are how far the changes were applied, and Generation how often
	// everything was dropped.
	Epoch      string
	Revision   int64
	Generation uint64
	// Fresh is for how long memory may answer if keysvc is not heard of again; 0 if it may
	// not. Staleness is the server's bound, from which that is counted.
	Fresh, Staleness time.Duration
	// Entries are the tokens in memory, Bytes what they take, about, and Watches the streams
	// that are kept under watch.
	Entries, Bytes, Watches int
	// Hits were answered from memory, Misses were not.
	Hits, Misses int64
	// Kept are the answers of keysvc that were put into memory, Unkept those that were used
	// once, and Repeated those that an event had overtaken, so that keysvc was asked again.
	Kept, Unkept, Repeated int64
	// Refused are refusals that were repeated within a second without asking.
	Refused int64
	// Events were applied, and Dropped the entries that went with them. Resets are how often
	// events were missing.
	Events, Dropped, Resets int64
}

// NearCache returns how the near-cache stands; nothing without one. It takes some
// microseconds.
func (c *Client) NearCache() NearCacheState {
	if c.cache == nil {
		return NearCacheState{}
	}
	return NearCacheState(c.cache.Snapshot())
}
