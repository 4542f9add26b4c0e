package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Bounds of one transaction: how many changes it commits, and how many bytes of
// records, the change that goes over them included.
const (
	maxGroup      = 512
	maxGroupBytes = 4 << 20
)

// request is a change on its way through the committer.
type request struct {
	change   *storage.Change
	event    []byte // the audit event, encoded
	records  []encoded
	size     int // of event and records, encoded
	state    atomic.Int32
	done     chan struct{}
	revision int64
	err      error

	// Set by the committer.
	committed *storage.Committed
	slots     map[string]int64 // of new keys
	untrue    error            // a record that is replaced is not what it should be
	sum       integrity.Sum    // of the workspace's records after the change
}

// encoded is a record of a change, encoded before the change waits in line.
type encoded struct {
	id      recordID
	bucket  string
	name    string // empty for keys, whose slot the committer knows
	key     *storagev1.KeyRecord
	payload []byte // nil to delete

	// What the event says of it. The committer sets what was before.
	listed *storagev1.RecordChange
	// before and after are the record's elements, where there was or is one.
	before, after integrity.Element
}

const (
	waiting int32 = iota
	taken
	withdrawn
)

// write is one put or delete in the file.
type write struct {
	bucket, name string
	value        []byte // nil to delete
}

// Commit implements storage.Store.
func (s *Store) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if err := change.Validate(); err != nil {
		return 0, err
	}
	if err := s.room.admit(change.Narrows); err != nil {
		return 0, err
	}
	entry, err := encode(change)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	default:
	}
	select {
	case s.requests <- entry:
	case <-s.closing:
		return 0, storage.ErrUnavailable
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-entry.done:
	case <-s.stopped:
		// The store closed while the change was on its way into the line, perhaps too
		// late to be answered.
		if entry.state.CompareAndSwap(waiting, withdrawn) {
			return 0, storage.ErrUnavailable
		}
		<-entry.done
	case <-ctx.Done():
		if entry.state.CompareAndSwap(waiting, withdrawn) {
			return 0, ctx.Err()
		}
		// Already being committed: that takes as long as the disk takes, and only its
		// end tells the truth.
		<-entry.done
	}
	return entry.revision, entry.err
}

// encode prepares a change, so that the committer only has to write.
func encode(change *storage.Change) (*request, error) {
	entry := &request{change: change, done: make(chan struct{})}
	_, err := storage.Encode(change.Feed(0, [32]byte{}))
	add := func(id recordID, name string, key *storagev1.KeyRecord, record proto.Message) {
		added := encoded{id: id, bucket: bucketOf(id.kind), name: name, key: key}
		added.listed = &storagev1.RecordChange{Kind: id.kind, Name: id.name}
		if record != nil {
			var problem error
			added.payload, problem = storage.Encode(record)
			err = errors.Join(err, problem)
			var hash integrity.Hash
			added.after, hash = elementOf(change.WorkspaceID, id, added.payload)
			added.listed.After = hash[:]
		}
		entry.size += len(added.payload)
		entry.records = append(entry.records, added)
	}
	if change.PutPolicy != nil {
		add(recordID{kind: kindPolicy}, nameActive, nil, change.PutPolicy)
	}
	if change.PutWorkspace != nil {
		add(recordID{kind: kindWorkspace}, change.WorkspaceID, nil, change.PutWorkspace)
	}
	for _, member := range change.PutMembers {
		add(recordID{kindMember, member.GetMemberId()}, memberName(change.WorkspaceID, member.GetMemberId()), nil, member)
	}
	for _, member := range change.DeleteMembers {
		add(recordID{kindMember, member.GetMemberId()}, memberName(change.WorkspaceID, member.GetMemberId()), nil, nil)
	}
	for _, key := range change.PutKeys {
		add(recordID{kindKey, key.GetKeyId()}, "", key, key)
	}
	for _, key := range change.DeleteKeys {
		add(recordID{kindKey, key.GetKeyId()}, "", key, nil)
	}
	if err != nil {
		return nil, notEncodable(err)
	}
	if err := entry.encodeEvent(); err != nil {
		return nil, err
	}
	entry.size += len(entry.event)
	return entry, nil
}

// encodeEvent encodes the audit event, with what is known of the records.
func (r *request) encodeEvent() error {
	r.change.Event.Changes = make([]*storagev1.RecordChange, len(r.records))
	for index := range r.records {
		r.change.Event.Changes[index] = r.records[index].listed
	}
	var err error
	if r.event, err = storage.Encode(r.change.Event); err != nil {
		return notEncodable(err)
	}
	return nil
}

// notEncodable is the answer to text that is not UTF-8.
func notEncodable(err error) error {
	return fmt.Errorf("%w: %w", storage.ErrInvalidChange, err)
}

// commitLoop is the committer. It ends when the store closes, after it has answered
// everything that waits.
func (s *Store) commitLoop() {
	defer close(s.stopped)
	var line []*request
	for {
		if len(line) == 0 {
			select {
			case next := <-s.requests:
				line = append(line, next)
			case <-s.closing:
				s.refuse(line)
				return
			}
		}
		line = s.gather(line)
		var group []*request
		group, line = pick(line)
		s.commitGroup(group)
	}
}

// gather adds to the line what waits in the channel: all of it, so that many changes
// of one workspace do not keep those of others out of the next group.
func (s *Store) gather(line []*request) []*request {
	for {
		select {
		case next := <-s.requests:
			line = append(line, next)
		default:
			return line
		}
	}
}

// refuse answers everything that waits when the store closes. Whoever is about to
// send sees that the store is closing and gives up.
func (s *Store) refuse(line []*request) {
	for {
		for _, entry := range line {
			if entry.state.CompareAndSwap(waiting, taken) {
				entry.finish(0, storage.ErrUnavailable)
			}
		}
		line = line[:0]
		select {
		case next := <-s.requests:
			line = append(line, next)
		default:
			return
		}
	}
}

// pick takes from the line at most one change of each workspace and leaves the
// rest, in order, for the next group.
func pick(line []*request) (group, rest []*request) {
	workspaces := make(map[string]bool, len(line))
	size := 0
	for _, entry := range line {
		if workspaces[entry.change.WorkspaceID] || len(group) == maxGroup || size >= maxGroupBytes {
			rest = append(rest, entry)
			continue
		}
		if !entry.state.CompareAndSwap(waiting, taken) {
			continue // withdrawn: the caller has left
		}
		workspaces[entry.change.WorkspaceID] = true
		size += entry.size
		group = append(group, entry)
	}
	// The others were checked against the policy that is there now, so it changes after them.
	slices.SortStableFunc(group, func(a, b *request) int { return cmp.Compare(isPolicy(a), isPolicy(b)) })
	return group, rest
}

// isPolicy returns 1 for a change of the policy, and 0 for any other.
func isPolicy(r *request) int {
	if r.change.WorkspaceID == "" {
		return 1
	}
	return 0
}

func (r *request) finish(revision int64, err error) {
	r.revision, r.err = revision, err
	close(r.done)
}

// commitGroup commits a group in one transaction, publishes it in revision order,
// and answers.
func (s *Store) commitGroup(group []*request) {
	s.findReplaced(group)
	s.state.RLock()
	file, directory, position := s.file, s.directory, s.position
	up := file != nil && !s.unloaded
	s.state.RUnlock()
	base := position
	// Only the committer changes the directory, so it may read it without the lock.
	accepted := group[:0]
	var writes []write
	nextSlot := int64(0)
	if up {
		nextSlot = directory.nextSlot
	}
	newIDs := make(map[string]int64)
	// behind are changes that another one of the group forbids: they are answered once it is
	// known that this one is durable.
	behind := make(map[*request]error)
	hasher := integrity.NewHasher()
	for _, entry := range group {
		err := storage.ErrUnavailable
		if up {
			err = entry.check(directory, newIDs, base.Revision)
		}
		if exists := (*storage.ExistsError)(nil); errors.As(err, &exists) && exists.Revision > base.Revision {
			behind[entry] = err
			continue
		}
		var made []write
		if err == nil {
			made, err = entry.writes(directory, hasher, s.epoch, position.Revision+1, &nextSlot)
		}
		if err != nil {
			entry.finish(0, err)
			continue
		}
		for keyID := range entry.slots {
			newIDs[keyID] = position.Revision + 1
		}
		position.Revision++
		position.Hash = entry.committed.Head.Head.Hash
		if changed := entry.change.Event.GetTime().AsTime(); changed.After(position.Time) {
			position.Time = changed
		}
		writes = append(writes, made...)
		accepted = append(accepted, entry)
	}
	if len(accepted) == 0 {
		return
	}
	err := s.write(file, accepted, writes, position)
	for entry, refusal := range behind {
		if err != nil {
			refusal = storage.ErrUnavailable
		}
		entry.finish(0, refusal)
	}
	if errors.Is(err, errNoRoom) {
		s.commitLess(accepted)
		return
	}
	if errors.Is(err, storage.ErrUnavailable) {
		for _, entry := range accepted {
			entry.finish(0, err)
		}
		return
	}
	if err != nil {
		s.config.Log.Error("commit failed; the store will be reopened", "error", err)
		for _, entry := range accepted {
			entry.finish(0, fmt.Errorf("%w: %w", storage.ErrOutcomeUnknown, err))
		}
		return
	}
	s.anchor.committed(anchor.Mark{Epoch: s.epoch, Revision: position.Revision, Hash: position.Hash}, accepted)
}

// check compares the heads and looks for what must be absent, as of a revision. newIDs are
// the keys that changes before this one in the same group add, and their revisions.
func (r *request) check(directory *directory, newIDs map[string]int64, revision int64) error {
	var head storage.Head
	var headRevision int64
	if entry := directory.workspaces[r.change.WorkspaceID]; entry != nil {
		if entry.damagedHead != nil {
			return entry.damagedHead
		}
		for _, requestID := range r.change.AbsentRequestIDs {
			if keyID, found := entry.requestIDs[requestID]; found {
				return &storage.ExistsError{RequestID: requestID, KeyID: keyID, Revision: revision}
			}
		}
		head, headRevision = entry.head, entry.headRevision
	}
	if head != r.change.Expect {
		return &storage.ConflictError{Revision: headRevision}
	}
	if err := r.checkPolicy(directory.workspaces[""]); err != nil {
		return err
	}
	if r.untrue != nil {
		return r.untrue
	}
	for _, keyID := range r.change.AbsentKeyIDs {
		_, found := directory.keys[keyID]
		if added := newIDs[keyID]; found || added > 0 {
			return &storage.ExistsError{KeyID: keyID, Revision: max(revision, added)}
		}
		if entry := directory.lostKeys[keyID]; entry != nil {
			return entry.faults[recordID{kindKey, keyID}]
		}
	}
	for _, key := range r.change.PutKeys {
		if keyID := key.GetKeyId(); newIDs[keyID] > 0 {
			return fmt.Errorf("%w: key %s is of another workspace", storage.ErrInvalidChange, keyID)
		}
	}
	return nil
}

// checkPolicy compares the policy's head.
func (r *request) checkPolicy(policy *workspace) error {
	switch {
	case r.change.ExpectPolicy == nil:
		return nil
	case policy == nil && *r.change.ExpectPolicy != (storage.Head{}):
		return &storage.ConflictError{}
	case policy != nil && policy.damagedHead != nil:
		return policy.damagedHead
	case policy != nil && policy.head != *r.change.ExpectPolicy:
		return &storage.ConflictError{Revision: policy.headRevision}
	}
	return nil
}

// writes returns what the change writes at the given revision of a store's epoch.
func (r *request) writes(directory *directory, hasher *integrity.Hasher, epoch string, revision int64, nextSlot *int64) ([]write, error) {
	change := r.change
	head := change.Expect.After(r.event)
	r.committed = change.Committed(revision, head)
	r.slots = make(map[string]int64)
	previous := int64(0)
	if entry := directory.workspaces[change.WorkspaceID]; entry != nil {
		previous, r.sum = entry.headRevision, entry.sum
	}
	r.addUp()
	var writes []write
	for _, record := range r.records {
		name := record.name
		if record.key != nil {
			slot, err := r.slot(directory, record, nextSlot)
			if err != nil {
				return nil, err
			}
			name = keyName(slot, record.key.GetKeyId(), change.WorkspaceID)
		}
		var value []byte
		if record.payload != nil {
			value = frame(record.bucket, name, record.payload)
		}
		writes = append(writes, write{record.bucket, name, value})
		if record.key != nil && value == nil {
			writes = append(writes, write{bucketUsage, name[:numberLength], nil})
		}
	}
	headRecord := head.Record(revision)
	tag := tagOf(hasher, epoch, change.WorkspaceID, head, r.sum)
	headRecord.Tag, headRecord.TagKeyVersion = tag[:], integrity.KeyVersion
	headBytes, err := storage.Encode(headRecord)
	if err != nil {
		return nil, err
	}
	feedBytes, err := storage.Encode(r.committed.Feed)
	if err != nil {
		return nil, err
	}
	auditBytes := append([]byte(number(previous)), r.event...)
	return append(writes,
		write{bucketHeads, headName(change.WorkspaceID), frame(bucketHeads, headName(change.WorkspaceID), headBytes)},
		write{bucketFeed, number(revision), frame(bucketFeed, number(revision), feedBytes)},
		write{bucketAudit, number(revision), frame(bucketAudit, number(revision), auditBytes)},
	), nil
}

// addUp makes the sum that of the workspace's records after the change.
func (r *request) addUp() {
	for _, record := range r.records {
		if len(record.listed.GetBefore()) > 0 {
			r.sum = r.sum.Remove(record.before)
		}
		if len(record.listed.GetAfter()) > 0 {
			r.sum = r.sum.Add(record.after)
		}
	}
}

// slot returns where a key's record lies, or will.
func (r *request) slot(directory *directory, record encoded, nextSlot *int64) (int64, error) {
	keyID := record.key.GetKeyId()
	if at, found := directory.keys[keyID]; found {
		if at.workspace.id != r.change.WorkspaceID {
			return 0, fmt.Errorf("%w: key %s is of another workspace", storage.ErrInvalidChange, keyID)
		}
		return at.slot, nil
	}
	if record.payload == nil {
		return 0, fmt.Errorf("%w: key %s to delete is not there", storage.ErrInvalidChange, keyID)
	}
	if !r.change.IsNew(record.key) {
		return 0, fmt.Errorf("%w: key %s is not there, and need not be absent", storage.ErrInvalidChange, keyID)
	}
	slot := *nextSlot
	*nextSlot++
	r.slots[keyID] = slot
	return slot, nil
}

// write makes a group's writes durable and lets the directory follow. After an error the
// store is down.
func (s *Store) write(file *opened, group []*request, writes []write, position storage.Position) error {
	// Ascending order within each bucket is what makes a large group cheap.
	slices.SortFunc(writes, func(a, b write) int {
		return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.name, b.name))
	})
	s.writing.Lock()
	defer s.writing.Unlock()
	s.state.RLock()
	same := s.file == file
	s.state.RUnlock()
	if !same { // PutUsage failed meanwhile, and took the store down
		return storage.ErrUnavailable
	}
	var tx *bolt.Tx
	err := guard(func() error {
		var err error
		if tx, err = file.database.Begin(true); err != nil {
			return err
		}
		if err := s.room.prepare(file, tx, narrow(group), need(writes)); err != nil {
			return err
		}
		return s.fill(tx, writes, position)
	})
	s.state.Lock()
	defer s.state.Unlock()
	if err == nil {
		err = s.commit(tx)
	}
	if isNoRoomInFile(err) {
		s.room.fitted(narrow(group), err)
		return errNoRoom
	}
	if err == nil {
		err = s.checkCommitted()
	}
	if err != nil {
		s.goDown(tx)
		return err
	}
	s.room.fitted(narrow(group), nil)
	for _, entry := range group {
		entry.follow(s.directory)
	}
	s.position = position
	// Published under the lock: whoever loads this revision can watch from it on.
	for _, entry := range group {
		s.ring.publish(entry.committed)
	}
	return nil
}

// fill puts a group's writes into a transaction.
func (s *Store) fill(tx *bolt.Tx, writes []write, position storage.Position) error {
	var bucket *bolt.Bucket
	for index, write := range writes {
		if index == 0 || writes[index-1].bucket != write.bucket {
			bucket = tx.Bucket([]byte(write.bucket))
		}
		var err error
		if write.value == nil {
			err = bucket.Delete([]byte(write.name))
		} else {
			err = bucket.Put([]byte(write.name), write.value)
		}
		if err != nil {
			return err
		}
	}
	if err := trimFeed(tx, position.Revision-s.config.FeedEntries); err != nil {
		return err
	}
	return put(tx, bucketMeta, namePosition, &storagev1.PositionRecord{
		Revision: position.Revision,
		Time:     timestamppb.New(position.Time),
	})
}

// trimFeed deletes entries of the change log up to and including a revision.
func trimFeed(tx *bolt.Tx, upTo int64) error {
	if upTo < 1 {
		return nil
	}
	last := []byte(number(upTo))
	cursor := tx.Bucket([]byte(bucketFeed)).Cursor()
	for name, _ := cursor.First(); name != nil && bytes.Compare(name, last) <= 0; name, _ = cursor.First() {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// commit ends the transaction. state is held.
func (s *Store) commit(tx *bolt.Tx) error {
	if s.config.fault != nil {
		if err := s.config.fault(false); err != nil {
			return err
		}
	}
	if err := guard(tx.Commit); err != nil {
		return err
	}
	if s.config.fault != nil {
		return s.config.fault(true)
	}
	return nil
}

// goDown gives up the handle after a failed commit. Readers that have begun may
// finish; closing waits for them, so it happens aside. state is held.
func (s *Store) goDown(tx *bolt.Tx) {
	file := s.file
	s.file = nil
	s.ring.end(storage.ErrUnavailable)
	s.committer.Go(func() {
		if tx != nil {
			if err := guard(tx.Rollback); errors.Is(err, storage.ErrDamaged) {
				// It panicked, perhaps with bbolt's lock held: closing would wait forever. Without its
				// descriptor the handle is of no use and holds no lock on the file.
				_ = file.file.Close()
				return
			}
		}
		_ = file.close()
	})
}

// follow lets the directory follow a committed change. state is held.
func (r *request) follow(directory *directory) {
	entry := directory.workspace(r.change.WorkspaceID)
	entry.head, entry.headRevision, entry.sum = r.committed.Head.Head, r.committed.Revision, r.sum
	for _, record := range r.records {
		if slot, isNew := r.slots[record.id.name]; isNew && record.id.kind == kindKey {
			directory.addKey(entry.id, record.id.name, slot, record.after.Short())
			continue
		}
		if record.payload != nil {
			directory.setElement(entry, record.id, record.after.Short())
		} else if record.id.kind == kindMember {
			delete(entry.members, record.id.name)
		}
	}
	for _, key := range r.change.PutKeys {
		directory.setRequestIDs(key.GetKeyId(), key.GetRequestIds())
	}
	for _, requestID := range r.change.FreedRequestIDs {
		delete(entry.requestIDs, requestID)
	}
	for _, key := range r.change.DeleteKeys {
		directory.removeKey(key.GetKeyId(), key.GetRequestIds())
	}
}

// requestIDsOf reads the request ids out of an encoded KeyRecord without decoding
// the rest, which would double the time that opening a large store takes.
func requestIDsOf(payload []byte) ([]string, error) {
	const field = 14 // KeyRecord.request_ids
	var requestIDs []string
	for len(payload) > 0 {
		number, kind, length := protowire.ConsumeTag(payload)
		if length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
		if number == field && kind == protowire.BytesType {
			value, length := protowire.ConsumeBytes(payload)
			if length < 0 {
				return nil, protowire.ParseError(length)
			}
			requestIDs = append(requestIDs, string(value))
			payload = payload[length:]
			continue
		}
		if length = protowire.ConsumeFieldValue(number, kind, payload); length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
	}
	return requestIDs, nil
}
