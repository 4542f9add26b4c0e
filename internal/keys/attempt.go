package keys

import (
	"context"
	"errors"
	"fmt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// attempt is what one try of a change is checked against: the projection's view of the
// workspace, and what is read from the store. The store may be ahead of the view, so reads
// go through the attempt, which remembers how far they have come.
type attempt struct {
	projection.Workspace

	manager     *Manager
	workspaceID string
	// read is the newest revision of what was read from the store.
	read int64
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
		return nil, nil //nolint:nilnil // documented: nil is "none"
	}
	return record, err
}

// requestUnused refuses a request id that was used before. It tells a retry before
// anything else is checked: the first try may have used up what the second one would need,
// and time may have passed since.
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

// withoutChange ends an attempt that commits nothing: there is nothing to change, or err
// says why it is refused. Both are answers about the workspace and the policy, so they are
// given only when the projection shows all that they rest on, and again is set if either
// has changed meanwhile. Any other error is returned as it is.
func (a *attempt) withoutChange(ctx context.Context, err error) (_ Position, again bool, _ error) {
	if refused := (*problem.Error)(nil); err != nil && !errors.As(err, &refused) {
		return Position{}, false, err
	}
	revision := max(a.Revision, a.read)
	if err := a.manager.projection.WaitFor(ctx, revision); err != nil {
		return Position{}, false, err
	}
	now := a.manager.projection.Workspace(a.workspaceID)
	if now.Head != a.Head || now.PolicyHead != a.PolicyHead {
		return Position{}, true, nil
	}
	return a.manager.at(revision), false, err
}

// diverged returns the error for a conflict with a change that the view already showed: the
// store's head is not the one that its change log gave the projection.
func (a *attempt) diverged(conflict *storage.ConflictError) error {
	return &storage.DamagedError{
		Kind: "head", Name: a.workspaceID,
		Problem: fmt.Sprintf("the head of the workspace or of the policy, of revision %d in the store, is not what the change log said up to revision %d",
			conflict.Revision, a.Revision),
	}
}
