package keys

import (
	"context"
	"errors"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// owner is what the projection knows of the workspace and the member that a key belongs to.
type owner struct {
	workspace *projection.Current // nil if there is no record
	member    *projection.Member  // nil if there is no record
}

// ownerOf returns the owner of a key. The error is set if the record of the key's member is
// damaged.
func (m *Manager) ownerOf(record *storagev1.KeyRecord) (owner, error) {
	workspace := m.projection.Workspace(record.GetWorkspaceId()).Current
	member, err := m.projection.Member(record.GetWorkspaceId(), record.GetMemberId())
	return owner{workspace, member}, err
}

// workspaceIsGone reports whether the workspace that the key was created in was removed.
func (o owner) workspaceIsGone(record *storagev1.KeyRecord) bool {
	return o.workspace == nil || o.workspace.Removed || o.workspace.Incarnation != record.GetWorkspaceIncarnation()
}

// memberIsGone reports whether the member that the key was created for was removed.
func (o owner) memberIsGone(record *storagev1.KeyRecord) bool {
	return o.member == nil || o.member.Removed || o.member.Incarnation != record.GetMemberIncarnation()
}

// state computes the state of a key: revoked before expired before held before suspended.
func (o owner) state(record *storagev1.KeyRecord, now time.Time) KeyState {
	switch {
	case record.GetRevokeTime() != nil, o.workspaceIsGone(record), o.memberIsGone(record):
		return KeyRevoked
	case !now.Before(expireTimeOf(record).AsTime()):
		return KeyExpired
	case record.GetHoldTime() != nil:
		return KeyHeld
	case !o.member.Active:
		return KeySuspended
	}
	return KeyActive
}

// memberReader reads the record of a member; nil without a record.
type memberReader func(workspaceID, memberID string) (*storagev1.MemberRecord, error)

// readMember returns a memberReader for a read of keys.
func (m *Manager) readMember(ctx context.Context) memberReader {
	return func(workspaceID, memberID string) (*storagev1.MemberRecord, error) {
		record, _, err := m.store.GetMember(ctx, workspaceID, memberID)
		if errors.Is(err, storage.ErrNotFound) {
			return nil, nil
		}
		return record, err
	}
}

// stopped returns when and why a key stopped working: of several reasons that end it for good, the
// earliest one, where a time that is not known counts as later than those that are known; otherwise
// that it is held, or the suspension of its member. The projection does not have the times of members, so they are read.
// The error is that of read.
func (o owner) stopped(record *storagev1.KeyRecord, now time.Time, read memberReader) (at time.Time, reason StopReason, err error) {
	note := func(candidate time.Time, why StopReason) {
		if reason == StopUnspecified || !candidate.IsZero() && (at.IsZero() || candidate.Before(at)) {
			at, reason = candidate, why
		}
	}
	if record.GetRevokeTime() != nil {
		why := StopRevoked
		if record.GetReported() {
			why = StopReported
		}
		note(record.GetRevokeTime().AsTime(), why)
	}
	if o.workspaceIsGone(record) {
		note(o.endOfWorkspace(record), StopWorkspaceRemoved)
	}
	if o.memberIsGone(record) {
		member, err := read(record.GetWorkspaceId(), record.GetMemberId())
		if err != nil {
			return time.Time{}, StopUnspecified, err
		}
		note(endOfMember(member, record.GetMemberIncarnation()), StopMemberRemoved)
	}
	if expires := expireTimeOf(record).AsTime(); !now.Before(expires) {
		note(expires, StopExpired)
	}
	if reason != StopUnspecified {
		return at, reason, nil
	}
	if record.GetHoldTime() != nil {
		return record.GetHoldTime().AsTime(), StopHeld, nil
	}
	if o.member.Active {
		return time.Time{}, StopUnspecified, nil
	}
	member, err := read(record.GetWorkspaceId(), record.GetMemberId())
	if err != nil {
		return time.Time{}, StopUnspecified, err
	}
	if member.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED {
		at = timeOf(member.GetStateTime()) // otherwise it has changed since the projection was looked at
	}
	return at, StopMemberSuspended, nil
}

// endOfWorkspace returns when the workspace that a key was created in was removed; the zero Time if
// that is not known.
func (o owner) endOfWorkspace(record *storagev1.KeyRecord) time.Time {
	switch {
	case o.workspace == nil:
		return time.Time{}
	case o.workspace.Incarnation == record.GetWorkspaceIncarnation():
		return o.workspace.Since()
	}
	return endOfIncarnation(o.workspace.Ended, record.GetWorkspaceIncarnation())
}

// endOfMember returns when an incarnation of a member was removed; the zero Time if that is not
// known.
func endOfMember(member *storagev1.MemberRecord, incarnation string) time.Time {
	if member.GetIncarnation() != incarnation {
		return endOfIncarnation(member.GetEnded(), incarnation)
	}
	if member.GetState() != storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED {
		return time.Time{} // it has changed since the projection was looked at
	}
	return timeOf(member.GetStateTime())
}
