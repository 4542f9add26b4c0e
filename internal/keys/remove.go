package keys

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// RemoveMember removes a member: one change, however many keys there are. They count
// as revoked from then on, and a sweep tidies them up later.
//
// What is stored of a removed member is needed to refuse outdated pushes. Hence a
// removal with a source_version is stored also of a member that was never there: it
// may have overtaken the push that adds the member.
func (m *Manager) RemoveMember(ctx context.Context, actor audit.Actor, request *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkID(&fields, "member_id", request.GetMemberId())
	checkSourceVersion(&fields, request.SourceVersion)
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	position, err := m.change(ctx, request.GetWorkspaceId(), func(view *attempt) (*storage.Change, error) {
		stored, err := view.member(ctx, request.GetMemberId())
		if err != nil {
			return nil, err
		}
		removed := stored.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		if err := checkNewer(view.Workspace, stored, request.SourceVersion, removed); err != nil {
			return nil, err
		}
		if stored == nil && request.GetSourceVersion() == 0 {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		record := proto.CloneOf(stored)
		if record == nil {
			if record, err = m.newMember(request, "", 0); err != nil {
				return nil, err
			}
			record.CreateTime = timestamppb.New(now)
		}
		record.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		if request.SourceVersion != nil {
			record.SourceVersion = request.GetSourceVersion()
		}
		if proto.Equal(record, stored) {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		record.UpdateTime = timestamppb.New(now)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_MEMBER_REMOVED, now, request.GetWorkspaceId())
		event.MemberId = request.GetMemberId()
		return &storage.Change{
			Event:      event,
			Kind:       storagev1.FeedKind_FEED_KIND_MEMBER,
			Subject:    request.GetMemberId(),
			PutMembers: []*storagev1.MemberRecord{record},
			Narrows:    narrowsMember(stored, record, view.Policy),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RemoveMemberResponse{Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RemoveWorkspace removes a workspace with all its members: one change, however many
// keys there are.
//
// Like that of a member, a removal with a source_version is stored also of a workspace
// that was never there, and of one that was removed with a lower one before.
func (m *Manager) RemoveWorkspace(ctx context.Context, actor audit.Actor, request *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkSourceVersion(&fields, request.SourceVersion)
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	position, err := m.change(ctx, request.GetWorkspaceId(), func(view *attempt) (*storage.Change, error) {
		var newestMember int64
		if request.SourceVersion != nil {
			newestMember = m.projection.NewestSourceVersion(request.GetWorkspaceId())
		}
		repeated, err := checkRemovalNewer(view.Current, newestMember, request.SourceVersion)
		if err != nil {
			return nil, err
		}
		there := view.Current != nil && !view.Current.Removed
		if repeated || !there && request.GetSourceVersion() == 0 {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		record, err := m.removedWorkspace(request.GetWorkspaceId(), view.Current, now)
		if err != nil {
			return nil, err
		}
		if request.SourceVersion != nil {
			record.RemovalSourceVersion = request.GetSourceVersion()
		}
		return &storage.Change{
			Event:        audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED, now, request.GetWorkspaceId()),
			Kind:         storagev1.FeedKind_FEED_KIND_WORKSPACE,
			PutWorkspace: record,
			Narrows:      true,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RemoveWorkspaceResponse{Revision: position.Revision, Epoch: position.Epoch}, nil
}

// removedWorkspace returns the record of a workspace that is removed now; of one that
// was removed before, the time of then stays.
func (m *Manager) removedWorkspace(workspaceID string, current *projection.Current, now time.Time) (*storagev1.WorkspaceRecord, error) {
	if current == nil {
		record, err := m.newWorkspace(workspaceID, nil, timestamppb.New(now))
		if err != nil {
			return nil, err
		}
		record.RemoveTime = record.GetCreateTime()
		return record, nil
	}
	removed := now
	if current.Removed {
		removed = current.Since()
	}
	return &storagev1.WorkspaceRecord{
		WorkspaceId:          workspaceID,
		Incarnation:          current.Incarnation,
		CreateTime:           timestamppb.New(current.Created),
		RemoveTime:           timestamppb.New(removed),
		RemovalSourceVersion: current.RemovalSourceVersion,
	}, nil
}
