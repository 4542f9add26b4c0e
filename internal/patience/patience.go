// Package patience bounds waits so that callers still get an answer when a wait ends without
// success. If a wait lasted until the caller's deadline, the caller would have given up
// before the answer came.
package patience

import (
	"context"
	"time"
)

// The part of the time until the caller's deadline that is kept for the answer's way back.
const (
	answerPart = 5 // a fifth
	answerMax  = time.Second
)

// Within returns how long to wait for something that may take up to limit. The wait ends
// before the caller's deadline by a fifth of the time that is left, but by a second at most.
// If the caller has no deadline, or the deadline has passed and nobody listens any more,
// Within returns limit.
func Within(ctx context.Context, limit time.Duration) time.Duration {
	deadline, has := ctx.Deadline()
	if !has {
		return limit
	}
	left := time.Until(deadline)
	if left <= 0 {
		return limit
	}
	return min(limit, left-min(left/answerPart, answerMax))
}

// Bound returns a context that ends with ctx, or after Within if that is earlier.
func Bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, Within(ctx, limit))
}
