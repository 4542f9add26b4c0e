package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// errBroken is the error of a watch that broke off and may be resumed.
var errBroken = errors.New("the watch has broken off")

// maxBroken is how often in a row a watch may break off without a change in between, before
// Watch returns an error.
const maxBroken = 5

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
	return barrierOf(first(response, 1)), nil
}

// barrierOf returns the point of the change log that a stored feed entry stands for. The
// hash is unknown if the entry is damaged.
func barrierOf(feedHead *mvccpb.KeyValue) storage.Barrier {
	barrier, record := storage.Barrier{Revision: revision(feedHead)}, &storagev1.FeedRecord{}
	if feedHead == nil {
		return barrier
	}
	err := storage.Decode("feed entry", nameFeedHead, feedHead.Value, record)
	if err == nil && len(record.GetAuditHash()) == len(barrier.Hash) {
		copy(barrier.Hash[:], record.GetAuditHash())
	}
	return barrier
}

// Watch implements storage.Store. A watch that breaks off, for example because etcd has no
// leader, is resumed after the newest change that was yielded.
func (s *Store) Watch(ctx context.Context, after int64) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		own, done, err := s.beginWatch(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer done()
		retries, broken := newBackoff(), 0
		for {
			left := false
			err := s.follow(own, after, func(change *storage.Committed) bool {
				after, broken = change.Revision, 0
				retries.Reset()
				left = !yield(change, nil)
				return !left
			})
			switch {
			case left:
				return
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case s.closing.Err() != nil:
				yield(nil, storage.ErrUnavailable)
				return
			case !errors.Is(err, errBroken):
				yield(nil, err)
				return
			}
			if broken++; broken == maxBroken {
				yield(nil, unavailable(err))
				return
			}
			s.config.Log.WarnContext(ctx, "following etcd again", "error", err, "after", after)
			retries.Wait(own)
		}
	}
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
func (s *Store) follow(ctx context.Context, after int64, yield func(*storage.Committed) bool) error {
	ctx, cancel := context.WithCancel(ctx) // ends the watch
	defer cancel()
	// 1. Find the etcd revision to start at. This also checks the epoch and that there is no
	// gap.
	from, err := s.start(ctx, after)
	if err != nil {
		return err
	}
	// 2. Watch. Without WithRequireLeader, a member that has lost the cluster would keep the
	// watch open and silent.
	responses := s.client.Watch(clientv3.WithRequireLeader(ctx), s.config.Prefix+folderData,
		clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	// 3. Collect the events of one revision until its feed entry arrives, which is the last
	// event of a change. Yield only complete changes.
	var change *changeBuilder
	for response := range responses {
		switch err := response.Err(); {
		case errors.Is(err, rpctypes.ErrCompacted):
			return fmt.Errorf("%w: etcd has been compacted beyond it", storage.ErrGap)
		case err != nil:
			return fmt.Errorf("%w: %s", errBroken, err.Error())
		}
		raise(&s.seen, response.Header.GetRevision())
		for _, event := range response.Events {
			at := event.Kv.ModRevision
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
			committed, err := change.committed()
			if err != nil {
				return fmt.Errorf("%w: revision %d: %w", storage.ErrGap, at, err)
			}
			change = nil
			raise(&s.newest, committed.Revision)
			if !yield(committed) {
				return nil
			}
		}
	}
	return errBroken
}

// start returns the etcd revision at which to start watching after a revision of the store.
// etcd must still have the history from there to the newest change. It may have compacted
// what others changed since the newest change.
func (s *Store) start(ctx context.Context, after int64) (int64, error) {
	response, err := s.read(ctx, s.get(nameHeader), s.getRevision())
	if err != nil {
		return 0, err
	}
	if err := s.checkHeader(response); err != nil {
		return 0, fmt.Errorf("%w: %w", storage.ErrGap, err)
	}
	switch newest := revision(first(response, 1)); {
	case after > newest || after < 0:
		return 0, storage.ErrGap
	case after == newest:
		return response.Header.GetRevision() + 1, nil
	default:
		return max(after, s.created) + 1, nil
	}
}

// changeBuilder collects the events of one revision.
type changeBuilder struct {
	store    *Store
	revision int64
	change   storage.Committed
	event    *storagev1.AuditRecord // nil for a fence
	hasHead  bool
}

// add adds an event, and reports whether it was the last one of its revision.
func (b *changeBuilder) add(event *clientv3.Event) (whole bool, err error) {
	name := b.store.name(event.Kv)
	deleted := event.Type == clientv3.EventTypeDelete
	switch {
	case name == nameFeedHead && !deleted:
		b.change.Feed = &storagev1.FeedRecord{}
		return true, storage.Decode("feed entry", name, event.Kv.Value, b.change.Feed)
	case strings.HasPrefix(name, folderHeads) && !deleted:
		workspaceID := name[len(folderHeads):]
		head, err := decodeHead(workspaceID, event.Kv.Value)
		b.change.Head, b.hasHead = storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}, true
		return false, err
	case strings.HasPrefix(name, folderAudit) && !deleted:
		b.event = &storagev1.AuditRecord{}
		return false, storage.Decode("audit event", name, event.Kv.Value, b.event)
	case name == namePolicy, name == nameSettings, strings.HasPrefix(name, folderWorkspaces),
		strings.HasPrefix(name, folderMembers), strings.HasPrefix(name, folderKeys):
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
	newest := revision(first(response, 1))
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
	own, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel() // ends the watch
	responses := s.client.Watch(clientv3.WithRequireLeader(own), s.config.Prefix+nameFeedHead, clientv3.WithRev(from))
	for response := range responses {
		if err := response.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				return nil, response.CompactRevision, nil
			}
			return nil, 0, unavailable(err)
		}
		for _, event := range response.Events {
			record := &storagev1.FeedRecord{}
			err := storage.Decode("feed entry", nameFeedHead, event.Kv.Value, record)
			if err != nil {
				records = nil // entries before a damaged one are left out, so that there is no gap
			} else {
				record.Revision = event.Kv.ModRevision
				records = append(records, record)
			}
			if event.Kv.ModRevision >= to {
				return records, 0, nil
			}
		}
	}
	switch {
	case s.closing.Err() != nil:
		return nil, 0, storage.ErrUnavailable
	case ctx.Err() != nil:
		return nil, 0, ctx.Err()
	}
	return nil, 0, unavailable(errBroken)
}
