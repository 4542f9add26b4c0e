package keys

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// PutMember adds a member, or changes role and state of one.
func (m *Manager) PutMember(ctx context.Context, actor audit.Actor, request *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	active, _, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkID(&fields, "member_id", request.GetMemberId())
	checkRole(&fields, request.GetRole(), active)
	state := checkMemberState(&fields, request.GetState())
	checkSourceVersion(&fields, request.SourceVersion)
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	var record *storagev1.MemberRecord
	var workspace *storagev1.WorkspaceRecord
	position, err := m.change(ctx, request.GetWorkspaceId(), func(view *attempt) (*storage.Change, error) {
		workspace = nil
		if err := checkStillRole(view, request.GetRole()); err != nil {
			return nil, err
		}
		stored, err := view.member(ctx, request.GetMemberId())
		if err != nil {
			return nil, err
		}
		current, err := m.projection.Member(request.GetWorkspaceId(), request.GetMemberId())
		if err != nil {
			return nil, err
		}
		same := view.Has(current) && stored.GetRole() == request.GetRole() && stored.GetState() == state
		if err := checkNewer(view.Workspace, stored, request.SourceVersion, same); err != nil {
			return nil, err
		}
		change := &storage.Change{Kind: storagev1.FeedKind_FEED_KIND_MEMBER, Subject: request.GetMemberId()}
		if view.Has(current) {
			record = proto.CloneOf(stored)
		} else {
			var incarnation string
			if view.Current != nil && !view.Current.Removed {
				incarnation = view.Current.Incarnation
			} else {
				if workspace, err = m.newWorkspace(request.GetWorkspaceId(), view.Current, timestamppb.New(now)); err != nil {
					return nil, err
				}
				incarnation = workspace.GetIncarnation()
			}
			if record, err = m.newMember(request, incarnation, stored.GetSourceVersion()); err != nil {
				return nil, err
			}
			record.CreateTime = timestamppb.New(now)
		}
		record.Role, record.State = request.GetRole(), state
		if request.SourceVersion != nil {
			record.SourceVersion = request.GetSourceVersion()
		}
		if proto.Equal(record, stored) {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		record.UpdateTime = timestamppb.New(now)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, now, request.GetWorkspaceId())
		event.MemberId = record.GetMemberId()
		event.Details = map[string]string{"role": record.GetRole(), "state": request.GetState().String()}
		change.Event, change.PutMembers, change.PutWorkspace = event, []*storagev1.MemberRecord{record}, workspace
		change.Narrows = narrowsMember(stored, record, view.Policy)
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.PutMemberResponse{
		Member:   showMember(record, m.projection.Workspace(request.GetWorkspaceId()).Current),
		Revision: position.Revision,
		Epoch:    position.Epoch,
	}, nil
}

// checkStillRole refuses a role that the policy has lost since the request was checked.
func checkStillRole(view *attempt, role string) error {
	active, err := view.ActivePolicy()
	if err != nil {
		return err
	}
	var fields problem.Fields
	checkRole(&fields, role, active)
	return fields.Err()
}

// newWorkspace returns the record of a workspace that comes into being, or comes
// back. Keys of an earlier one with the same id stay dead: it has another
// incarnation. What is known of the earlier one's removal, if there was one, stays.
func (m *Manager) newWorkspace(workspaceID string, earlier *projection.Current, now *timestamppb.Timestamp) (*storagev1.WorkspaceRecord, error) {
	incarnation, err := token.NewID(m.random)
	if err != nil {
		return nil, err
	}
	record := &storagev1.WorkspaceRecord{WorkspaceId: workspaceID, Incarnation: incarnation, CreateTime: now}
	if earlier != nil {
		record.RemovalSourceVersion = earlier.RemovalSourceVersion
	}
	return record, nil
}

// memberName is a request that names a member.
type memberName interface {
	GetWorkspaceId() string
	GetMemberId() string
}

// newMember returns the record of a member that is added, or added again.
func (m *Manager) newMember(named memberName, workspaceIncarnation string, sourceVersion int64) (*storagev1.MemberRecord, error) {
	incarnation, err := token.NewID(m.random)
	if err != nil {
		return nil, err
	}
	return &storagev1.MemberRecord{
		WorkspaceId:          named.GetWorkspaceId(),
		MemberId:             named.GetMemberId(),
		Incarnation:          incarnation,
		WorkspaceIncarnation: workspaceIncarnation,
		SourceVersion:        sourceVersion,
	}, nil
}

func checkMemberState(fields *problem.Fields, state keysvcv1.MemberState) storagev1.MemberRecordState {
	switch state {
	case keysvcv1.MemberState_MEMBER_STATE_ACTIVE:
		return storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE
	case keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		return storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED
	case keysvcv1.MemberState_MEMBER_STATE_UNSPECIFIED:
		fields.Add("state", "is missing; active or suspended is required")
	case keysvcv1.MemberState_MEMBER_STATE_REMOVED:
		fields.Add("state", "cannot be set to removed; RemoveMember removes")
	default:
		fields.Add("state", "is unknown; active and suspended are allowed")
	}
	return storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED
}

func asMemberNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND, "there is no such member in the workspace")
	}
	return err
}
