package keys

import (
	"context"
	"sync"

	"github.com/scribe-mail/keysvc/internal/problem"
)

// defaultMaxWaiting is the default of Config.MaxWaiting.
const defaultMaxWaiting = 1024

// locks admits one change at a time to each workspace, from its check until it is
// published. Changes of different workspaces do not wait for each other.
type locks struct {
	// limit is the max number of changes of one workspace that hold its lock or wait for it, so
	// that one busy workspace does not take the room of all others.
	limit int
	mutex sync.Mutex
	held  map[string]*lock // guarded by mutex
}

// lock is the lock of one workspace. It is deleted when no change holds it or waits for it.
type lock struct {
	turn  chan struct{} // holds one element while a change has the turn
	users int           // changes that hold the lock or wait for it; guarded by locks.mutex
}

// acquire waits for the workspace's turn and returns the function that gives it back. The error
// is the context's, or TOO_MANY_REQUESTS if too many changes wait.
func (l *locks) acquire(ctx context.Context, workspaceID string) (release func(), err error) {
	l.mutex.Lock()
	if l.held == nil {
		l.held = make(map[string]*lock)
	}
	held := l.held[workspaceID]
	if held == nil {
		held = &lock{turn: make(chan struct{}, 1)}
		l.held[workspaceID] = held
	}
	if held.users >= l.limit {
		l.mutex.Unlock()
		return nil, problem.New(problem.TooManyRequests,
			"%d changes of the workspace are in flight, as many as allowed; try again", l.limit)
	}
	held.users++
	l.mutex.Unlock()

	leave := func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		if held.users--; held.users == 0 {
			delete(l.held, workspaceID)
		}
	}
	select {
	case held.turn <- struct{}{}:
		return func() { <-held.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
