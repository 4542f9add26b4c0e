package keys

import (
	"context"
	"sync"

	"github.com/scribe-mail/keysvc/internal/problem"
)

// defaultMaxWaiting is Config.MaxWaiting unless it is set.
const defaultMaxWaiting = 1024

// locks admits one change at a time to each workspace, from its check until it is
// published. Workspaces do not wait for each other.
type locks struct {
	// most is how many changes of one workspace may have or wait for its turn: one busy
	// workspace must not take the room of all others.
	most  int
	mutex sync.Mutex
	held  map[string]*lock
}

// lock is one workspace's. It goes when nobody holds it or waits for it.
type lock struct {
	turn  chan struct{}
	users int
}

// acquire waits for the workspace's turn and returns what gives it back. The error
// is the context's, or a *problem.Error if too many wait.
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
	if entry.users >= l.most {
		l.mutex.Unlock()
		return nil, problem.New(problem.TooManyRequests,
			"%d changes of the workspace are in flight, as many as allowed; try again", l.most)
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
