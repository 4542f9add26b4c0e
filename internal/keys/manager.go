// Package keys holds the verbs: creating, reading, rotating and revoking keys, and the changes of
// members, workspaces and the policy that the product's directory and operators make. A verb checks
// its arguments, makes one change of the store, and returns when every validation that starts from
// then on reflects the change.
//
// The verbs take and return plain values. Package service calls them with the API's messages.
package keys

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/patience"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Manager has the verbs as methods. They may be called from many goroutines. An error that a caller
// may see is a *problem.Error, with the fields named as in the API; other errors are those of
// package storage and of the context.
//
// A verb that changes something refuses an actor that may not change the workspace with
// CALLER_NOT_ALLOWED. A verb that reads takes the workspaces that the caller sees, and answers about
// any other one as about a workspace that does not exist.
type Manager struct {
	store Store
	// uses reads last-used times that other processes have recorded; nil if the projection has all.
	uses storage.UsageReader
	// fencer raises fences; nil if the store serves one process.
	fencer     storage.Fencer
	projection *projection.Projection
	now        func() time.Time
	random     io.Reader
	// tokensRefused is Config.TokensRefused.
	tokensRefused bool
	trusted       func() error     // Config.ClockTrusted
	latest        func() time.Time // Config.LatestTime
	readOnly      func() bool      // Config.ReadOnly
	// changing is held for reading by each change, from before it asks readOnly.
	changing sync.RWMutex
	locks    locks
	// keepsSettings is set if the store keeps the settings that all servers over it share. staleness is
	// Config.Staleness.
	keepsSettings bool
	staleness     time.Duration
}

// Store is the part of a store that the verbs need.
type Store interface {
	storage.Committer
	storage.KeyReader
	storage.MemberReader
	storage.AuditReader
}

// Config is what New makes a Manager from.
type Config struct {
	// Store is where changes go. Of its optional behaviours (storage.As) the verbs use Fencer, RefusalStore,
	// SettingsKeeper and UsageReader. Required.
	Store Store
	// Projection is what changes are checked against. The caller must have its Follow running: a
	// change returns when the projection shows it. Required.
	Projection *projection.Projection
	// Now is the clock. It must not go back. Default: time.Now.
	Now func() time.Time
	// ClockTrusted returns the error that callers are told while the time is not known, and nil
	// otherwise. While it returns an error, no key is created or rotated with an overlap, and
	// nothing is purged. Default: the clock is always trusted.
	ClockTrusted func() error
	// TokensRefused makes the verbs take digests only: no token is reported, and none is drawn and
	// given out.
	TokensRefused bool
	// LatestTime returns the latest time that it may be while the clock is in doubt, and the zero
	// Time while it is not. Default: the clock is never in doubt.
	LatestTime func() time.Time
	// ReadOnly reports whether every change is refused, with READ_ONLY, and nothing is swept. Default:
	// never.
	ReadOnly func() bool
	// Staleness is the staleness bound if the store keeps no settings that all servers over it share.
	Staleness time.Duration
	// Random yields ids, secrets and incarnations. Default: the system's CSPRNG.
	Random io.Reader
	// MaxWaiting is the max number of changes of one workspace that are in flight; more are
	// refused with TOO_MANY_REQUESTS. Default: 1,024.
	MaxWaiting int
}

// New returns a Manager.
func New(config Config) *Manager {
	manager := &Manager{
		store:         config.Store,
		projection:    config.Projection,
		now:           config.Now,
		random:        config.Random,
		locks:         locks{limit: cmp.Or(config.MaxWaiting, defaultMaxWaiting)},
		trusted:       config.ClockTrusted,
		tokensRefused: config.TokensRefused,
		latest:        config.LatestTime,
		readOnly:      config.ReadOnly,
		staleness:     config.Staleness,
	}
	if manager.readOnly == nil {
		manager.readOnly = func() bool { return false }
	}
	manager.fencer, _ = storage.As[storage.Fencer](config.Store)
	manager.uses, _ = storage.As[storage.UsageReader](config.Store)
	_, manager.keepsSettings = storage.As[storage.SettingsKeeper](config.Store)
	if manager.now == nil {
		manager.now = time.Now
	}
	if manager.trusted == nil {
		manager.trusted = func() error { return nil }
	}
	if manager.latest == nil {
		manager.latest = func() time.Time { return time.Time{} }
	}
	if manager.random == nil {
		manager.random = rand.Reader
	}
	return manager
}

// Position is the point of the store's history at which an answer is true.
type Position struct {
	// Revision is that of the change, or of the read.
	Revision int64
	// Epoch is the history that the revision belongs to.
	Epoch string
}

// publishTimeout bounds the wait for the projection after a commit. In that time a store that went
// down is usually open again.
const publishTimeout = 10 * time.Second

// clock returns the time for the records of a change, in microseconds, the precision that is stored
// and shown.
func (m *Manager) clock() time.Time { return m.now().UTC().Truncate(time.Microsecond) }

// at returns the position of a revision.
func (m *Manager) at(revision int64) Position {
	return Position{Revision: revision, Epoch: m.projection.Epoch()}
}

// build checks what the caller wants against an attempt's view, and returns the change without
// its links to the workspace's history; nil if there is nothing to change. It runs once for
// each attempt, so it must not use anything that it found in an earlier attempt.
type build func(*attempt) (*storage.Change, error)

// change makes one change of a workspace; the empty workspace is the policy's. Every verb
// that changes something calls it, so no change gets past step 1. Whatever change returns (done, nothing to change, or
// refused) is true at a revision that validations already reflect, on every manager of the
// store. It tries until the context ends. A sweep has no deadline, so attempt must not ask
// for another try forever.
func (m *Manager) change(ctx context.Context, actor audit.Actor, workspaceID string, build build) (Position, error) {
	// While the store is moved everything is refused: a change that is not copied would be lost.
	m.changing.RLock()
	defer m.changing.RUnlock()
	if m.readOnly() {
		return Position{}, problem.New(problem.ReadOnly, "the server is read-only, for example because its store is being moved; nothing was changed; try again later, or at another server")
	}
	return m.changeAlways(ctx, actor, workspaceID, build)
}

// changeAlways is change, also while the server is read-only.
func (m *Manager) changeAlways(ctx context.Context, actor audit.Actor, workspaceID string, build build) (Position, error) {
	// 1. Refuse an actor that may not change the workspace, before it can wait for the workspace's
	// turn or learn anything about the workspace.
	if !actor.Workspaces.Has(workspaceID) {
		return Position{}, notAllowed()
	}
	// 2. Take the workspace's turn. It comes early, so that the steps below see what the
	// change before this one published: changes of one manager to one workspace then never
	// conflict with each other. It is held until the answer is known.
	release, err := m.locks.acquire(ctx, workspaceID)
	if err != nil {
		return Position{}, err
	}
	defer release()
	// 3. Take a barrier before the first look at the projection, because another process may
	// have acknowledged a change that this projection does not show yet. "Nothing to change"
	// and refusals commit nothing, so the store would not catch an old view for them. One
	// barrier is enough: every later view is newer.
	if err := m.projection.Fresh(ctx); err != nil {
		return Position{}, err
	}
	// 4. Try, and after each conflict try again with a newer view.
	for {
		position, again, err := m.attempt(ctx, workspaceID, build)
		if !again || err != nil {
			return position, err
		}
	}
}

// Settle waits for the changes that have begun. Once Config.ReadOnly has returned true, no change is made
// after Settle any more.
func (m *Manager) Settle() {
	m.changing.Lock()
	m.changing.Unlock() //nolint:staticcheck // nothing is done meanwhile: the wait is what is wanted
}

// attempt tries once to make a change. again reports that the view was out of date; the
// projection then shows a newer one. storage.ErrDamaged is returned if store and projection
// disagree for good.
func (m *Manager) attempt(ctx context.Context, workspaceID string, build build) (_ Position, again bool, _ error) {
	// 1. Take the view of workspace and policy in one look. What is checked below and what
	// the commit expects must come from the same revision.
	attempt := &attempt{manager: m, Workspace: m.projection.Workspace(workspaceID), workspaceID: workspaceID}
	if attempt.Damaged != nil {
		return Position{}, false, attempt.Damaged
	}
	// 2. Check, and build the change. Without a change the answer still waits until the
	// projection shows all that the check has read (withoutChange).
	change, err := build(attempt)
	if change == nil || err != nil {
		return attempt.withoutChange(ctx, err)
	}
	// 3. Keep the change within its limits. This comes after build, which knows nothing of them.
	fitEvent(change)
	// 4. Let the commit expect the heads of the view, because the check holds for them alone:
	// the workspace's, and the policy's if the change is not the policy's own.
	change.Link(workspaceID, attempt.Head)
	if workspaceID != "" {
		change.ExpectPolicy = &attempt.PolicyHead
	}
	// 5. Commit. The store compares the heads and writes in one step.
	revision, err := m.store.Commit(ctx, change)
	// 6. After a conflict look again, unless store and projection disagree. A record that is newer than the view may make
	// the change invalid before anything is compared: for that reason it is no change of this view.
	if errors.Is(err, storage.ErrInvalidChange) {
		if again, waited := attempt.outdated(ctx); again || waited != nil {
			return Position{}, again, waited
		}
	}
	if errors.Is(err, storage.ErrConflict) {
		again, err := attempt.conflict(ctx, err)
		return Position{}, again, err
	}
	// 7. An id that is taken is an answer about the store, so validations must reflect the
	// revision that it was found at before the caller hears it.
	if exists := (*storage.ExistsError)(nil); errors.As(err, &exists) {
		if err := m.projection.WaitFor(ctx, exists.Revision); err != nil {
			return Position{}, false, err
		}
	}
	if err != nil {
		return Position{}, false, err
	}
	// 8. Answer only when this manager's validations reflect the change. Those of other
	// managers take a barrier, which is not older than this commit.
	position, err := m.published(ctx, revision)
	return position, false, err
}

// freshPolicy returns the active policy and the revision that it was read at. It reflects every
// change of the policy that was acknowledged before the call. Errors: those of Projection.Fresh and
// Projection.Policy.
func (m *Manager) freshPolicy(ctx context.Context) (*projection.Policy, int64, error) {
	if err := m.projection.Fresh(ctx); err != nil {
		return nil, 0, err
	}
	return m.projection.Policy()
}

// published waits until validations reflect a committed revision. The end of the caller's context
// does not end the wait, because "nothing was changed" would be untrue by now. But the wait is
// bounded by the context's deadline, so that the caller still hears that the outcome is unknown.
func (m *Manager) published(ctx context.Context, revision int64) (Position, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience.Within(ctx, publishTimeout))
	defer cancel()
	if err := m.projection.WaitFor(ctx, revision); err != nil {
		return Position{}, fmt.Errorf("%w: revision %d is committed but not published: %w", storage.ErrOutcomeUnknown, revision, err)
	}
	return m.at(revision), nil
}
