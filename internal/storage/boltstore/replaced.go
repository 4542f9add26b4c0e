package boltstore

import (
	"bytes"
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// replaced is a record that a change replaces or deletes.
type replaced struct {
	of       *request
	record   *encoded
	slot     int64 // of a key
	expected expectation
}

// findReplaced reads what the changes of a group replace or delete, so that their events
// can list its hash, and compares it with memory: a record that was altered in the file
// must not become true by being changed. Only the committer changes what memory knows, so
// what holds here still holds when the group is written.
func (s *Store) findReplaced(group []*request) {
	var found []replaced
	for _, entry := range group {
		for index := range entry.records {
			record := &entry.records[index]
			if record.key == nil || record.payload == nil || !entry.change.IsNew(record.key) {
				found = append(found, replaced{of: entry, record: record})
			}
		}
	}
	if len(found) == 0 {
		return
	}
	_, err := s.read(context.Background(), func(directory *directory) {
		for index := range found {
			each := &found[index]
			each.expected = directory.expect(each.of.change.WorkspaceID, each.record.id)
			if at, found := directory.keys[each.record.id.name]; found && at.workspace.id == each.of.change.WorkspaceID {
				each.slot = at.slot
			}
		}
	}, func(tx *bolt.Tx) error {
		for index := range found {
			if err := found[index].compare(tx); err != nil {
				found[index].of.untrue = err
			}
		}
		return nil
	})
	for _, each := range found {
		switch {
		case each.of.untrue != nil:
		case err != nil:
			// If the store is down, that is found out again; damage is not.
			each.of.untrue = err
		default:
			each.of.untrue = each.of.encodeEvent()
		}
	}
}

// compare reads one record, notes what it was, and compares it with memory.
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
	payload, err := storage.Unframe(kindName(record.id.kind), frameName(record.bucket, name), value)
	if err != nil {
		return fault(workspaceID, record.id, problemOf(err))
	}
	element, hash := elementOf(workspaceID, record.id, payload)
	record.before, record.listed.Before = element, hash[:]
	return r.expected.compare(element, true)
}

// find returns the record's name and value; none if nothing is stored.
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
