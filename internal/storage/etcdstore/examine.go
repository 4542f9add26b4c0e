package etcdstore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// examination finds out which records of one workspace are wrong.
type examination struct {
	store       *Store
	workspaceID string
	entry       *remembered
	at          int64
	records     *integrity.Examination[recordID]
}

// errEnough ends the reading of events.
var errEnough = errors.New("the events show what is wrong")

// examine reads a workspace's records at a revision of etcd's, and compares them with the tag in entry. If
// they do not agree, it reads the events backwards from the newest one, until the records that they list
// agree with the tag. If the head is damaged, every stored record must be listed by an event. If it
// remains unknown which records are wrong, all count as wrong.
func (s *Store) examine(ctx context.Context, workspaceID string, entry *remembered, at int64) (*examination, error) {
	e := &examination{store: s, workspaceID: workspaceID, entry: entry, at: at}
	hasher := integrity.NewHasher()
	e.records = integrity.NewExamination(func(id recordID, payload integrity.Hash) integrity.Element {
		return hasher.Element(integrity.KindName(id.kind), workspaceID, id.name, payload)
	})
	if err := e.collect(ctx); err != nil {
		return nil, err
	}
	known := e.fits()
	if !known {
		var err error
		if known, err = e.walk(ctx); err != nil {
			return nil, err
		}
	}
	entry.tag = nil
	if !known {
		entry.damaged = fault(workspaceID, ownRecord(workspaceID), integrity.ProblemUnknown)
	}
	return e, nil
}

// fits reports whether the records agree with the tag.
func (e *examination) fits() bool {
	return e.entry.damagedHead == nil && e.store.isTag(e.entry.tag, e.workspaceID, e.entry.head, e.records.Sum())
}

// collect reads the hashes of the workspace's records.
func (e *examination) collect(ctx context.Context) error {
	ranges := [][2]string{{namePolicy, after(namePolicy)}, {nameSettings, after(nameSettings)}}
	if e.workspaceID != "" {
		ranges = [][2]string{
			{workspaceName(e.workspaceID), after(workspaceName(e.workspaceID))},
			{memberFolder(e.workspaceID), endOf(memberFolder(e.workspaceID))},
			{keyFolder(e.workspaceID), endOf(keyFolder(e.workspaceID))},
		}
	}
	for _, each := range ranges {
		err := e.store.stream(ctx, each[0], each[1], e.at, func(some *chunk) error {
			defer some.release()
			for _, found := range some.pairs {
				e.collected(string(found.name), found.value)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *examination) collected(name string, value []byte) {
	_, id, _ := recordOf(name) // a name that is no record's is unreadable below
	if item := decodeItem(name, value); item.Damaged != nil {
		e.records.Unreadable(id, item.Damaged.Err)
		return
	}
	e.records.Stored(id, integrity.HashPayload(storage.Payload(value)))
}

// walk reads the workspace's events backwards, and reports whether they show which records are wrong: once what they list
// fits the tag, or, without a head, if their chain holds and they list all records. There may be gaps, where
// events were pruned: the last event of each record is always there.
func (e *examination) walk(ctx context.Context) (known bool, err error) {
	folder := auditFolder(e.workspaceID)
	next := storage.Head{} // the event that the one read last follows
	err = e.store.stream(ctx, folder, endOf(folder), e.at, func(some *chunk) error {
		defer some.release()
		for _, found := range some.pairs {
			name := string(found.name)
			_, sequence, ok := parseAuditName(name)
			if !ok {
				return errEnough
			}
			event, err := decodeAudit(e.workspaceID, name, sequence, found.value)
			if err != nil || sequence == next.Sequence && storage.HashAudit(event.Encoded) != next.Hash {
				return errEnough
			}
			next = storage.Head{Sequence: sequence - 1}
			copy(next.Hash[:], event.Record.GetPreviousHash())
			for _, change := range event.Record.GetChanges() {
				e.records.List(recordID{change.GetKind(), change.GetName()}, change.GetAfter())
			}
			if known = e.fits(); known {
				return errEnough
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return known, nil
	case err != nil || e.entry.damagedHead == nil:
		return false, err
	}
	return e.records.AllListed(), nil
}

// correct sets the memory to what the records should be, and notes those that are not. The other records of
// the workspace can still be changed.
func (e *examination) correct(m *memory) {
	e.entry.sum = e.records.Sum()
	for id, verdict := range e.records.Verdicts() {
		if verdict.Known {
			m.put(e.workspaceID, id, verdict.Element.Short())
		}
		switch {
		case verdict.Unreadable != nil:
			e.entry.setFault(id, verdict.Unreadable)
		case verdict.Problem != "":
			e.entry.setFault(id, fault(e.workspaceID, id, verdict.Problem))
		}
	}
}

// verify compares every workspace's records with the tag of its head, and its head with its events. Where
// they differ, it finds out what is wrong, and visits that as damaged.
func (l *loader) verify() error {
	if err := l.findNewerEvents(); err != nil {
		return err
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(l.memory.workspaces)) {
		entry := l.memory.workspaces[workspaceID]
		if entry.damagedHead == nil && l.store.isTag(entry.tag, workspaceID, entry.head, entry.sum) { // head tags are compared
			entry.tag = nil
			continue
		}
		e, err := l.store.examine(l.ctx, workspaceID, entry, l.at)
		if err != nil {
			return err
		}
		e.correct(l.memory)
		if err := l.visitFaults(workspaceID, entry); err != nil {
			return err
		}
	}
	return nil
}

// visitFaults visits what is wrong with a workspace.
func (l *loader) visitFaults(workspaceID string, entry *remembered) error {
	say := func(err error) {
		l.store.config.Log.ErrorContext(l.ctx, "what is stored is not what it should be", "workspace_id", workspaceID, "error", err)
	}
	if err := entry.damagedHead; err != nil {
		say(err)
		if err := l.visitDamaged(headName(workspaceID), &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: err}); err != nil {
			return err
		}
	}
	if err := entry.damaged; err != nil {
		say(err)
		return l.visit(damagedItem(workspaceID, ownRecord(workspaceID), err))
	}
	for id, err := range entry.faults {
		say(err)
		if err := l.visitDamaged(shownName(workspaceID, id), damagedItem(workspaceID, id, err).Damaged); err != nil {
			return err
		}
	}
	return nil
}

// shownName returns the name of a record in loader.shown.
func shownName(workspaceID string, id recordID) string {
	switch id.kind {
	case kindPolicy:
		return namePolicy
	case kindSettings:
		return nameSettings
	case kindWorkspace:
		return workspaceName(workspaceID)
	case kindMember:
		return memberName(workspaceID, id.name)
	case kindKey, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return keyFolder(workspaceID) + id.name
}

// findNewerEvents marks the heads of workspaces that have events which the head does not know: the head is
// an older one that was put back, or was lost. The names of a workspace's events are next to each other,
// the newest first. So between the events of one workspace and the newest event of the next one, as its
// head says, there must be nothing.
func (l *loader) findNewerEvents() error {
	ids := slices.Sorted(maps.Keys(l.memory.workspaces)) // in the order of their folders: no id has a NUL
	from := folderAudit
	var gaps [][2]string
	for _, id := range ids {
		if entry := l.memory.workspaces[id]; entry.damagedHead == nil {
			gaps = append(gaps, [2]string{from, auditName(id, entry.head.Sequence)})
		} else {
			gaps = append(gaps, [2]string{from, auditFolder(id)})
		}
		from = endOf(auditFolder(id))
	}
	gaps = append(gaps, [2]string{from, endOf(folderAudit)})
	for some := range slices.Chunk(gaps, gets) {
		parts := make([]clientv3.Op, len(some))
		for index, gap := range some {
			parts[index] = l.store.get(gap[0], clientv3.WithRange(l.store.config.Prefix+gap[1]), clientv3.WithCountOnly(), clientv3.WithRev(l.at))
		}
		response, err := l.store.read(l.ctx, parts...)
		if err != nil {
			return err
		}
		for index, gap := range some {
			if found(response, index).GetCount() == 0 {
				continue
			}
			if err := l.newerEvents(gap[0], gap[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// newerEvents marks the heads of the workspaces that have events between two names.
func (l *loader) newerEvents(from, to string) error {
	for from < to {
		response, err := l.store.read(l.ctx, l.store.get(from, clientv3.WithRange(l.store.config.Prefix+to),
			clientv3.WithLimit(1), clientv3.WithKeysOnly(), clientv3.WithRev(l.at)))
		if err != nil {
			return err
		}
		pair := first(response, 0)
		if pair == nil {
			return nil
		}
		workspaceID, sequence, ok := parseAuditName(l.store.name(pair))
		if !ok {
			from = after(l.store.name(pair))
			continue // Check names it
		}
		entry := l.memory.workspace(workspaceID)
		if entry.head.Sequence == 0 {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: "missing"}
		} else {
			entry.damagedHead = &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: "audit event " + strconv.FormatInt(sequence, 10) + " is ahead of it"}
		}
		from = endOf(auditFolder(workspaceID))
	}
	return nil
}
