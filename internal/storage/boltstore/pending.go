package boltstore

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// pendingChange is a change that waits for the committer or is being committed.
type pendingChange struct {
	change  *storage.Change
	event   []byte // the audit event, encoded
	records []encoded
	size    int // of event and records, encoded, in bytes
	// state is waiting until the committer takes the change or the caller withdraws it.
	state atomic.Int32
	// queued is when the change entered the queue.
	queued time.Time
	// done is closed when revision and err are set.
	done     chan struct{}
	revision int64
	err      error

	// The committer owns the group below.

	committed *storage.Committed
	slots     map[string]int64 // of new keys
	// mismatch is the error with which findReplaced refuses the change, for example because a
	// record that it replaces is not the one that it should be.
	mismatch error
	sum      integrity.Sum // of the workspace's records after the change
}

// encoded is a record of a change. The caller of Commit encodes it, before the change
// enters the queue.
type encoded struct {
	id      recordID
	bucket  string
	name    string // empty for a key: its name begins with a slot, which the committer looks up
	key     *storagev1.KeyRecord
	payload []byte // nil to delete

	// listed is what the audit event lists about the record. The committer adds the hash of the
	// record before the change.
	listed *storagev1.RecordChange
	// before is the element of the stored record that the change replaces or deletes, after the
	// element of the record that it puts.
	before, after integrity.Element
}

// States of a pending change. The first move away from waiting wins.
const (
	waiting   int32 = iota
	taken           // by the committer, which will finish it
	withdrawn       // by its caller, who has left
)

// write is one put or delete in the file.
type write struct {
	bucket, name string
	value        []byte // nil to delete
}

// encode encodes a change, so that the committer only has to write.
func encode(change *storage.Change) (*pendingChange, error) {
	pending := &pendingChange{change: change, done: make(chan struct{})}
	_, err := storage.Encode(change.Feed(0, [32]byte{}))
	add := func(id recordID, name string, key *storagev1.KeyRecord, record proto.Message) {
		added := encoded{id: id, bucket: bucketOf(id.kind), name: name, key: key}
		added.listed = &storagev1.RecordChange{Kind: id.kind, Name: id.name}
		if record != nil {
			var problem error
			added.payload, problem = storage.Encode(record)
			err = errors.Join(err, problem)
			var hash integrity.Hash
			added.after, hash = elementOf(change.WorkspaceID, id, added.payload)
			added.listed.After = hash[:]
		}
		pending.size += len(added.payload)
		pending.records = append(pending.records, added)
	}
	if change.PutPolicy != nil {
		add(recordID{kind: kindPolicy}, nameActive, nil, change.PutPolicy)
	}
	if change.PutWorkspace != nil {
		add(recordID{kind: kindWorkspace}, change.WorkspaceID, nil, change.PutWorkspace)
	}
	for _, member := range change.PutMembers {
		add(recordID{kindMember, member.GetMemberId()}, memberName(change.WorkspaceID, member.GetMemberId()), nil, member)
	}
	for _, member := range change.DeleteMembers {
		add(recordID{kindMember, member.GetMemberId()}, memberName(change.WorkspaceID, member.GetMemberId()), nil, nil)
	}
	for _, key := range change.PutKeys {
		add(recordID{kindKey, key.GetKeyId()}, "", key, key)
	}
	for _, key := range change.DeleteKeys {
		add(recordID{kindKey, key.GetKeyId()}, "", key, nil)
	}
	if err != nil {
		return nil, notEncodable(err)
	}
	if err := pending.encodeEvent(); err != nil {
		return nil, err
	}
	pending.size += len(pending.event)
	return pending, nil
}

// encodeEvent encodes the audit event with the hashes of records that are known so far.
func (p *pendingChange) encodeEvent() error {
	p.change.Event.Changes = make([]*storagev1.RecordChange, len(p.records))
	for index := range p.records {
		p.change.Event.Changes[index] = p.records[index].listed
	}
	var err error
	if p.event, err = storage.Encode(p.change.Event); err != nil {
		return notEncodable(err)
	}
	return nil
}

// notEncodable returns the error for text that is not UTF-8.
func notEncodable(err error) error {
	return fmt.Errorf("%w: %w", storage.ErrInvalidChange, err)
}

// isPolicy returns 1 for a change of the policy, and 0 for any other.
func isPolicy(p *pendingChange) int {
	if p.change.WorkspaceID == "" {
		return 1
	}
	return 0
}

// finish answers the caller of Commit.
func (p *pendingChange) finish(revision int64, err error) {
	p.revision, p.err = revision, err
	close(p.done)
}

// check compares the heads and looks for ids that must be absent. The index is as of
// revision. newIDs are the keys that earlier changes of the same group add, with their
// revisions. Errors: those of storage.Committer.
func (p *pendingChange) check(index *fileIndex, newIDs map[string]int64, revision int64) error {
	var head storage.Head
	var headRevision int64
	if entry := index.workspaces[p.change.WorkspaceID]; entry != nil {
		if entry.damagedHead != nil {
			return entry.damagedHead
		}
		for _, requestID := range p.change.AbsentRequestIDs {
			if keyID, found := entry.requestIDs[requestID]; found {
				return &storage.ExistsError{RequestID: requestID, KeyID: keyID, Revision: revision}
			}
		}
		head, headRevision = entry.head, entry.headRevision
	}
	if head != p.change.Expect {
		return &storage.ConflictError{Revision: headRevision}
	}
	if err := p.checkPolicy(index.workspaces[""]); err != nil {
		return err
	}
	if p.mismatch != nil {
		return p.mismatch
	}
	for _, keyID := range p.change.AbsentKeyIDs {
		_, found := index.key(keyID)
		if added := newIDs[keyID]; found || added > 0 {
			return &storage.ExistsError{KeyID: keyID, Revision: max(revision, added)}
		}
		if entry := index.lostKeys[keyID]; entry != nil {
			return entry.faults[recordID{kindKey, keyID}]
		}
	}
	for _, key := range p.change.PutKeys {
		if keyID := key.GetKeyId(); newIDs[keyID] > 0 {
			return fmt.Errorf("%w: key %s is of another workspace", storage.ErrInvalidChange, keyID)
		}
	}
	return nil
}

// checkPolicy compares the policy's head with the head that the change expects, if it expects
// one.
func (p *pendingChange) checkPolicy(policy *indexedWorkspace) error {
	switch {
	case p.change.ExpectPolicy == nil:
		return nil
	case policy == nil && *p.change.ExpectPolicy != (storage.Head{}):
		return &storage.ConflictError{}
	case policy != nil && policy.damagedHead != nil:
		return policy.damagedHead
	case policy != nil && policy.head != *p.change.ExpectPolicy:
		return &storage.ConflictError{Revision: policy.headRevision}
	}
	return nil
}

// writes returns the puts and deletes of a change that commits at a revision. It takes the
// slots of new keys from nextSlot.
func (p *pendingChange) writes(index *fileIndex, hasher *integrity.Hasher, epoch string, revision int64, nextSlot *int64) ([]write, error) {
	change := p.change
	head := change.Expect.After(p.event)
	p.committed = change.Committed(revision, head)
	p.slots = make(map[string]int64)
	previous := int64(0)
	if entry := index.workspaces[change.WorkspaceID]; entry != nil {
		previous, p.sum = entry.headRevision, entry.sum
	}
	p.addUp()
	var writes []write
	for _, record := range p.records {
		name := record.name
		if record.key != nil {
			slot, err := p.slot(index, record, nextSlot)
			if err != nil {
				return nil, err
			}
			name = keyName(slot, record.key.GetKeyId(), change.WorkspaceID)
		}
		var value []byte
		if record.payload != nil {
			value = frame(record.bucket, name, record.payload)
		}
		writes = append(writes, write{record.bucket, name, value})
		if record.key != nil && value == nil {
			writes = append(writes, write{bucketUsage, name[:numberLength], nil})
		}
	}
	headRecord := head.Record(revision)
	tag := tagOf(hasher, epoch, change.WorkspaceID, head, p.sum)
	headRecord.Tag, headRecord.TagKeyVersion = tag[:], integrity.KeyVersion
	headBytes, err := storage.Encode(headRecord)
	if err != nil {
		return nil, err
	}
	feedBytes, err := storage.Encode(p.committed.Feed)
	if err != nil {
		return nil, err
	}
	auditBytes := append([]byte(number(previous)), p.event...)
	return append(writes,
		write{bucketHeads, headName(change.WorkspaceID), frame(bucketHeads, headName(change.WorkspaceID), headBytes)},
		write{bucketFeed, number(revision), frame(bucketFeed, number(revision), feedBytes)},
		write{bucketAudit, number(revision), frame(bucketAudit, number(revision), auditBytes)},
	), nil
}

// addUp turns sum into the sum of the workspace's records after the change.
func (p *pendingChange) addUp() {
	for _, record := range p.records {
		if len(record.listed.GetBefore()) > 0 {
			p.sum = p.sum.Remove(record.before)
		}
		if len(record.listed.GetAfter()) > 0 {
			p.sum = p.sum.Add(record.after)
		}
	}
}

// slot returns the slot of a key's record: its own, or the next one for a new key.
func (p *pendingChange) slot(index *fileIndex, record encoded, nextSlot *int64) (int64, error) {
	keyID := record.key.GetKeyId()
	if at, found := index.key(keyID); found {
		if at.workspace.id != p.change.WorkspaceID {
			return 0, fmt.Errorf("%w: key %s is of another workspace", storage.ErrInvalidChange, keyID)
		}
		return at.slot, nil
	}
	if record.payload == nil {
		return 0, fmt.Errorf("%w: key %s to delete is not there", storage.ErrInvalidChange, keyID)
	}
	if !p.change.IsNew(record.key) {
		return 0, fmt.Errorf("%w: key %s is not there, and not in AbsentKeyIDs", storage.ErrInvalidChange, keyID)
	}
	slot := *nextSlot
	*nextSlot++
	p.slots[keyID] = slot
	return slot, nil
}

// follow updates the index after the change was committed. state is held for writing.
func (p *pendingChange) follow(index *fileIndex) {
	entry := index.workspace(p.change.WorkspaceID)
	entry.head, entry.headRevision, entry.sum = p.committed.Head.Head, p.committed.Revision, p.sum
	for _, record := range p.records {
		if slot, isNew := p.slots[record.id.name]; isNew && record.id.kind == kindKey {
			index.addKey(entry, record.id.name, slot, record.after.Short())
			continue
		}
		if record.payload != nil {
			index.setElement(entry, record.id, record.after.Short())
		} else if record.id.kind == kindMember {
			index.members.remove(entry.id, record.id.name)
		}
	}
	for _, key := range p.change.PutKeys {
		index.setRequestIDs(key.GetKeyId(), key.GetRequestIds())
	}
	for _, requestID := range p.change.FreedRequestIDs {
		delete(entry.requestIDs, requestID)
	}
	for _, key := range p.change.DeleteKeys {
		index.removeKey(key.GetKeyId(), key.GetRequestIds())
	}
}
