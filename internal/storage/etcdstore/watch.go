package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Barrier implements storage.Store: it is one linearizable read.
func (s *Store) Barrier(ctx context.Context) (storage.Barrier, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return storage.Barrier{}, err
	}
	defer done()
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameFeedHead))
	if err != nil {
		return storage.Barrier{}, err
	}
	if err := s.checkHeader(response); err != nil {
		return storage.Barrier{}, err
	}
	barrier := barrierOf(first(response, 1))
	s.told.raise(barrier.Revision)
	return barrier, nil
}

// barrierOf returns the point of the change log that a stored feed entry stands for. The
// hash is unknown if the entry is damaged.
func barrierOf(feedHead *mvccpb.KeyValue) storage.Barrier {
	barrier, record := storage.Barrier{Revision: feedHead.GetModRevision()}, &storagev1.FeedRecord{}
	if feedHead == nil {
		return barrier
	}
	err := storage.Decode("feed entry", nameFeedHead, feedHead.Value, record)
	if err == nil && len(record.GetAuditHash()) == len(barrier.Hash) {
		copy(barrier.Hash[:], record.GetAuditHash())
	}
	return barrier
}

// maxPatience is how many times Config.Stuck a watch may take in the end.
const maxPatience = 16

// follower is one Watch.
type follower struct {
	store *Store
	// after is the newest change that was yielded, and yield passes changes on.
	after storage.Barrier
	yield func(*storage.Committed) bool
	// left is set when yield has returned false.
	left bool

	// member is the index of the watched one, and patience how long it may take to come to what callers were told of.
	member   int
	patience time.Duration
	// again is set once the watch was open, and compacted if etcd has compacted where it would begin. early is set if it
	// begins before the point that etcd would name.
	again, compacted, early bool
	// broken is how often the watch has broken off since the last change, and retries has the waits.
	broken  int
	retries *backoff.Backoff
}

// Watch implements storage.Store. A watch that breaks off is resumed after the newest change that was
// yielded, for as long as etcd is away. A watch that is stuck is opened anew at another member.
func (s *Store) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		own, done, err := s.beginWatch(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer done()
		f := &follower{
			store: s, after: after, yield: func(change *storage.Committed) bool { return yield(change, nil) },
			member: s.members.first(), patience: s.config.Stuck, retries: newBackoff(),
		}
		for {
			err := f.follow(own)
			switch {
			case f.left:
				return
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case s.closing.Err() != nil:
				yield(nil, storage.ErrUnavailable)
				return
			case !f.mayResume(err):
				yield(nil, err)
				return
			}
			f.next(ctx, err)
			f.retries.Wait(own)
		}
	}
}

// OnResume implements storage.Resumer.
func (s *Store) OnResume(resumed func()) { s.resumed.Store(&resumed) }

// loaded is where a Load has read the store.
type loaded struct {
	// revision is that of the newest change then, and at that of etcd.
	revision, at int64
}

// mayResume reports whether the watch is opened again after an error. An outage of etcd, however long,
// changes no history. A watch that began early begins where etcd says if that is compacted.
func (f *follower) mayResume(err error) bool {
	if gap := (*compactedError)(nil); f.early && errors.As(err, &gap) {
		f.store.loaded.Store(nil)
		f.compacted = true
		return true
	}
	return errors.Is(err, errBroken) || isOutage(err)
}

// isOutage reports whether an error says only that etcd does not answer.
func isOutage(err error) bool {
	return errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrHistoryChanged) && !errors.Is(err, storage.ErrGap)
}

// next goes on to the next member.
func (f *follower) next(ctx context.Context, err error) {
	if errors.Is(err, errStuck) {
		f.patience = min(2*f.patience, maxPatience*f.store.config.Stuck)
	}
	// A long outage is logged ever more rarely.
	if f.broken++; bits.OnesCount(uint(f.broken)) == 1 {
		f.store.config.Log.WarnContext(ctx, "following etcd again",
			"error", err, "after", f.after.Revision, "member", f.member, "broken", f.broken)
	}
	f.member = f.store.members.order((f.member + 1) % len(f.store.config.Members))[0]
}

// beginWatch is beginRead for watches. Close does not wait for watches, because the goroutine
// that calls Close may be reading a watch.
func (s *Store) beginWatch(ctx context.Context) (_ context.Context, done func(), err error) {
	counted, err := s.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	counted()
	ctx, done = s.untilClosed(ctx)
	return ctx, done, nil
}

// follow yields changes until the watch breaks off, yield returns false, or the context
// ends.
func (f *follower) follow(ctx context.Context) error {
	s := f.store
	// 1. Find the etcd revision to start at.
	from, err := f.begin(ctx)
	if err != nil {
		return err
	}
	// 2. Begin the watch.
	client, disconnect, err := s.connect(f.member)
	if err != nil {
		return err
	}
	defer disconnect()
	watch := newStream(ctx, client, &etcdserverpb.WatchCreateRequest{
		Key: []byte(s.config.Prefix + folderData), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(s.config.Prefix + folderData)),
		StartRevision: from, PrevKv: true, ProgressNotify: true,
	}, f.patience)
	defer watch.end()
	watch.whenSilent = func(ctx context.Context, call func()) func() { return s.whenSilent(ctx, f.member, call) }
	if err := watch.begun(ctx); err != nil {
		return err
	}
	// 3. Compare the history. This comes after the beginning: a watch does not survive the replacement of its
	//    member's data, so what is compared now is what the watch will show.
	if err := f.compare(ctx, watch, from-1); err != nil {
		return err
	}
	if f.broken > 1 {
		s.config.Log.InfoContext(ctx, "etcd is followed again", "after", f.after.Revision, "member", f.member)
	}
	if resumed := s.resumed.Load(); resumed != nil && f.again {
		(*resumed)()
	}
	f.again, f.compacted = true, false
	// 4. Collect the events of one revision until its feed entry arrives, which is the last
	//    event of a change. Yield only complete changes.
	var change *changeBuilder
	for {
		response, err := watch.next(ctx, &s.told, f.after.Revision)
		if err != nil {
			return err
		}
		raise(&s.seen, response.GetHeader().GetRevision())
		for _, event := range response.GetEvents() {
			at := event.GetKv().GetModRevision()
			if change == nil {
				change = &changeBuilder{store: s, revision: at}
			}
			// Every change puts the feed entry, and puts it last. If another revision begins before
			// it, something else wrote to the store, and a change may be missing.
			if change.revision != at {
				return fmt.Errorf("%w: something other than a change happened at revision %d", storage.ErrGap, change.revision)
			}
			whole, err := change.add(event)
			if err != nil {
				return fmt.Errorf("%w: revision %d: %w", storage.ErrGap, at, err)
			}
			if !whole {
				continue
			}
			if change.pruned {
				change = nil // PruneAudit has deleted old audit events, which is no change
				continue
			}
			committed, err := change.committed()
			if err != nil {
				return fmt.Errorf("%w: revision %d: %w", storage.ErrGap, at, err)
			}
			s.judge(ctx, change, committed)
			change = nil
			raise(&s.newest, committed.Revision)
			f.after, f.broken = committed.Barrier(), 0
			f.retries.Reset()
			if f.left = !f.yield(committed); f.left {
				return nil
			}
		}
		// A response has all events of a revision.
		if change != nil {
			return fmt.Errorf("%w: something other than a change happened at revision %d", storage.ErrGap, change.revision)
		}
		if told, _ := s.told.now(); told <= f.after.Revision {
			f.patience = s.config.Stuck
		}
	}
}

// begin returns the etcd revision at which to begin the watch. One that was open before begins after the newest change, which asks
// nobody: so it is open, and has missed nothing, before an outage has ended. Etcd brings what it has missed up to 100 ms later.
func (f *follower) begin(ctx context.Context) (from int64, err error) {
	s := f.store
	if !f.again || f.compacted {
		from, f.early, err = s.start(ctx, f.after)
		return from, err
	}
	f.early = true
	if loaded := s.loaded.Load(); loaded != nil && loaded.revision == f.after.Revision {
		return loaded.at + 1, nil
	}
	return max(f.after.Revision, s.created) + 1, nil
}

// compare compares the history, for as long as the watch is open. In an outage it waits for its end.
func (f *follower) compare(ctx context.Context, watch *stream, at int64) error {
	for {
		err := f.store.compare(watch.open, f.after, at)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case watch.open.Err() != nil:
			return fmt.Errorf("%w while the history was compared", errBroken)
		case !isOutage(err): // nil, too
			return err
		}
		f.retries.Wait(watch.open)
	}
}

// start returns the etcd revision at which to start watching after a point of the change log.
// etcd must still have the history from there to the newest change. It may have compacted
// what others changed since the newest change. If that change was the newest one when the store was loaded, the
// watch starts early, where the load has read: it shows what something else has written since.
func (s *Store) start(ctx context.Context, after storage.Barrier) (from int64, early bool, err error) {
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameFeedHead))
	if err != nil {
		return 0, false, err
	}
	if err := s.checkHeader(response); err != nil {
		return 0, false, err
	}
	loaded := s.loaded.Load()
	newest := barrierOf(first(response, 1))
	switch {
	case after.Revision < 0:
		return 0, false, storage.ErrGap
	case after.Revision > newest.Revision || after.Differs(newest):
		return 0, false, errAnother(after, newest)
	case after.Revision == newest.Revision && loaded != nil && loaded.revision == after.Revision:
		return loaded.at + 1, true, nil
	case after.Revision == newest.Revision:
		return response.Header.GetRevision() + 1, false, nil
	}
	return max(after.Revision, s.created) + 1, false, nil
}

// compare compares the feed head at a revision of etcd's with the change that was applied last. Errors:
// ErrHistoryChanged; ErrGap if etcd has compacted that revision, so that nothing can be compared.
func (s *Store) compare(ctx context.Context, applied storage.Barrier, at int64) error {
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameFeedHead, clientv3.WithRev(at)))
	switch {
	case errors.Is(err, errCompacted):
		return &compactedError{at}
	case err != nil:
		return err
	}
	if err := s.checkHeader(response); err != nil {
		return err
	}
	if stored := barrierOf(first(response, 1)); stored.Revision != applied.Revision || stored.Differs(applied) {
		return errAnother(applied, stored)
	}
	return nil
}

// errAnother returns the error for a change log that has another change where one was applied.
func errAnother(applied, stored storage.Barrier) error {
	return fmt.Errorf("%w: the change log is at revision %d where revision %d was applied, or has another change there",
		storage.ErrHistoryChanged, stored.Revision, applied.Revision)
}

// changeBuilder collects the events of one revision.
type changeBuilder struct {
	store    *Store
	revision int64
	change   storage.Committed
	event    *storagev1.AuditRecord // nil for a fence
	hasHead  bool
	pruned   bool   // PruneAudit has deleted audit events
	head     []byte // the stored head
	touched  []touched
}

// add adds an event, and reports whether it was the last one of its revision.
func (b *changeBuilder) add(event *clientv3.Event) (whole bool, err error) {
	name := b.store.name(event.Kv)
	deleted := event.Type == clientv3.EventTypeDelete
	switch {
	case name == namePruned && !deleted:
		b.pruned = true
		return true, nil
	case name == nameFeedHead && !deleted:
		b.change.Feed = &storagev1.FeedRecord{}
		return true, storage.Decode("feed entry", name, event.Kv.Value, b.change.Feed)
	case strings.HasPrefix(name, folderHeads) && !deleted:
		workspaceID := name[len(folderHeads):]
		head, err := decodeHead(workspaceID, event.Kv.Value)
		b.head = event.Kv.Value
		b.change.Head, b.hasHead = storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}, true
		return false, err
	case strings.HasPrefix(name, folderAudit) && !deleted:
		b.event = &storagev1.AuditRecord{}
		return false, storage.Decode("audit event", name, event.Kv.Value, b.event)
	case name == namePolicy, name == nameSettings, strings.HasPrefix(name, folderWorkspaces),
		strings.HasPrefix(name, folderMembers), strings.HasPrefix(name, folderKeys):
		b.touch(name, event)
		if deleted {
			return false, b.remove(name, event)
		}
		b.change.Put = append(b.change.Put, decodeItem(name, event.Kv.Value))
	}
	return false, nil
}

// remove adds a record that was deleted.
func (b *changeBuilder) remove(name string, event *clientv3.Event) error {
	if event.PrevKv == nil {
		return errors.New("what was deleted has been compacted")
	}
	item := decodeItem(name, event.PrevKv.Value)
	switch {
	case item.Key != nil:
		b.change.DeletedKeys = append(b.change.DeletedKeys, item.Key)
	case item.Member != nil:
		b.change.DeletedMembers = append(b.change.DeletedMembers, item.Member)
	case item.Damaged != nil && item.Damaged.KeyID != "":
		// The name says which record it was.
		b.change.DeletedKeys = append(b.change.DeletedKeys,
			&storagev1.KeyRecord{WorkspaceId: item.Damaged.WorkspaceID, KeyId: item.Damaged.KeyID})
	case item.Damaged != nil && item.Damaged.MemberID != "":
		b.change.DeletedMembers = append(b.change.DeletedMembers,
			&storagev1.MemberRecord{WorkspaceId: item.Damaged.WorkspaceID, MemberId: item.Damaged.MemberID})
	default:
		return fmt.Errorf("%q was deleted", name)
	}
	return nil
}

// committed returns the change once it is complete.
func (b *changeBuilder) committed() (*storage.Committed, error) {
	change := &b.change
	if !b.hasHead || change.Feed.GetWorkspaceId() != change.Head.WorkspaceID {
		return nil, &storage.DamagedError{Kind: "feed entry", Name: change.Feed.GetWorkspaceId(), Problem: "it is of another workspace than the change that put it"}
	}
	change.Revision, change.Feed.Revision = b.revision, b.revision
	if b.event != nil {
		change.Time = b.event.GetTime().AsTime()
	}
	return change, nil
}

// ListFeed implements storage.Store. The change log is the history of one name in etcd,
// which only a watch can read. The watch begins limit etcd revisions before the newest
// change. Some of these revisions belong to other tenants or record uses, so ListFeed may
// return fewer than limit entries although older ones are kept.
func (s *Store) ListFeed(ctx context.Context, limit int) ([]*storagev1.FeedRecord, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	response, err := s.read(ctx, s.get(nameHeader), s.getRevision())
	if err != nil {
		return nil, err
	}
	if err := s.checkHeader(response); err != nil {
		return nil, err
	}
	newest := s.revision(first(response, 1))
	from := max(newest-int64(limit), s.created) + 1
	for newest > 0 {
		records, compacted, err := s.history(ctx, from, newest)
		switch {
		case compacted >= newest: // nothing is left to read
			return nil, nil
		case compacted >= from:
			from = compacted + 1
		default:
			return records, err
		}
	}
	return nil, nil
}

// history reads the feed entries from one revision to another. If etcd has compacted revision
// from, history returns no entries, and the newest revision that etcd has compacted.
func (s *Store) history(ctx context.Context, from, to int64) (records []*storagev1.FeedRecord, compacted int64, err error) {
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	for _, member := range s.members.order(s.members.first()) {
		gap := (*compactedError)(nil)
		switch records, err = s.historyAt(limited, member, from, to); {
		case err == nil:
			return records, 0, nil
		case s.closing.Err() != nil:
			return nil, 0, storage.ErrUnavailable
		case ctx.Err() != nil:
			return nil, 0, ctx.Err()
		case errors.As(err, &gap):
			return nil, gap.revision, nil
		}
	}
	return nil, 0, unavailable(err)
}

// historyAt reads the feed entries from one revision to another at one member.
func (s *Store) historyAt(ctx context.Context, member int, from, to int64) (records []*storagev1.FeedRecord, err error) {
	request := &etcdserverpb.WatchCreateRequest{Key: []byte(s.config.Prefix + nameFeedHead), StartRevision: from}
	watch := newStream(ctx, s.members.clients[member], request, s.config.Attempt)
	defer watch.end()
	if err := watch.begun(ctx); err != nil {
		return nil, err
	}
	for {
		watch.waited = 0 // each message may take as long as an attempt
		response, err := watch.next(ctx, nil, 0)
		if err != nil {
			return nil, err
		}
		for _, event := range response.GetEvents() {
			record := &storagev1.FeedRecord{}
			err := storage.Decode("feed entry", nameFeedHead, event.GetKv().GetValue(), record)
			if err != nil {
				records = nil // entries before a damaged one are left out, so that there is no gap
			} else {
				record.Revision = event.GetKv().GetModRevision()
				records = append(records, record)
			}
			if event.GetKv().GetModRevision() >= to {
				return records, nil
			}
		}
	}
}
