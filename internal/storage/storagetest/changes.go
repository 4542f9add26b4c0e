package storagetest

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// ticks makes the times of changes ascend in the order in which they are made.
var ticks atomic.Int64

// now returns the time of the next change.
func now() time.Time {
	begin := time.Date(2026, time.January, 2, 3, 4, 5, 6, time.UTC)
	return begin.Add(time.Duration(ticks.Add(1)) * time.Millisecond)
}

// KeyID returns the key id with a number.
func KeyID(number int) string { return fmt.Sprintf("Key%013d", number) }

// Workspace makes changes of one workspace. Each change is valid at the workspace's current
// head. Making a change does not move the head; Follow moves it past a change that was
// committed. The first change must be PutMember, which also adds the workspace's record.
type Workspace struct {
	// ID of the workspace.
	ID string
	// Head that the next change expects.
	Head storage.Head
}

// NewWorkspace returns a workspace without changes.
func NewWorkspace(id string) *Workspace { return &Workspace{ID: id} }

// Follow moves the head past a change that was committed. Commit has completed the event of
// the change.
func (w *Workspace) Follow(change *storage.Change) { w.Head = After(change) }

// After returns the head after a change.
func After(change *storage.Change) storage.Head {
	encoded, err := storage.Encode(change.Event)
	if err != nil {
		panic(err)
	}
	return change.Expect.After(encoded)
}

// Change returns a change with an audit event and nothing else.
func (w *Workspace) Change(action storagev1.AuditAction, kind storagev1.FeedKind, subject string) *storage.Change {
	event := &storagev1.AuditRecord{
		WorkspaceId: w.ID,
		Time:        timestamppb.New(now()),
		Action:      action,
		Caller:      "test",
	}
	switch kind {
	case storagev1.FeedKind_FEED_KIND_KEY:
		event.KeyId = subject
	case storagev1.FeedKind_FEED_KIND_MEMBER:
		event.MemberId = subject
	}
	w.Head.Link(event)
	return &storage.Change{WorkspaceID: w.ID, Expect: w.Head, Event: event, Kind: kind, Subject: subject}
}

// PutMember adds a member, or changes the role of one.
func (w *Workspace) PutMember(memberID, role string) *storage.Change {
	change := w.Change(storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, storagev1.FeedKind_FEED_KIND_MEMBER, memberID)
	time := change.Event.GetTime()
	if w.Head.Sequence == 0 {
		change.PutWorkspace = &storagev1.WorkspaceRecord{WorkspaceId: w.ID, Incarnation: "first", CreateTime: time}
		change.PutWorkspace.ChangeSequence = change.Event.GetSequence()
	}
	change.PutMembers = []*storagev1.MemberRecord{{
		WorkspaceId:          w.ID,
		MemberId:             memberID,
		Incarnation:          "first",
		WorkspaceIncarnation: "first",
		Role:                 role,
		State:                storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
		CreateTime:           time,
		UpdateTime:           time,
		ChangeSequence:       change.Event.GetSequence(),
	}}
	return change
}

// DeleteMembers purges members.
func (w *Workspace) DeleteMembers(members ...*storagev1.MemberRecord) *storage.Change {
	change := w.Change(storagev1.AuditAction_AUDIT_ACTION_PURGED, storagev1.FeedKind_FEED_KIND_PURGE, "")
	change.DeleteMembers = members
	return change
}

// RemoveWorkspace marks the workspace as removed.
func (w *Workspace) RemoveWorkspace() *storage.Change {
	change := w.Change(storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED, storagev1.FeedKind_FEED_KIND_WORKSPACE, "")
	change.PutWorkspace = &storagev1.WorkspaceRecord{
		WorkspaceId: w.ID, Incarnation: "first", CreateTime: change.Event.GetTime(), RemoveTime: change.Event.GetTime(),
		ChangeSequence: change.Event.GetSequence(),
	}
	return change
}

// CreateKey adds a key of the member "member". Its id and the request ids must be
// absent.
func (w *Workspace) CreateKey(keyID string, requestIDs ...string) *storage.Change {
	change := w.Change(storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, storagev1.FeedKind_FEED_KIND_KEY, keyID)
	change.Event.MemberId = "member"
	sequence, created := change.Event.GetSequence(), change.Event.GetTime()
	change.AbsentKeyIDs = []string{keyID}
	change.AbsentRequestIDs = requestIDs
	change.PutKeys = []*storagev1.KeyRecord{{
		KeyId:                keyID,
		WorkspaceId:          w.ID,
		MemberId:             "member",
		WorkspaceIncarnation: "first",
		MemberIncarnation:    "first",
		Sequence:             sequence,
		ChangeSequence:       sequence,
		Name:                 "key " + keyID,
		Scopes:               []string{"emails:read", "signatures:read"},
		Labels:               map[string]string{"team": "test", "of": w.ID},
		AllowedCidrs:         []string{"10.0.0.0/8"},
		CreateTime:           created,
		Secrets: []*storagev1.SecretRecord{{
			Scheme:     1,
			Hash:       bytes.Repeat([]byte{byte(sequence)}, 32),
			CreateTime: created,
			ExpireTime: timestamppb.New(created.AsTime().AddDate(1, 0, 0)),
		}},
		RequestIds: requestIDs,
	}}
	return change
}

// UpdateKey changes a stored key. edit is called with a copy of it.
func (w *Workspace) UpdateKey(stored *storagev1.KeyRecord, edit func(*storagev1.KeyRecord)) *storage.Change {
	return w.changeKey(storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, stored, edit)
}

// RevokeKey revokes a stored key.
func (w *Workspace) RevokeKey(stored *storagev1.KeyRecord) *storage.Change {
	return w.changeKey(storagev1.AuditAction_AUDIT_ACTION_KEY_REVOKED, stored, func(key *storagev1.KeyRecord) {
		key.RevokeTime = timestamppb.New(now())
	})
}

func (w *Workspace) changeKey(action storagev1.AuditAction, stored *storagev1.KeyRecord, edit func(*storagev1.KeyRecord)) *storage.Change {
	change := w.Change(action, storagev1.FeedKind_FEED_KIND_KEY, stored.GetKeyId())
	change.Event.MemberId = stored.GetMemberId()
	key := proto.CloneOf(stored)
	edit(key)
	key.ChangeSequence = change.Event.GetSequence()
	change.PutKeys = []*storagev1.KeyRecord{key}
	for _, requestID := range stored.GetRequestIds() {
		if !slices.Contains(key.GetRequestIds(), requestID) {
			change.FreedRequestIDs = append(change.FreedRequestIDs, requestID)
		}
	}
	return change
}

// DeleteKey purges keys. stored are their records as they are stored.
func (w *Workspace) DeleteKey(stored ...*storagev1.KeyRecord) *storage.Change {
	change := w.Change(storagev1.AuditAction_AUDIT_ACTION_PURGED, storagev1.FeedKind_FEED_KIND_PURGE, "")
	var keyIDs string
	for index, key := range stored {
		if index > 0 {
			keyIDs += ","
		}
		keyIDs += key.GetKeyId()
	}
	change.Event.Details = map[string]string{"key_ids": keyIDs}
	change.DeleteKeys = stored
	return change
}

// PutSettings returns the change that sets the staleness bound, at a head of the policy.
func PutSettings(head storage.Head, staleness time.Duration) *storage.Change {
	policy := &Workspace{Head: head}
	change := policy.Change(storagev1.AuditAction_AUDIT_ACTION_SETTINGS_CHANGED, storagev1.FeedKind_FEED_KIND_PURGE, "")
	change.PutSettings = &storagev1.SettingsRecord{
		Staleness: durationpb.New(staleness), ChangeTime: change.Event.GetTime(), ChangeSequence: change.Event.GetSequence(),
	}
	return change
}

// ApplyPolicy returns the change that makes a document the active policy, at a head of the
// policy.
func ApplyPolicy(head storage.Head, document string) *storage.Change {
	policy := &Workspace{Head: head}
	change := policy.Change(storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, storagev1.FeedKind_FEED_KIND_POLICY, "")
	change.PutPolicy = &storagev1.PolicyRecord{Document: []byte(document), ApplyTime: change.Event.GetTime(), ChangeSequence: change.Event.GetSequence()}
	return change
}
