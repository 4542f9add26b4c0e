package keys

import (
	"context"
	"errors"
	"strings"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// purgeBatch is the max number of keys, and of members, that one change of a sweep deletes. It
// keeps the change within its limits, and lets changes of other callers come in between.
const purgeBatch = 30

// Swept counts what a sweep deleted.
type Swept struct {
	// Keys and Members are how many records were deleted.
	Keys, Members int
}

// Sweep deletes keys that were revoked or expired, and members that were removed, longer ago than
// the policy's retention. No validation could allow any of them. It works in small batches with one
// audit event each, until nothing is left or the context ends. A deletion cannot be undone, so Sweep
// deletes nothing while the clock is not trusted, and returns the error of Config.ClockTrusted. It does
// nothing while Config.ReadOnly holds.
// Other errors: those of the store and the context.
func (m *Manager) Sweep(ctx context.Context, actor audit.Actor) (Swept, error) {
	var swept Swept
	if err := mayChangeAll(actor); err != nil {
		return swept, err
	}
	if m.readOnly() {
		return swept, nil
	}
	if err := m.trusted(); err != nil {
		return swept, err
	}
	active, _, err := m.projection.Policy()
	if err != nil {
		return swept, err
	}
	before := m.clock().Add(-active.Retention)
	for _, workspaceID := range m.projection.Workspaces() {
		for {
			batch, err := m.purge(ctx, actor, workspaceID, before)
			if err != nil {
				return swept, err
			}
			if batch == (Swept{}) {
				break
			}
			swept.Keys += batch.Keys
			swept.Members += batch.Members
		}
	}
	return swept, nil
}

// purge deletes one batch of the keys and members of a workspace that ended before a time.
func (m *Manager) purge(ctx context.Context, actor audit.Actor, workspaceID string, before time.Time) (Swept, error) {
	if err := ctx.Err(); err != nil {
		return Swept{}, err
	}
	// 1. Look without the workspace's turn: most workspaces have nothing to purge, and should not
	// wait for changes, or make changes wait.
	if dead := m.projection.Dead(workspaceID, before, 1); len(dead.KeyIDs)+len(dead.MemberIDs) == 0 {
		return Swept{}, nil
	}
	var swept Swept
	_, err := m.change(ctx, actor, workspaceID, func(attempt *attempt) (*storage.Change, error) {
		// 2. Look again in the turn, because another process may sweep the same workspace.
		swept = Swept{}
		attempt.unclaimed = true // nobody is told that there was nothing to purge
		dead := m.projection.Dead(workspaceID, before, purgeBatch)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_PURGED, m.clock(), workspaceID)
		change := &storage.Change{Event: event, Kind: storagev1.FeedKind_FEED_KIND_PURGE}
		var purged []string
		operations := 0
		for _, keyID := range dead.KeyIDs {
			record, err := attempt.key(ctx, keyID)
			if errors.Is(err, storage.ErrNotFound) {
				continue // another process has deleted it
			}
			if err != nil {
				return nil, err
			}
			// The index entries of a key are deleted with it in the same transaction, so they count.
			if operations += storage.DeleteOperations(record); operations > storage.MaxOperations {
				break
			}
			change.DeleteKeys = append(change.DeleteKeys, record)
			purged = append(purged, keyID)
		}
		for _, memberID := range dead.MemberIDs {
			record, err := attempt.member(ctx, memberID)
			if err != nil {
				return nil, err
			}
			if record != nil {
				change.DeleteMembers = append(change.DeleteMembers, record)
			}
		}
		swept = Swept{Keys: len(change.DeleteKeys), Members: len(change.DeleteMembers)}
		if swept == (Swept{}) {
			return nil, nil // nothing to change
		}
		event.Fields = audit.PurgedFields(change.DeleteKeys, change.DeleteMembers)
		event.Details = map[string]string{}
		if len(purged) > 0 {
			event.Details["key_ids"] = strings.Join(purged, ",")
		}
		if len(dead.MemberIDs) > 0 {
			event.Details["member_ids"] = strings.Join(dead.MemberIDs, ",")
		}
		return change, nil
	})
	return swept, err
}

// SweepEvery sweeps at every interval until the context ends, and calls report with the outcome of
// each sweep. The first sweep comes after one interval: an operator who starts the server with a
// clock that is months ahead has that long to notice it before anything is deleted.
func (m *Manager) SweepEvery(ctx context.Context, actor audit.Actor, interval time.Duration, report func(Swept, error)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		swept, err := m.Sweep(ctx, actor)
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return
		}
		report(swept, err)
	}
}
