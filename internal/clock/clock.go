// Package clock holds the one clock of a process.
package clock

import (
	"sync/atomic"
	"time"
)

// Steady returns a clock that follows now but never goes back, so that nothing that
// was expired comes alive again when the system's wall clock is set back. It begins at
// floor, if now is behind it. The times are in UTC and without a monotonic reading. It
// may be called from many goroutines.
func Steady(now func() time.Time, floor time.Time) func() time.Time {
	var latest atomic.Int64
	if !floor.IsZero() {
		latest.Store(floor.UnixNano())
	}
	return func() time.Time {
		current := now().UnixNano()
		for {
			last := latest.Load()
			if current <= last {
				return time.Unix(0, last).UTC()
			}
			if latest.CompareAndSwap(last, current) {
				return time.Unix(0, current).UTC()
			}
		}
	}
}
