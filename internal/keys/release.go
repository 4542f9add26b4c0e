package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// MaxReleased is the max number of keys that one call of ReleaseKeys names.
const MaxReleased = storage.MaxOperations

// Release names held keys that may work again.
type Release struct {
	// WorkspaceID is the workspace of the keys. Required.
	WorkspaceID string
	// KeyIDs are 1 to MaxReleased keys, each once.
	KeyIDs []string
	// ValidateOnly makes no change. The answer then says which keys would be released.
	ValidateOnly bool
}

// ReleaseKeys lets held keys work again, in one change, and returns them. A key that is not held stays
// as it is. If the keys are too large for one change, only the first of them are released. Errors: KEY_NOT_FOUND and other
// *problem.Error; those of the store and the context.
func (m *Manager) ReleaseKeys(ctx context.Context, actor audit.Actor, release Release) (released []string, position Position, err error) {
	if err := mayChange(actor, "workspace_id", release.WorkspaceID); err != nil {
		return nil, Position{}, err
	}
	if err := release.check(actor); err != nil {
		return nil, Position{}, err
	}
	now := m.clock()
	position, err = m.change(ctx, actor, release.WorkspaceID, func(view *attempt) (*storage.Change, error) {
		released = nil
		size := 0
		event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEYS_RELEASED, now, release.WorkspaceID)
		change := &storage.Change{Event: event, Kind: storagev1.FeedKind_FEED_KIND_WORKSPACE}
		for index, keyID := range release.KeyIDs {
			stored, err := view.key(ctx, keyID)
			if errors.Is(err, storage.ErrNotFound) {
				return nil, problem.New(problem.KeyNotFound, "key_ids[%d] is no key of the workspace; no key was released", index)
			}
			if err != nil {
				return nil, err
			}
			if stored.GetHoldTime() == nil {
				continue
			}
			record := proto.CloneOf(stored)
			record.HoldTime = nil
			record.ChangeSequence = view.Head.Sequence + 1
			if size += proto.Size(record); size > storage.MaxChangeBytes-eventRoom && !release.ValidateOnly {
				break
			}
			event.Fields = append(event.Fields, audit.FieldsOfKey(stored, record)...)
			change.PutKeys = append(change.PutKeys, record)
			released = append(released, keyID)
		}
		view.unclaimed = release.ValidateOnly
		if len(released) == 0 || release.ValidateOnly {
			return nil, nil // nothing to change
		}
		if len(released) == 1 {
			record := change.PutKeys[0]
			event.KeyId, event.MemberId = record.GetKeyId(), record.GetMemberId()
			change.Kind, change.Subject = storagev1.FeedKind_FEED_KIND_KEY, record.GetKeyId()
		}
		return change, nil
	})
	if err != nil {
		return nil, Position{}, err
	}
	return released, position, nil
}

// check checks the fields of a release.
func (r *Release) check(actor audit.Actor) error {
	var fields problem.Fields
	checkID(&fields, "workspace_id", r.WorkspaceID)
	if count := len(r.KeyIDs); count < 1 || count > MaxReleased {
		fields.Add("key_ids", "has %d keys; 1 to %d are required", count, MaxReleased)
	} else {
		for index, keyID := range r.KeyIDs {
			field := fmt.Sprintf("key_ids[%d]", index)
			switch {
			case !token.ValidID(keyID):
				fields.Add(field, "is not a key id: 16 characters of [0-9A-Za-z]; never send a whole token here")
			case slices.Contains(r.KeyIDs[:index], keyID):
				fields.Add(field, "was named before; each key is allowed once")
			}
		}
	}
	checkActor(&fields, actor)
	return fields.Err()
}
