package etcdstore

import (
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// confirm compares a record that was read, nil if nothing is stored, with the memory. head is the head of its
// workspace that was read in the same transaction. Where the memory is at another head, it knows nothing
// of what was read. The caller has checked the frame of the record.
func (s *Store) confirm(workspaceID string, id recordID, record, head *mvccpb.KeyValue) error {
	present, err := decodeHead(workspaceID, head.GetValue())
	if err != nil {
		return nil // a damaged head says nothing of the record
	}
	m := s.memory.Load()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	entry := m.workspaces[workspaceID]
	if entry == nil || !entry.isAt(present) {
		return nil
	}
	if err := entry.faults[id]; err != nil {
		return err
	}
	if entry.damaged != nil {
		return entry.damaged
	}
	expected, there := m.element(workspaceID, id)
	switch {
	case record == nil && there:
		return fault(workspaceID, id, integrity.ProblemMissing)
	case record == nil:
		return nil
	case !there:
		return fault(workspaceID, id, integrity.ProblemSurplus)
	case elementOf(workspaceID, id, integrity.HashPayload(storage.Payload(record.Value))).Short() != expected:
		return fault(workspaceID, id, integrity.ProblemStale)
	}
	return nil
}
