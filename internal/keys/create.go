package keys

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// KeySpec is a key that CreateKey makes.
type KeySpec struct {
	// WorkspaceID and MemberID name an active member of the workspace, who gets the key.
	WorkspaceID, MemberID string
	// Name is what people call the key, in the form of NormalName. It has at least 1 character,
	// and at most Limits.KeyNameCharacters of the policy.
	Name string
	// Scopes are scopes of the policy, all of them within the member's role: at least 1, and at
	// most Limits.ScopesPerKey of the policy.
	Scopes []string
	// AllowedCIDRs are up to MaxCIDRs prefixes that the key may be used from; none means from
	// anywhere.
	AllowedCIDRs []string
	// Labels are up to MaxLabels annotations.
	Labels map[string]string
	// ExpireTime is in the future, and at most a calendar year ahead; nil asks for a year.
	ExpireTime *time.Time
	// RequestID makes a retry safe: a second call with the same id is refused with
	// REQUEST_ID_USED, or succeeds as the first one did if both have the same Digest. Nil for none.
	RequestID *string
	// Digest is that of a token whose secret the caller has drawn; zero lets the Manager draw it.
	// KeyIDNonce are then the token.NonceLength bytes that the key's id is made from.
	Digest     token.Digest
	KeyIDNonce []byte
}

// CreateKey issues a key. Errors: *problem.Error if the key is refused, the error of
// Config.ClockTrusted, and those of the store and the context.
func (m *Manager) CreateKey(ctx context.Context, actor audit.Actor, spec KeySpec) (*IssuedKey, error) {
	if err := mayChange(actor, "workspace_id", spec.WorkspaceID); err != nil {
		return nil, err
	}
	if m.tokensRefused && spec.Digest.IsZero() {
		return nil, errTokensRefused("draw the secret, and send token_digest and key_id_nonce (keysvc key create --local)")
	}
	now := m.clock()
	if !canLookUpRequest(spec.WorkspaceID, spec.RequestID) {
		active, _, err := m.freshPolicy(ctx)
		if err == nil {
			_, err = checkCreate(spec, actor, active, now) // names every bad field at once
		}
		return nil, err
	}
	var changed changedKey
	var issued token.Token
	localID := checkLocal(new(problem.Fields), spec.WorkspaceID, spec.Digest, spec.KeyIDNonce) // step 3 checks it
	build := func(view *attempt) (*storage.Change, error) {
		// 1. Recognize a retry before anything is judged: the first call may have used up what
		// this one would need, or its expire time may have passed since.
		if err := view.requestUnused(ctx, spec.RequestID); err != nil {
			record, err := view.repeated(ctx, err, localID, spec.Digest, false)
			if err == nil {
				changed = view.changed(record, false)
			}
			return nil, err
		}
		// 2. Refuse while the time is not known, because an expire time cannot be judged then.
		if err := m.trusted(); err != nil {
			return nil, err
		}
		// 3. Check the fields against the policy of this view, which may be newer than that of
		// the attempt before; then the member, and the scopes against the member's role.
		active, err := view.ActivePolicy()
		if err != nil {
			return nil, err
		}
		wanted, err := checkCreate(spec, actor, active, now)
		if err != nil {
			return nil, err
		}
		member, err := m.activeMember(view, wanted.WorkspaceID, wanted.MemberID)
		if err != nil {
			return nil, err
		}
		if err := checkWithinRole(wanted.Scopes, member, active); err != nil {
			return nil, err
		}
		// 4. Count the live keys last: the count visits every key of a large workspace.
		if allowed := active.Limits.LiveKeysPerWorkspace; !m.projection.HasRoom(wanted.WorkspaceID, now, allowed) {
			return nil, problem.New(problem.LimitReached,
				"the workspace has %d live keys, as many as the policy allows; revoke one first", allowed)
		}
		// 5. Draw a new id and secret for each attempt, if the caller has not drawn them. The
		// secret of an attempt that lost a conflict was never stored, and its token must not be
		// shown.
		record := wanted.record(view, member, actor, now)
		record.KeyId = localID
		if issued, err = m.issue(record, spec.Digest, active.TokenPrefix, now, *wanted.ExpireTime); err != nil {
			return nil, err
		}
		changed = view.changed(record, true)
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, now, wanted.WorkspaceID)
		event.KeyId, event.MemberId = record.GetKeyId(), record.GetMemberId()
		event.Fields = audit.KeyFields(nil, record)
		return &storage.Change{
			Event:            event,
			Kind:             storagev1.FeedKind_FEED_KIND_KEY,
			Subject:          record.GetKeyId(),
			AbsentKeyIDs:     []string{record.GetKeyId()},
			AbsentRequestIDs: record.GetRequestIds(),
			PutKeys:          []*storagev1.KeyRecord{record},
		}, nil
	}
	position, err := m.change(ctx, actor, spec.WorkspaceID, build)
	if taken := (*storage.ExistsError)(nil); errors.As(err, &taken) && taken.RequestID == "" {
		if localID != "" {
			return nil, errIDTaken()
		}
		// An id of 95 random bits was drawn twice. Once more is enough.
		position, err = m.change(ctx, actor, spec.WorkspaceID, build)
	}
	if err != nil {
		return nil, asRequestUsed(err)
	}
	return m.issuedAt(ctx, changed, issued, now, position)
}

// issuedAt returns the answer with a token. It is called after the change is published, so that
// the token works when it is shown.
func (m *Manager) issuedAt(ctx context.Context, changed changedKey, issued token.Token, now time.Time, position Position) (*IssuedKey, error) {
	key, position, err := m.showAt(ctx, changed, now, position)
	if err != nil {
		return nil, err
	}
	return &IssuedKey{Position: position, Key: key, Token: issued}, nil
}

// canLookUpRequest reports whether a request id can be looked up. All other fields are checked
// after the look-up, so that a retry is recognized before it is judged.
func canLookUpRequest(workspaceID string, requestID *string) bool {
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkRequestID(&fields, requestID)
	return fields.Err() == nil
}

// checkCreate checks everything that can be checked without knowing the workspace, and returns
// the specification in the form that is stored: scopes sorted, prefixes canonical, the expire
// time set.
func checkCreate(spec KeySpec, actor audit.Actor, active *projection.Policy, now time.Time) (*KeySpec, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", spec.WorkspaceID)
	checkID(&fields, "member_id", spec.MemberID)
	checkName(&fields, spec.Name, active.Limits)
	checkLabels(&fields, spec.Labels)
	checkRequestID(&fields, spec.RequestID)
	checkActor(&fields, actor)
	wanted := spec
	wanted.Scopes = checkScopes(&fields, spec.Scopes, active)
	wanted.AllowedCIDRs = checkCIDRs(&fields, spec.AllowedCIDRs)
	wanted.Labels = maps.Clone(spec.Labels)
	checkLocal(&fields, spec.WorkspaceID, spec.Digest, spec.KeyIDNonce)
	expireTime := checkExpireTime(&fields, spec.ExpireTime, now)
	wanted.ExpireTime = &expireTime
	return &wanted, fields.Err()
}

// record returns the key to store, still without id and secret.
func (k *KeySpec) record(view *attempt, member *projection.Member, actor audit.Actor, now time.Time) *storagev1.KeyRecord {
	sequence := view.Head.Sequence + 1
	record := &storagev1.KeyRecord{
		WorkspaceId:          k.WorkspaceID,
		MemberId:             k.MemberID,
		WorkspaceIncarnation: view.Current.Incarnation,
		MemberIncarnation:    member.Incarnation,
		Sequence:             sequence,
		ChangeSequence:       sequence,
		Name:                 k.Name,
		Scopes:               k.Scopes,
		Labels:               k.Labels,
		AllowedCidrs:         k.AllowedCIDRs,
		CreateTime:           timestamppb.New(now),
		CreatedBy:            audit.ChangedBy(actor),
	}
	if k.RequestID != nil {
		record.RequestIds = []string{*k.RequestID}
	}
	return record
}

// issue puts the hash of a new secret before the hashes that the record has. The secret is that of a
// digest that the caller sent; without a digest, issue draws it and returns the token. A record
// without an id gets one.
func (m *Manager) issue(record *storagev1.KeyRecord, digest token.Digest, prefix string, now, expireTime time.Time) (token.Token, error) {
	if !digest.IsZero() {
		addSecret(record, digest.Hash(), true, now, expireTime)
		return token.Token{}, nil
	}
	if record.GetKeyId() == "" {
		id, err := token.NewKeyID(record.GetWorkspaceId(), m.random)
		if err != nil {
			return token.Token{}, err
		}
		record.KeyId = id
	}
	issued, err := token.New(prefix, record.GetKeyId(), m.random)
	if err != nil {
		return token.Token{}, err
	}
	hash, err := issued.Hash(token.SchemeVerifier)
	if err != nil {
		return token.Token{}, err
	}
	addSecret(record, hash, false, now, expireTime)
	return issued, nil
}

// addSecret puts a secret before those that the record has.
func addSecret(record *storagev1.KeyRecord, hash token.Hash, locally bool, now, expireTime time.Time) {
	record.Secrets = append([]*storagev1.SecretRecord{{
		Scheme:        uint32(hash.Scheme),
		Hash:          hash.Sum[:],
		CreateTime:    timestamppb.New(now),
		ExpireTime:    timestamppb.New(expireTime),
		IssuedLocally: locally,
	}}, record.GetSecrets()...)
}

// activeMember returns a member of the workspace who can be given keys.
func (m *Manager) activeMember(view *attempt, workspaceID, memberID string) (*projection.Member, error) {
	member, err := m.projection.Member(workspaceID, memberID)
	if err != nil {
		return nil, err
	}
	switch {
	case view.Current == nil:
		return nil, problem.New(problem.MemberNotFound,
			"there is no such workspace; PutMember (keysvc member put) makes one with its first member")
	case !view.Has(member):
		return nil, problem.New(problem.MemberNotFound,
			"the workspace has no such member; PutMember (keysvc member put) adds one")
	case !member.Active:
		return nil, problem.New(problem.MemberSuspended,
			"the member is suspended")
	}
	return member, nil
}

// checkWithinRole refuses scopes that the member's role does not have.
func checkWithinRole(scopes []string, member *projection.Member, active *projection.Policy) error {
	beyond := decide.Scopes(scopes).Without(active.Role(member.Role))
	if len(beyond) == 0 {
		return nil
	}
	return problem.New(problem.ScopeBeyondRole,
		"the member's role %q does not have: %s", member.Role, strings.Join(beyond, ", "))
}

// asRequestUsed maps storage.ExistsError for a request id to REQUEST_ID_USED. Other errors
// stay as they are.
func asRequestUsed(err error) error {
	if exists := (*storage.ExistsError)(nil); errors.As(err, &exists) && exists.RequestID != "" {
		return requestUsed(exists.KeyID)
	}
	return err
}

func requestUsed(keyID string) error {
	used := problem.New(problem.RequestIDUsed,
		"the request id was used for key %s; its token was shown then and cannot be shown again: revoke or rotate the key", keyID)
	used.Metadata = map[string]string{"key_id": keyID}
	return used
}
