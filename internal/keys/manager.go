// Package keys holds the verbs: creating, reading and revoking keys, and what the
// product's directory and operators change around them. It checks what is asked,
// turns it into one change of the store, and returns when every validation that
// starts from now on reflects it.
package keys

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/patience"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Manager carries out the verbs. Its methods may be called from many goroutines.
// Their errors are *problem.Error where the caller may know, and of storage or the
// context otherwise.
type Manager struct {
	store      storage.Store
	projection *projection.Projection
	now        func() time.Time
	random     io.Reader
	locks      locks
}

// Config is what a Manager works with.
type Config struct {
	// Store is where changes go. Required.
	Store storage.Store
	// Projection is what changes are checked against; somebody lets it follow the
	// store. Required.
	Projection *projection.Projection
	// Now is the clock. It must not go back. Default: time.Now.
	Now func() time.Time
	// Random yields ids, secrets and incarnations. Default: the system's CSPRNG.
	Random io.Reader
	// MaxWaiting is how many changes of one workspace may be in flight; more are refused with
	// TOO_MANY_REQUESTS. Default: 1,024.
	MaxWaiting int
}

// New returns a Manager.
func New(config Config) *Manager {
	manager := &Manager{
		store:      config.Store,
		projection: config.Projection,
		now:        config.Now,
		random:     config.Random,
		locks:      locks{most: cmp.Or(config.MaxWaiting, defaultMaxWaiting)},
	}
	if manager.now == nil {
		manager.now = time.Now
	}
	if manager.random == nil {
		manager.random = rand.Reader
	}
	return manager
}

// Position tells at which point of the store's history something holds.
type Position struct {
	// Revision of the change, or that was read.
	Revision int64
	// Epoch that the revision belongs to.
	Epoch string
}

// maxAttempts is how often a change is checked anew after somebody else, in another
// process, was faster.
const maxAttempts = 5

// publishTimeout bounds the wait for the projection after a commit. It is long
// enough for a reopening of the store.
const publishTimeout = 10 * time.Second

// clock returns the time that a change is stamped with, at the precision that is
// stored and shown.
func (m *Manager) clock() time.Time { return m.now().UTC().Truncate(time.Microsecond) }

// at returns a position at a revision.
func (m *Manager) at(revision int64) Position {
	return Position{Revision: revision, Epoch: m.projection.Epoch()}
}

// change makes one change of a workspace. build checks what is asked against what
// it is given, and returns the change without its place in the chain; nil if there
// is nothing to change. It may be called again if another process was faster.
func (m *Manager) change(ctx context.Context, workspaceID string, build func(projection.Workspace) (*storage.Change, error)) (Position, error) {
	release, err := m.locks.acquire(ctx, workspaceID)
	if err != nil {
		return Position{}, err
	}
	defer release()
	for range maxAttempts {
		view := m.projection.Workspace(workspaceID)
		if view.Damaged != nil {
			return Position{}, view.Damaged
		}
		change, err := build(view)
		if err != nil {
			return Position{}, err
		}
		if change == nil {
			return m.at(view.Revision), nil
		}
		change.WorkspaceID, change.Expect = workspaceID, view.Head
		view.Head.Link(change.Event)
		revision, err := m.store.Commit(ctx, change)
		if errors.Is(err, storage.ErrConflict) {
			if err := m.projection.WaitFor(ctx, view.Revision+1); err != nil {
				return Position{}, err
			}
			continue
		}
		if err != nil {
			return Position{}, err
		}
		return m.published(ctx, revision)
	}
	return Position{}, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CONCURRENT_CHANGE,
		"the workspace is being changed by others; try again")
}

// published waits until validations reflect a committed revision. The caller's
// context no longer counts: the change is made, and saying less would be untrue. But it
// says so while the caller listens.
func (m *Manager) published(ctx context.Context, revision int64) (Position, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience.Within(ctx, publishTimeout))
	defer cancel()
	if err := m.projection.WaitFor(ctx, revision); err != nil {
		return Position{}, fmt.Errorf("%w: revision %d is committed but not published: %w", storage.ErrOutcomeUnknown, revision, err)
	}
	return m.at(revision), nil
}
