package keystest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// gate is a pacer that holds loads back, after their read of the store, while it is shut.
type gate struct {
	mutex   sync.Mutex
	opening chan struct{} // nil while it is open
	arrived chan struct{} // closed when a load is held back
}

// shut shuts the gate, and returns a channel that is closed when the gate holds a load back.
func (g *gate) shut() (arrived <-chan struct{}) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.opening, g.arrived = make(chan struct{}), make(chan struct{})
	return g.arrived
}

func (g *gate) open() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.opening != nil {
		close(g.opening)
		g.opening = nil
	}
}

func (g *gate) pause(ctx context.Context, _ int, at point) error {
	g.mutex.Lock()
	opening, arrived := g.opening, g.arrived
	if at == atLoaded && opening != nil && arrived != nil {
		close(arrived)
		g.arrived = nil
	}
	g.mutex.Unlock()
	if at != atLoaded || opening == nil {
		return ctx.Err()
	}
	select {
	case <-opening:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxHold is the max time that a load is held back while a call is repeated, because the repeated
// call may wait for that load.
const maxHold = 5 * time.Millisecond

// insist calls a verb. Once in 50 calls it makes the commit fail with an unknown outcome, before or
// after it is written, and takes the store down. It then repeats the call, as clients do, while the
// store is being loaded again. The call may fail as unavailable; but if it succeeds, validations must
// reflect the change.
func insist[Q any, A answered](r *run, verb func(context.Context, audit.Actor, Q) (A, error), request Q) (A, error) {
	ctx, actor := context.Background(), r.actor(request)
	if !r.chance(50) {
		return verb(ctx, actor, request)
	}
	written := r.chance(2)
	arrived := r.gate.shut()
	r.link.lose(written)
	answer, err := verb(ctx, actor, request)
	lost := r.link.found()
	if !errors.Is(err, storage.ErrOutcomeUnknown) {
		r.gate.open() // it was refused, or there was nothing to change
		return answer, err
	}
	<-arrived
	release := time.AfterFunc(maxHold, r.gate.open)
	defer release.Stop()
	for errors.Is(err, storage.ErrOutcomeUnknown) || errors.Is(err, storage.ErrUnavailable) {
		answer, err = verb(ctx, actor, request)
	}
	if shows := r.Projection.Revision(); err == nil && (answer.GetRevision() < lost || shows < lost) {
		r.t.Errorf("%T after a commit of unknown outcome: OK at revision %d, validations show %d, the change is of %d",
			request, answer.GetRevision(), shows, lost)
	}
	r.gate.open()
	// The model is compared with the projection next, so wait until the load is shown.
	waiting, cancel := context.WithTimeout(ctx, maxHold*1000)
	defer cancel()
	if err := r.Projection.WaitFor(waiting, lost); err != nil {
		r.t.Errorf("loading again: %v", err)
	}
	return answer, err
}
