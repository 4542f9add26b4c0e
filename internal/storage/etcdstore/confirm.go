package etcdstore

import (
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// observation is a record as a reader found it.
type observation struct {
	id recordID
	// there is set if something is stored, and short is then the beginning of its element.
	there bool
	short uint64
}

// observe returns the observation of what is stored of a record, nil if nothing is. The caller has checked its
// frame.
func observe(workspaceID string, id recordID, stored *mvccpb.KeyValue) observation {
	if stored == nil {
		return observation{id: id}
	}
	return observation{id, true, elementOf(workspaceID, id, integrity.HashPayload(storage.Payload(stored.Value))).Short()}
}

// confirm compares records of a workspace that were read with the memory. head is the head of the workspace
// that was read as of the same revision of etcd's. Where the memory is at another head, it knows nothing
// of what was read.
func (s *Store) confirm(workspaceID string, head *mvccpb.KeyValue, seen ...observation) error {
	present, err := decodeHead(workspaceID, head.GetValue())
	if err != nil {
		return nil // a damaged head says nothing of the records
	}
	m := s.memory.Load()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	entry := m.workspaces[workspaceID]
	if entry == nil || !entry.isAt(present) {
		return nil
	}
	for _, each := range seen {
		if err := entry.faults[each.id]; err != nil {
			return err
		}
		if entry.damaged != nil {
			return entry.damaged
		}
		expected, there := m.element(workspaceID, each.id)
		switch {
		case there && !each.there:
			return fault(workspaceID, each.id, integrity.ProblemMissing)
		case each.there && !there:
			return fault(workspaceID, each.id, integrity.ProblemSurplus)
		case there && each.short != expected: // what is read is compared with memory
			return fault(workspaceID, each.id, integrity.ProblemStale)
		}
	}
	return nil
}
