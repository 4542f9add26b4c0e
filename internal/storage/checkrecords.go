package storage

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// recordName names a record among all records of a store.
type recordName struct {
	workspaceID string
	kind        storagev1.RecordKind
	name        string // as in RecordChange
}

func (n recordName) String() string {
	switch n.kind {
	case storagev1.RecordKind_RECORD_KIND_POLICY:
		return "policy"
	case storagev1.RecordKind_RECORD_KIND_WORKSPACE:
		return fmt.Sprintf("workspace %q", n.workspaceID)
	case storagev1.RecordKind_RECORD_KIND_MEMBER:
		return fmt.Sprintf("member %q of workspace %q", n.name, n.workspaceID)
	case storagev1.RecordKind_RECORD_KIND_KEY:
		return "key " + n.name
	case storagev1.RecordKind_RECORD_KIND_SETTINGS:
		return "settings"
	case storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return fmt.Sprintf("record %q of kind %d of workspace %q", n.name, n.kind, n.workspaceID)
}

// checkedRecord is what a Checker knows of one record.
type checkedRecord struct {
	stored, damaged bool
	hash            [sha256.Size]byte // of the payload
	changed         int64             // the event that the record names

	// listed reports whether an event lists the record; by is the last such event,
	// revision that of its change if it is known, and after the hash that it lists, empty for a deletion.
	listed       bool
	by, revision int64
	after        []byte
}

// nameOf returns the name of the record in an item, the record, and the sequence of the event
// that the record names. record is nil for heads, usage and damage, which no event lists.
func nameOf(item Item) (name recordName, record proto.Message, changed int64) {
	switch {
	case item.Policy != nil:
		return recordName{kind: storagev1.RecordKind_RECORD_KIND_POLICY}, item.Policy, item.Policy.GetChangeSequence()
	case item.Settings != nil:
		return recordName{kind: storagev1.RecordKind_RECORD_KIND_SETTINGS}, item.Settings, item.Settings.GetChangeSequence()
	case item.Workspace != nil:
		id := item.Workspace.GetWorkspaceId()
		return recordName{id, storagev1.RecordKind_RECORD_KIND_WORKSPACE, ""}, item.Workspace, item.Workspace.GetChangeSequence()
	case item.Member != nil:
		id := item.Member.GetWorkspaceId()
		return recordName{id, storagev1.RecordKind_RECORD_KIND_MEMBER, item.Member.GetMemberId()}, item.Member, item.Member.GetChangeSequence()
	case item.Key != nil:
		id := item.Key.GetWorkspaceId()
		return recordName{id, storagev1.RecordKind_RECORD_KIND_KEY, item.Key.GetKeyId()}, item.Key, item.Key.GetChangeSequence()
	}
	return recordName{}, nil, 0
}

// damagedName returns the name of a damaged record.
func damagedName(damaged *Damaged) recordName {
	switch {
	case damaged.KeyID != "":
		return recordName{damaged.WorkspaceID, storagev1.RecordKind_RECORD_KIND_KEY, damaged.KeyID}
	case damaged.MemberID != "":
		return recordName{damaged.WorkspaceID, storagev1.RecordKind_RECORD_KIND_MEMBER, damaged.MemberID}
	case damaged.Settings:
		return recordName{kind: storagev1.RecordKind_RECORD_KIND_SETTINGS}
	case damaged.WorkspaceID == "":
		return recordName{kind: storagev1.RecordKind_RECORD_KIND_POLICY}
	}
	return recordName{damaged.WorkspaceID, storagev1.RecordKind_RECORD_KIND_WORKSPACE, ""}
}

func (c *Checker) record(name recordName) *checkedRecord {
	record := c.records[name]
	if record == nil {
		if c.records == nil {
			c.records = make(map[recordName]*checkedRecord)
		}
		record = &checkedRecord{}
		c.records[name] = record
	}
	return record
}

func (c *Checker) stored(name recordName, hash [sha256.Size]byte, changed int64) {
	record := c.record(name)
	record.stored, record.hash, record.changed = true, hash, changed
}

// matchRecords checks what an event lists, and notes it for finishRecords. The hash of a
// record before the event must be the hash after the previous event that lists the record.
func (c *Checker) matchRecords(workspace *checkedWorkspace, event *storagev1.AuditRecord, revision int64) {
	if c.Schema == SchemaFirst {
		return
	}
	sequence := event.GetSequence()
	upgraded := event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_UPGRADED
	if len(event.GetChanges()) == 0 && workspace.lists {
		c.Problem("workspace %q: audit event %d lists no records", workspace.id, sequence)
	}
	for _, change := range event.GetChanges() {
		workspace.lists = true
		name := recordName{workspace.id, change.GetKind(), change.GetName()}
		record := c.record(name)
		if !isHash(change.GetBefore()) || !isHash(change.GetAfter()) || len(change.GetBefore())+len(change.GetAfter()) == 0 {
			c.Problem("%s: audit event %d lists it without hashes", name, sequence)
		}
		switch {
		case c.Pruned > 0 && record.revision <= c.Pruned:
			// Events between this one and the last one that lists the record may have been pruned.
		case record.listed && !bytes.Equal(change.GetBefore(), record.after):
			c.ProblemAt(Place{workspace.id, sequence, revision}, "%s: audit event %d found another record than event %d had put", name, sequence, record.by)
		case !record.listed && !upgraded && len(change.GetBefore()) > 0:
			c.ProblemAt(Place{workspace.id, sequence, revision}, "%s: audit event %d found a record that no event had put", name, sequence)
		}
		record.listed, record.by, record.revision, record.after = true, sequence, revision, change.GetAfter()
	}
}

// isHash reports whether a listed hash has a valid length.
func isHash(hash []byte) bool { return len(hash) == 0 || len(hash) == sha256.Size }

// finishRecords compares each record with the last event that lists it.
func (c *Checker) finishRecords() {
	if c.Schema == SchemaFirst {
		return
	}
	names := make([]recordName, 0, len(c.records))
	for name := range c.records {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b recordName) int {
		return cmp.Or(cmp.Compare(a.workspaceID, b.workspaceID), cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	for _, name := range names {
		record := c.records[name]
		place := Place{name.workspaceID, record.by, record.revision}
		switch {
		case record.damaged: // reported already
		case !record.listed:
			c.recordProblem(place, "%s: no audit event lists it", name)
		case !record.stored && len(record.after) > 0:
			c.recordProblem(place, "%s: it is missing; audit event %d put it", name, record.by)
		case record.stored && len(record.after) == 0:
			c.recordProblem(place, "%s: it is there, though audit event %d deleted it", name, record.by)
		case record.stored && !bytes.Equal(record.hash[:], record.after):
			c.recordProblem(place, "%s: it is not the record that audit event %d put last", name, record.by)
		case record.stored && record.changed != record.by:
			c.recordProblem(place, "%s: it names audit event %d as its change, but event %d put it", name, record.changed, record.by)
		}
	}
}
