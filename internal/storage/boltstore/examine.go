package boltstore

import (
	"bytes"
	"math/bits"
	"strconv"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// verify compares every workspace's records with the tag in its head. Where they differ, it
// finds out what is wrong. links are those of the audit events.
func (o *opened) verify(tx *bolt.Tx, links []*eventLinks) {
	newest := o.newestEvents(tx, links)
	hasher := integrity.NewHasher()
	for id, revision := range newest {
		o.index.workspace(id).compareNewest(revision, o.index)
	}
	for id, entry := range o.index.workspaces {
		trusted := entry.damagedHead == nil
		if trusted {
			tag := tagOf(hasher, o.header.GetEpoch(), id, entry.head, entry.sum)
			if bytes.Equal(entry.tag, tag[:]) { // head tags are compared
				entry.tag = nil
				continue
			}
		}
		o.examine(tx, hasher, entry, trusted)
		entry.tag = nil
	}
	o.index.damage = o.index.findDamage(o.position.Revision)
}

// compareNewest marks the workspace's head as damaged if the workspace has an audit event at
// revision, and the head is older.
func (w *indexedWorkspace) compareNewest(revision int64, index *fileIndex) {
	if revision <= w.headRevision {
		return
	}
	switch {
	case w.damagedHead != nil:
	case w.headRevision == 0:
		w.damagedHead = &storage.DamagedError{Kind: "head", Name: w.id, Problem: "missing"}
		index.lostHeads = append(index.lostHeads, w.id)
	default:
		w.damagedHead = &storage.DamagedError{
			Kind: "head", Name: w.id, Problem: "the audit event of revision " + strconv.FormatInt(revision, 10) + " is ahead of it",
		}
	}
	w.headRevision = revision
}

// newestEvents returns, by workspace, the revision of the newest event to which neither a head
// nor a later event points. The head that pointed to this event is stale or lost.
func (o *opened) newestEvents(tx *bolt.Tx, found []*eventLinks) map[string]int64 {
	// 1. Put together what the scan has found, and what the heads point to.
	links := newEventLinks(o.position.Revision)
	for _, other := range found {
		links.merge(other)
	}
	for _, entry := range o.index.workspaces {
		links.point(entry.headRevision)
	}
	// 2. Read the events to which nothing points.
	bucket := tx.Bucket([]byte(bucketAudit))
	newest := make(map[string]int64)
	for index, word := range links.pointed {
		for word = links.present[index] &^ word; word != 0; word &= word - 1 {
			revision := int64(index)*64 + int64(bits.TrailingZeros64(word))
			name := number(revision)
			// Unreadable events are skipped, because they prove nothing. Check reports them.
			if event, _, err := decodeAudit(name, bucket.Get([]byte(name))); err == nil && revision <= o.position.Revision {
				id := event.Record.GetWorkspaceId()
				newest[id] = max(newest[id], revision)
			}
		}
	}
	return newest
}

// eventLinks are revisions of audit events, with a bit for each.
type eventLinks struct {
	// pointed are the revisions to which a head or an event points; present are those that have an
	// event: old events were pruned.
	pointed, present []uint64
	newest           int64
}

// newEventLinks returns an eventLinks for revisions up to newest.
func newEventLinks(newest int64) *eventLinks {
	words := newest/64 + 1
	return &eventLinks{pointed: make([]uint64, words), present: make([]uint64, words), newest: newest}
}

func (l *eventLinks) set(bits []uint64, revision int64) {
	if revision > 0 && revision <= l.newest {
		bits[revision/64] |= 1 << (revision % 64)
	}
}

// point notes that a head or an event points to a revision.
func (l *eventLinks) point(revision int64) { l.set(l.pointed, revision) }

// add notes an event. Its frame is not checked: a wrong number only leaves one more event that
// newestEvents looks at.
func (l *eventLinks) add(name, value []byte) {
	if revision, err := parseNumber(name); err == nil {
		l.set(l.present, revision)
	}
	if len(value) > auditHeader {
		if previous, err := parseNumber(storage.Payload(value)); err == nil {
			l.point(previous)
		}
	}
}

// end implements valueReader.
func (l *eventLinks) end() func() error { return nil }

// merge takes over what another one has noted.
func (l *eventLinks) merge(other *eventLinks) {
	for index := range l.present {
		l.pointed[index] |= other.pointed[index]
		l.present[index] |= other.present[index]
	}
}

// auditHeader is the min size of a stored audit event: the header of its frame, and the
// revision of the workspace's previous event.
const auditHeader = 5 + numberLength

// examination finds out which records of one workspace are wrong.
type examination struct {
	workspace *indexedWorkspace
	records   *integrity.Examination[recordID]
}

// examine reads a workspace's events backwards from the newest one, until the records that
// they list agree with the tag of the head. If the head is not trusted, every stored record
// must be listed by an event. If it remains unknown which records are wrong, all count as
// wrong.
func (o *opened) examine(tx *bolt.Tx, hasher *integrity.Hasher, entry *indexedWorkspace, trusted bool) {
	e := &examination{workspace: entry}
	e.records = integrity.NewExamination(func(id recordID, payload integrity.Hash) integrity.Element {
		return hasher.Element(integrity.KindName(id.kind), entry.id, id.name, payload)
	})
	e.collect(tx, o.index)
	if !o.walk(tx, hasher, e, trusted) {
		entry.damaged = &storage.DamagedError{
			Kind: "workspace", Name: entry.id,
			Problem: integrity.ProblemUnknown,
		}
		return
	}
	o.index.correct(e)
}

// walk reads the workspace's events backwards, and reports whether they show which records are
// wrong.
func (o *opened) walk(tx *bolt.Tx, hasher *integrity.Hasher, e *examination, trusted bool) bool {
	entry := e.workspace
	expected := entry.head.Hash[:]
	if !trusted {
		expected = nil
	}
	bucket := tx.Bucket([]byte(bucketAudit))
	pruned, err := revisionMark(tx, namePruned)
	if err != nil {
		pruned = 0 // then the walk ends at the first gap
	}
	following := int64(0) // the sequence of the event that was read last, if it is in what was pruned
	for revision := entry.headRevision; revision > 0; {
		name := number(revision)
		event, previous, err := decodeAudit(name, bucket.Get([]byte(name)))
		if err != nil || event.Record.GetWorkspaceId() != entry.id || previous >= revision {
			return false
		}
		// The event before one in what was pruned may be older than the one that it chains to.
		isGap := event.Record.GetSequence() < following-1
		if hash := storage.HashAudit(event.Encoded); !isGap && expected != nil && !bytes.Equal(hash[:], expected) {
			return false
		}
		if following = 0; revision <= pruned {
			following = event.Record.GetSequence()
		}
		for _, change := range event.Record.GetChanges() {
			// A file has no settings. If it was filled from a store that had some, an event has deleted them.
			if change.GetKind() != storagev1.RecordKind_RECORD_KIND_SETTINGS {
				e.records.List(recordID{change.GetKind(), change.GetName()}, change.GetAfter())
			}
		}
		if trusted {
			tag := tagOf(hasher, o.header.GetEpoch(), entry.id, entry.head, e.records.Sum())
			if bytes.Equal(tag[:], entry.tag) {
				return true
			}
		}
		expected, revision = event.Record.GetPreviousHash(), previous
	}
	if trusted {
		return false
	}
	return e.records.AllListed()
}

// collect reads the hashes of the workspace's records.
func (e *examination) collect(tx *bolt.Tx, index *fileIndex) {
	add := func(bucket string, id recordID, name, value []byte) {
		if value == nil {
			return
		}
		payload, err := storage.Unframe(integrity.KindName(id.kind), frameName(bucket, string(name)), value)
		if err != nil {
			e.records.Unreadable(id, fault(e.workspace.id, id, problemOf(err)))
			return
		}
		e.records.Stored(id, integrity.HashPayload(payload))
	}
	if e.workspace.id == "" {
		add(bucketPolicy, recordID{kind: kindPolicy}, []byte(nameActive), tx.Bucket([]byte(bucketPolicy)).Get([]byte(nameActive)))
		return
	}
	name := []byte(e.workspace.id)
	add(bucketWorkspaces, recordID{kind: kindWorkspace}, name, tx.Bucket([]byte(bucketWorkspaces)).Get(name))
	prefix := []byte(memberName(e.workspace.id, ""))
	members := tx.Bucket([]byte(bucketMembers)).Cursor()
	for name, value := members.Seek(prefix); bytes.HasPrefix(name, prefix); name, value = members.Next() {
		add(bucketMembers, recordID{kindMember, string(name[len(prefix):])}, name, value)
	}
	keys := tx.Bucket([]byte(bucketKeys)).Cursor()
	for each := range index.lists.Backward(&e.workspace.keys, func(uint32) bool { return false }) {
		name, value := keys.Seek([]byte(number(index.slot(each))))
		if _, keyID, _, err := parseKeyName(name); err == nil {
			add(bucketKeys, recordID{kindKey, keyID}, name, value)
		}
	}
}

// correct sets the index to what the events list. It notes the records that differ, and sets
// the sum of the records as they should be, so that the other records of the workspace can
// still be changed.
func (d *fileIndex) correct(e *examination) {
	entry := e.workspace
	entry.sum, entry.faults = e.records.Sum(), make(map[recordID]error)
	for id, verdict := range e.records.Verdicts() {
		if verdict.Known {
			d.setElement(entry, id, verdict.Element.Short()) // of a key that is missing, the index has none
		}
		switch {
		case verdict.Unreadable != nil:
			entry.faults[id] = verdict.Unreadable
		case verdict.Problem != "":
			entry.faults[id] = fault(entry.id, id, verdict.Problem)
		}
		if verdict.Problem == integrity.ProblemMissing {
			entry.missing = append(entry.missing, id)
			if id.kind == kindKey {
				d.lostKeys[id.name] = entry
			}
		}
	}
}
