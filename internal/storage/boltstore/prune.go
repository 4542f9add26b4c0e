package boltstore

import (
	"context"
	"errors"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Pruning deletes old audit events that the sink has. These events stay:
//
//   - those that are younger than the retention, or that sink or anchor do not have yet, or that
//     were there when a person accepted the store (AcceptAnchor): the sink may not have them;
//   - the last event of each record that exists: it shows whether the record is the newest one;
//   - the last event of each record that was deleted, if an older event that stays put the record:
//     without it, the record would count as lost;
//   - the newest old event of each workspace: the first younger one points to it, or the head does.
//
// Only old events are written anew, so a younger event is always where the event before it is. The
// name "pruned" in the bucket meta holds the newest revision that ever counted as old. Up to there, an
// event may be missing.
//
// Each transaction links the event after those that it deletes to the event before them. So the file
// is sound after each of them, and nothing has to be remembered between two runs. Later runs also find
// what has stopped being the last event of its record.

// pruneSlice is how many events one transaction of PruneAudit looks at.
const pruneSlice = 256

// revisionMark returns a revision that is stored in the bucket meta, 0 if it is not there. Errors:
// DamagedError.
func revisionMark(tx *bolt.Tx, name string) (int64, error) {
	value := tx.Bucket([]byte(bucketMeta)).Get([]byte(name))
	if value == nil {
		return 0, nil
	}
	payload, err := storage.Unframe("position", frameName(bucketMeta, name), value)
	if err == nil {
		var revision int64
		if revision, err = parseNumber(payload); err == nil {
			return revision, nil
		}
	}
	return 0, &storage.DamagedError{Kind: "position", Name: name, Problem: problemOf(err)}
}

// putRevisionMark stores a revision in the bucket meta.
func putRevisionMark(tx *bolt.Tx, name string, revision int64) error {
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(name), frame(bucketMeta, name, []byte(number(revision))))
}

// PruneAudit implements storage.AuditPruner.
func (s *Store) PruneAudit(ctx context.Context, before time.Time) (int64, error) {
	if err := s.pruning.Claim(ctx); err != nil {
		return 0, err
	}
	defer s.pruning.Unlock()
	upTo := s.kept()
	if upTo < 1 {
		return 0, nil
	}
	p := &pruning{store: s, before: before, runs: make(map[string]*auditRun), stale: make(map[namedRecord]bool)}
	if _, err := s.read(ctx, nil, func(tx *bolt.Tx) (err error) {
		if p.unsunk, err = revisionMark(tx, nameUnsunk); err != nil {
			return err
		}
		if _, err = revisionMark(tx, namePruned); err != nil {
			return err
		}
		p.upTo, err = newestBefore(tx.Bucket([]byte(bucketAudit)).Cursor(), before, upTo)
		return err
	}); err != nil {
		return 0, err
	}
	for next := int64(1); next > 0 && next <= p.upTo; {
		var err error
		if next, err = p.slice(ctx, next); err != nil {
			return p.deleted, err
		}
		if s.config.pruned != nil {
			s.config.pruned()
		}
	}
	return p.deleted, nil
}

// kept returns the revision up to which events may be pruned: sink and anchor have them, and do not
// end there. It is 0 if there is no sink, or it cannot be written.
func (s *Store) kept() int64 {
	state := s.State()
	if s.sink == nil || state.SinkStalled {
		return 0
	}
	// The next start compares the event of the last line with the file.
	upTo := state.SinkRevision - 1
	if s.anchor != nil {
		upTo = min(upTo, state.AnchoredRevision-1)
	}
	return upTo
}

// newestBefore returns the revision of the newest event up to a revision that is older than a time,
// found as if the times ascended, or 0.
func newestBefore(cursor *bolt.Cursor, before time.Time, upTo int64) (int64, error) {
	found := int64(0)
	for low, high := int64(1), upTo; low <= high; {
		middle := low + (high-low)/2
		name, value := atOrBefore(cursor, middle)
		if name == nil {
			low = middle + 1
			continue
		}
		revision, err := parseNumber(name)
		if err != nil {
			return 0, &storage.DamagedError{Kind: "audit event", Problem: err.Error()}
		}
		event, _, err := decodeAudit(string(name), value)
		if err == nil && !event.Record.GetTime().AsTime().Before(before) {
			high = revision - 1
			continue
		}
		found, low = max(found, revision), middle+1
	}
	return found, nil
}

// pruning is one run of PruneAudit. It visits the events up to upTo by ascending revision.
type pruning struct {
	store  *Store
	before time.Time
	// upTo is the newest revision that counts as old. Up to unsunk all events stay.
	upTo, unsunk int64
	deleted      int64
	// runs has what is known of each workspace.
	runs map[string]*auditRun
	// stale has the records that an event that stays put, and that are not so any more.
	stale map[namedRecord]bool
}

type namedRecord struct {
	workspaceID string
	id          recordID
}

// auditRun is what a pruning knows of a workspace.
type auditRun struct {
	// before is the newest event that stays, last the newest one that was visited, or 0.
	before, last int64
	// pending are the events after before. They may be deleted once a later one is linked to before.
	pending []int64
}

// visitedEvent is an event that a pruning visits.
type visitedEvent struct {
	revision, previous int64
	workspaceID        string
	time               time.Time
	put                []putRecord
	removed            []recordID
}

// putRecord is a record that an event put, with the beginning of its element.
type putRecord struct {
	id    recordID
	short uint64
}

// prunedSlice is what one transaction does.
type prunedSlice struct {
	deletes []int64
	links   map[int64]int64
}

// slice visits some events from a revision on, and deletes what can be deleted. It returns the
// revision at which the next slice begins, 0 if this one was the last.
func (p *pruning) slice(ctx context.Context, from int64) (int64, error) {
	// 1. Read. Nothing but a pruning changes events that are there.
	var visited []visitedEvent
	next := int64(0)
	if _, err := p.store.read(ctx, nil, func(tx *bolt.Tx) error {
		visited, next = visitEvents(tx, from, p.upTo)
		return nil
	}); err != nil {
		return 0, err
	}
	// 2. Decide. The index may be newer: then more may be deleted, and what has to stay stays.
	var file *opened
	slice := prunedSlice{links: make(map[int64]int64)}
	if _, err := p.store.lookUp(ctx, func(index *fileIndex) {
		file = p.store.file
		p.decide(index, visited, &slice)
	}); err != nil {
		return 0, err
	}
	if len(slice.deletes) == 0 {
		return next, ctx.Err()
	}
	// 3. Write.
	if err := p.store.room.admit(false); err != nil {
		return 0, err
	}
	bytes := need(make([]write, len(slice.deletes)+len(slice.links)+1))
	var damaged error
	err := p.store.writeAside(ctx, file, bytes, func(tx *bolt.Tx) error {
		// A damaged event is no reason to reopen the file: the transaction commits without a change.
		if damaged = p.write(tx, slice); damaged != nil && !errors.Is(damaged, storage.ErrDamaged) {
			return damaged
		}
		return nil
	})
	if err = errors.Join(err, damaged); err != nil {
		return 0, err
	}
	p.deleted += int64(len(slice.deletes))
	return next, nil
}

// visitEvents reads pruneSlice events from one revision to another, and returns the revision at
// which the next slice begins, 0 after the last. Unreadable events are left out: they stay.
func visitEvents(tx *bolt.Tx, from, upTo int64) (visited []visitedEvent, next int64) {
	hasher := integrity.NewHasher()
	cursor := tx.Bucket([]byte(bucketAudit)).Cursor()
	count := 0
	for name, value := cursor.Seek([]byte(number(from))); name != nil; name, value = cursor.Next() {
		revision, err := parseNumber(name)
		if err != nil || revision > upTo {
			break // Check reports the name
		}
		if count++; count > pruneSlice {
			return visited, revision
		}
		event, previous, err := decodeAudit(string(name), value)
		if err != nil {
			continue
		}
		visited = append(visited, visitedEventOf(hasher, revision, previous, event.Record))
	}
	return visited, 0
}

func visitedEventOf(hasher *integrity.Hasher, revision, previous int64, record *storagev1.AuditRecord) visitedEvent {
	visited := visitedEvent{
		revision: revision, previous: previous,
		workspaceID: record.GetWorkspaceId(), time: record.GetTime().AsTime(),
	}
	for _, change := range record.GetChanges() {
		id := recordID{change.GetKind(), change.GetName()}
		if after := change.GetAfter(); len(after) == len(integrity.Hash{}) {
			element := hasher.Element(integrity.KindName(id.kind), visited.workspaceID, id.name, integrity.Hash(after))
			visited.put = append(visited.put, putRecord{id, element.Short()})
		} else {
			visited.removed = append(visited.removed, id)
		}
	}
	return visited
}

// decide adds to a slice which events are deleted, and which ones are linked anew.
func (p *pruning) decide(index *fileIndex, visited []visitedEvent, slice *prunedSlice) {
	for _, event := range visited {
		run := p.runs[event.workspaceID]
		stays := p.stays(index, event)
		switch {
		case run == nil:
			run = &auditRun{before: event.previous}
			p.runs[event.workspaceID] = run
		case event.previous != run.last:
			// An event between the two is unreadable. Nothing before it is deleted any more.
			run.pending, stays = nil, true
		}
		run.last = event.revision
		if !stays {
			run.pending = append(run.pending, event.revision)
			continue
		}
		if len(run.pending) > 0 {
			slice.links[event.revision] = run.before
			slice.deletes = append(slice.deletes, run.pending...)
		}
		run.before, run.pending = event.revision, nil
		for _, put := range event.put {
			if !isCurrent(index, event.workspaceID, put) {
				p.stale[namedRecord{event.workspaceID, put.id}] = true
			}
		}
	}
	// The last pending event may turn out to be the newest old event of its workspace.
	for _, event := range visited {
		run := p.runs[event.workspaceID]
		if last := len(run.pending) - 1; last > 0 {
			slice.links[run.pending[last]] = run.before
			slice.deletes = append(slice.deletes, run.pending[:last]...)
			run.pending = run.pending[last:]
		}
	}
	slices.Sort(slice.deletes)
}

// stays reports whether an event must not be deleted.
func (p *pruning) stays(index *fileIndex, event visitedEvent) bool {
	if event.revision <= p.unsunk || !event.time.Before(p.before) {
		return true
	}
	workspace := index.workspaces[event.workspaceID]
	if workspace == nil || workspace.damaged != nil || workspace.damagedHead != nil || len(workspace.faults) > 0 {
		return true // its events show what was lost
	}
	for _, put := range event.put {
		if isCurrent(index, event.workspaceID, put) {
			return true
		}
	}
	for _, id := range event.removed {
		if p.stale[namedRecord{event.workspaceID, id}] {
			return true
		}
	}
	return false
}

// isCurrent reports whether a record is as an event has put it. Each change of a record makes it
// another one, because the record has the sequence of the change.
func isCurrent(index *fileIndex, workspaceID string, put putRecord) bool {
	expected := index.expect(workspaceID, put.id)
	return expected.there && expected.short == put.short
}

// write puts a slice into a transaction. After ErrDamaged it has changed nothing.
func (p *pruning) write(tx *bolt.Tx, slice prunedSlice) error {
	bucket := tx.Bucket([]byte(bucketAudit))
	// 1. Read all events that are linked anew, before anything is changed.
	linked := make([]write, 0, len(slice.links))
	for revision, before := range slice.links {
		name := number(revision)
		event, _, err := decodeAudit(name, bucket.Get([]byte(name)))
		if err != nil {
			return err
		}
		linked = append(linked, write{bucketAudit, name, frame(bucketAudit, name, append([]byte(number(before)), event.Encoded...))})
	}
	pruned, err := revisionMark(tx, namePruned)
	if err != nil {
		return err
	}
	// 2. Write them, delete, and note up to where events may be missing.
	for _, write := range linked {
		if err := bucket.Put([]byte(write.name), write.value); err != nil {
			return err
		}
	}
	for _, revision := range slice.deletes {
		if err := bucket.Delete([]byte(number(revision))); err != nil {
			return err
		}
	}
	if pruned >= p.upTo {
		return nil
	}
	return putRevisionMark(tx, namePruned, p.upTo)
}
