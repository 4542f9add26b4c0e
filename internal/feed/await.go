package feed

import (
	"context"
	"time"

	"github.com/scribe-mail/keysvc/internal/lease"
)

// Outcome is how a wait for all caches ended.
type Outcome struct {
	// Applied counts the clients that have applied the revision. Lapsed counts the clients
	// whose leases ended before they had applied it; all clients of other processes count as one.
	Applied, Lapsed int
}

// Await is a wait until no cache answers from before a revision any more: until every answer
// from memory reflects the revision. Only one goroutine may use it.
type Await struct {
	hub     *Hub
	pending []lease.Pending
	outcome Outcome
}

// Await asks the clients of all sessions to report when they have applied a revision, and
// returns the wait for them. If the hub is shared, call it behind a barrier of the store that began
// after the call that asks. Error: ErrNotPublished.
func (h *Hub) Await(revision int64) (*Await, error) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if revision > h.revision {
		return nil, ErrNotPublished
	}
	await := &Await{hub: h}
	await.outcome.Applied, await.pending = h.leases.Pending(revision, h.config.Now())
	if len(await.pending) == 0 {
		return await, nil
	}
	for session := range h.sessions {
		if session.applied < revision && session.awaited < revision {
			session.awaited = revision
			session.Wake()
		}
	}
	return await, nil
}

// Poll reports whether the wait is over, and returns its outcome. If the wait is not over, call
// Poll again when changed is closed, or after left if that is earlier. changed is nil if nothing can end the
// wait earlier.
func (a *Await) Poll() (outcome Outcome, over bool, left time.Duration, changed <-chan struct{}) {
	now := a.hub.config.Now()
	for len(a.pending) > 0 {
		status, left, changed := a.pending[len(a.pending)-1].Status(now)
		switch status {
		case lease.Open:
			return a.outcome, false, left, changed
		case lease.Applied:
			a.outcome.Applied++
		case lease.Lapsed:
			a.outcome.Lapsed++
		}
		a.pending = a.pending[:len(a.pending)-1]
	}
	return a.outcome, true, 0, nil
}

// AwaitRevision returns when no cache answers from before a revision any more. It waits for at most
// S and a thousandth of S, or of a larger S that was in force since S ago. Errors: ErrNotPublished, or the context's.
func (h *Hub) AwaitRevision(ctx context.Context, revision int64) (Outcome, error) {
	await, err := h.Await(revision)
	if err != nil {
		return Outcome{}, err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		outcome, over, left, changed := await.Poll()
		if over {
			return outcome, nil
		}
		timer.Reset(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		}
	}
}
