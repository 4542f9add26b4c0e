package boltstore

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// ringSize is the max number of changes in the ring. A watcher gets ErrGap if the ring no longer
// has the change that the watcher needs next.
const ringSize = 1024

// ring holds the newest committed changes for watchers.
type ring struct {
	mutex sync.Mutex
	// changes are consecutive; the newest has revision last.
	changes []*storage.Committed
	last    int64
	// published is last with its hash, for readers that take no lock. It does not change while
	// the store is down.
	published atomic.Pointer[storage.Barrier]
	// ended is set while the store is down or closed.
	ended error
	// wake is closed and replaced whenever a field above changes.
	wake chan struct{}
}

func newRing(position storage.Position) *ring {
	r := &ring{last: position.Revision, wake: make(chan struct{})}
	r.published.Store(&storage.Barrier{Revision: position.Revision, Hash: position.Hash})
	return r
}

// publish adds the next change. Only the committer calls it, in revision order.
func (r *ring) publish(change *storage.Committed) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if len(r.changes) == ringSize {
		r.changes = append(r.changes[:0], r.changes[ringSize/2:]...)
	}
	r.changes = append(r.changes, change)
	r.last = change.Revision
	point := change.Barrier()
	r.published.Store(&point)
	r.signal()
}

// end ends all watches with err.
func (r *ring) end(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.ended = err
	r.signal()
}

// restart empties the ring and continues at a position, after the store was down and was
// loaded again.
func (r *ring) restart(position storage.Position) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.changes, r.last, r.ended = nil, position.Revision, nil
	r.published.Store(&storage.Barrier{Revision: position.Revision, Hash: position.Hash})
	r.signal()
}

func (r *ring) signal() {
	close(r.wake)
	r.wake = make(chan struct{})
}

// after returns the changes after a point of the change log; if there are none, it returns a
// channel that is closed when there may be some.
func (r *ring) after(point storage.Barrier) ([]*storage.Committed, <-chan struct{}, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.ended != nil {
		return nil, nil, r.ended
	}
	behind := r.last - point.Revision
	switch {
	case behind < 0:
		return nil, nil, fmt.Errorf("%w: revision %d after %d", storage.ErrHistoryChanged, r.last, point.Revision)
	case behind > int64(len(r.changes)) || point.Revision < 0:
		return nil, nil, storage.ErrGap
	case point.Differs(r.at(point.Revision)):
		return nil, nil, fmt.Errorf("%w: revision %d is another change", storage.ErrHistoryChanged, point.Revision)
	case behind == 0:
		return nil, r.wake, nil
	}
	newest := r.changes[int64(len(r.changes))-behind:]
	return append([]*storage.Committed(nil), newest...), nil, nil
}

// at returns what is known of a revision. mutex is held, and the revision is not beyond the newest.
func (r *ring) at(revision int64) storage.Barrier {
	if revision == r.last {
		return *r.published.Load()
	}
	if index := int64(len(r.changes)) - (r.last - revision) - 1; index >= 0 {
		return r.changes[index].Barrier()
	}
	return storage.Barrier{Revision: revision}
}

// Barrier implements storage.Store. The file belongs to this process, so nobody can have
// been told of a change that was not handed to the watchers.
func (s *Store) Barrier(ctx context.Context) (storage.Barrier, error) {
	return s.LocalBarrier(), ctx.Err()
}

// LocalBarrier implements storage.LocalBarrierReader.
func (s *Store) LocalBarrier() storage.Barrier { return *s.ring.published.Load() }

// Watch implements storage.Store.
func (s *Store) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		for {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			changes, wake, err := s.ring.after(after)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, change := range changes {
				if !yield(change, nil) {
					return
				}
				after = change.Barrier()
			}
			// The next call of ring.after asks from the newest change that was yielded, so a
			// change that is published between two calls is not missed.
			if wake == nil {
				continue
			}
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
	}
}

// ListFeed implements storage.Store.
func (s *Store) ListFeed(ctx context.Context, limit int) ([]*storagev1.FeedRecord, error) {
	var newestFirst []*storagev1.FeedRecord
	position, err := s.read(ctx, nil, func(tx *bolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketFeed)).Cursor()
		for name, value := cursor.Last(); name != nil && len(newestFirst) < limit; name, value = cursor.Prev() {
			if len(newestFirst)%contextInterval == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			record := &storagev1.FeedRecord{}
			revision, err := parseNumber(name)
			if err == nil {
				err = storage.Decode("feed entry", frameName(bucketFeed, string(name)), value, record)
			}
			// Entries before a damaged or missing one are left out, so that there is no gap.
			if count := len(newestFirst); err != nil || record.GetRevision() != revision ||
				count > 0 && newestFirst[count-1].GetRevision() != revision+1 {
				return nil //nolint:nilerr // see above
			}
			newestFirst = append(newestFirst, record)
		}
		return nil
	})
	if err != nil || len(newestFirst) > 0 && newestFirst[0].GetRevision() != position.Revision {
		return nil, err
	}
	slices.Reverse(newestFirst)
	return newestFirst, nil
}
