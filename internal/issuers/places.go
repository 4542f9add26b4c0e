package issuers

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/scribe-mail/keysvc/internal/callers"
)

const (
	// maxPlaces is how many tokens that are not known may wait at a time.
	maxPlaces = 256
	// maxPlacesOfOne is how many of them may come from one address.
	maxPlacesOfOne = maxPlaces / 4
)

// places bounds how many tokens wait, in all and for each address, and how many signatures are
// computed at a time.
type places struct {
	turns chan struct{}

	mu    sync.Mutex
	taken int
	from  map[string]int
}

func newPlaces() *places {
	// Half of the processors at most are busy with tokens that may be forged.
	return &places{turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), from: map[string]int{}}
}

// enter takes a place without waiting. The error matches callers.ErrBusy.
func (p *places) enter(from string) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= maxPlaces || p.from[from] >= maxPlacesOfOne {
		return nil, fmt.Errorf("too many tokens wait to be verified: %w", callers.ErrBusy)
	}
	p.taken++
	p.from[from]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.from[from]--; p.from[from] == 0 {
			delete(p.from, from)
		}
	}, nil
}

// turn waits until a signature may be computed. The error matches callers.ErrBusy.
func (p *places) turn(ctx context.Context) (end func(), err error) {
	select {
	case p.turns <- struct{}{}:
		return func() { <-p.turns }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no turn in time: %w", callers.ErrBusy)
	}
}
