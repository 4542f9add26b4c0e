package backup

import (
	"context"
	"time"
)

// pace lets bytes pass at a rate. What was not used is not saved up: after a pause, bytes pass no
// faster than before.
type pace struct {
	rate int64
	// next is when the next bytes may pass.
	next time.Time
}

func newPace(rate int64) *pace { return &pace{rate: rate, next: time.Now()} }

// wait waits until a number of bytes may pass, or until the context ends.
func (p *pace) wait(ctx context.Context, bytes int) error {
	if now := time.Now(); p.next.Before(now) {
		p.next = now
	}
	pause := time.Until(p.next)
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
