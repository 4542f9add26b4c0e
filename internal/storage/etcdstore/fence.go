package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// errNotFenced is the error if the attempt to raise the fence was not answered either.
var errNotFenced = errors.New("the fence could not be written")

// resolve finds the outcome of a transaction whose answer was lost, and makes the outcome
// final.
//
// If the head is still the expected one, resolve raises the fence in it: the lost
// transaction compares the head, so it cannot commit any more. If the head is another one,
// the transaction cannot commit any more either; it has committed if its audit event is
// stored.
//
// If the context ends before etcd has answered, resolve returns ErrOutcomeUnknown and goes on in the
// background, so that the outcome becomes final as early as possible.
func (t *transaction) resolve(ctx context.Context) (int64, error) {
	// 1. Try for as long as the caller waits.
	revision, err := t.resolveUntil(ctx)
	if !errors.Is(err, errNotFenced) {
		return revision, err
	}
	// 2. If the store is not closing, go on in the background. The workspace counts as in doubt
	// before the caller is answered: no new change of it may begin that the lost transaction
	// could overtake.
	if done, counted := t.store.begin(context.WithoutCancel(ctx)); counted == nil {
		t.store.countInDoubt(t.change.WorkspaceID, 1)
		go func() {
			defer done()
			defer t.store.countInDoubt(t.change.WorkspaceID, -1)
			revision, err := t.resolveUntil(t.store.closing)
			if errors.Is(err, errNotFenced) {
				return // the store was closed first
			}
			t.store.config.Log.InfoContext(ctx, "the unknown outcome of a change is resolved",
				"workspace_id", t.change.WorkspaceID, "revision", revision, "error", err)
		}()
	}
	return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, err.Error())
}

// resolveUntil tries until the outcome is known. If the context ends first, the error is
// errNotFenced.
func (t *transaction) resolveUntil(ctx context.Context) (int64, error) {
	retries := newBackoff()
	for {
		revision, err := t.fence(ctx)
		if !errors.Is(err, errNotFenced) || !retries.Wait(ctx) {
			return revision, err
		}
	}
}

// fence raises the fence at one member after another, and returns the outcome of the transaction. If the
// answer to an attempt is lost too, the next attempt sees whether the fence was raised.
func (t *transaction) fence(ctx context.Context) (int64, error) {
	s, change := t.store, t.change
	event := s.get(auditName(change.WorkspaceID, t.head.Sequence))
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return s.raiseFence(ctx, member, change.WorkspaceID, change.Expect, event)
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %s", errNotFenced, err.Error())
	}
	if response.Succeeded {
		raise(&s.newest, response.Header.GetRevision())
		return 0, &storage.ConflictError{Revision: response.Header.GetRevision()}
	}
	return t.outcome(response)
}

// Fence implements storage.Fencer.
func (s *Store) Fence(ctx context.Context, workspaceID string, head storage.Head) (int64, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return s.raiseFence(ctx, member, workspaceID, head)
	})
	if err != nil {
		return 0, err
	}
	if response.Succeeded {
		raise(&s.newest, response.Header.GetRevision())
		s.told.raise(response.Header.GetRevision())
		return response.Header.GetRevision(), nil
	}
	if err := s.checkHeader(response); err != nil {
		return 0, err
	}
	// Either an earlier attempt of this call raised the fence, or another call, or there was a change.
	stored := first(response, 1)
	if stored == nil {
		return 0, &storage.ConflictError{}
	}
	found, err := decodeHead(workspaceID, stored.Value)
	if err != nil {
		return 0, err
	}
	s.told.raise(stored.ModRevision)
	if found.Sequence != head.Sequence || found.Hash != head.Hash || found.Fence <= head.Fence {
		return 0, &storage.ConflictError{Revision: stored.ModRevision}
	}
	return stored.ModRevision, nil
}

// raiseFence sends the transaction that raises the fence in a head. If the head is another one, the
// response has the header, the head, and what reads read.
//
// The fence is a change of its own, so that watchers learn the new head; without it every later
// change of the workspace would be a conflict. No cache acts on its kind. Its feed entry has a hash
// that was drawn, because there is no event: the hash of the event before it would also fit a fence
// of another history.
func (s *Store) raiseFence(ctx context.Context, member *clientv3.Client, workspaceID string, head storage.Head, reads ...clientv3.Op) (*clientv3.TxnResponse, error) {
	expected, err := frameHead(workspaceID, head)
	if err != nil {
		return nil, err
	}
	raised := head
	raised.Fence++
	next, err := frameHead(workspaceID, raised)
	if err != nil {
		return nil, err
	}
	var drawn [32]byte
	if _, err := io.ReadFull(s.config.Random, drawn[:]); err != nil {
		return nil, fmt.Errorf("drawing the hash of a fence: %w", err)
	}
	fence := &storage.Change{WorkspaceID: workspaceID, Kind: storagev1.FeedKind_FEED_KIND_PURGE}
	feed, err := storage.Encode(fence.Feed(0, drawn))
	if err != nil {
		return nil, err
	}
	// One transaction compares and raises. If it read first and then raised, the lost
	// transaction could commit in between.
	name := headName(workspaceID)
	return member.Txn(ctx).
		If(s.holds(nameHeader, "=", s.header), s.holdsHead(workspaceID, head, expected)).
		Then(s.put(name, next), s.putFrame(nameFeedHead, feed)).
		Else(append([]clientv3.Op{s.get(nameHeader), s.get(name)}, reads...)...).
		Commit()
}

// look returns the outcome of a transaction that etcd answered with an error. Such a
// transaction cannot commit later, so it needs no fence, for which etcd may have no space.
func (t *transaction) look(ctx context.Context, cause error) (int64, error) {
	s, workspaceID := t.store, t.change.WorkspaceID
	response, err := s.read(ctx, s.get(nameHeader), s.get(headName(workspaceID)), s.get(auditName(workspaceID, t.head.Sequence)))
	if err != nil {
		return 0, fmt.Errorf("%w: %s; %s", storage.ErrOutcomeUnknown, cause.Error(), err.Error())
	}
	revision, err := t.outcome(response)
	if errors.Is(err, storage.ErrUnavailable) {
		return 0, unavailable(cause)
	}
	return revision, err
}

// outcome returns the outcome of a transaction that cannot commit any more. response has the
// header, the head, and the audit event under the name that the transaction uses.
func (t *transaction) outcome(response *clientv3.TxnResponse) (int64, error) {
	if err := t.store.checkHeader(response); err != nil {
		return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, err.Error())
	}
	event := first(response, 2)
	if event == nil {
		stored := first(response, 1)
		head, err := decodeHead(t.change.WorkspaceID, stored.GetValue())
		switch {
		case t.change.Expect == (storage.Head{}) && stored == nil, err == nil && head == t.change.Expect:
			return 0, fmt.Errorf("%w: the change was lost on its way", storage.ErrUnavailable)
		case err != nil:
			return 0, errors.Join(storage.ErrUnavailable, err)
		}
		return 0, &storage.ConflictError{Revision: stored.ModRevision}
	}
	encoded, err := storage.Unframe("audit event", t.store.name(event), event.Value)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, err.Error())
	}
	// The event says who asked for what and when, so no two changes have the same event.
	if storage.HashAudit(encoded) == t.head.Hash {
		return event.CreateRevision, nil
	}
	return 0, &storage.ConflictError{Revision: first(response, 1).GetModRevision()}
}
