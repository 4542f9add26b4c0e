package keys

import (
	"context"
	"errors"
	"fmt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// attempt is one try to make a change, with what the change is checked against: the projection's
// view of the workspace, and records from the store. The store may be ahead of the view, so all
// reads go through the attempt, which notes the newest revision of them.
type attempt struct {
	projection.Workspace

	manager     *Manager
	workspaceID string
	// read is the newest revision that a read of the store had.
	read int64
	// unclaimed is set by build if "nothing to change" claims nothing about what comes later: the call
	// only asks what it would change, or nobody is told.
	unclaimed bool
}

// key reads a key of the workspace. Errors: storage.ErrNotFound, storage.ErrDamaged.
func (a *attempt) key(ctx context.Context, keyID string) (*storagev1.KeyRecord, error) {
	record, revision, err := a.manager.store.GetKey(ctx, a.workspaceID, keyID)
	a.read = max(a.read, revision)
	return record, err
}

// member reads a member of the workspace, nil if there is no record. Error:
// storage.ErrDamaged.
func (a *attempt) member(ctx context.Context, memberID string) (*storagev1.MemberRecord, error) {
	record, revision, err := a.manager.store.GetMember(ctx, a.workspaceID, memberID)
	a.read = max(a.read, revision)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return record, err
}

// requestUnused refuses a request id that was used before; nil is no id. It runs before all other
// checks, which a retry might fail although the first call passed them.
func (a *attempt) requestUnused(ctx context.Context, requestID *string) error {
	if requestID == nil {
		return nil
	}
	keyID, revision, err := a.manager.store.FindRequest(ctx, a.workspaceID, *requestID)
	a.read = max(a.read, revision)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return requestUsed(keyID)
}

// eventRoom is how many bytes of an event its fields do not take: ids, details and the hashes of
// storage.MaxOperations records.
const eventRoom = 32 << 10

// fitEvent leaves values out of the fields of an event that would make its change larger than a
// change may be, as that of a large policy can. The event says how many.
func fitEvent(change *storage.Change) {
	if audit.FieldBytes(change.Event.GetFields()) > eventRoom {
		audit.Cut(change.Event, storage.MaxChangeBytes-change.RecordBytes()-eventRoom)
	}
}

// withoutChange ends an attempt that commits nothing. err is the refusal, or nil if there is
// nothing to change. Both are answers about the workspace and the policy. A commit would have
// proved that the view was not out of date; without a commit the steps below prove it. again is set
// if the workspace or the policy has changed since the view. An error that is not a refusal is
// returned as it is.
func (a *attempt) withoutChange(ctx context.Context, err error) (_ Position, again bool, _ error) {
	// 1. A failure is not an answer about the workspace.
	if refused := (*problem.Error)(nil); err != nil && !errors.As(err, &refused) {
		return Position{}, false, err
	}
	// 2. Compare the view with what has happened since. The next validation must reflect what the caller is told.
	if again, err := a.outdated(ctx); again || err != nil {
		return Position{}, again, err
	}
	// 3. Raise the fence if there is nothing to change (R5 of docs/replication.md): another process, dead
	// by now, may have lost a transaction that would take the workspace out of the state that the caller
	// is told. A refusal claims nothing about what comes later.
	if fencer := a.manager.fencer; fencer != nil && err == nil && !a.unclaimed {
		if _, err := fencer.Fence(ctx, a.workspaceID, a.Head); err != nil {
			again, err := a.conflict(ctx, err)
			return Position{}, again, err
		}
	}
	return a.manager.at(max(a.Revision, a.read)), false, err
}

// outdated waits until the projection shows everything that the attempt has read, and reports whether the workspace or the policy has
// changed since the view.
func (a *attempt) outdated(ctx context.Context) (bool, error) {
	// The store may have been ahead.
	if err := a.manager.projection.WaitFor(ctx, max(a.Revision, a.read)); err != nil {
		return false, err
	}
	// The heads are compared after the wait and not before: the records may be newer than the view, and then the attempt mixes two
	// revisions.
	now := a.manager.projection.Workspace(a.workspaceID)
	return now.Head != a.Head || now.PolicyHead != a.PolicyHead, nil
}

// conflict judges the error of a commit or of a fence. If the store has a newer head than the view, it
// waits until the projection shows that change, and reports that the attempt is to be made again.
// It returns other errors as they are.
func (a *attempt) conflict(ctx context.Context, err error) (again bool, _ error) {
	conflict := (*storage.ConflictError)(nil)
	if !errors.As(err, &conflict) {
		return false, err
	}
	// A conflict was caused by a newer change, unless the view already showed the change that the
	// store names. Store and projection then disagree about that change, and no newer view will end
	// the disagreement. Compare with the revision of the view, not with that of the projection: by now
	// the projection may show the newer change that caused an honest conflict.
	if conflict.Revision <= a.Revision {
		return false, a.diverged(conflict)
	}
	return true, a.manager.projection.WaitFor(ctx, conflict.Revision)
}

// diverged returns the error for a conflict with a change that the view already showed: the
// store's head is not the one that its change log gave the projection.
func (a *attempt) diverged(conflict *storage.ConflictError) error {
	return &storage.DamagedError{
		Kind: "head", Name: a.workspaceID,
		Problem: fmt.Sprintf("the store has a head of the workspace or of the policy at revision %d that differs from its change log up to revision %d",
			conflict.Revision, a.Revision),
	}
}
