package keys

import (
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
	// RevokeTime is when the key was revoked; the zero Time if it was not. A key whose member
	// or workspace was removed counts as revoked, but has no RevokeTime.
	RevokeTime time.Time
	// Secrets are the newest secret and, while a rotation overlaps, the one before it.
	Secrets []KeySecret
	// Etag changes with every change of the key.
	Etag string
}

// KeySecret is one secret of a key, without the secret itself.
type KeySecret struct {
	// CreateTime is when the secret was issued; ExpireTime when it stops matching.
	CreateTime, ExpireTime time.Time
	// IssuedLocally is set if the caller of keysvc drew the secret.
	IssuedLocally bool
}

// KeyState is the state of a key: a key can be used if it is active, and every other state tells why
// it cannot. The numbers are those of keysvc.v1.KeyState.
type KeyState int32

// The states of a key. If several apply, the state is revoked before expired before suspended.
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

// show returns a stored key as callers see it at now. The error is set if the record of the
// key's member is damaged.
func (m *Manager) show(record *storagev1.KeyRecord, now time.Time) (*Key, error) {
	state, err := m.stateOf(record, now)
	if err != nil {
		return nil, err
	}
	key := &Key{
		ID:           record.GetKeyId(),
		WorkspaceID:  record.GetWorkspaceId(),
		MemberID:     record.GetMemberId(),
		Name:         record.GetName(),
		Scopes:       record.GetScopes(),
		State:        state,
		CreateTime:   timeOf(record.GetCreateTime()),
		ExpireTime:   timeOf(expireTimeOf(record)),
		LastUsedTime: m.projection.LastUsed(record.GetKeyId()),
		RevokeTime:   timeOf(record.GetRevokeTime()),
		Labels:       record.GetLabels(),
		AllowedCIDRs: record.GetAllowedCidrs(),
		Etag:         etagOf(record),
	}
	for index, secret := range record.GetSecrets() {
		if index > 0 && !now.Before(endOf(secret)) {
			continue // the overlap is over; the next change of the key drops the secret
		}
		key.Secrets = append(key.Secrets, KeySecret{
			CreateTime: timeOf(secret.GetCreateTime()), ExpireTime: endOf(secret), IssuedLocally: secret.GetIssuedLocally(),
		})
	}
	return key, nil
}

// showAt is show after a change. It also returns the position of the change.
func (m *Manager) showAt(record *storagev1.KeyRecord, now time.Time, position Position) (*Key, Position, error) {
	key, err := m.show(record, now)
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

// stateOf computes the state of a key: revoked before expired before suspended. The error is
// set if the record of the key's member is damaged.
func (m *Manager) stateOf(record *storagev1.KeyRecord, now time.Time) (KeyState, error) {
	workspace := m.projection.Workspace(record.GetWorkspaceId()).Current
	member, err := m.projection.Member(record.GetWorkspaceId(), record.GetMemberId())
	switch {
	case err != nil:
		return KeyStateUnspecified, err
	case record.GetRevokeTime() != nil,
		workspace == nil, workspace.Removed, workspace.Incarnation != record.GetWorkspaceIncarnation(),
		member == nil, member.Removed, member.Incarnation != record.GetMemberIncarnation():
		return KeyRevoked, nil
	case !now.Before(expireTimeOf(record).AsTime()):
		return KeyExpired, nil
	case !member.Active:
		return KeySuspended, nil
	}
	return KeyActive, nil
}
