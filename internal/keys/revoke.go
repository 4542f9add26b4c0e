package keys

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// RevokeKey ends a key for good. Revoking a revoked key changes nothing, and is no error. Errors:
// KEY_NOT_FOUND and other *problem.Error, and those of the store and the context.
func (m *Manager) RevokeKey(ctx context.Context, actor audit.Actor, workspaceID, keyID string) (*Key, Position, error) {
	if err := checkKeyName(actor, workspaceID, keyID); err != nil {
		return nil, Position{}, err
	}
	now := m.clock()
	changed, position, err := m.changeKey(ctx, actor, workspaceID, keyID,
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			return revoke(record, actor, now), nil
		})
	if err != nil {
		return nil, Position{}, err
	}
	return m.showAt(ctx, changed, now, position)
}

// checkKeyName checks the right and the fields of a verb that names a key and nothing else.
func checkKeyName(actor audit.Actor, workspaceID, keyID string) error {
	if err := mayChange(actor, "workspace_id", workspaceID); err != nil {
		return err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkKeyID(&fields, keyID)
	checkActor(&fields, actor)
	return fields.Err()
}

// RevokeToken revokes the key of a token that was found. The error is KEY_NOT_FOUND if nothing that
// is reported is a token, or the token's secret is not valid any more, or the token is of a workspace
// that the actor may not change. Text with several tokens is refused. Other errors: *problem.Error,
// and those of the store and the context.
func (m *Manager) RevokeToken(ctx context.Context, actor audit.Actor, reported Reported) (KeyName, Position, error) {
	if actor.Workspaces.IsEmpty() {
		return KeyName{}, Position{}, notAllowed()
	}
	if m.tokensRefused && reported.Text != "" {
		return KeyName{}, Position{}, errTokensRefused("send token_digest and key_id of the token that was found")
	}
	var fields problem.Fields
	presented := reported.token(&fields)
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return KeyName{}, Position{}, err
	}
	now := m.clock()
	// 1. Find the key, after a barrier: another process may have issued it a moment ago. Only
	// then is it known which workspace to change.
	if err := m.projection.Fresh(ctx); err != nil {
		return KeyName{}, Position{}, err
	}
	name, err := m.keyOf(presented, actor.Workspaces, now)
	if err != nil {
		return KeyName{}, Position{}, err
	}
	// 2. Revoke it.
	_, position, err := m.changeKey(ctx, actor, name.WorkspaceID, name.KeyID,
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			// 3. Compare the secret again in the workspace's turn, because a rotation between
			// steps 1 and 2 may have ended it.
			if _, err := m.keyOf(presented, actor.Workspaces, now); err != nil {
				return nil, err
			}
			event := revoke(record, actor, now)
			record.Reported = record.GetReported() || event != nil
			return event, nil
		})
	if err != nil {
		return KeyName{}, Position{}, err
	}
	return name, position, nil
}

// ByDigest is the name in the metadata of KEY_NOT_FOUND that tells the client of RevokeToken that the
// server has looked for a digest. A server that does not know digests has looked for no token at all.
const ByDigest = "by_digest"

// keyOf returns the key that has the token's secret, if the secret is still valid. The key may be
// revoked. A key of another workspace than the given ones is not found. Errors: KEY_NOT_FOUND, and
// storage.ErrDamaged.
func (m *Manager) keyOf(presented token.Presented, workspaces access.Workspaces, now time.Time) (KeyName, error) {
	found := m.projection.FindPresented(presented)
	if found.Damaged != nil && (found.WorkspaceID == "" || workspaces.Has(found.WorkspaceID)) {
		return KeyName{}, found.Damaged
	}
	subject := found.Subject()
	grant, reason := decide.Authenticate(presented, subject, "", now)
	if grant.Principal.KeyID == "" || reason == decide.KeyExpired || !workspaces.Has(subject.Key.Workspace) {
		missing := problem.New(problem.KeyNotFound, "the token matches no live secret")
		if presented.ByDigest() {
			missing.Metadata = map[string]string{ByDigest: "true"}
		}
		return KeyName{}, missing
	}
	return KeyName{WorkspaceID: subject.Key.Workspace, KeyID: subject.Key.ID}, nil
}

// revoke marks a key as revoked and returns the event; nil if the key was revoked before.
func revoke(record *storagev1.KeyRecord, actor audit.Actor, now time.Time) *storagev1.AuditRecord {
	if record.GetRevokeTime() != nil {
		return nil
	}
	record.RevokeTime, record.RevokedBy = timestamppb.New(now), audit.ChangedBy(actor)
	return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_REVOKED, now, record.GetWorkspaceId())
}

// changeKey changes one key. edit changes a copy of the key's record and returns the audit event;
// nil if there is nothing to change.
func (m *Manager) changeKey(
	ctx context.Context, actor audit.Actor, workspaceID, keyID string,
	edit func(*attempt, *storagev1.KeyRecord) (*storagev1.AuditRecord, error),
) (changedKey, Position, error) {
	var changed changedKey
	position, err := m.change(ctx, actor, workspaceID, func(attempt *attempt) (*storage.Change, error) {
		stored, err := attempt.key(ctx, keyID)
		if err != nil {
			return nil, asKeyNotFound(err)
		}
		record := proto.CloneOf(stored)
		event, err := edit(attempt, record)
		changed = attempt.changed(record, event != nil)
		if err != nil || event == nil {
			return nil, err
		}
		event.KeyId, event.MemberId = record.GetKeyId(), record.GetMemberId()
		event.Fields = audit.KeyFields(stored, record)
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
	return changed, position, err
}

// without returns the names that are not in others.
func without(names, others []string) []string {
	var rest []string
	for _, name := range names {
		if !slices.Contains(others, name) {
			rest = append(rest, name)
		}
	}
	return rest
}

// asKeyNotFound maps storage.ErrNotFound to KEY_NOT_FOUND. It does not reveal that the key exists
// in another workspace. Other errors stay as they are.
func asKeyNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return problem.New(problem.KeyNotFound, "there is no such key in the workspace")
	}
	return err
}
