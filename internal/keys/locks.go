package keys

import (
	"context"
	"sync"
)

// locks admits one change at a time to each workspace, from its check until it is
// published. Workspaces do not wait for each other.
type locks struct {
	mutex sync.Mutex
	held  map[string]*lock
}

// lock is one workspace's. It goes when nobody holds it or waits for it.
type lock struct {
	turn  chan struct{}
	users int
}

// acquire waits for the workspace's turn and returns what gives it back. The error
// is the context's.
func (l *locks) acquire(ctx context.Context, workspaceID string) (release func(), err error) {
	l.mutex.Lock()
	if l.held == nil {
		l.held = make(map[string]*lock)
	}
	entry := l.held[workspaceID]
	if entry == nil {
		entry = &lock{turn: make(chan struct{}, 1)}
		l.held[workspaceID] = entry
	}
	entry.users++
	l.mutex.Unlock()

	leave := func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		if entry.users--; entry.users == 0 {
			delete(l.held, workspaceID)
		}
	}
	select {
	case entry.turn <- struct{}{}:
		return func() { <-entry.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
