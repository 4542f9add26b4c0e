package keys

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// Member is a member as callers see them at one moment.
type Member struct {
	// WorkspaceID and MemberID are the product's ids.
	WorkspaceID, MemberID string
	// Role is a role of the policy, or was one when PutMember set it.
	Role string
	// State is MemberRemoved also if the member's workspace was removed.
	State MemberState
	// SourceVersion is the highest version that the product's directory gave; 0 if it gave none.
	SourceVersion int64
	// CreateTime is when the member was added, or added again; UpdateTime when the record last
	// changed.
	CreateTime, UpdateTime time.Time
	// AssignableScopes are the scopes that a key of the member can be granted now, in the order of the
	// policy's catalogue. GetMember alone sets them, for an active member.
	AssignableScopes []string
}

// MemberState is the state of a member. Keys can be used only while their member is active. The
// numbers are those of keysvc.v1.MemberState.
type MemberState int32

// The states of a member.
const (
	// MemberStateUnspecified is the state of no member.
	MemberStateUnspecified MemberState = iota
	// MemberActive members have keys that can be used.
	MemberActive
	// MemberSuspended members keep their keys, but none of the keys can be used.
	MemberSuspended
	// MemberRemoved members have no keys: those that they had count as revoked.
	MemberRemoved
)

// MemberSpec is a member as PutMember makes it.
type MemberSpec struct {
	// WorkspaceID and MemberID are the product's ids; a workspace begins with its first member.
	WorkspaceID, MemberID string
	// Role is one of the policy's.
	Role string
	// State is MemberActive or MemberSuspended.
	State MemberState
	// SourceVersion orders the pushes of the product's directory, 0 to MaxSourceVersion: an
	// older push is refused with SOURCE_VERSION_OUTDATED. Nil for a change that was not pushed.
	SourceVersion *int64
}

// PutMember adds a member, or changes the role and state of a member. Errors: *problem.Error if the
// member is refused, and those of the store and the context.
func (m *Manager) PutMember(ctx context.Context, actor audit.Actor, spec MemberSpec) (*Member, Position, error) {
	if err := mayChange(actor, "workspace_id", spec.WorkspaceID); err != nil {
		return nil, Position{}, err
	}
	active, _, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, Position{}, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", spec.WorkspaceID)
	checkID(&fields, "member_id", spec.MemberID)
	checkRole(&fields, spec.Role, active)
	state := checkMemberState(&fields, spec.State)
	checkSourceVersion(&fields, spec.SourceVersion)
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return nil, Position{}, err
	}
	now := m.clock()
	var record *storagev1.MemberRecord
	position, err := m.change(ctx, actor, spec.WorkspaceID, func(view *attempt) (*storage.Change, error) {
		// The policy of the view may be newer than the one that the role was checked against.
		if err := checkStillRole(view, spec.Role); err != nil {
			return nil, err
		}
		stored, err := view.member(ctx, spec.MemberID)
		if err != nil {
			return nil, err
		}
		current, err := m.projection.Member(spec.WorkspaceID, spec.MemberID)
		if err != nil {
			return nil, err
		}
		same := view.Has(current) && stored.GetRole() == spec.Role && stored.GetState() == state
		if err := checkNewer(view.Workspace, stored, spec.SourceVersion, same); err != nil {
			return nil, err
		}
		var workspace *storagev1.WorkspaceRecord
		if view.Has(current) {
			record = proto.CloneOf(stored)
		} else if record, workspace, err = m.addMember(view, spec, stored, now); err != nil {
			return nil, err
		}
		if record.GetState() != state {
			record.StateTime = timestamppb.New(now)
		}
		record.Role, record.State = spec.Role, state
		if spec.SourceVersion != nil {
			record.SourceVersion = *spec.SourceVersion
		}
		if proto.Equal(record, stored) {
			return nil, nil // nothing to change
		}
		record.UpdateTime = timestamppb.New(now)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, now, spec.WorkspaceID)
		event.MemberId = record.GetMemberId()
		event.Fields = audit.MemberFields(stored, record)
		if workspace != nil {
			event.Fields = append(event.Fields, audit.WorkspaceFields(workspaceRecord(spec.WorkspaceID, view.Current), workspace)...)
		}
		return &storage.Change{
			Event:        event,
			Kind:         storagev1.FeedKind_FEED_KIND_MEMBER,
			Subject:      spec.MemberID,
			PutMembers:   []*storagev1.MemberRecord{record},
			PutWorkspace: workspace,
			Narrows:      narrowsMember(stored, record, view.Policy),
		}, nil
	})
	if err != nil {
		return nil, Position{}, err
	}
	// The answer is as of the change: the workspace may have been removed since.
	return showMember(record, true), position, nil
}

// addMember returns the record of a member who is not in the workspace now, and the record of
// the workspace if it begins, or comes back, with this member.
func (m *Manager) addMember(
	view *attempt, spec MemberSpec, stored *storagev1.MemberRecord, now time.Time,
) (record *storagev1.MemberRecord, workspace *storagev1.WorkspaceRecord, err error) {
	var incarnation string
	if view.Current != nil && !view.Current.Removed {
		incarnation = view.Current.Incarnation
	} else {
		if workspace, err = m.newWorkspace(spec.WorkspaceID, view.Current, timestamppb.New(now)); err != nil {
			return nil, nil, err
		}
		incarnation = workspace.GetIncarnation()
	}
	if record, err = m.newMember(spec.WorkspaceID, spec.MemberID, incarnation, stored.GetSourceVersion()); err != nil {
		return nil, nil, err
	}
	record.CreateTime = timestamppb.New(now)
	record.Ended = endedMember(stored)
	return record, workspace, nil
}

// checkStillRole refuses a role that the policy of the view does not have.
func checkStillRole(view *attempt, role string) error {
	active, err := view.ActivePolicy()
	if err != nil {
		return err
	}
	var fields problem.Fields
	checkRole(&fields, role, active)
	return fields.Err()
}

// newWorkspace returns the record of a workspace that begins, or comes back after its removal.
// It draws a new incarnation, so that keys of an earlier workspace with the same id stay dead.
// earlier is that workspace, nil if there was none; the source version of its removal stays.
func (m *Manager) newWorkspace(workspaceID string, earlier *projection.Current, now *timestamppb.Timestamp) (*storagev1.WorkspaceRecord, error) {
	incarnation, err := token.NewID(m.random)
	if err != nil {
		return nil, err
	}
	record := &storagev1.WorkspaceRecord{WorkspaceId: workspaceID, Incarnation: incarnation, CreateTime: now}
	if earlier != nil {
		record.RemovalSourceVersion = earlier.RemovalSourceVersion
		record.Ended = endedWorkspace(earlier)
	}
	return record, nil
}

// newMember returns the record of a member that is added, or added again.
func (m *Manager) newMember(workspaceID, memberID, workspaceIncarnation string, sourceVersion int64) (*storagev1.MemberRecord, error) {
	incarnation, err := token.NewID(m.random)
	if err != nil {
		return nil, err
	}
	return &storagev1.MemberRecord{
		WorkspaceId:          workspaceID,
		MemberId:             memberID,
		Incarnation:          incarnation,
		WorkspaceIncarnation: workspaceIncarnation,
		SourceVersion:        sourceVersion,
	}, nil
}

// checkMemberState checks a state that a caller wants, and returns it as it is stored.
func checkMemberState(fields *problem.Fields, state MemberState) storagev1.MemberRecordState {
	switch state {
	case MemberActive:
		return storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE
	case MemberSuspended:
		return storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED
	case MemberStateUnspecified:
		fields.Add("state", "is missing; active or suspended is required")
	case MemberRemoved:
		fields.Add("state", "cannot be set to removed; RemoveMember removes")
	default:
		fields.Add("state", "is unknown; active and suspended are allowed")
	}
	return storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED
}

// isIn reports whether a workspace is the one that a member was added to.
func isIn(workspace *projection.Current, record *storagev1.MemberRecord) bool {
	return workspace != nil && !workspace.Removed && workspace.Incarnation == record.GetWorkspaceIncarnation()
}

// showMember returns a stored member as callers see them. isThere reports whether the workspace that the member was added to is there.
func showMember(record *storagev1.MemberRecord, isThere bool) *Member {
	state := MemberRemoved
	if isThere {
		switch record.GetState() {
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE:
			state = MemberActive
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED:
			state = MemberSuspended
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
			storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED:
		}
	}
	return &Member{
		WorkspaceID:   record.GetWorkspaceId(),
		MemberID:      record.GetMemberId(),
		Role:          record.GetRole(),
		State:         state,
		SourceVersion: record.GetSourceVersion(),
		CreateTime:    timeOf(record.GetCreateTime()),
		UpdateTime:    timeOf(record.GetUpdateTime()),
	}
}

// asMemberNotFound maps storage.ErrNotFound to MEMBER_NOT_FOUND. Other errors stay as they are.
func asMemberNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return problem.New(problem.MemberNotFound, "there is no such member in the workspace")
	}
	return err
}
