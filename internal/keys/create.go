package keys

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// CreateKey issues a key. The answer holds the token; nothing else ever does.
func (m *Manager) CreateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	now := m.clock()
	if !hasPlace(request.GetWorkspaceId(), request.RequestId) {
		active, _, err := m.freshPolicy(ctx)
		if err == nil {
			_, err = checkCreate(request, active, now) // says all that is wrong at once
		}
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	var record *storagev1.KeyRecord
	var issued token.Token
	build := func(view *attempt) (*storage.Change, error) {
		if err := view.requestUnused(ctx, request.RequestId); err != nil {
			return nil, err
		}
		if err := m.trusted(); err != nil {
			return nil, err
		}
		active, err := view.ActivePolicy()
		if err != nil {
			return nil, err
		}
		wanted, err := checkCreate(request, active, now)
		if err != nil {
			return nil, err
		}
		member, err := m.activeMember(view, wanted.workspaceID, wanted.memberID)
		if err != nil {
			return nil, err
		}
		if err := checkWithinRole(wanted.scopes, member, active); err != nil {
			return nil, err
		}
		most := active.Limits.LiveKeysPerWorkspace
		if !m.projection.HasRoom(wanted.workspaceID, now, most) {
			return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED,
				"the workspace has %d live keys, as many as the policy allows; revoke one first", most)
		}
		record = wanted.record(view, member, now)
		if issued, err = m.issue(record, active.TokenPrefix, now, wanted.expireTime); err != nil {
			return nil, err
		}
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, now, wanted.workspaceID)
		event.KeyId, event.MemberId = record.GetKeyId(), record.GetMemberId()
		event.Details = describe(record)
		return &storage.Change{
			Event:            event,
			Kind:             storagev1.FeedKind_FEED_KIND_KEY,
			Subject:          record.GetKeyId(),
			AbsentKeyIDs:     []string{record.GetKeyId()},
			AbsentRequestIDs: record.GetRequestIds(),
			PutKeys:          []*storagev1.KeyRecord{record},
		}, nil
	}
	position, err := m.change(ctx, request.GetWorkspaceId(), build)
	if taken := (*storage.ExistsError)(nil); errors.As(err, &taken) && taken.RequestID == "" {
		// An id of 95 random bits was drawn twice. Once more is enough.
		position, err = m.change(ctx, request.GetWorkspaceId(), build)
	}
	if err != nil {
		return nil, asRequestUsed(err)
	}
	key, err := m.show(record, now)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.CreateKeyResponse{
		Key: key, Token: issued.Reveal(), Revision: position.Revision, Epoch: position.Epoch,
	}, nil
}

// newKey is what a caller asked for, checked.
type newKey struct {
	workspaceID, memberID, name string
	scopes, cidrs, requestIDs   []string
	labels                      map[string]string
	expireTime                  time.Time
}

// hasPlace reports whether a request id can be looked up. Everything else is checked after
// that: a retry is told from a first call before it is judged.
func hasPlace(workspaceID string, requestID *string) bool {
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkRequestID(&fields, requestID)
	return fields.Err() == nil
}

// checkCreate checks everything that can be checked without knowing the workspace.
func checkCreate(request *keysvcv1.CreateKeyRequest, active *projection.Policy, now time.Time) (*newKey, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkID(&fields, "member_id", request.GetMemberId())
	checkName(&fields, request.GetName(), active.Limits)
	checkLabels(&fields, request.GetLabels())
	checkRequestID(&fields, request.RequestId)
	checkActor(&fields, request.ActorMemberId)
	wanted := &newKey{
		workspaceID: request.GetWorkspaceId(),
		memberID:    request.GetMemberId(),
		name:        request.GetName(),
		scopes:      checkScopes(&fields, request.GetScopes(), active),
		cidrs:       checkCIDRs(&fields, request.GetAllowedCidrs()),
		labels:      maps.Clone(request.GetLabels()),
		expireTime:  checkExpireTime(&fields, request.GetExpireTime(), now),
	}
	if request.RequestId != nil {
		wanted.requestIDs = []string{request.GetRequestId()}
	}
	return wanted, fields.Err()
}

// record returns the key to store, yet without id and secret.
func (k *newKey) record(view *attempt, member *projection.Member, now time.Time) *storagev1.KeyRecord {
	sequence := view.Head.Sequence + 1
	return &storagev1.KeyRecord{
		WorkspaceId:          k.workspaceID,
		MemberId:             k.memberID,
		WorkspaceIncarnation: view.Current.Incarnation,
		MemberIncarnation:    member.Incarnation,
		Sequence:             sequence,
		ChangeSequence:       sequence,
		Name:                 k.name,
		Scopes:               k.scopes,
		Labels:               k.labels,
		AllowedCidrs:         k.cidrs,
		CreateTime:           timestamppb.New(now),
		RequestIds:           k.requestIDs,
	}
}

// issue draws a new secret, puts it in front of the record's others, and returns the
// token. A record without an id gets one.
func (m *Manager) issue(record *storagev1.KeyRecord, prefix string, now, expireTime time.Time) (token.Token, error) {
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
	record.Secrets = append([]*storagev1.SecretRecord{{
		Scheme:     uint32(hash.Scheme),
		Hash:       hash.Sum[:],
		CreateTime: timestamppb.New(now),
		ExpireTime: timestamppb.New(expireTime),
	}}, record.GetSecrets()...)
	return issued, nil
}

// activeMember returns a member of the workspace who can be given keys.
func (m *Manager) activeMember(view *attempt, workspaceID, memberID string) (*projection.Member, error) {
	member, err := m.projection.Member(workspaceID, memberID)
	if err != nil {
		return nil, err
	}
	switch {
	case view.Current == nil:
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND,
			"there is no such workspace; PutMember (keysvc member put) makes one with its first member")
	case !view.Has(member):
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND,
			"the workspace has no such member; PutMember (keysvc member put) adds one")
	case !member.Active:
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED,
			"the member is suspended")
	}
	return member, nil
}

// checkWithinRole refuses scopes that the member's role does not have.
func checkWithinRole(scopes []string, member *projection.Member, active *projection.Policy) error {
	role := active.Role(member.Role)
	var beyond []string
	for _, scope := range scopes {
		if !role.Contains(scope) {
			beyond = append(beyond, scope)
		}
	}
	if len(beyond) == 0 {
		return nil
	}
	return problem.New(keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE,
		"the member's role %q does not have: %s", member.Role, strings.Join(beyond, ", "))
}

// asRequestUsed turns the store's word that a request id was used into the caller's.
func asRequestUsed(err error) error {
	if exists := (*storage.ExistsError)(nil); errors.As(err, &exists) && exists.RequestID != "" {
		return requestUsed(exists.KeyID)
	}
	return err
}

func requestUsed(keyID string) error {
	used := problem.New(keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED,
		"the request id was used for key %s; its token was shown then and cannot be shown again: revoke or rotate the key", keyID)
	used.Metadata = map[string]string{"key_id": keyID}
	return used
}

// describe returns what an audit event says about a key.
func describe(record *storagev1.KeyRecord) map[string]string {
	details := map[string]string{
		"name":        record.GetName(),
		"scopes":      strings.Join(record.GetScopes(), " "),
		"expire_time": expireTimeOf(record).AsTime().Format(time.RFC3339Nano),
	}
	if len(record.GetAllowedCidrs()) > 0 {
		details["allowed_cidrs"] = strings.Join(record.GetAllowedCidrs(), " ")
	}
	return details
}
