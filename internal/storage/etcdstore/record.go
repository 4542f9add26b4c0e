package etcdstore

import (
	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// recordID names a record of a workspace.
type recordID struct {
	kind storagev1.RecordKind
	name string // as in RecordChange
}

const (
	kindPolicy    = storagev1.RecordKind_RECORD_KIND_POLICY
	kindWorkspace = storagev1.RecordKind_RECORD_KIND_WORKSPACE
	kindMember    = storagev1.RecordKind_RECORD_KIND_MEMBER
	kindKey       = storagev1.RecordKind_RECORD_KIND_KEY
	kindSettings  = storagev1.RecordKind_RECORD_KIND_SETTINGS
)

// fault returns the error for a record that is not what it should be.
func fault(workspaceID string, id recordID, problem string) error {
	name := id.name
	switch id.kind {
	case kindPolicy:
		name = namePolicy
	case kindWorkspace:
		name = workspaceID
	case kindSettings:
		name = nameSettings
	case kindMember, kindKey, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return &storage.DamagedError{Kind: integrity.KindName(id.kind), Name: name, Problem: problem}
}

// ownRecord returns the id of a workspace's own record, which is the policy in the empty workspace.
func ownRecord(workspaceID string) recordID {
	if workspaceID == "" {
		return recordID{kind: kindPolicy}
	}
	return recordID{kind: kindWorkspace}
}

// recordOf returns the workspace and the id of the record that a name stands for. ok is false for
// names of anything else.
func recordOf(name string) (workspaceID string, id recordID, ok bool) {
	switch {
	case name == namePolicy:
		return "", recordID{kind: kindPolicy}, true
	case name == nameSettings:
		return "", recordID{kind: kindSettings}, true
	case len(name) > len(folderWorkspaces) && name[:len(folderWorkspaces)] == folderWorkspaces:
		return name[len(folderWorkspaces):], recordID{kind: kindWorkspace}, true
	case len(name) > len(folderMembers) && name[:len(folderMembers)] == folderMembers:
		workspaceID, memberID, ok := parseMemberName(name)
		return workspaceID, recordID{kindMember, memberID}, ok
	}
	workspaceID, _, keyID, ok := parseKeyName(name)
	return workspaceID, recordID{kindKey, keyID}, ok
}

// damagedItem returns the item for a record that is wrong.
func damagedItem(workspaceID string, id recordID, err error) storage.Item {
	damaged := &storage.Damaged{WorkspaceID: workspaceID, Err: err}
	switch id.kind {
	case kindMember:
		damaged.MemberID = id.name
	case kindKey:
		damaged.KeyID = id.name
	case kindSettings:
		damaged.Settings = true
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return storage.Item{Damaged: damaged}
}

// elementOf returns the element of a record whose payload has a hash.
func elementOf(workspaceID string, id recordID, payload integrity.Hash) integrity.Element {
	return integrity.ElementOf(id.kind, workspaceID, id.name, payload)
}
