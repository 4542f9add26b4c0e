package etcdstore

import (
	"context"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// The checksum of a frame shows that a record is complete. It does not show that the record is the newest
// one of its name. That is checked in four places, against the memory of this process (memory.go):
//
//  1. Load adds up the elements of each workspace's records, and compares the sum with the tag in the
//     workspace's head. If they differ, the audit events say which records are wrong (examine.go).
//  2. A commit compares each record that it replaces or deletes with the memory. It computes the tag of
//     the new head from the sum that the memory has at the expected head (plan.go).
//  3. The watch compares each change with its audit event, and the tag of its head with the sum that
//     follows from the event (follow.go).
//  4. Reads for people compare the records that they return, alone and in lists, if the memory is at the head
//     that was read with them (confirm.go).
//
// A transaction compares the whole value of the head, tag included. Every process computes the same
// value for the same head: the tag follows from what the head and its history say, and the encoding is
// deterministic. So the value needs to be read only where the memory is not at the head.

// storedHead is a head in the form in which it is stored. The value is empty for a head that is not.
type storedHead struct {
	value string
	tag   []byte
}

// tagOf returns the tag of a head of this store over the sum of a workspace's records.
func (s *Store) tagOf(workspaceID string, head storage.Head, sum integrity.Sum) []byte {
	return tagOf(s.epoch, workspaceID, head, sum)
}

func tagOf(epoch, workspaceID string, head storage.Head, sum integrity.Sum) []byte {
	hasher := integrity.Borrow()
	defer hasher.Return()
	tag := hasher.Tag(integrity.Head{Epoch: epoch, WorkspaceID: workspaceID, Sequence: head.Sequence, EventHash: head.Hash}, sum)
	return tag[:]
}

// frameHead returns the stored form of a head. Heads are compared as bytes, so every version that knows
// this schema must produce the same bytes. A test fixes them.
func frameHead(workspaceID string, head storage.Head, tag []byte) (string, error) {
	record := head.Record(0)
	record.Tag, record.TagKeyVersion = tag, integrity.KeyVersion
	payload, err := storage.Encode(record)
	if err != nil {
		return "", err
	}
	return string(storage.Frame(headName(workspaceID), payload)), nil
}

// tagIn returns the tag in the stored form of a head; nil if it has none that this program can compute.
func tagIn(workspaceID string, value []byte) []byte {
	record := &storagev1.HeadRecord{}
	if storage.Decode("head", headName(workspaceID), value, record) != nil || record.GetTagKeyVersion() != integrity.KeyVersion {
		return nil
	}
	return record.GetTag()
}

// storedHead returns a workspace's head in its stored form. It reads the head if the memory is not at it.
// Errors: a ConflictError if the stored head is another one; those of read.
func (s *Store) storedHead(ctx context.Context, workspaceID string, head storage.Head) (storedHead, error) {
	if tag, known := s.rememberedTag(workspaceID, head); known {
		if head == (storage.Head{}) {
			return storedHead{tag: tag}, nil
		}
		value, err := frameHead(workspaceID, head, tag)
		return storedHead{value, tag}, err
	}
	response, err := s.read(ctx, s.get(headName(workspaceID)))
	if err != nil {
		return storedHead{}, err
	}
	stored := first(response, 0)
	if head == (storage.Head{}) {
		return storedHead{tag: s.tagOf(workspaceID, head, integrity.Sum{})}, nil
	}
	found, err := decodeHead(workspaceID, stored.GetValue())
	switch {
	case stored == nil:
		return storedHead{}, &storage.ConflictError{}
	case err != nil:
		return storedHead{}, err
	case found.Sequence != head.Sequence || found.Hash != head.Hash:
		return storedHead{}, &storage.ConflictError{Revision: stored.ModRevision}
	}
	tag := tagIn(workspaceID, stored.Value)
	if found == head {
		return storedHead{string(stored.Value), tag}, nil
	}
	value, err := frameHead(workspaceID, head, tag) // the transaction finds out that the fence is another one
	return storedHead{value, tag}, err
}

// rememberedTag returns the tag of a head, and reports whether the memory is at the head.
func (s *Store) rememberedTag(workspaceID string, head storage.Head) (tag []byte, known bool) {
	m := s.memory.Load()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	entry := m.workspaces[workspaceID]
	switch {
	case head.Sequence == 0 && (entry == nil || entry.isAt(head)):
		return s.tagOf(workspaceID, head, integrity.Sum{}), true
	case entry == nil || !entry.isAt(head) || entry.damaged != nil || entry.damagedHead != nil:
		return nil, false
	}
	return s.tagOf(workspaceID, head, entry.sum), true
}
