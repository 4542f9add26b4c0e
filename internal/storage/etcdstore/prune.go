package etcdstore

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Pruning deletes old audit events that the sink has. These events stay:
//
//   - those that are younger than the retention, or that the sink does not have yet or ends with;
//   - the last event of each record that exists: the record names it;
//   - the last event of each record that was deleted, if an older event that stays put the record:
//     without it, the record would count as lost;
//   - the newest old event of each workspace: the first younger one has its hash, or the head has.
//
// The name data/pruned has the newest revision that ever counted as old. Up to there an event may be missing. Every
// transaction puts it last, so that a watch takes the deletions for what they are.

// pruneBatch is how many events one transaction deletes.
const pruneBatch = 100

var _ storage.AuditPruner = (*Store)(nil)

// PruneAudit implements storage.AuditPruner. Between two transactions it waits for as long as the first one took.
func (s *Store) PruneAudit(ctx context.Context, before time.Time) (int64, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	position, err := s.SinkPosition(ctx)
	if err != nil || position.Revision < 2 {
		return 0, err
	}
	// The next writer of the sink compares the event of its last line.
	p := &pruning{store: s, before: before, sunk: position.Revision - 1}
	workspaces, err := p.find(ctx)
	if err != nil || p.upTo == 0 {
		return 0, err
	}
	for _, workspaceID := range workspaces {
		if err := p.workspace(ctx, workspaceID); err != nil {
			return p.deleted, err
		}
	}
	return p.deleted, nil
}

// pruning is one PruneAudit.
type pruning struct {
	store  *Store
	before time.Time
	// sunk is the newest revision that may be pruned, and upTo the newest one of an event that is old.
	sunk, upTo int64
	deleted    int64
}

// find sets upTo, and returns the workspaces that have more than one old event, "" for the policy.
func (p *pruning) find(ctx context.Context) (workspaces []string, err error) {
	last, old := "", 0
	finish := func() {
		if old > 1 {
			workspaces = append(workspaces, last)
		}
	}
	err = p.each(ctx, folderAudit, func(stored pair) error {
		name := string(stored.name)
		workspaceID, sequence, ok := parseAuditName(name)
		if !ok {
			return nil // Check reports it
		}
		if workspaceID != last {
			finish()
			last, old = workspaceID, 0
		}
		event, err := decodeAudit(workspaceID, name, sequence, stored.value)
		if err == nil && stored.modified <= p.sunk && event.Record.GetTime().AsTime().Before(p.before) {
			old++
			p.upTo = max(p.upTo, stored.modified)
		}
		return nil
	})
	finish()
	return workspaces, err
}

// each visits the pairs in a folder. What changes meanwhile may be visited or not. A small folder is one page. The rest of a
// large one is a stream, because etcd counts for each page all that follows.
func (p *pruning) each(ctx context.Context, folder string, visit func(pair) error) error {
	s, work := p.store, giveway.From(ctx)
	response, err := s.read(ctx, s.list(folder, folder, pairsPage, 0))
	if err != nil {
		return err
	}
	from := folder
	for _, stored := range pairs(response, 0) {
		work.GiveWay()
		name := s.name(stored)
		if err := visit(pair{name: []byte(name), value: stored.Value, modified: stored.ModRevision}); err != nil {
			return err
		}
		from = after(name)
	}
	if !found(response, 0).GetMore() {
		return nil
	}
	// A stream is of one revision. If etcd compacts it meanwhile, the rest is read at a newer one.
	for attempt := 0; ; attempt++ {
		err := s.stream(ctx, from, endOf(folder), response.Header.GetRevision(), func(some *chunk) error {
			defer some.release()
			for _, found := range some.pairs {
				work.GiveWay()
				if err := visit(found); err != nil {
					return err
				}
				from, attempt = after(string(found.name)), 0
			}
			return nil
		})
		if !errors.Is(err, errCompacted) || attempt == maxAttempts {
			return err
		}
		if response, err = s.read(ctx, s.getRevision()); err != nil {
			return err
		}
	}
}

// oldEvent is an event that may be deleted.
type oldEvent struct {
	name               string
	revision, sequence int64
	isOld              bool
	put, removed       []recordID
}

// workspace prunes the events of one workspace. A workspace with damage keeps all: its events show what was lost.
func (p *pruning) workspace(ctx context.Context, workspaceID string) error {
	// 1. The events come before the records. So a change in between can only make more events dispensable.
	var events []oldEvent // newest first
	isDamaged := false
	err := p.each(ctx, auditFolder(workspaceID), func(stored pair) error {
		name := string(stored.name)
		_, sequence, _ := parseAuditName(name)
		event, err := decodeAudit(workspaceID, name, sequence, stored.value)
		switch {
		case err != nil:
			isDamaged = true
		case stored.modified <= p.upTo:
			events = append(events, oldEventOf(name, stored.modified, event.Record, p.before))
		}
		return nil
	})
	if err != nil {
		return err
	}
	current, sound, err := p.current(ctx, workspaceID)
	if err != nil {
		return err
	}
	if isDamaged || !sound {
		return nil
	}
	// 2. Decide, and delete the oldest ones first.
	for some := range slices.Chunk(dispensable(events, current), pruneBatch) {
		if err := p.delete(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

func oldEventOf(name string, revision int64, record *storagev1.AuditRecord, before time.Time) oldEvent {
	event := oldEvent{name: name, revision: revision, sequence: record.GetSequence(), isOld: record.GetTime().AsTime().Before(before)}
	for _, change := range record.GetChanges() {
		id := recordID{change.GetKind(), change.GetName()}
		if len(change.GetAfter()) > 0 {
			event.put = append(event.put, id)
		} else {
			event.removed = append(event.removed, id)
		}
	}
	return event
}

// dispensable returns the events that may be deleted, oldest first. events are newest first, and current has
// the sequence of the last event of each record.
func dispensable(events []oldEvent, current map[recordID]int64) (deleted []oldEvent) {
	// stale has the records that an event that stays put, and that are not so any more.
	stale := make(map[recordID]bool)
	for index, event := range slices.Backward(events) {
		stays := index == 0 || !event.isOld ||
			slices.ContainsFunc(event.put, func(id recordID) bool { return current[id] == event.sequence }) ||
			slices.ContainsFunc(event.removed, func(id recordID) bool { return stale[id] })
		if !stays {
			deleted = append(deleted, event)
			continue
		}
		for _, id := range event.put {
			if current[id] != event.sequence {
				stale[id] = true
			}
		}
	}
	return deleted
}

// current returns the sequence of the last event of each record of a workspace, and reports whether all
// could be read.
func (p *pruning) current(ctx context.Context, workspaceID string) (current map[recordID]int64, sound bool, err error) {
	current, sound = make(map[recordID]int64), true
	visit := func(stored pair) error {
		switch item := decodeItem(string(stored.name), stored.value); {
		case item.Policy != nil:
			current[recordID{storagev1.RecordKind_RECORD_KIND_POLICY, ""}] = item.Policy.GetChangeSequence()
		case item.Settings != nil:
			current[recordID{storagev1.RecordKind_RECORD_KIND_SETTINGS, ""}] = item.Settings.GetChangeSequence()
		case item.Workspace != nil:
			current[recordID{storagev1.RecordKind_RECORD_KIND_WORKSPACE, ""}] = item.Workspace.GetChangeSequence()
		case item.Member != nil:
			current[recordID{storagev1.RecordKind_RECORD_KIND_MEMBER, item.Member.GetMemberId()}] = item.Member.GetChangeSequence()
		case item.Key != nil:
			current[recordID{storagev1.RecordKind_RECORD_KIND_KEY, item.Key.GetKeyId()}] = item.Key.GetChangeSequence()
		case item.Head != nil:
		default:
			sound = false
		}
		return nil
	}
	single, folders := []string{namePolicy, nameSettings}, []string(nil)
	if workspaceID != "" {
		single, folders = []string{workspaceName(workspaceID)}, []string{memberFolder(workspaceID), keyFolder(workspaceID)}
	}
	parts := []clientv3.Op{p.store.get(headName(workspaceID))}
	for _, name := range single {
		parts = append(parts, p.store.get(name))
	}
	response, err := p.store.read(ctx, parts...)
	if err != nil {
		return nil, false, err
	}
	if first(response, 0) == nil {
		return nil, false, nil // the head was lost
	}
	for index := range parts {
		if stored := first(response, index); stored != nil {
			_ = visit(pair{name: []byte(p.store.name(stored)), value: stored.Value}) // it returns no error
		}
	}
	for _, folder := range folders {
		if err := p.each(ctx, folder, visit); err != nil {
			return nil, false, err
		}
	}
	return current, sound, nil
}

// delete deletes events in one transaction.
func (p *pruning) delete(ctx context.Context, events []oldEvent) error {
	s := p.store
	mark, at, err := s.prunedMark(ctx)
	if err != nil {
		return err
	}
	compares := []clientv3.Cmp{s.holds(nameHeader, "=", s.header), clientv3.Compare(clientv3.ModRevision(s.config.Prefix+namePruned), "=", at)}
	var parts []clientv3.Op
	for _, event := range events {
		parts = append(parts, s.delete(event.name))
	}
	parts = append(parts, s.putFrame(namePruned, []byte(number(max(mark, p.upTo)))))
	begun := time.Now()
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(compares...).Then(parts...).Else(s.get(nameHeader)).Commit()
	})
	if err != nil {
		return err
	}
	if !response.Succeeded {
		if err := s.checkHeader(response); err != nil {
			return err
		}
		// Another process prunes as well, or an earlier attempt was executed. A later run finds what is left.
		return nil
	}
	p.deleted += int64(len(events))
	pause := time.NewTimer(time.Since(begun))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// prunedMark returns the revision up to which audit events may be missing, and the etcd revision at which
// it was stored; both are 0 if nothing was pruned.
func (s *Store) prunedMark(ctx context.Context) (mark, at int64, err error) {
	response, err := s.read(ctx, s.get(namePruned))
	if err != nil {
		return 0, 0, err
	}
	mark, err = decodeMark(first(response, 0))
	return mark, first(response, 0).GetModRevision(), err
}

// decodeMark decodes a stored prunedMark, 0 if none is stored.
func decodeMark(stored *mvccpb.KeyValue) (int64, error) {
	if stored == nil {
		return 0, nil
	}
	payload, err := storage.Unframe("position", namePruned, stored.Value)
	if err != nil {
		return 0, err
	}
	mark, ok := parseNumber(string(payload))
	if !ok {
		return 0, &storage.DamagedError{Kind: "position", Name: namePruned, Problem: "not a revision"}
	}
	return mark, nil
}
