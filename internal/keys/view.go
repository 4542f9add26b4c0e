package keys

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// etagOf returns the etag of a key: it changes with every change of the key.
func etagOf(record *storagev1.KeyRecord) string {
	return strconv.FormatInt(record.GetChangeSequence(), 36)
}

// show returns a stored key as callers see it at now.
func (m *Manager) show(record *storagev1.KeyRecord, now time.Time) (*keysvcv1.Key, error) {
	state, err := m.stateOf(record, now)
	if err != nil {
		return nil, err
	}
	key := &keysvcv1.Key{
		KeyId:        record.GetKeyId(),
		WorkspaceId:  record.GetWorkspaceId(),
		MemberId:     record.GetMemberId(),
		Name:         record.GetName(),
		Scopes:       record.GetScopes(),
		State:        state,
		CreateTime:   record.GetCreateTime(),
		ExpireTime:   expireTimeOf(record),
		RevokeTime:   record.GetRevokeTime(),
		Labels:       record.GetLabels(),
		AllowedCidrs: record.GetAllowedCidrs(),
		Etag:         etagOf(record),
	}
	if last := m.projection.LastUsed(record.GetKeyId()); !last.IsZero() {
		key.LastUsedTime = timestamppb.New(last)
	}
	for index, secret := range record.GetSecrets() {
		if index > 0 && !now.Before(endOf(secret)) {
			continue // its overlap is over; the record forgets it with its next change
		}
		key.Secrets = append(key.Secrets, &keysvcv1.KeySecret{
			CreateTime: secret.GetCreateTime(),
			ExpireTime: timestamppb.New(endOf(secret)),
		})
	}
	return key, nil
}

// expireTimeOf returns when the key's newest secret expires.
func expireTimeOf(record *storagev1.KeyRecord) *timestamppb.Timestamp {
	if len(record.GetSecrets()) == 0 {
		return nil
	}
	return record.GetSecrets()[0].GetExpireTime()
}

// endOf returns when a secret stops matching.
func endOf(secret *storagev1.SecretRecord) time.Time {
	end := secret.GetExpireTime().AsTime()
	if overlap := secret.GetOverlapEndTime(); overlap != nil && overlap.AsTime().Before(end) {
		return overlap.AsTime()
	}
	return end
}

// stateOf computes a key's state: revoked before expired before suspended. The
// error is set if the member's record is damaged.
func (m *Manager) stateOf(record *storagev1.KeyRecord, now time.Time) (keysvcv1.KeyState, error) {
	workspace := m.projection.Workspace(record.GetWorkspaceId()).Current
	member, err := m.projection.Member(record.GetWorkspaceId(), record.GetMemberId())
	switch {
	case err != nil:
		return keysvcv1.KeyState_KEY_STATE_UNSPECIFIED, err
	case record.GetRevokeTime() != nil,
		workspace == nil, workspace.Removed, workspace.Incarnation != record.GetWorkspaceIncarnation(),
		member == nil, member.Removed, member.Incarnation != record.GetMemberIncarnation():
		return keysvcv1.KeyState_KEY_STATE_REVOKED, nil
	case !now.Before(expireTimeOf(record).AsTime()):
		return keysvcv1.KeyState_KEY_STATE_EXPIRED, nil
	case !member.Active:
		return keysvcv1.KeyState_KEY_STATE_SUSPENDED, nil
	}
	return keysvcv1.KeyState_KEY_STATE_ACTIVE, nil
}

// showMember returns a stored member as callers see them, given the workspace as it
// is now.
func showMember(record *storagev1.MemberRecord, workspace *projection.Current) *keysvcv1.Member {
	state := keysvcv1.MemberState_MEMBER_STATE_REMOVED
	if workspace != nil && !workspace.Removed && workspace.Incarnation == record.GetWorkspaceIncarnation() {
		switch record.GetState() {
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE:
			state = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED:
			state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		case storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
			storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED:
		}
	}
	return &keysvcv1.Member{
		WorkspaceId:   record.GetWorkspaceId(),
		MemberId:      record.GetMemberId(),
		Role:          record.GetRole(),
		State:         state,
		SourceVersion: record.GetSourceVersion(),
		CreateTime:    record.GetCreateTime(),
		UpdateTime:    record.GetUpdateTime(),
	}
}
