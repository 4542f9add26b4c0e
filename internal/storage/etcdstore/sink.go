package etcdstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// sinkInterval is how often FollowAudit asks how far the store has come, and sinkPatience how long a member may
// take to come there before another member is followed.
const (
	sinkInterval = 2 * time.Second
	sinkPatience = 5 * time.Second
)

var _ storage.AuditFollower = (*Store)(nil)

// FollowAudit implements storage.AuditFollower. It watches the audit events and the feed entry, whose names are
// side by side. If etcd has compacted the revision to begin at, the events up to now are read first.
func (s *Store) FollowAudit(ctx context.Context, after int64) iter.Seq2[storage.AuditEvent, error] {
	return func(yield func(storage.AuditEvent, error) bool) {
		ctx, done, err := s.beginWatch(ctx)
		if err != nil {
			yield(storage.AuditEvent{}, err)
			return
		}
		defer done()
		f := &auditFollow{store: s, yield: yield, after: after, reached: after, member: s.members.first(), retries: newBackoff()}
		if err := f.run(ctx); err != nil && !f.left {
			if s.closing.Err() != nil {
				err = storage.ErrUnavailable
			}
			yield(storage.AuditEvent{}, err)
		}
	}
}

// auditFollow is one FollowAudit.
type auditFollow struct {
	store *Store
	yield func(storage.AuditEvent, error) bool
	// left is set once yield has returned false.
	left bool
	// after is the revision of the event that was yielded last, and reached is the one that the watch has come
	// to, which may be that of a fence. from is the etcd revision from which on there are events to watch.
	after, reached, from int64
	member               int
	retries              interface {
		Wait(ctx context.Context) bool
		Reset()
	}
}

func (f *auditFollow) run(ctx context.Context) error {
	for {
		var err error
		if f.from == 0 && f.after < f.store.created {
			// An import puts the events before the header, and a watch begins after the header.
			err = &compactedError{}
		} else {
			err = f.watch(ctx)
		}
		gap := (*compactedError)(nil)
		switch {
		case f.left:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &gap):
			if err = f.read(ctx); err == nil || f.left {
				continue
			}
			if !errors.Is(err, errCompacted) {
				return err
			}
		case !errors.Is(err, errBroken):
			return err
		}
		f.member = (f.member + 1) % len(f.store.members.clients)
		f.retries.Wait(ctx)
	}
}

// watch yields the events that come, until the watch breaks off.
func (f *auditFollow) watch(ctx context.Context) error {
	s := f.store
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := s.read(ctx, s.get(nameHeader), s.getRevision())
	if err != nil {
		return err
	}
	if err := s.checkHeader(response); err != nil {
		return err
	}
	switch newest := s.revision(first(response, 1)); {
	case newest < f.after:
		return fmt.Errorf("%w: revision %d after %d", storage.ErrHistoryChanged, newest, f.after)
	case newest == f.after: // what came before may be compacted
		f.from = response.Header.GetRevision() + 1
	}
	watch := newStream(ctx, s.members.clients[f.member], &etcdserverpb.WatchCreateRequest{
		Key: []byte(s.config.Prefix + folderAudit), RangeEnd: []byte(s.config.Prefix + after(nameFeedHead)),
		StartRevision: max(f.from, f.after+1, s.created+1),
	}, sinkPatience)
	defer watch.end()
	if err := watch.begun(ctx); err != nil {
		return err
	}
	// A member that hangs sends nothing, as one does that has nothing to send. So the other members are asked
	// how far the store has come.
	wanted := goal{raised: make(chan struct{})}
	go func() {
		ticker := time.NewTicker(sinkInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			if response, err := s.read(ctx, s.getRevision()); err == nil {
				wanted.raise(s.revision(first(response, 0)))
			}
		}
	}()
	for {
		response, err := watch.next(ctx, &wanted, f.reached)
		if err != nil {
			return err
		}
		for _, event := range response.GetEvents() {
			f.reached = max(f.reached, event.GetKv().GetModRevision())
			// Only PruneAudit deletes events.
			if name := s.name(event.GetKv()); event.GetType() == mvccpb.PUT && strings.HasPrefix(name, folderAudit) {
				if f.give(event.GetKv()); f.left {
					return nil
				}
				f.retries.Reset()
			}
		}
	}
}

// give yields a stored event. One that cannot be read is left out, and in the log.
func (f *auditFollow) give(pair *mvccpb.KeyValue) {
	name := f.store.name(pair)
	f.after = pair.ModRevision
	event, err := storage.AuditEvent{}, missingEvent("", 0)
	if workspaceID, sequence, ok := parseAuditName(name); ok {
		event, err = decodeAudit(workspaceID, name, sequence, pair.Value)
	}
	if err != nil {
		f.store.config.Log.Error("an audit event cannot be read, and is missing in the audit sink", "revision", pair.ModRevision, "error", err)
		return
	}
	event.Revision = pair.ModRevision
	f.left = !f.yield(event, nil)
}

// read yields the events that are stored now, in the order of their revisions. It keeps their places in memory.
func (f *auditFollow) read(ctx context.Context) error {
	s := f.store
	response, err := s.read(ctx, s.get(nameHeader), s.getRevision())
	if err != nil {
		return err
	}
	if err := s.checkHeader(response); err != nil {
		return err
	}
	at, newest := response.Header.GetRevision(), s.revision(first(response, 1))
	var places []eventPlace
	workspaces := make(map[string]string) // one copy of each id
	err = s.stream(ctx, folderAudit, endOf(folderAudit), at, func(some *chunk) error {
		defer some.release()
		for _, stored := range some.pairs {
			name := string(stored.name)
			workspaceID, sequence, ok := parseAuditName(name)
			if !ok || stored.modified <= f.after {
				continue // Check reports the name
			}
			known, seen := workspaces[workspaceID]
			if !seen {
				known = strings.Clone(workspaceID)
				workspaces[known] = known
			}
			place := eventPlace{revision: stored.modified, sequence: sequence, workspace: known}
			if event, err := decodeAudit(workspaceID, name, sequence, stored.value); err == nil && event.Record.GetTime() != nil {
				place.time = event.Record.GetTime().AsTime()
			}
			places = append(places, place)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Events that were imported together have one revision, and come in the order in which they were put.
	slices.SortFunc(places, eventPlace.compare)
	for some := range slices.Chunk(places, gets) {
		parts := make([]clientv3.Op, len(some))
		for index, each := range some {
			parts[index] = s.get(auditName(each.workspace, each.sequence), clientv3.WithRev(at))
		}
		response, err := s.read(ctx, parts...)
		if err != nil {
			return err
		}
		for index := range some {
			if pair := first(response, index); pair != nil {
				if f.give(pair); f.left {
					return nil
				}
			}
		}
	}
	// From here on the watch goes on, from a revision that etcd still has.
	f.from, f.reached = at+1, max(f.reached, newest)
	return nil
}

// sinkLength is the length of a stored position of the sink: revision and hash.
const sinkLength = 8 + 32

// SinkPosition implements storage.AuditFollower.
func (s *Store) SinkPosition(ctx context.Context) (storage.Barrier, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return storage.Barrier{}, err
	}
	defer done()
	position, _, err := s.sinkPosition(ctx)
	return position, err
}

// sinkPosition returns the stored position of the sink, and the etcd revision at which it was stored.
func (s *Store) sinkPosition(ctx context.Context) (position storage.Barrier, at int64, err error) {
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameSink))
	if err != nil {
		return storage.Barrier{}, 0, err
	}
	if err := s.checkHeader(response); err != nil {
		return storage.Barrier{}, 0, err
	}
	stored := first(response, 1)
	if stored == nil {
		return storage.Barrier{}, 0, nil
	}
	payload, err := storage.Unframe("position", nameSink, stored.Value)
	if err == nil && len(payload) < sinkLength {
		err = &storage.DamagedError{Kind: "position", Name: nameSink, Problem: "too short"}
	}
	if err != nil {
		return storage.Barrier{}, 0, err
	}
	if string(payload[sinkLength:]) == s.epoch { // otherwise it is that of a store that was here before
		position.Revision = int64(binary.BigEndian.Uint64(payload)) //nolint:gosec // written by PutSinkPosition, checksummed
		copy(position.Hash[:], payload[8:])
	}
	return position, stored.ModRevision, nil
}

// PutSinkPosition implements storage.AuditFollower.
func (s *Store) PutSinkPosition(ctx context.Context, position storage.Barrier) error {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return err
	}
	defer done()
	payload := binary.BigEndian.AppendUint64(nil, uint64(position.Revision)) //nolint:gosec // never negative
	payload = append(append(payload, position.Hash[:]...), s.epoch...)
	for {
		before, at, err := s.sinkPosition(ctx)
		if err != nil && !errors.Is(err, storage.ErrDamaged) {
			return err
		}
		if before.Revision >= position.Revision {
			return nil
		}
		isSame := clientv3.Compare(clientv3.ModRevision(s.config.Prefix+nameSink), "=", at)
		compares := []clientv3.Cmp{s.holds(nameHeader, "=", s.header), isSame}
		if err != nil { // a damaged position is overwritten
			compares = compares[:1]
		}
		response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
			return member.Txn(ctx).If(compares...).Then(s.putFrame(nameSink, payload)).Commit()
		})
		if err != nil || response.Succeeded {
			return err
		}
	}
}
