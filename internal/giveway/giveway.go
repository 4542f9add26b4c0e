// Package giveway lets work that takes a processor for milliseconds, such as a page of 1,000 keys, give
// way to validations. Go has no priorities, and runtime.Gosched does not help: a goroutine that yields
// is run again before the runtime asks the network for the next request. So the work sleeps now and then.
package giveway

import (
	"context"
	"time"
)

const (
	// slice is how long work goes on before it pauses, and pause how long it pauses then. The runtime
	// makes a millisecond of a shorter pause.
	slice = 200 * time.Microsecond
	pause = time.Millisecond
	// longest is for how long work pauses at all, and deadlineShare the part of the time until its
	// deadline: a half. So no work takes much longer than that because of its pauses.
	longest       = 5 * time.Second
	deadlineShare = 2
	// forever is longer than any work.
	forever = 365 * 24 * time.Hour
)

// Work is what one goroutine does. A nil Work never pauses.
type Work struct {
	urgent func() int64
	// seen is what urgent returned before the last pause, and resumed when that ended.
	seen    int64
	resumed time.Time
	// until is when the work stops pausing.
	until time.Time
}

type workKey struct{}

// NewContext returns a context for work of one goroutine that begins now. urgent returns how many
// calls have begun so far that the work gives way to.
func NewContext(ctx context.Context, urgent func() int64) context.Context {
	now := time.Now()
	most := longest
	if deadline, has := ctx.Deadline(); has {
		most = min(most, deadline.Sub(now)/deadlineShare)
	}
	return context.WithValue(ctx, workKey{}, &Work{urgent: urgent, seen: urgent(), resumed: now, until: now.Add(most)})
}

// NewBackground is NewContext for work that nobody waits for, such as checking a backup: it pauses for
// as long as it takes.
func NewBackground(ctx context.Context, urgent func() int64) context.Context {
	now := time.Now()
	return context.WithValue(ctx, workKey{}, &Work{urgent: urgent, seen: urgent(), resumed: now, until: now.Add(forever)})
}

// From returns the work of a context; nil if it has none.
func From(ctx context.Context) *Work {
	work, _ := ctx.Value(workKey{}).(*Work)
	return work
}

// GiveWay pauses if the work has gone on for a slice, and urgent calls have begun since its last pause.
// The caller holds no lock that a validation or a change needs.
func (w *Work) GiveWay() {
	if w == nil {
		return
	}
	now := time.Now()
	if now.Sub(w.resumed) < slice {
		return
	}
	w.resumed = now
	if begun := w.urgent(); begun != w.seen && now.Before(w.until) {
		w.seen = begun
		time.Sleep(pause)
		w.resumed = time.Now()
	}
}
