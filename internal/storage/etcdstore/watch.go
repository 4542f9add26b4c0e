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

// errBroken says that a watch has broken off and may be taken up again.
var errBroken = errors.New("the watch has broken off")

// maxBroken is how often a watch breaks off in a row, without a change in between,
// before its reader is told.
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
	if header := first(response, 0); string(header.GetValue()) != s.header {
		return storage.Barrier{}, s.errHistory()
	}
	return barrierOf(first(response, 1)), nil
}

// barrierOf returns the point of the change log whose newest entry this is; of an entry
// that is damaged the hash is not known.
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

// Watch implements storage.Store. A watch that breaks off, as without a leader, goes on
// from where it was.
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

// beginWatch is beginRead for what Close does not wait for: the reader of a watch may
// be the one who closes.
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
	from, err := s.start(ctx, after)
	if err != nil {
		return err
	}
	responses := s.client.Watch(clientv3.WithRequireLeader(ctx), s.config.Prefix+folderData,
		clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	var change *gathered
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
				change = &gathered{store: s, revision: at}
			}
			// Every change puts the feed's head, and puts it last.
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

// start returns the revision of etcd from which to follow. Up to the newest change,
// etcd must still have its history; what it has done for others since then may be
// gone.
func (s *Store) start(ctx context.Context, after int64) (int64, error) {
	response, err := s.read(ctx, s.get(nameHeader), s.getRevision())
	if err != nil {
		return 0, err
	}
	if header := first(response, 0); string(header.GetValue()) != s.header {
		return 0, fmt.Errorf("%w: %w", storage.ErrGap, s.errHistory())
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

// gathered is what has come of one revision.
type gathered struct {
	store    *Store
	revision int64
	change   storage.Committed
	event    *storagev1.AuditRecord // nil for a fence
	hasHead  bool
}

// add adds an event; it says whether that was the last of its revision.
func (g *gathered) add(event *clientv3.Event) (whole bool, err error) {
	name := g.store.name(event.Kv)
	deleted := event.Type == clientv3.EventTypeDelete
	switch {
	case name == nameFeedHead && !deleted:
		g.change.Feed = &storagev1.FeedRecord{}
		return true, storage.Decode("feed entry", name, event.Kv.Value, g.change.Feed)
	case strings.HasPrefix(name, folderHeads) && !deleted:
		workspaceID := name[len(folderHeads):]
		head, err := decodeHead(workspaceID, event.Kv.Value)
		g.change.Head, g.hasHead = storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}, true
		return false, err
	case strings.HasPrefix(name, folderAudit) && !deleted:
		g.event = &storagev1.AuditRecord{}
		return false, storage.Decode("audit event", name, event.Kv.Value, g.event)
	case name == namePolicy, strings.HasPrefix(name, folderWorkspaces),
		strings.HasPrefix(name, folderMembers), strings.HasPrefix(name, folderKeys):
		if deleted {
			return false, g.remove(name, event)
		}
		g.change.Put = append(g.change.Put, decodeItem(name, event.Kv.Value))
	}
	return false, nil
}

// remove adds the record that was deleted.
func (g *gathered) remove(name string, event *clientv3.Event) error {
	if event.PrevKv == nil {
		return errors.New("what was deleted has been compacted")
	}
	item := decodeItem(name, event.PrevKv.Value)
	switch {
	case item.Key != nil:
		g.change.DeletedKeys = append(g.change.DeletedKeys, item.Key)
	case item.Member != nil:
		g.change.DeletedMembers = append(g.change.DeletedMembers, item.Member)
	case item.Damaged != nil && item.Damaged.KeyID != "":
		// Which one it was, its name tells.
		g.change.DeletedKeys = append(g.change.DeletedKeys,
			&storagev1.KeyRecord{WorkspaceId: item.Damaged.WorkspaceID, KeyId: item.Damaged.KeyID})
	case item.Damaged != nil && item.Damaged.MemberID != "":
		g.change.DeletedMembers = append(g.change.DeletedMembers,
			&storagev1.MemberRecord{WorkspaceId: item.Damaged.WorkspaceID, MemberId: item.Damaged.MemberID})
	default:
		return fmt.Errorf("%q was deleted", name)
	}
	return nil
}

// committed returns the change once it is whole.
func (g *gathered) committed() (*storage.Committed, error) {
	change := &g.change
	if !g.hasHead || change.Feed.GetWorkspaceId() != change.Head.WorkspaceID {
		return nil, &storage.DamagedError{Kind: "feed entry", Name: change.Feed.GetWorkspaceId(), Problem: "not of the change it came with"}
	}
	change.Revision, change.Feed.Revision = g.revision, g.revision
	if g.event != nil {
		change.Time = g.event.GetTime().AsTime()
	}
	return change, nil
}

// ListFeed implements storage.Store. The change log is the history of one key, which only
// a watch can read. It begins limit revisions of etcd before the newest change: those that
// others made, and uses, count as well.
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
	if header := first(response, 0); string(header.GetValue()) != s.header {
		return nil, s.errHistory()
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

// history reads the entries of the change log from one revision to another. If etcd has
// been compacted beyond the first, it returns up to which revision.
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
				records = nil // what lies before a damaged entry does not follow on the rest
			} else {
				record.Revision = event.Kv.ModRevision
				records = append(records, record)
			}
			if event.Kv.ModRevision >= to {
				return records, 0, nil //nolint:nilerr // see above
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
