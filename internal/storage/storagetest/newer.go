package storagetest

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// NeedSchema returns the change that puts a record of a store again, such that its readers must know a schema
// (min_schema). kind is that of the record: the key, member or workspace that Load visits last in the
// workspace, or the policy. The store must have such a record.
func NeedSchema(ctx context.Context, store storage.Store, workspaceID string, kind storagev1.RecordKind, schema uint32) (*storage.Change, error) {
	workspace := &Workspace{ID: workspaceID}
	if kind == storagev1.RecordKind_RECORD_KIND_POLICY {
		workspace.ID = ""
	}
	stored := storage.Item{}
	if _, err := store.Load(ctx, func(item storage.Item) error {
		switch {
		case item.Head != nil && item.Head.WorkspaceID == workspace.ID:
			workspace.Head = item.Head.Head
		case item.Policy != nil:
			stored.Policy = proto.CloneOf(item.Policy)
		case item.Workspace.GetWorkspaceId() == workspaceID && item.Workspace != nil:
			stored.Workspace = proto.CloneOf(item.Workspace)
		case item.Member.GetWorkspaceId() == workspaceID && item.Member != nil:
			stored.Member = proto.CloneOf(item.Member)
		case item.Key.GetWorkspaceId() == workspaceID && item.Key != nil:
			stored.Key = proto.CloneOf(item.Key)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	switch {
	case kind == storagev1.RecordKind_RECORD_KIND_POLICY && stored.Policy != nil:
		change := workspace.Change(storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, storagev1.FeedKind_FEED_KIND_POLICY, "")
		stored.Policy.MinSchema, stored.Policy.ChangeSequence = schema, change.Event.GetSequence()
		change.PutPolicy = stored.Policy
		return change, nil
	case kind == storagev1.RecordKind_RECORD_KIND_WORKSPACE && stored.Workspace != nil:
		change := workspace.Change(storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, storagev1.FeedKind_FEED_KIND_WORKSPACE, "")
		stored.Workspace.MinSchema, stored.Workspace.ChangeSequence = schema, change.Event.GetSequence()
		change.PutWorkspace = stored.Workspace
		return change, nil
	case kind == storagev1.RecordKind_RECORD_KIND_MEMBER && stored.Member != nil:
		change := workspace.Change(storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, storagev1.FeedKind_FEED_KIND_MEMBER, stored.Member.GetMemberId())
		change.Event.MemberId = stored.Member.GetMemberId()
		stored.Member.MinSchema, stored.Member.ChangeSequence = schema, change.Event.GetSequence()
		change.PutMembers = []*storagev1.MemberRecord{stored.Member}
		return change, nil
	case kind == storagev1.RecordKind_RECORD_KIND_KEY && stored.Key != nil:
		return workspace.UpdateKey(stored.Key, func(key *storagev1.KeyRecord) { key.MinSchema = schema }), nil
	}
	return nil, fmt.Errorf("the store has no %s in workspace %q", kind, workspaceID)
}
