package boltstore

import (
	"fmt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// The checksum of a frame shows that a record is complete. It does not show that the record is
// the newest one of its name. That is checked in three places:
//
//  1. When a file is opened, the elements of each workspace's records are added up and
//     compared with the tag in the workspace's head (examine.go). If they differ, the audit
//     events are read from the newest one backwards. They list the hash of every record
//     that was put, and so show which records are stale, missing or left over (damage.go).
//  2. Reads for people compare each record with the index, which has the first eight bytes of
//     the element that the record should have.
//  3. A commit compares a record with the index before it replaces or deletes the record
//     (replaced.go).

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
)

// ownRecord returns the id of the only record of a workspace that is neither a member nor a
// key.
func ownRecord(workspaceID string) recordID {
	if workspaceID == "" {
		return recordID{kind: kindPolicy}
	}
	return recordID{kind: kindWorkspace}
}

// fault returns the error for a record that is not what it should be.
func fault(workspaceID string, id recordID, problem string) error {
	name := id.name
	switch id.kind {
	case kindPolicy:
		name = nameActive
	case kindWorkspace:
		name = workspaceID
	case kindMember, kindKey, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return &storage.DamagedError{Kind: integrity.KindName(id.kind), Name: name, Problem: problem}
}

// elementOf returns the element of a record with a payload, and the payload's hash.
func elementOf(workspaceID string, id recordID, payload []byte) (integrity.Element, integrity.Hash) {
	hash := integrity.HashPayload(payload)
	return integrity.ElementOf(id.kind, workspaceID, id.name, hash), hash
}

// expectation is what the index holds of one record.
type expectation struct {
	workspaceID string
	id          recordID
	short       uint64 // the beginning of its element
	there       bool
	fault       error // found when the file was opened
}

// compare returns an error if the file does not have the record that the index expects. stored
// reports whether the file has a record of that name, and element is that record's element.
func (e expectation) compare(element integrity.Element, stored bool) error {
	switch {
	case e.fault != nil:
		return e.fault
	case e.there && !stored:
		return fault(e.workspaceID, e.id, integrity.ProblemMissing)
	case stored && !e.there:
		return fault(e.workspaceID, e.id, integrity.ProblemSurplus)
	case stored && element.Short() != e.short: // what is read is compared with memory
		return fault(e.workspaceID, e.id, integrity.ProblemStale)
	}
	return nil
}

// compareValue is compare for the value that is stored under the record's name, nil if nothing
// is stored. The caller has checked the value's frame.
func (e expectation) compareValue(value []byte) error {
	if value == nil {
		return e.compare(integrity.Element{}, false)
	}
	element, _ := elementOf(e.workspaceID, e.id, storage.Payload(value))
	return e.compare(element, true)
}

// expect returns what the index holds of a record.
func (d *fileIndex) expect(workspaceID string, id recordID) expectation {
	expected := expectation{workspaceID: workspaceID, id: id}
	entry := d.workspaces[workspaceID]
	if entry == nil {
		return expected
	}
	expected.fault = entry.faults[id]
	if entry.damaged != nil {
		expected.fault = entry.damaged
	}
	switch id.kind {
	case kindKey:
		at, found := d.key(id.name)
		expected.short, expected.there = at.element, found && at.workspace == entry
	case kindMember:
		expected.short, expected.there = d.members.get(workspaceID, id.name)
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
		expected.short, expected.there = entry.own, entry.hasOwn
	}
	return expected
}

// findKey returns the slot of a key, and what the index holds of its record. The slot is 0 if
// the key does not exist, is of another workspace, or is missing in the file. If it is missing,
// the expectation has a fault.
func (d *fileIndex) findKey(workspaceID, keyID string) (int64, expectation) {
	at, found := d.key(keyID)
	entry := at.workspace
	if !found {
		entry = d.lostKeys[keyID]
	}
	if entry == nil || workspaceID != "" && workspaceID != entry.id {
		return 0, expectation{}
	}
	return at.slot, d.expect(entry.id, recordID{kindKey, keyID})
}

// setElement sets the element that a record should have. A key that is not in the index is not
// added.
func (d *fileIndex) setElement(entry *indexedWorkspace, id recordID, short uint64) {
	switch id.kind {
	case kindKey:
		if at, found := d.key(id.name); found {
			d.keys.At(at.number).element = short
		}
	case kindMember:
		d.members.set(d.members.hash(entry.id, id.name), short)
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
		entry.own, entry.hasOwn = short, true
	}
}

// recordOf returns the id of the record in an item. The kind is unspecified if the item has
// no record.
func recordOf(item storage.Item) (workspaceID string, id recordID) {
	switch {
	case item.Policy != nil:
		return "", recordID{kind: kindPolicy}
	case item.Workspace != nil:
		return item.Workspace.GetWorkspaceId(), recordID{kind: kindWorkspace}
	case item.Member != nil:
		return item.Member.GetWorkspaceId(), recordID{kindMember, item.Member.GetMemberId()}
	case item.Key != nil:
		return item.Key.GetWorkspaceId(), recordID{kindKey, item.Key.GetKeyId()}
	}
	return "", recordID{}
}

// bucketOf returns the bucket of a kind of records.
func bucketOf(kind storagev1.RecordKind) string {
	switch kind {
	case kindPolicy:
		return bucketPolicy
	case kindWorkspace:
		return bucketWorkspaces
	case kindMember:
		return bucketMembers
	case kindKey, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return bucketKeys
}

// tagOf returns the tag of a head over the sum of a workspace's records.
func tagOf(hasher *integrity.Hasher, epoch, workspaceID string, head storage.Head, sum integrity.Sum) [32]byte {
	return hasher.Tag(integrity.Head{
		Epoch: epoch, WorkspaceID: workspaceID, Sequence: head.Sequence, EventHash: head.Hash,
	}, sum)
}

// observation is a record as a reader found it.
type observation struct {
	workspaceID string
	id          recordID
	element     integrity.Element
}

// observe returns the observation of a stored value. The caller has checked its frame.
func observe(workspaceID string, id recordID, value []byte) observation {
	element, _ := elementOf(workspaceID, id, storage.Payload(value))
	return observation{workspaceID, id, element}
}

// errMoved is the error for a record that was changed after it was read.
var errMoved = fmt.Errorf("%w: the records are changing too fast to be read", storage.ErrUnavailable)

// confirm compares the records that a reader found at a revision with the index, which may be
// newer. If a record differs because its workspace has changed since, the error is errMoved.
func (d *fileIndex) confirm(seen []observation, revision int64) error {
	for _, each := range seen {
		err := d.expect(each.workspaceID, each.id).compare(each.element, true)
		if err == nil {
			continue
		}
		if entry := d.workspaces[each.workspaceID]; entry != nil && entry.headRevision > revision && entry.faults[each.id] == nil {
			return errMoved
		}
		return err
	}
	return nil
}
