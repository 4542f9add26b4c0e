package boltstore

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// A frame's checksum tells whether a record is in one piece, not whether it is the newest.
// That is what this file is about. When a file is opened, the elements of each workspace's
// records are added up and compared with the tag in its head. If they differ, the audit
// events are walked back from the head; they list the hash of every record that was put,
// and so tell which records are stale, missing or left over. From then on memory has eight
// bytes of the element of each record as it should be, and whatever is read from the file
// is compared with them: by readers, and by a commit before it replaces or deletes.

// recordID names a record of a workspace.
type recordID struct {
	kind storagev1.RecordKind
	name string // as RecordChange has it
}

const (
	kindPolicy    = storagev1.RecordKind_RECORD_KIND_POLICY
	kindWorkspace = storagev1.RecordKind_RECORD_KIND_WORKSPACE
	kindMember    = storagev1.RecordKind_RECORD_KIND_MEMBER
	kindKey       = storagev1.RecordKind_RECORD_KIND_KEY
)

// ownRecord is the one record of a workspace that is not a member or key.
func ownRecord(workspaceID string) recordID {
	if workspaceID == "" {
		return recordID{kind: kindPolicy}
	}
	return recordID{kind: kindWorkspace}
}

// kindName returns a kind's name in elements and errors.
func kindName(kind storagev1.RecordKind) string {
	switch kind {
	case kindPolicy:
		return integrity.KindPolicy
	case kindWorkspace:
		return integrity.KindWorkspace
	case kindMember:
		return integrity.KindMember
	case kindKey:
		return integrity.KindKey
	case storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return "record"
}

// fault returns the error of a record that is not what it should be.
func fault(workspaceID string, id recordID, problem string) error {
	name := id.name
	switch id.kind {
	case kindPolicy:
		name = nameActive
	case kindWorkspace:
		name = workspaceID
	case kindMember, kindKey, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return &storage.DamagedError{Kind: kindName(id.kind), Name: name, Problem: problem}
}

// What is wrong with a record whose checksum is good.
const (
	problemStale   = "it is not the record that the newest audit event put"
	problemMissing = "missing"
	problemSurplus = "it is there, though an audit event deleted it"
)

// hashers are shared by what runs in many goroutines.
var hashers = sync.Pool{New: func() any { return integrity.NewHasher() }}

// elementOf returns the element of a record with a payload, and the payload's hash.
func elementOf(workspaceID string, id recordID, payload []byte) (integrity.Element, integrity.Hash) {
	hash := integrity.HashPayload(payload)
	hasher := hashers.Get().(*integrity.Hasher) //nolint:forcetypeassert,errcheck // the pool has nothing else
	defer hashers.Put(hasher)
	return hasher.Element(kindName(id.kind), workspaceID, id.name, hash), hash
}

// expectation is what memory knows of one record.
type expectation struct {
	workspaceID string
	id          recordID
	short       uint64 // of its element
	there       bool
	fault       error // found when the file was opened
}

// compare returns the error of a record that is not the one that memory knows: stored says
// whether there is one in the file, and element is what it adds.
func (e expectation) compare(element integrity.Element, stored bool) error {
	switch {
	case e.fault != nil:
		return e.fault
	case e.there && !stored:
		return fault(e.workspaceID, e.id, problemMissing)
	case stored && !e.there:
		return fault(e.workspaceID, e.id, problemSurplus)
	case stored && element.Short() != e.short: // what is read is compared with memory
		return fault(e.workspaceID, e.id, problemStale)
	}
	return nil
}

// compareValue compares the value that is stored under the record's name, whose frame is
// good; nil if nothing is.
func (e expectation) compareValue(value []byte) error {
	if value == nil {
		return e.compare(integrity.Element{}, false)
	}
	element, _ := elementOf(e.workspaceID, e.id, storage.Payload(value))
	return e.compare(element, true)
}

// expect returns what memory knows of a record.
func (d *directory) expect(workspaceID string, id recordID) expectation {
	expected := expectation{workspaceID: workspaceID, id: id}
	entry := d.workspaces[workspaceID]
	if entry == nil {
		return expected
	}
	expected.fault = entry.faults[id]
	if entry.damaged != nil {
		expected.fault = entry.damaged
	}
	switch id.kind {
	case kindKey:
		at, found := d.keys[id.name]
		expected.short, expected.there = at.element, found && at.workspace == entry
	case kindMember:
		expected.short, expected.there = entry.members[id.name], entry.hasMember(id.name)
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
		expected.short, expected.there = entry.own, entry.hasOwn
	}
	return expected
}

func (w *workspace) hasMember(memberID string) bool {
	_, found := w.members[memberID]
	return found
}

// findKey returns where a key lies, and what memory knows of its record. Slot 0 is none:
// of a key that is not there, or not in the workspace, or missing, which is a fault.
func (d *directory) findKey(workspaceID, keyID string) (int64, expectation) {
	at, found := d.keys[keyID]
	entry := at.workspace
	if !found {
		entry = d.lostKeys[keyID]
	}
	if entry == nil || workspaceID != "" && workspaceID != entry.id {
		return 0, expectation{}
	}
	return at.slot, d.expect(entry.id, recordID{kindKey, keyID})
}

// setElement notes the element of a record that is in the file, or will be. A key has its
// place already.
func (d *directory) setElement(entry *workspace, id recordID, short uint64) {
	switch id.kind {
	case kindKey:
		at := d.keys[id.name]
		at.element = short
		d.keys[id.name] = at
	case kindMember:
		if entry.members == nil {
			entry.members = make(map[string]uint64)
		}
		entry.members[id.name] = short
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
		entry.own, entry.hasOwn = short, true
	}
}

// damage is what was found to be wrong with a file when it was opened, or loaded anew. It
// is never changed.
type damage struct {
	// revision that this was found at.
	revision int64
	// heads, workspaces as a whole, and records are by workspace.
	heads      map[string]error
	workspaces map[string]error
	// lostHeads are the workspaces whose head is not in the file, in order.
	lostHeads []string
	records   map[string]map[recordID]error
	// missing are records that are not in the file, in order.
	missing []expectation
}

// findDamage collects what is wrong.
func (d *directory) findDamage(revision int64) *damage {
	slices.Sort(d.lostHeads)
	found := &damage{
		revision: revision, lostHeads: d.lostHeads, heads: make(map[string]error), workspaces: make(map[string]error),
		records: make(map[string]map[recordID]error),
	}
	for id, entry := range d.workspaces {
		if entry.damagedHead != nil {
			found.heads[id] = entry.damagedHead
		}
		if entry.damaged != nil {
			found.workspaces[id] = entry.damaged
		}
		if len(entry.faults) == 0 {
			continue
		}
		found.records[id] = entry.faults
		for _, lost := range entry.missing {
			found.missing = append(found.missing, expectation{workspaceID: id, id: lost, fault: entry.faults[lost]})
		}
	}
	slices.SortFunc(found.missing, func(a, b expectation) int {
		return strings.Compare(a.workspaceID+"\x00"+a.id.name, b.workspaceID+"\x00"+b.id.name)
	})
	return found
}

// log says what was found; of very much, the beginning and how much more there is.
func (d *damage) log(log *slog.Logger) {
	const most = 20
	count := 0
	say := func(workspaceID string, err error) {
		if count++; count <= most {
			log.Error("what is stored is not what it should be", "workspace_id", workspaceID, "error", err)
		}
	}
	for _, errs := range []map[string]error{d.heads, d.workspaces} {
		for _, workspaceID := range slices.Sorted(maps.Keys(errs)) {
			say(workspaceID, errs[workspaceID])
		}
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(d.records)) {
		for _, err := range d.records[workspaceID] {
			say(workspaceID, err)
		}
	}
	if count > most {
		log.Error("more of what is stored is not what it should be; keysvc check names it", "count", count-most)
	}
}

// setEpoch begins a new history with what the file holds: the header gets another epoch,
// and each head a tag for it. A head that is damaged, or that nobody can tell the records
// of, keeps a tag that does not fit: what was found must not become right.
func (o *opened) setEpoch(tx *bolt.Tx, epoch string) error {
	hasher := integrity.NewHasher()
	for _, id := range slices.Sorted(maps.Keys(o.directory.workspaces)) {
		entry := o.directory.workspaces[id]
		if entry.damagedHead != nil || entry.damaged != nil {
			continue
		}
		record := entry.head.Record(entry.headRevision)
		tag := tagOf(hasher, epoch, id, entry.head, entry.sum)
		record.Tag, record.TagKeyVersion = tag[:], integrity.KeyVersion
		if err := put(tx, bucketHeads, headName(id), record); err != nil {
			return err
		}
	}
	header := proto.CloneOf(o.header)
	header.Epoch = epoch
	return put(tx, bucketMeta, nameHeader, header)
}

// judge returns the item as it is to be visited: as damaged, if that was found.
func (d *damage) judge(item storage.Item) storage.Item {
	if item.Head != nil {
		if err := d.heads[item.Head.WorkspaceID]; err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: item.Head.WorkspaceID, Head: true, Err: err}}
		}
		return item
	}
	workspaceID, id := recordOf(item)
	if err := d.records[workspaceID][id]; err != nil {
		return damagedItem(workspaceID, id, err)
	}
	return item
}

// recordOf names the record in an item. The kind is unspecified if the item has no record.
func recordOf(item storage.Item) (workspaceID string, id recordID) {
	switch {
	case item.Policy != nil:
		return "", recordID{kind: kindPolicy}
	case item.Workspace != nil:
		return item.Workspace.GetWorkspaceId(), recordID{kind: kindWorkspace}
	case item.Member != nil:
		return item.Member.GetWorkspaceId(), recordID{kindMember, item.Member.GetMemberId()}
	case item.Key != nil:
		return item.Key.GetWorkspaceId(), recordID{kindKey, item.Key.GetKeyId()}
	}
	return "", recordID{}
}

// visitAbsent visits, before a bucket's records, what is wrong with it and has no entry
// there.
func (d *damage) visitAbsent(bucket string, visit func(storage.Item) error) error {
	if bucket == bucketKeys {
		for _, workspaceID := range d.lostHeads {
			damaged := &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: d.heads[workspaceID]}
			if err := visit(storage.Item{Damaged: damaged}); err != nil {
				return err
			}
		}
	}
	for _, lost := range d.missing {
		if bucketOf(lost.id.kind) == bucket {
			if err := visit(damagedItem(lost.workspaceID, lost.id, lost.fault)); err != nil {
				return err
			}
		}
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(d.workspaces)) {
		if id := ownRecord(workspaceID); bucketOf(id.kind) == bucket {
			if err := visit(damagedItem(workspaceID, id, d.workspaces[workspaceID])); err != nil {
				return err
			}
		}
	}
	return nil
}

// bucketOf returns the bucket of a kind of records.
func bucketOf(kind storagev1.RecordKind) string {
	switch kind {
	case kindPolicy:
		return bucketPolicy
	case kindWorkspace:
		return bucketWorkspaces
	case kindMember:
		return bucketMembers
	case kindKey, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return bucketKeys
}

// damagedItem is how a record that is wrong is visited.
func damagedItem(workspaceID string, id recordID, err error) storage.Item {
	damaged := &storage.Damaged{WorkspaceID: workspaceID, Err: err}
	switch id.kind {
	case kindMember:
		damaged.MemberID = id.name
	case kindKey:
		damaged.KeyID = id.name
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return storage.Item{Damaged: damaged}
}

// tagOf returns the tag of a head over what a workspace's records add up to.
func tagOf(hasher *integrity.Hasher, epoch, workspaceID string, head storage.Head, sum integrity.Sum) [32]byte {
	return hasher.Tag(integrity.Head{
		Epoch: epoch, WorkspaceID: workspaceID, Sequence: head.Sequence, EventHash: head.Hash,
	}, sum)
}

// verify compares every workspace's records with the tag in its head, and finds out what
// is wrong where they differ.
func (o *opened) verify(tx *bolt.Tx) error {
	newest, err := o.newestEvents(tx)
	if err != nil {
		return err
	}
	hasher := integrity.NewHasher()
	for id, revision := range newest {
		o.directory.workspace(id).isBehind(revision, o.directory)
	}
	for id, entry := range o.directory.workspaces {
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
	o.directory.damage = o.directory.findDamage(o.position.Revision)
	return nil
}

// isBehind notes that a workspace has an audit event that its head does not know.
func (w *workspace) isBehind(revision int64, directory *directory) {
	if revision <= w.headRevision {
		return
	}
	switch {
	case w.damagedHead != nil:
	case w.headRevision == 0:
		w.damagedHead = &storage.DamagedError{Kind: "head", Name: w.id, Problem: "missing"}
		directory.lostHeads = append(directory.lostHeads, w.id)
	default:
		w.damagedHead = &storage.DamagedError{
			Kind: "head", Name: w.id, Problem: "the audit event of revision " + strconv.FormatInt(revision, 10) + " is ahead of it",
		}
	}
	w.headRevision = revision
}

// newestEvents returns, by workspace, the revision of events that neither a head nor a
// later event points to: the head that did is stale, or lost.
func (o *opened) newestEvents(tx *bolt.Tx) (map[string]int64, error) {
	// A bit for each revision that something points to.
	pointed := make([]uint64, o.position.Revision/64+1)
	point := func(revision int64) {
		if revision > 0 && revision <= o.position.Revision {
			pointed[revision/64] |= 1 << (revision % 64)
		}
	}
	for _, entry := range o.directory.workspaces {
		point(entry.headRevision)
	}
	bucket := tx.Bucket([]byte(bucketAudit))
	err := bucket.ForEach(func(_, value []byte) error {
		// Unchecked: a wrong number can only leave out what is then looked at below.
		if len(value) > auditHeader {
			if previous, err := parseNumber(value[len(value)-len(storage.Payload(value)):]); err == nil {
				point(previous)
			}
		}
		return nil
	})
	newest := make(map[string]int64)
	for index, word := range pointed {
		for word = ^word; word != 0; word &= word - 1 {
			revision := int64(index)*64 + int64(bits.TrailingZeros64(word))
			name := number(revision)
			// What cannot be read here is for Check to find; it makes no record true.
			if event, _, err := decodeAudit(name, bucket.Get([]byte(name))); err == nil && revision <= o.position.Revision {
				id := event.Record.GetWorkspaceId()
				newest[id] = max(newest[id], revision)
			}
		}
	}
	return newest, err
}

// auditHeader is how many bytes a stored audit event has at least: its frame, and the
// revision before it.
const auditHeader = 5 + numberLength

// examination finds out which records of one workspace are wrong.
type examination struct {
	workspace *workspace
	hasher    *integrity.Hasher
	// stored are the records in the file; of those that cannot be read, unreadable has
	// the error.
	stored     map[recordID]integrity.Hash
	unreadable map[recordID]error
	// last has the hash that the newest event which lists a record gave it; nil if it
	// was deleted.
	last map[recordID][]byte
	// sum is that of the stored records, corrected by what the events say.
	sum integrity.Sum
}

// examine walks a workspace's events back from its newest one until what they say of the
// records agrees with the tag of a head that is trusted. Without such a head everything
// stored must be listed by an event. If it cannot be told which records are wrong, all are.
func (o *opened) examine(tx *bolt.Tx, hasher *integrity.Hasher, entry *workspace, trusted bool) {
	e := &examination{workspace: entry, hasher: hasher, last: make(map[recordID][]byte)}
	e.collect(tx)
	told := o.walk(tx, e, trusted)
	if !told {
		entry.damaged = &storage.DamagedError{
			Kind: "workspace", Name: entry.id,
			Problem: "its records are not those that its head stands for, and its audit events do not tell which are wrong",
		}
		return
	}
	o.directory.correct(e)
}

// walk reports whether the events tell which records are wrong.
func (o *opened) walk(tx *bolt.Tx, e *examination, trusted bool) bool {
	entry := e.workspace
	expected := entry.head.Hash[:]
	if !trusted {
		expected = nil
	}
	bucket := tx.Bucket([]byte(bucketAudit))
	for revision := entry.headRevision; revision > 0; {
		name := number(revision)
		event, previous, err := decodeAudit(name, bucket.Get([]byte(name)))
		if err != nil || event.Record.GetWorkspaceId() != entry.id || previous >= revision {
			return false
		}
		if hash := storage.HashAudit(event.Encoded); expected != nil && !bytes.Equal(hash[:], expected) {
			return false
		}
		for _, change := range event.Record.GetChanges() {
			e.listed(change)
		}
		if trusted {
			tag := tagOf(e.hasher, o.header.GetEpoch(), entry.id, entry.head, e.sum)
			if bytes.Equal(tag[:], entry.tag) {
				return true
			}
		}
		expected, revision = event.Record.GetPreviousHash(), previous
	}
	if trusted {
		return false
	}
	for id := range e.stored {
		if _, listed := e.last[id]; !listed {
			return false
		}
	}
	return true
}

// listed takes what an event says of a record, unless a newer one has.
func (e *examination) listed(change *storagev1.RecordChange) {
	id := recordID{change.GetKind(), change.GetName()}
	if _, newer := e.last[id]; newer {
		return
	}
	e.last[id] = change.GetAfter()
	if hash, stored := e.stored[id]; stored {
		e.sum = e.sum.Remove(e.element(id, hash))
	}
	if len(change.GetAfter()) == len(integrity.Hash{}) {
		e.sum = e.sum.Add(e.element(id, integrity.Hash(change.GetAfter())))
	}
}

func (e *examination) element(id recordID, hash integrity.Hash) integrity.Element {
	return e.hasher.Element(kindName(id.kind), e.workspace.id, id.name, hash)
}

// collect reads the hashes of the workspace's records.
func (e *examination) collect(tx *bolt.Tx) {
	e.stored, e.unreadable = make(map[recordID]integrity.Hash), make(map[recordID]error)
	add := func(bucket string, id recordID, name, value []byte) {
		if value == nil {
			return
		}
		payload, err := storage.Unframe(kindName(id.kind), frameName(bucket, string(name)), value)
		if err != nil {
			e.unreadable[id] = fault(e.workspace.id, id, problemOf(err))
			return
		}
		hash := integrity.HashPayload(payload)
		e.stored[id] = hash
		e.sum = e.sum.Add(e.element(id, hash))
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
	for _, slot := range e.workspace.slots {
		name, value := keys.Seek([]byte(number(slot)))
		if _, keyID, _, err := parseKeyName(name); err == nil {
			add(bucketKeys, recordID{kindKey, keyID}, name, value)
		}
	}
}

// correct makes memory what the events say: faulty records are noted as such, and the sum
// is that of the records as they should be, so that the workspace's other records can go
// on being changed.
func (d *directory) correct(e *examination) {
	entry := e.workspace
	entry.sum = e.sum
	entry.faults = e.unreadable
	for id, after := range e.last {
		hash, stored := e.stored[id]
		_, unreadable := e.unreadable[id]
		if len(after) > 0 {
			short := e.element(id, integrity.Hash(after)).Short()
			if _, found := d.keys[id.name]; id.kind != kindKey || found {
				d.setElement(entry, id, short)
			}
		}
		switch {
		case unreadable, stored && bytes.Equal(hash[:], after):
		case !stored && len(after) == 0:
		case stored && len(after) == 0:
			entry.faults[id] = fault(entry.id, id, problemSurplus)
		case stored:
			entry.faults[id] = fault(entry.id, id, problemStale)
		default:
			entry.faults[id] = fault(entry.id, id, problemMissing)
			entry.missing = append(entry.missing, id)
			if id.kind == kindKey {
				d.lostKeys[id.name] = entry
			}
		}
	}
}

// sighting is a record as a reader found it.
type sighting struct {
	workspaceID string
	id          recordID
	element     integrity.Element
}

// sight returns what a reader found under a name, whose frame is good.
func sight(workspaceID string, id recordID, value []byte) sighting {
	element, _ := elementOf(workspaceID, id, storage.Payload(value))
	return sighting{workspaceID, id, element}
}

// errMoved says that a record was changed after it was read.
var errMoved = fmt.Errorf("%w: the records are changing too fast to be read", storage.ErrUnavailable)

// confirm compares what a reader found at a revision with memory, which may be ahead of
// it: errMoved is for records of workspaces that have changed since.
func (d *directory) confirm(seen []sighting, revision int64) error {
	for _, each := range seen {
		err := d.expect(each.workspaceID, each.id).compare(each.element, true)
		if err == nil {
			continue
		}
		if entry := d.workspaces[each.workspaceID]; entry != nil && entry.headRevision > revision && entry.faults[each.id] == nil {
			return errMoved
		}
		return err
	}
	return nil
}
