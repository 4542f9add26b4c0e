package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Bounds of one transaction.
const (
	// maxGroup is the max number of changes.
	maxGroup = 512
	// maxGroupBytes closes a group: once its changes have this many bytes, no other is added.
	maxGroupBytes = 4 << 20
	// maxGather is the max time that the committer waits for the sink before a group. It waits at most
	// as long as the group before took.
	maxGather = 20 * time.Millisecond
)

// Commit implements storage.Store.
func (s *Store) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if err := change.Validate(); err != nil {
		return 0, err
	}
	if change.PutSettings != nil { // a file has one server, whose own settings hold
		return 0, fmt.Errorf("%w: a file keeps no settings", storage.ErrInvalidChange)
	}
	if err := s.room.admit(change.Narrows); err != nil {
		return 0, err
	}
	if err := s.admitToSink(change); err != nil {
		return 0, err
	}
	pending, err := encode(change)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	pending.queued = time.Now()
	select {
	case s.queue <- pending:
	case <-s.closing:
		return 0, storage.ErrUnavailable
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-pending.done:
	case <-s.stopped:
		// The store was closed while the change entered the queue, possibly after the committer
		// emptied the queue for the last time.
		if pending.state.CompareAndSwap(waiting, withdrawn) {
			return 0, storage.ErrUnavailable
		}
		<-pending.done
	case <-ctx.Done():
		if pending.state.CompareAndSwap(waiting, withdrawn) {
			return 0, ctx.Err()
		}
		// The committer has taken the change. Only the end of the commit shows the outcome, however
		// long the disk takes.
		<-pending.done
	}
	return pending.revision, pending.err
}

// commitLoop is the committer. It ends when the store closes, after it has answered
// every change in the queue.
func (s *Store) commitLoop() {
	defer close(s.stopped)
	var queued []*pendingChange
	var lasted time.Duration // the commit of the newest group
	for {
		if len(queued) == 0 {
			select {
			case next := <-s.queue:
				queued = append(queued, next)
			case <-s.closing:
				s.refuseQueued()
				return
			}
		}
		queued = s.gather(queued, min(lasted, maxGather))
		var group []*pendingChange
		group, queued = pick(queued)
		began := time.Now()
		for _, pending := range group {
			s.times.queue.Observe(began.Sub(pending.queued))
		}
		s.commitGroup(group)
		lasted = time.Since(began)
	}
}

// gather appends what the channel holds. If groups wait for the sink, it waits for more, because
// each group costs three syncs however large it is: one of the sink, and two of the file.
func (s *Store) gather(queued []*pendingChange, limit time.Duration) []*pendingChange {
	// 1. Wait until the sink has been written: a group that began before would have to wait for the
	// sink after its commit.
	returning := s.sink.awaitWritten(limit)
	queued = s.receive(queued)
	if returning < 2 {
		return queued
	}
	// 2. Wait for most of the callers that were answered now: they often make a change again at
	// once, and the changes of several workspaces fit into one group.
	enough := len(queued) + returning*3/4
	timer := time.NewTimer(limit / 2)
	defer timer.Stop()
	for len(queued) < enough {
		select {
		case next := <-s.queue:
			queued = append(queued, next)
		case <-timer.C:
			return queued
		case <-s.closing:
			return queued
		}
	}
	return queued
}

// receive appends everything that the channel holds, so that many changes of one
// workspace do not keep changes of other workspaces out of the next group.
func (s *Store) receive(queued []*pendingChange) []*pendingChange {
	for {
		select {
		case next := <-s.queue:
			queued = append(queued, next)
		default:
			return queued
		}
	}
}

// refuseQueued answers every change in the channel with ErrUnavailable, when the store
// closes. A Commit that has not sent its change yet sees that closing is closed, and
// returns.
func (s *Store) refuseQueued() {
	for {
		select {
		case next := <-s.queue:
			if next.state.CompareAndSwap(waiting, taken) {
				next.finish(0, storage.ErrUnavailable)
			}
		default:
			return
		}
	}
}

// pick takes at most one change of each workspace from the queue. The rest stays, in
// order, for the next group.
func pick(queued []*pendingChange) (group, rest []*pendingChange) {
	workspaces := make(map[string]bool, len(queued))
	size := 0
	for _, pending := range queued {
		if workspaces[pending.change.WorkspaceID] || len(group) == maxGroup || size >= maxGroupBytes {
			rest = append(rest, pending)
			continue
		}
		if !pending.state.CompareAndSwap(waiting, taken) {
			continue // withdrawn: its caller has left
		}
		workspaces[pending.change.WorkspaceID] = true
		size += pending.size
		group = append(group, pending)
	}
	// The change of the policy comes last: the other changes were checked against the policy
	// that is active now.
	slices.SortStableFunc(group, func(a, b *pendingChange) int { return cmp.Compare(isPolicy(a), isPolicy(b)) })
	return group, rest
}

// commitGroup commits a group in one transaction, publishes it in revision order,
// and answers every change of it.
func (s *Store) commitGroup(group []*pendingChange) {
	// 0. Refuse what the sink cannot get. Commit has refused it already if the sink failed before
	// the change entered the queue.
	if group = s.admitted(group); len(group) == 0 {
		return
	}

	// 1. Read the records that the group replaces or deletes. This comes first because their
	// hashes go into the audit events, and the heads that step 2 computes are hashes of these
	// events.
	s.findReplaced(group)

	// 2. Check every change and give it its revision. Refused changes are answered now.
	s.state.RLock()
	file, index, position := s.file, s.index, s.position
	up := file != nil && !s.unloaded
	s.state.RUnlock()
	if !up {
		finishAll(group, storage.ErrUnavailable)
		return
	}
	// Only the committer changes the index, so the committer reads it without the lock.
	plan := planGroup(group, index, position, s.epoch)
	if len(plan.accepted) == 0 {
		return
	}

	// 3. Make the group durable, and publish it.
	err := s.write(file, plan)

	// 4. Answer changes that another change of the group forbids. This comes after the write
	// because their answer names a revision, which must exist by then.
	for pending, refusal := range plan.forbidden {
		if err != nil {
			refusal = storage.ErrUnavailable
		}
		pending.finish(0, refusal)
	}

	// 5. Answer the group. The writers of sink and anchor do it after a success, because changes
	// are acknowledged only once the sink has their events, and some only once the anchor has their
	// revision.
	switch {
	case err == nil:
		mark := anchor.Mark{Epoch: s.epoch, Revision: plan.position.Revision, Hash: plan.position.Hash}
		s.committed(mark, plan.accepted)
	case errors.Is(err, errNoRoom):
		s.retryWithoutRoom(plan.accepted)
	case errors.Is(err, storage.ErrUnavailable):
		finishAll(plan.accepted, err)
	default:
		s.config.Log.Error("commit failed; the store will be reopened", "error", err)
		finishAll(plan.accepted, fmt.Errorf("%w: %w", storage.ErrOutcomeUnknown, err))
	}
}

// finishAll answers all changes with one error.
func finishAll(group []*pendingChange, err error) {
	for _, pending := range group {
		pending.finish(0, err)
	}
}

// groupPlan is what one transaction will commit.
type groupPlan struct {
	// accepted are the changes, in revision order.
	accepted []*pendingChange
	writes   []write
	// position is the store's after the group.
	position storage.Position
	// forbidden are the changes that an accepted change of the same group forbids, each
	// with its error.
	forbidden map[*pendingChange]error
}

// planGroup checks the changes of a group against the index, one after the other, and
// gives each accepted one the next revision. It answers refused changes, except those in
// forbidden.
func planGroup(group []*pendingChange, index *fileIndex, position storage.Position, epoch string) *groupPlan {
	plan := &groupPlan{position: position, forbidden: make(map[*pendingChange]error)}
	before := position.Revision
	nextSlot := index.nextSlot
	newIDs := make(map[string]int64)
	hasher := integrity.NewHasher()
	for _, pending := range group {
		err := pending.check(index, newIDs, before)
		if exists := (*storage.ExistsError)(nil); errors.As(err, &exists) && exists.Revision > before {
			plan.forbidden[pending] = err
			continue
		}
		revision := plan.position.Revision + 1
		var made []write
		if err == nil {
			made, err = pending.writes(index, hasher, epoch, revision, &nextSlot)
		}
		if err != nil {
			pending.finish(0, err)
			continue
		}
		for keyID := range pending.slots {
			newIDs[keyID] = revision
		}
		plan.position.Revision = revision
		plan.position.Hash = pending.committed.Head.Head.Hash
		if changed := pending.change.Event.GetTime().AsTime(); changed.After(plan.position.Time) {
			plan.position.Time = changed
		}
		plan.writes = append(plan.writes, made...)
		plan.accepted = append(plan.accepted, pending)
	}
	return plan
}

// write makes a group durable, updates the index and publishes the group. Errors:
// errNoRoom and ErrUnavailable, after which nothing was written; after any other error
// the outcome is unknown, and the store is down.
func (s *Store) write(file *opened, plan *groupPlan) error {
	group, position := plan.accepted, plan.position
	// A large group is cheap only if the names in each bucket ascend.
	slices.SortFunc(plan.writes, func(a, b write) int {
		return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.name, b.name))
	})

	// 1. Fill the transaction. Readers go on, because they cannot see it yet.
	began := time.Now()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.state.RLock()
	same := s.file == file
	s.state.RUnlock()
	if !same { // PutUsage failed in the meantime, and took the store down
		return storage.ErrUnavailable
	}
	var tx *bolt.Tx
	err := guard(func() error {
		var err error
		if tx, err = file.database.Begin(true); err != nil {
			return err
		}
		if err := s.room.prepare(file, tx, narrow(group), need(plan.writes)); err != nil {
			return err
		}
		return s.fill(tx, plan.writes, position)
	})

	// 2. Keep readers out, and commit. bbolt shows a transaction to new readers before its
	// meta page is synced, and readers must not see what a crash may still undo.
	s.state.Lock()
	defer s.state.Unlock()
	if err == nil {
		err = s.commit(tx)
	}
	if isNoRoomInFile(err) {
		return errNoRoom
	}

	// 3. Check that the commit went into the file that the next start will open.
	if err == nil {
		err = s.checkCommitted()
	}
	if err != nil {
		s.goDown(tx)
		return err
	}
	s.room.fitted(narrow(group), nil)
	s.times.committed(tx, time.Since(began))

	// 4. Update memory, and publish. state is still held, so that the ring has this revision
	// before a Load can see it: a watch that begins there has no gap.
	for _, pending := range group {
		pending.follow(s.index)
	}
	s.position = position
	for _, pending := range group {
		s.ring.publish(pending.committed)
	}
	return nil
}

// fillPercents says how full bbolt leaves a page that it splits, in the buckets to which names are
// only appended; half is left free in others. Events and entries never change. A key's record grows
// a little when the key is rotated or revoked.
var fillPercents = map[string]float64{bucketAudit: 1, bucketFeed: 1, bucketKeys: 0.9}

// fill puts a group's writes into a transaction.
func (s *Store) fill(tx *bolt.Tx, writes []write, position storage.Position) error {
	var bucket *bolt.Bucket
	for index, write := range writes {
		if index == 0 || writes[index-1].bucket != write.bucket {
			bucket = tx.Bucket([]byte(write.bucket))
			if fill, appends := fillPercents[write.bucket]; appends {
				bucket.FillPercent = fill
			}
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
	if err := trim(tx.Bucket([]byte(bucketFeed)), position.Revision-s.config.FeedEntries); err != nil {
		return err
	}
	return put(tx, bucketMeta, namePosition, &storagev1.PositionRecord{
		Revision: position.Revision,
		Time:     timestamppb.New(position.Time),
	})
}

// trim deletes the values of a bucket up to and including a number.
func trim(bucket *bolt.Bucket, upTo int64) error {
	if upTo < 1 {
		return nil
	}
	last := []byte(number(upTo))
	cursor := bucket.Cursor()
	for name, _ := cursor.First(); name != nil && bytes.Compare(name, last) <= 0; name, _ = cursor.First() {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// commit commits the transaction: bbolt writes and syncs its pages, then its meta page.
// state is held for writing.
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
