package keys

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Repaired counts the records of each kind that have, or had, times in the future.
type Repaired struct {
	Keys, Members, Workspaces int
}

// RepairTimes sets back the times that lie in the future because the clock was ahead. The time at
// which something was created, changed, revoked or removed becomes now. The end of a secret or an
// overlap is set back by as much as its beginning, so no key lives longer than it was given. Each
// record is one change with an audit event of its own. Earlier audit events and the policy's apply
// time are not changed. Without apply, RepairTimes only counts. It may be repeated.
func (m *Manager) RepairTimes(ctx context.Context, actor audit.Actor, apply bool) (Repaired, error) {
	var repaired Repaired
	if err := mayChangeAll(actor); err != nil {
		return repaired, err
	}
	for _, workspaceID := range m.projection.Workspaces() {
		for _, repair := range []func(context.Context, audit.Actor, string, bool, *Repaired) error{
			m.repairWorkspace, m.repairMembers, m.repairKeys,
		} {
			if err := repair(ctx, actor, workspaceID, apply, &repaired); err != nil {
				return repaired, err
			}
		}
	}
	return repaired, nil
}

func (m *Manager) repairWorkspace(ctx context.Context, actor audit.Actor, workspaceID string, apply bool, repaired *Repaired) error {
	now := m.clock()
	current := m.projection.Workspace(workspaceID).Current
	if current == nil || !current.Created.After(now) && !current.Since().After(now) {
		return nil
	}
	repaired.Workspaces++
	if !apply {
		return nil
	}
	_, err := m.change(ctx, actor, workspaceID, func(view *attempt) (*storage.Change, error) {
		stored := workspaceRecord(workspaceID, view.Current)
		record := proto.CloneOf(stored)
		record.CreateTime, record.RemoveTime = notAfter(stored.GetCreateTime(), now), notAfter(stored.GetRemoveTime(), now)
		repairEnded(record.GetEnded(), now)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED, now, workspaceID)
		event.Fields = audit.WorkspaceFields(stored, record)
		return &storage.Change{
			Event:        event,
			Kind:         storagev1.FeedKind_FEED_KIND_WORKSPACE,
			PutWorkspace: record,
		}, nil
	})
	return err
}

func (m *Manager) repairMembers(ctx context.Context, actor audit.Actor, workspaceID string, apply bool, repaired *Repaired) error {
	query := storage.Query{WorkspaceID: workspaceID, Limit: storage.MaxPage}
	for {
		page, err := m.store.ListMembers(ctx, query)
		if err != nil {
			return err
		}
		for _, found := range page.Members {
			now := m.clock()
			if !inFuture(found.GetCreateTime(), now) && !inFuture(found.GetUpdateTime(), now) {
				continue
			}
			repaired.Members++
			if !apply {
				continue
			}
			if _, err := m.change(ctx, actor, workspaceID, func(view *attempt) (*storage.Change, error) {
				stored, err := view.member(ctx, found.GetMemberId())
				if stored == nil || err != nil {
					return nil, err
				}
				record := proto.CloneOf(stored)
				record.CreateTime, record.UpdateTime = notAfter(stored.GetCreateTime(), now), notAfter(stored.GetUpdateTime(), now)
				record.StateTime = notAfter(stored.GetStateTime(), now)
				repairEnded(record.GetEnded(), now)
				event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED, now, workspaceID)
				event.MemberId = record.GetMemberId()
				event.Fields = audit.RepairedMemberFields(stored, record)
				return &storage.Change{
					Event: event, Kind: storagev1.FeedKind_FEED_KIND_MEMBER, Subject: record.GetMemberId(),
					PutMembers: []*storagev1.MemberRecord{record},
				}, nil
			}); err != nil {
				return err
			}
		}
		if query.Cursor = page.Next; query.Cursor == "" {
			return nil
		}
	}
}

func (m *Manager) repairKeys(ctx context.Context, actor audit.Actor, workspaceID string, apply bool, repaired *Repaired) error {
	query := storage.Query{WorkspaceID: workspaceID, Limit: storage.MaxPage}
	for {
		page, err := m.store.ListKeys(ctx, query)
		if err != nil {
			return err
		}
		for _, found := range page.Keys {
			now := m.clock()
			if !repairKey(proto.CloneOf(found), now) {
				continue
			}
			repaired.Keys++
			if !apply {
				continue
			}
			if _, _, err := m.changeKey(ctx, actor, workspaceID, found.GetKeyId(),
				func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
					if !repairKey(record, now) {
						return nil, nil // nothing to change
					}
					return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED, now, workspaceID), nil
				}); err != nil {
				return err
			}
		}
		if query.Cursor = page.Next; query.Cursor == "" {
			return nil
		}
	}
}

// repairKey sets back the times of a key that lie in the future, and reports whether it changed
// any.
func repairKey(record *storagev1.KeyRecord, now time.Time) bool {
	before := proto.CloneOf(record)
	record.CreateTime, record.RevokeTime = notAfter(record.GetCreateTime(), now), notAfter(record.GetRevokeTime(), now)
	if record.GetImported() != nil {
		record.Imported.ImportTime = notAfter(record.GetImported().GetImportTime(), now)
	}
	// An overlap began when the newest secret was issued, so its end is set back by as much as the
	// creation of that secret.
	var ahead time.Duration
	for index, secret := range record.GetSecrets() {
		if inFuture(secret.GetCreateTime(), now) {
			ownAhead := secret.GetCreateTime().AsTime().Sub(now)
			if index == 0 {
				ahead = ownAhead
			}
			end := earlier(secret.GetExpireTime().AsTime().Add(-ownAhead), oneYearAfter(now))
			secret.CreateTime, secret.ExpireTime = timestamppb.New(now), timestamppb.New(end)
		}
		if secret.GetOverlapEndTime() != nil && ahead > 0 {
			secret.OverlapEndTime = timestamppb.New(secret.GetOverlapEndTime().AsTime().Add(-ahead))
		}
	}
	return !proto.Equal(before, record)
}

// repairEnded sets back the ends of earlier incarnations that lie in the future. A repair of another
// time of the record brings it here: an end is not after the addition that followed on it.
func repairEnded(ended []*storagev1.EndedIncarnation, now time.Time) {
	for _, each := range ended {
		each.EndTime = notAfter(each.GetEndTime(), now)
	}
}

// inFuture reports whether a stored time is after now; false for nil.
func inFuture(stored *timestamppb.Timestamp, now time.Time) bool {
	return stored != nil && stored.AsTime().After(now)
}

// notAfter returns the earlier one of a stored time and now; nil for nil.
func notAfter(stored *timestamppb.Timestamp, now time.Time) *timestamppb.Timestamp {
	if inFuture(stored, now) {
		return timestamppb.New(now)
	}
	return stored
}

// earlier returns the earlier one of two times.
func earlier(one, other time.Time) time.Time {
	if other.Before(one) {
		return other
	}
	return one
}
