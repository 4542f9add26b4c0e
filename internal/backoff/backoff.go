// Package backoff makes the waits between attempts that fail. Everything in the module that
// retries waits with it: the client of etcd, the projection, the listener and the near-cache.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields waits before the next attempt. Each wait is random between 0 and a bound
// (full jitter), so that processes that lost the same server do not return together. The
// bound doubles from wait to wait until it reaches a maximum.
//
// A Backoff belongs to one goroutine.
type Backoff struct {
	min, max time.Duration
	bound    time.Duration
}

// New returns a Backoff whose bound is shortest before the first wait and never more than
// longest. Both are more than 0.
func New(shortest, longest time.Duration) *Backoff {
	return &Backoff{min: shortest, max: longest, bound: shortest}
}

// Reset makes the next wait as short as the first. Call it after an attempt that succeeded.
func (b *Backoff) Reset() { b.bound = b.min }

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	wait := rand.N(b.bound) //nolint:gosec // G404: jitter is no secret
	b.bound = min(2*b.bound, b.max)
	return wait
}

// Wait waits for as long as Next says. It reports whether to try again: false means that
// the context has ended.
func (b *Backoff) Wait(ctx context.Context) bool {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
