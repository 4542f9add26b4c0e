package etcdstore

import (
	"context"
	"fmt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// plan is what a change makes of the memory.
type plan struct {
	workspaceID string
	sum         integrity.Sum
	records     []plannedRecord
}

// plannedRecord is what a change makes of one record. The elements are 0 if there is no record before or
// after it.
type plannedRecord struct {
	id            recordID
	before, after uint64
	isPut         bool
}

// remember brings the memory of a workspace to a head that a change expects. As a rule it is there: the
// watch tells the memory of a change before it tells the projection, against which changes are checked. But
// a process that only writes has no watch, so what is missing is read. Errors: a ConflictError if the
// stored head is another one; those of examine.
func (s *Store) remember(ctx context.Context, m *memory, workspaceID string, head storage.Head) error {
	m.mutex.Lock()
	entry := m.workspaces[workspaceID]
	known := entry == nil && head.Sequence == 0 || entry != nil && entry.isAt(head)
	m.mutex.Unlock()
	if known {
		return nil
	}
	response, err := s.read(ctx, s.get(nameHeader), s.get(headName(workspaceID)))
	if err != nil {
		return err
	}
	if err := s.checkHeader(response); err != nil {
		return err
	}
	stored := first(response, 1)
	if err := judgeHead(workspaceID, head, stored); err != nil {
		return err
	}
	fresh := &remembered{head: head, revision: stored.GetModRevision(), tag: tagIn(workspaceID, stored.GetValue())}
	e, err := s.examine(ctx, workspaceID, fresh, response.Header.GetRevision())
	if err != nil {
		return err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if now := m.workspaces[workspaceID]; now != nil && !now.outdated && now.head.Sequence >= head.Sequence {
		return nil // the watch was faster
	}
	m.workspaces[workspaceID] = fresh
	e.correct(m)
	return nil
}

// plan compares the records that a change replaces or deletes with the memory, and returns what the change
// makes of it. changes are those of the event, complete. Errors: a DamagedError for a record that is not
// what it should be: it must not become valid by being listed; a ConflictError if the memory is not at
// the expected head.
func (m *memory) plan(change *storage.Change, changes []*storagev1.RecordChange) (*plan, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	entry := m.workspaces[change.WorkspaceID]
	if entry == nil {
		entry = &remembered{}
	}
	if !entry.isAt(change.Expect) {
		return nil, &storage.ConflictError{Revision: entry.revision}
	}
	planned := planOf(change.WorkspaceID, entry.sum, changes)
	for index, each := range changes {
		record, hasBefore := planned.records[index], len(each.GetBefore()) > 0
		if err := entry.problem(record.id); err != nil {
			return nil, err
		}
		expected, there := m.element(change.WorkspaceID, record.id)
		switch { // what is read in order to be changed is compared with memory
		case record.id.kind == kindKey && record.isPut && change.IsNew(&storagev1.KeyRecord{KeyId: record.id.name}):
			// The transaction compares that its id is not there.
		case there && !hasBefore:
			return nil, fault(change.WorkspaceID, record.id, integrity.ProblemMissing)
		case !there && hasBefore:
			return nil, fault(change.WorkspaceID, record.id, integrity.ProblemSurplus)
		case there && record.before != expected:
			return nil, fault(change.WorkspaceID, record.id, integrity.ProblemStale)
		}
	}
	return planned, nil
}

// done takes a change over into the memory that was committed at a revision. The watch may have been
// faster.
func (s *Store) done(planned *plan, before, after storage.Head, revision int64) {
	m := s.memory.Load()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	entry := m.workspaces[planned.workspaceID]
	if entry == nil && before.Sequence == 0 {
		entry = m.workspace(planned.workspaceID)
	}
	if entry == nil || !entry.isAt(before) {
		return
	}
	m.apply(entry, planned, after, revision)
}

// apply takes over a change.
func (m *memory) apply(entry *remembered, planned *plan, after storage.Head, revision int64) {
	entry.head, entry.revision, entry.sum = after, revision, planned.sum
	entry.head.Fence = 0
	for _, record := range planned.records {
		if record.isPut {
			m.put(planned.workspaceID, record.id, record.after)
		} else {
			m.remove(planned.workspaceID, record.id, record.before)
		}
		entry.setFault(record.id, nil)
	}
}

// checkPlace returns ErrInvalidChange if a key that is to be replaced, and is not under its name, is
// of another workspace or sequence. If not, its record is missing.
func (s *Store) checkPlace(ctx context.Context, name, keyID string) error {
	response, err := s.read(ctx, s.get(idName(keyID)))
	if err != nil {
		return err
	}
	pair := first(response, 0)
	if pair == nil {
		return nil
	}
	where, err := decodeID(keyID, pair.Value)
	if err == nil && where.name != name {
		err = fmt.Errorf("%w: key %s of that sequence is not in the workspace", storage.ErrInvalidChange, keyID)
	}
	return err
}
