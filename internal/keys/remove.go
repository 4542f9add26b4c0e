package keys

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// RemoveMember removes a member in one change, however many keys the member has. The keys count
// as revoked from then on, and a sweep deletes them later. sourceVersion orders the pushes of the
// product's directory as in MemberSpec. Errors: *problem.Error, and those of the store and the
// context.
//
// The record of a removed member stays until a sweep deletes it, because outdated pushes are
// recognized by its source version. Therefore a removal with a source version is also stored for
// a member that was never added: the removal may have overtaken the push that adds the member.
func (m *Manager) RemoveMember(ctx context.Context, actor audit.Actor, workspaceID, memberID string, sourceVersion *int64) (Position, error) {
	if err := mayChange(actor, "workspace_id", workspaceID); err != nil {
		return Position{}, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkID(&fields, "member_id", memberID)
	checkSourceVersion(&fields, sourceVersion)
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return Position{}, err
	}
	now := m.clock()
	return m.change(ctx, actor, workspaceID, func(view *attempt) (*storage.Change, error) {
		stored, err := view.member(ctx, memberID)
		if err != nil {
			return nil, err
		}
		removed := stored.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		if err := checkNewer(view.Workspace, stored, sourceVersion, removed); err != nil {
			return nil, err
		}
		if stored == nil && !isPositive(sourceVersion) {
			return nil, nil // nothing to change
		}
		record := proto.CloneOf(stored)
		if record == nil {
			if record, err = m.newMember(workspaceID, memberID, "", 0); err != nil {
				return nil, err
			}
			record.CreateTime = timestamppb.New(now)
		}
		if !removed {
			record.StateTime = timestamppb.New(now)
		}
		record.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		if sourceVersion != nil {
			record.SourceVersion = *sourceVersion
		}
		if proto.Equal(record, stored) {
			return nil, nil // nothing to change
		}
		record.UpdateTime = timestamppb.New(now)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_MEMBER_REMOVED, now, workspaceID)
		event.MemberId = memberID
		event.Fields = audit.MemberFields(stored, record)
		return &storage.Change{
			Event:      event,
			Kind:       storagev1.FeedKind_FEED_KIND_MEMBER,
			Subject:    memberID,
			PutMembers: []*storagev1.MemberRecord{record},
			Narrows:    narrowsMember(stored, record, view.Policy),
		}, nil
	})
}

// isPositive reports whether a source version is given and not 0.
func isPositive(version *int64) bool { return version != nil && *version != 0 }

// RemoveWorkspace removes a workspace with all its members in one change, however many keys
// there are. sourceVersion is that of RemoveMember. Errors: *problem.Error, and those of the
// store and the context.
//
// As for members, a removal with a source version is also stored for a workspace that never
// began, and for a workspace that was removed before with a lower version.
func (m *Manager) RemoveWorkspace(ctx context.Context, actor audit.Actor, workspaceID string, sourceVersion *int64) (Position, error) {
	if err := mayChange(actor, "workspace_id", workspaceID); err != nil {
		return Position{}, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkSourceVersion(&fields, sourceVersion)
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return Position{}, err
	}
	now := m.clock()
	return m.change(ctx, actor, workspaceID, func(view *attempt) (*storage.Change, error) {
		var newestMember int64
		if sourceVersion != nil {
			newestMember = m.projection.NewestSourceVersion(workspaceID)
		}
		repeated, err := checkRemovalNewer(view.Current, newestMember, sourceVersion)
		if err != nil {
			return nil, err
		}
		there := view.Current != nil && !view.Current.Removed
		if repeated || !there && !isPositive(sourceVersion) {
			return nil, nil // nothing to change
		}
		record, err := m.removedWorkspace(workspaceID, view.Current, now)
		if err != nil {
			return nil, err
		}
		if sourceVersion != nil {
			record.RemovalSourceVersion = *sourceVersion
		}
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED, now, workspaceID)
		event.Fields = audit.WorkspaceFields(workspaceRecord(workspaceID, view.Current), record)
		return &storage.Change{
			Event:        event,
			Kind:         storagev1.FeedKind_FEED_KIND_WORKSPACE,
			PutWorkspace: record,
			Narrows:      true,
		}, nil
	})
}

// removedWorkspace returns the record of a workspace that is removed now. A workspace that was
// already removed keeps its remove time.
func (m *Manager) removedWorkspace(workspaceID string, current *projection.Current, now time.Time) (*storagev1.WorkspaceRecord, error) {
	if current == nil {
		record, err := m.newWorkspace(workspaceID, nil, timestamppb.New(now))
		if err != nil {
			return nil, err
		}
		record.RemoveTime = record.GetCreateTime()
		return record, nil
	}
	record := workspaceRecord(workspaceID, current)
	if record.GetRemoveTime() == nil {
		record.RemoveTime = timestamppb.New(now)
	}
	return record, nil
}
