package keys

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
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
		if err := checkNotOutdated(stored, request.SourceVersion); err != nil {
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
func (m *Manager) RemoveWorkspace(ctx context.Context, actor audit.Actor, request *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	position, err := m.change(ctx, request.GetWorkspaceId(), func(view *attempt) (*storage.Change, error) {
		if view.Current == nil || view.Current.Removed {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		return &storage.Change{
			Event: audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED, now, request.GetWorkspaceId()),
			Kind:  storagev1.FeedKind_FEED_KIND_WORKSPACE,
			PutWorkspace: &storagev1.WorkspaceRecord{
				WorkspaceId: request.GetWorkspaceId(),
				Incarnation: view.Current.Incarnation,
				CreateTime:  timestamppb.New(view.Current.Created),
				RemoveTime:  timestamppb.New(now),
			},
			Narrows: true,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RemoveWorkspaceResponse{Revision: position.Revision, Epoch: position.Epoch}, nil
}
