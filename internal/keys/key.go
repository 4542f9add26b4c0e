package keys

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// Key is a key as callers see it at one moment. It has no secret and no hash.
type Key struct {
	// ID is the public identifier of the key, 16 characters of [0-9A-Za-z].
	ID string
	// WorkspaceID and MemberID are the product's ids of the key's workspace and member.
	WorkspaceID, MemberID string
	// Name is what people call the key.
	Name string
	// Scopes are sorted.
	Scopes []string
	// Labels are the caller's annotations.
	Labels map[string]string
	// AllowedCIDRs are the prefixes that the key may be used from; none means from anywhere.
	AllowedCIDRs []string
	// State is computed for the moment of the read.
	State KeyState
	// CreateTime and ExpireTime are the key's; ExpireTime is that of its newest secret.
	CreateTime, ExpireTime time.Time
	// LastUsedTime is when a validation last allowed the key; the zero Time if none did.
	LastUsedTime time.Time
	// ImportTime is when the key was imported; the zero Time if keysvc created it.
	ImportTime time.Time
	// RevokeTime is when the key was revoked; the zero Time if it was not. A key whose member
	// or workspace was removed counts as revoked, but has no RevokeTime.
	RevokeTime time.Time
	// Secrets are the newest secret and, while a rotation overlaps, the one before it.
	Secrets []KeySecret
	// Etag changes with every change of the key.
	Etag string
	// CreatedBy and RevokedBy are who created and revoked the key; nil if that is not known, or if
	// the key was not revoked.
	CreatedBy, RevokedBy *ChangedBy
	// StopTime is when the key stopped working; the zero Time if it works, or if that is not known.
	StopTime time.Time
	// StopReason is why the key stopped working.
	StopReason StopReason
	// Role and EffectiveScopes are set by GetKey only: the present role of the key's member, empty if
	// the member was removed, and the granted scopes that the role has now.
	Role            string
	EffectiveScopes []string
}

// ChangedBy is who made a change.
type ChangedBy struct {
	// Caller is the name of the caller of keysvc.
	Caller string
	// MemberID is the member on whose behalf the caller said it acted; empty if it named none.
	MemberID string
}

// KeySecret is one secret of a key, without the secret itself.
type KeySecret struct {
	// CreateTime is when the secret was issued; ExpireTime when it stops matching.
	CreateTime, ExpireTime time.Time
	// LastUsedTime is when a validation last allowed the secret; the zero Time if none did, or if it is
	// not known which of two secrets was used.
	LastUsedTime time.Time
	// IssuedLocally is set if the caller of keysvc drew the secret, and Imported if another system did.
	IssuedLocally, Imported bool
}

// KeyState is the state of a key: a key can be used if it is active, and every other state tells why
// it cannot. The numbers are those of keysvc.v1.KeyState.
type KeyState int32

// The states of a key. If several apply, the state is revoked before expired before held before
// suspended.
const (
	// KeyStateUnspecified is the state of no key.
	KeyStateUnspecified KeyState = iota
	// KeyActive keys can be used.
	KeyActive
	// KeySuspended keys cannot be used until their member is active again.
	KeySuspended
	// KeyExpired keys are past their expire time.
	KeyExpired
	// KeyRevoked keys were revoked, or their member or workspace was removed.
	KeyRevoked
	// KeyHeld keys wait for a person since the store was restored from a backup.
	KeyHeld
)

// StopReason is why a key stopped working. The numbers are those of keysvc.v1.StopReason.
type StopReason int32

// The reasons why a key stopped working.
const (
	// StopUnspecified is the reason of a key that works.
	StopUnspecified StopReason = iota
	// StopRevoked keys were revoked by their ids.
	StopRevoked
	// StopReported keys were revoked by their tokens.
	StopReported
	// StopExpired keys are past their expire time.
	StopExpired
	// StopMemberRemoved keys had a member who was removed.
	StopMemberRemoved
	// StopWorkspaceRemoved keys had a workspace that was removed.
	StopWorkspaceRemoved
	// StopMemberSuspended keys work again when their member is active again.
	StopMemberSuspended
	// StopHeld keys work again when a person has released them.
	StopHeld
)

// KeyName names a key.
type KeyName struct {
	// WorkspaceID is the workspace of the key.
	WorkspaceID string
	// KeyID is the public identifier of the key.
	KeyID string
}

// IssuedKey is a key with a new secret.
type IssuedKey struct {
	Position

	// Key is the key as it is at Position.
	Key *Key
	// Token holds the new secret. Nothing else ever shows it. It is zero if the caller drew the
	// secret.
	Token token.Token
}

// etagOf returns the etag of a key. It changes with every change of the key.
func etagOf(record *storagev1.KeyRecord) string {
	return strconv.FormatInt(record.GetChangeSequence(), 36)
}

// show returns a stored key as callers see it at now. read reads the record of the key's member, if
// the answer needs it. The error is set if the record of the key's member is damaged, or is that of
// read.
func (m *Manager) show(record *storagev1.KeyRecord, now time.Time, read memberReader) (*Key, error) {
	owner, err := m.ownerOf(record)
	if err != nil {
		return nil, err
	}
	return m.showWith(owner, record, now, read)
}

// showWith is show of a key whose owner is known.
func (m *Manager) showWith(owner owner, record *storagev1.KeyRecord, now time.Time, read memberReader) (*Key, error) {
	state := owner.state(record, now)
	stopTime, stopReason, err := owner.stopped(record, now, read)
	if err != nil {
		return nil, err
	}
	uses := m.projection.LastUses(record.GetKeyId())
	key := &Key{
		ID:           record.GetKeyId(),
		WorkspaceID:  record.GetWorkspaceId(),
		MemberID:     record.GetMemberId(),
		Name:         record.GetName(),
		Scopes:       record.GetScopes(),
		State:        state,
		CreateTime:   timeOf(record.GetCreateTime()),
		ExpireTime:   timeOf(expireTimeOf(record)),
		LastUsedTime: uses.Key(),
		ImportTime:   timeOf(record.GetImported().GetImportTime()),
		RevokeTime:   timeOf(record.GetRevokeTime()),
		Labels:       record.GetLabels(),
		AllowedCIDRs: record.GetAllowedCidrs(),
		Etag:         etagOf(record),
		CreatedBy:    changedBy(record.GetCreatedBy()),
		RevokedBy:    changedBy(record.GetRevokedBy()),
		StopTime:     stopTime,
		StopReason:   stopReason,
	}
	for index, secret := range record.GetSecrets() {
		if index > 0 && !now.Before(endOf(secret)) {
			continue // the overlap is over; the next change of the key drops the secret
		}
		key.Secrets = append(key.Secrets, KeySecret{
			CreateTime: timeOf(secret.GetCreateTime()), ExpireTime: endOf(secret),
			LastUsedTime:  uses.Secret(hashOf(secret).Short(), timeOf(secret.GetCreateTime())),
			IssuedLocally: secret.GetIssuedLocally(),
			Imported:      hashOf(secret).Scheme == token.SchemeForeign,
		})
	}
	return key, nil
}

// changedBy returns who made a change, nil if that is not stored.
func changedBy(stored *storagev1.ChangedByRecord) *ChangedBy {
	if stored == nil {
		return nil
	}
	return &ChangedBy{Caller: stored.GetCaller(), MemberID: stored.GetActorMemberId()}
}

// changedKey is a key as an attempt leaves it. By the time that its caller is answered, its member may be another one; a change
// of the member before the attempt's commit is a conflict.
type changedKey struct {
	record *storagev1.KeyRecord
	owner  owner
	// damaged is set if the record of the key's member is damaged.
	damaged error
	// sequence is that of the workspace's newest event then.
	sequence int64
}

// changed returns a key as the attempt leaves it. isChanged reports whether it has changed.
func (a *attempt) changed(record *storagev1.KeyRecord, isChanged bool) changedKey {
	owner, err := a.manager.ownerOf(record)
	sequence := a.Head.Sequence
	if isChanged {
		sequence++
	}
	return changedKey{record, owner, err, sequence}
}

// showAt returns a key as of the position of its change, and that position. The change is made, so
// a member that cannot be read, or has changed since, is no error: then it is not known when the member was removed or
// suspended.
func (m *Manager) showAt(ctx context.Context, changed changedKey, now time.Time, position Position) (*Key, Position, error) {
	if changed.damaged != nil {
		return nil, Position{}, changed.damaged
	}
	key, err := m.showWith(changed.owner, changed.record, now, func(workspaceID, memberID string) (*storagev1.MemberRecord, error) {
		member, _, err := m.store.GetMember(ctx, workspaceID, memberID)
		if err != nil || member.GetChangeSequence() > changed.sequence {
			return nil, nil //nolint:nilerr // see above
		}
		return member, nil
	})
	if err != nil {
		return nil, Position{}, err
	}
	return key, position, nil
}

// timeOf returns a stored time, the zero Time for none.
func timeOf(stored *timestamppb.Timestamp) time.Time {
	if stored == nil {
		return time.Time{}
	}
	return stored.AsTime()
}

// expireTimeOf returns when the newest secret of a key expires; nil for a key without secrets.
func expireTimeOf(record *storagev1.KeyRecord) *timestamppb.Timestamp {
	if len(record.GetSecrets()) == 0 {
		return nil
	}
	return record.GetSecrets()[0].GetExpireTime()
}

// endOf returns when a secret stops matching: when it expires, or when its overlap ends, if
// that is earlier.
func endOf(secret *storagev1.SecretRecord) time.Time {
	end := secret.GetExpireTime().AsTime()
	if overlap := secret.GetOverlapEndTime(); overlap != nil && overlap.AsTime().Before(end) {
		return overlap.AsTime()
	}
	return end
}

// stateOf computes the state of a key: revoked before expired before held before suspended. The error is
// set if the record of the key's member is damaged.
func (m *Manager) stateOf(record *storagev1.KeyRecord, now time.Time) (KeyState, error) {
	owner, err := m.ownerOf(record)
	if err != nil {
		return KeyStateUnspecified, err
	}
	return owner.state(record, now), nil
}
