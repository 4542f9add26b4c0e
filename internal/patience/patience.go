// Package patience bounds waits, so that whoever called still hears how a wait ended. A
// bound that equals the caller's deadline tells nobody anything: the caller has given up
// when the answer comes.
package patience

import (
	"context"
	"time"
)

// Of the time that a caller gives, this part is kept for the answer's way back.
const (
	answerPart = 5 // a fifth
	answerMost = time.Second
)

// Within returns how long to wait for something that may take most: no longer than leaves
// the caller a fifth of the time until its deadline, and a second at most, to hear of it.
// If the deadline has passed, nobody listens, and it returns most.
func Within(ctx context.Context, most time.Duration) time.Duration {
	deadline, has := ctx.Deadline()
	if !has {
		return most
	}
	left := time.Until(deadline) //nolint:forbidigo // deadlines go by the time that passes
	if left <= 0 {
		return most
	}
	return min(most, left-min(left/answerPart, answerMost))
}

// Bound returns a context that ends with ctx, and after Within at the latest.
func Bound(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, Within(ctx, most))
}
