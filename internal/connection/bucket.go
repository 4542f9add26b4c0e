package connection

import "time"

// limit bounds how often something may happen: burst times at once, and perSecond times a second
// in the long run.
type limit struct {
	burst, perSecond int64
}

// bucket counts what has happened against a limit. The zero bucket is that of a connection which
// has done nothing yet.
type bucket struct {
	// spent is what was taken and has not come back yet, in billionths of one time. So a
	// nanosecond gives perSecond of it back.
	spent int64
	// at is when spent was true.
	at time.Duration
}

// times is how much of spent stands for one time.
const times = int64(time.Second)

// take counts cost times. It reports whether the limit allows them. now never goes back.
func (b *bucket) take(limit limit, now time.Duration, cost int64) bool {
	b.refill(limit, now)
	b.spent += cost * times
	return b.spent <= limit.burst*times
}

// give takes back what was counted, n times at most.
func (b *bucket) give(n int64) { b.spent = max(0, b.spent-n*times) }

// refill gives back what the time that passed allows.
func (b *bucket) refill(limit limit, now time.Duration) {
	passed := int64(now - b.at)
	b.at = now
	switch {
	case b.spent == 0 || limit.perSecond == 0:
	case passed >= b.spent/limit.perSecond+1:
		b.spent = 0
	default:
		b.spent = max(0, b.spent-passed*limit.perSecond)
	}
}

// isFull reports whether nothing is left of what was counted.
func (b *bucket) isFull(limit limit, now time.Duration) bool {
	b.refill(limit, now)
	return b.spent == 0
}
