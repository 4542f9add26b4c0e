package etcdstore

import (
	"bytes"
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// touched is what a change did to one record, as the watch shows it.
type touched struct {
	id    recordID
	isPut bool
	// after is the hash of the record that was put; nil if it cannot be read.
	after []byte
}

// touch notes an event of a record.
func (b *changeBuilder) touch(name string, event *clientv3.Event) {
	_, id, ok := recordOf(name)
	if !ok {
		return
	}
	record := touched{id: id, isPut: event.Type == clientv3.EventTypePut}
	if record.isPut {
		if payload, err := storage.Unframe(integrity.KindName(id.kind), name, event.Kv.Value); err == nil {
			hash := integrity.HashPayload(payload)
			record.after = hash[:]
		}
	}
	b.touched = append(b.touched, record)
}

// judge compares a change with its audit event, and with the memory, which it brings to the new head. What
// is not as it should be is visited as damaged in the place of the record.
func (s *Store) judge(ctx context.Context, b *changeBuilder, change *storage.Committed) {
	if b.event == nil && len(b.touched) == 0 {
		return // a fence changes no record
	}
	workspaceID := change.Head.WorkspaceID
	wrong := b.compareEvent(workspaceID)
	if err := s.remembers(b, change, wrong); err != nil {
		wrong[ownRecord(workspaceID)] = err
	}
	for id, err := range wrong {
		s.config.Log.ErrorContext(ctx, "a change is not what its audit event lists", "workspace_id", workspaceID,
			"revision", change.Revision, "error", err)
		change.Put = slices.DeleteFunc(change.Put, func(item storage.Item) bool { return itemID(item) == id })
		// A record that was deleted and should not be is damaged, and not gone.
		change.DeletedKeys = slices.DeleteFunc(change.DeletedKeys, func(record *storagev1.KeyRecord) bool {
			return id == recordID{kindKey, record.GetKeyId()}
		})
		change.DeletedMembers = slices.DeleteFunc(change.DeletedMembers, func(record *storagev1.MemberRecord) bool {
			return id == recordID{kindMember, record.GetMemberId()}
		})
		change.Put = append(change.Put, damagedItem(workspaceID, id, err))
	}
}

// itemID returns the id of the record in an item.
func itemID(item storage.Item) recordID {
	switch {
	case item.Policy != nil:
		return recordID{kind: kindPolicy}
	case item.Settings != nil:
		return recordID{kind: kindSettings}
	case item.Workspace != nil:
		return recordID{kind: kindWorkspace}
	case item.Member != nil:
		return recordID{kindMember, item.Member.GetMemberId()}
	case item.Key != nil:
		return recordID{kindKey, item.Key.GetKeyId()}
	case item.Damaged != nil && item.Damaged.Settings:
		return recordID{kind: kindSettings}
	case item.Damaged != nil && item.Damaged.KeyID != "":
		return recordID{kindKey, item.Damaged.KeyID}
	case item.Damaged != nil && item.Damaged.MemberID != "":
		return recordID{kindMember, item.Damaged.MemberID}
	case item.Damaged != nil && item.Damaged.WorkspaceID == "":
		return recordID{kind: kindPolicy}
	}
	return recordID{kind: kindWorkspace}
}

// compareEvent returns the records that the change put or deleted, and that are not what its event lists.
func (b *changeBuilder) compareEvent(workspaceID string) map[recordID]error {
	wrong, listed := make(map[recordID]error), make(map[recordID][]byte)
	for _, each := range b.event.GetChanges() {
		id := recordID{each.GetKind(), each.GetName()}
		if listed[id] = each.GetAfter(); len(each.GetAfter()) > 0 {
			wrong[id] = fault(workspaceID, id, integrity.ProblemMissing) // until it is found below
		}
	}
	for _, record := range b.touched {
		after, is := listed[record.id]
		switch {
		case record.isPut && is && bytes.Equal(record.after, after) && len(after) > 0:
			delete(wrong, record.id)
		case record.isPut:
			wrong[record.id] = fault(workspaceID, record.id, integrity.ProblemStale)
		case !is || len(after) > 0:
			wrong[record.id] = fault(workspaceID, record.id, integrity.ProblemMissing)
		}
	}
	return wrong
}

// remembers brings the memory to the head of a change. The error says that the records of the workspace do
// not match the tag of its head.
func (s *Store) remembers(b *changeBuilder, change *storage.Committed, wrong map[recordID]error) error {
	m := s.memory.Load()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	workspaceID, head := change.Head.WorkspaceID, change.Head.Head
	entry := m.workspaces[workspaceID]
	if entry == nil && (m.complete || head.Sequence == 1) {
		entry = m.workspace(workspaceID)
	}
	if entry == nil || entry.outdated {
		return nil // a commit reads it, if there is one
	}
	planned := planOf(workspaceID, entry.sum, b.event.GetChanges())
	before := storage.Head{Sequence: head.Sequence - 1}
	copy(before.Hash[:], b.event.GetPreviousHash())
	switch {
	case entry.head.Sequence >= head.Sequence: // a commit of this process was faster
		for _, record := range planned.records {
			if !record.isPut {
				m.remove(workspaceID, record.id, record.before)
			}
		}
	case !entry.isAt(before): // nobody has followed the changes in between
		entry.outdated = true
		return nil
	default:
		m.apply(entry, planned, head, change.Revision)
		if entry.damaged == nil && entry.damagedHead == nil && !bytes.Equal(tagIn(workspaceID, b.head), s.tagOf(workspaceID, head, planned.sum)) {
			entry.damaged = fault(workspaceID, ownRecord(workspaceID), problemUnmatched)
		}
	}
	for id, err := range wrong {
		entry.setFault(id, err)
	}
	return entry.damaged
}

// problemUnmatched is the problem of a workspace whose new head has another tag than the change leads to.
const problemUnmatched = "the tag of its newest head does not match the records that this process has followed"

// planOf returns what an event makes of a sum and of the records that it lists.
func planOf(workspaceID string, sum integrity.Sum, changes []*storagev1.RecordChange) *plan {
	planned := &plan{workspaceID: workspaceID, sum: sum}
	for _, each := range changes {
		id := recordID{each.GetKind(), each.GetName()}
		record := plannedRecord{id: id, isPut: len(each.GetAfter()) > 0}
		if len(each.GetBefore()) == len(integrity.Hash{}) {
			element := elementOf(workspaceID, id, integrity.Hash(each.GetBefore()))
			record.before = element.Short()
			planned.sum = planned.sum.Remove(element)
		}
		if len(each.GetAfter()) == len(integrity.Hash{}) {
			element := elementOf(workspaceID, id, integrity.Hash(each.GetAfter()))
			record.after = element.Short()
			planned.sum = planned.sum.Add(element)
		}
		planned.records = append(planned.records, record)
	}
	return planned
}
