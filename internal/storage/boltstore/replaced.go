package boltstore

import (
	"bytes"
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// replaced is a stored record that a change replaces or deletes.
type replaced struct {
	of       *pendingChange
	record   *encoded
	slot     int64 // of a key
	expected expectation
}

// findReplaced reads the records that the changes of a group replace or delete, and lists their
// hashes in the events of the changes. It also compares each record with the index: a record
// that was altered in the file must not become valid by being listed. The result still holds
// when the group is written, because only the committer changes the index.
func (s *Store) findReplaced(group []*pendingChange) {
	var found []replaced
	for _, pending := range group {
		for index := range pending.records {
			record := &pending.records[index]
			if record.key == nil || record.payload == nil || !pending.change.IsNew(record.key) {
				found = append(found, replaced{of: pending, record: record})
			}
		}
	}
	if len(found) == 0 {
		return
	}
	_, err := s.read(context.Background(), func(index *fileIndex) {
		for i := range found {
			each := &found[i]
			each.expected = index.expect(each.of.change.WorkspaceID, each.record.id)
			if at, found := index.key(each.record.id.name); found && at.workspace.id == each.of.change.WorkspaceID {
				each.slot = at.slot
			}
		}
	}, func(tx *bolt.Tx) error {
		for i := range found {
			if err := found[i].compare(tx); err != nil {
				found[i].of.mismatch = err
			}
		}
		return nil
	})
	for _, each := range found {
		switch {
		case each.of.mismatch != nil:
		case err != nil:
			// commitGroup finds out by itself that the store is down, but not that the file is
			// damaged.
			each.of.mismatch = err
		default:
			each.of.mismatch = each.of.encodeEvent()
		}
	}
}

// compare reads one record, notes its hash, and compares it with the index. A member to
// delete must exist.
func (r *replaced) compare(tx *bolt.Tx) error {
	record, workspaceID := r.record, r.of.change.WorkspaceID
	name, value := r.find(tx.Bucket([]byte(record.bucket)))
	if value == nil {
		if err := r.expected.compare(integrity.Element{}, false); err != nil {
			return err
		}
		if record.payload == nil && record.key == nil {
			return fmt.Errorf("%w: member %s to delete is not there", storage.ErrInvalidChange, record.id.name)
		}
		return nil
	}
	payload, err := storage.Unframe(integrity.KindName(record.id.kind), frameName(record.bucket, name), value)
	if err != nil {
		return fault(workspaceID, record.id, problemOf(err))
	}
	if problem := storage.Unread(record.id.kind, payload); problem != "" {
		return fault(workspaceID, record.id, problem)
	}
	element, hash := elementOf(workspaceID, record.id, payload)
	record.before, record.listed.Before = element, hash[:]
	return r.expected.compare(element, true)
}

// find returns the record's name and value; "" and nil if nothing is stored.
func (r *replaced) find(bucket *bolt.Bucket) (name string, value []byte) {
	if r.record.key == nil {
		return r.record.name, bucket.Get([]byte(r.record.name))
	}
	prefix := []byte(number(r.slot))
	found, value := bucket.Cursor().Seek(prefix)
	if r.slot == 0 || !bytes.HasPrefix(found, prefix) {
		return "", nil
	}
	return string(found), value
}
