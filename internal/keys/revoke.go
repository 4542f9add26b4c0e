package keys

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// RevokeKey ends a key for good.
func (m *Manager) RevokeKey(ctx context.Context, actor audit.Actor, request *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkKeyID(&fields, request.GetKeyId())
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	record, position, err := m.changeKey(ctx, request.GetWorkspaceId(), request.GetKeyId(),
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			return revoke(record, actor, now), nil
		})
	if err != nil {
		return nil, err
	}
	key, err := m.show(record, now)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RevokeKeyResponse{Key: key, Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RevokeToken revokes the key that a token belongs to. Whatever the token is, the
// answer is NOT_FOUND unless it matches a secret that has not ended.
func (m *Manager) RevokeToken(ctx context.Context, actor audit.Actor, request *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
	var fields problem.Fields
	presented := reportedToken(&fields, request.GetToken())
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	if err := m.projection.Fresh(ctx); err != nil {
		return nil, err
	}
	workspaceID, keyID, err := m.keyOf(presented, now)
	if err != nil {
		return nil, err
	}
	_, position, err := m.changeKey(ctx, workspaceID, keyID,
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			// Once more, now that nothing else changes the workspace: the secret may have
			// been rotated away.
			if _, _, err := m.keyOf(presented, now); err != nil {
				return nil, err
			}
			event := revoke(record, actor, now)
			if event != nil {
				event.Details = map[string]string{"reported": "by token"}
			}
			return event, nil
		})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RevokeTokenResponse{
		WorkspaceId: workspaceID, KeyId: keyID, Revision: position.Revision, Epoch: position.Epoch,
	}, nil
}

// keyOf returns the key that has the token's secret, revoked or not, unless the secret
// has ended.
func (m *Manager) keyOf(presented token.Token, now time.Time) (workspaceID, keyID string, err error) {
	found := m.projection.Find(presented.ID())
	if found.Damaged != nil {
		return "", "", found.Damaged
	}
	grant, reason := decide.Authenticate(presented, found.Subject, "", now)
	if grant.Principal.KeyID == "" || reason == decide.KeyExpired {
		return "", "", problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND, "the token matches no live secret")
	}
	return found.Subject.Key.Workspace, found.Subject.Key.ID, nil
}

// revoke marks a key as revoked; nil if it is already.
func revoke(record *storagev1.KeyRecord, actor audit.Actor, now time.Time) *storagev1.AuditRecord {
	if record.GetRevokeTime() != nil {
		return nil
	}
	record.RevokeTime = timestamppb.New(now)
	return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_REVOKED, now, record.GetWorkspaceId())
}

// changeKey changes one key. edit gets a copy of its record to change and returns
// the event that says so; nil if there is nothing to change.
func (m *Manager) changeKey(
	ctx context.Context, workspaceID, keyID string,
	edit func(*attempt, *storagev1.KeyRecord) (*storagev1.AuditRecord, error),
) (*storagev1.KeyRecord, Position, error) {
	var record *storagev1.KeyRecord
	position, err := m.change(ctx, workspaceID, func(attempt *attempt) (*storage.Change, error) {
		stored, err := attempt.key(ctx, keyID)
		if err != nil {
			return nil, asKeyNotFound(err)
		}
		record = proto.CloneOf(stored)
		event, err := edit(attempt, record)
		if err != nil || event == nil {
			return nil, err
		}
		event.KeyId, event.MemberId = record.GetKeyId(), record.GetMemberId()
		record.ChangeSequence = attempt.Head.Sequence + 1
		return &storage.Change{
			Event:            event,
			Kind:             storagev1.FeedKind_FEED_KIND_KEY,
			Subject:          record.GetKeyId(),
			AbsentRequestIDs: without(record.GetRequestIds(), stored.GetRequestIds()),
			FreedRequestIDs:  without(stored.GetRequestIds(), record.GetRequestIds()),
			PutKeys:          []*storagev1.KeyRecord{record},
			Narrows:          narrowsKey(stored, record),
		}, nil
	})
	return record, position, err
}

// without returns the names that are not among others.
func without(names, others []string) []string {
	var rest []string
	for _, name := range names {
		if !slices.Contains(others, name) {
			rest = append(rest, name)
		}
	}
	return rest
}

// asKeyNotFound turns the store's word that a key is not there into the caller's. It
// never hints that the key exists in another workspace.
func asKeyNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND, "there is no such key in the workspace")
	}
	return err
}
