package etcdstore

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// errNotFenced says that an attempt at the fence was not answered either.
var errNotFenced = errors.New("the fence could not be written")

// settle finds out what became of a transaction whose answer was lost, and sees to it
// that this stays so. If the head still is the expected one, it raises the fence: the
// lost transaction, wherever it is, does not match any more. If it is another one, the
// transaction has either committed, and its audit event is there, or never will.
//
// While etcd cannot be asked, it goes on in the background after it has answered
// ErrOutcomeUnknown, so that the truth does not change later than need be.
func (t *transaction) settle(ctx context.Context) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, t.store.config.Timeout)
	defer cancel()
	revision, err := t.settleUntil(limited)
	if !errors.Is(err, errNotFenced) {
		return revision, err
	}
	// A store that is closing does not begin this.
	if done, counted := t.store.begin(context.WithoutCancel(ctx)); counted == nil {
		t.store.settling(t.change.WorkspaceID, 1)
		go func() {
			defer done()
			defer t.store.settling(t.change.WorkspaceID, -1)
			revision, err := t.settleUntil(t.store.closing)
			if errors.Is(err, errNotFenced) {
				return // closed before
			}
			t.store.config.Log.InfoContext(ctx, "an outcome that was unknown is settled",
				"workspace_id", t.change.WorkspaceID, "revision", revision, "error", err)
		}()
	}
	return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, err.Error())
}

// settleUntil tries until it is settled or the context ends, which is errNotFenced.
func (t *transaction) settleUntil(ctx context.Context) (int64, error) {
	retries := newBackoff()
	for {
		revision, err := t.fence(ctx)
		if !errors.Is(err, errNotFenced) || !retries.Wait(ctx) {
			return revision, err
		}
	}
}

// fence tries once. An attempt that is lost itself does no harm: it raises the fence or
// does not, and the next one sees which.
func (t *transaction) fence(ctx context.Context) (int64, error) {
	s, change := t.store, t.change
	expected, err := frameHead(change.WorkspaceID, change.Expect)
	if err != nil {
		return 0, err
	}
	fenced := change.Expect
	fenced.Fence++
	next, err := frameHead(change.WorkspaceID, fenced)
	if err != nil {
		return 0, err
	}
	// Watchers must follow, or every later change of the workspace would be a conflict. So
	// it is a change as well, of the kind that concerns no cache.
	entry := &storage.Change{WorkspaceID: change.WorkspaceID, Kind: storagev1.FeedKind_FEED_KIND_PURGE}
	feed, err := storage.Encode(entry.Feed(0, fenced.Hash))
	if err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	name := headName(change.WorkspaceID)
	response, err := s.client.Txn(limited).
		If(s.holds(nameHeader, "=", s.header), s.holdsHead(change.WorkspaceID, change.Expect, expected)).
		Then(s.put(name, next), s.putFrame(nameFeedHead, feed)).
		Else(s.get(nameHeader), s.get(name), s.get(auditName(change.WorkspaceID, t.head.Sequence))).
		Commit()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", errNotFenced, err.Error())
	}
	raise(&s.seen, response.Header.GetRevision())
	if response.Succeeded {
		return 0, fmt.Errorf("%w: the change was lost on its way", storage.ErrUnavailable)
	}
	return t.outcome(response)
}

// look finds out what became of a transaction that etcd answered with an error, and so
// is not on its way any more. There is nothing to fence, and etcd may be too full for it.
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

// outcome tells it from what was found, when the transaction cannot commit any more.
func (t *transaction) outcome(response *clientv3.TxnResponse) (int64, error) {
	if header := first(response, 0); string(header.GetValue()) != t.store.header {
		return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, t.store.errHistory().Error())
	}
	event := first(response, 2)
	if event == nil {
		head, err := decodeHead(t.change.WorkspaceID, first(response, 1).GetValue())
		if err == nil && head.Sequence == t.change.Expect.Sequence {
			return 0, fmt.Errorf("%w: the change was lost on its way", storage.ErrUnavailable)
		}
		return 0, errors.Join(storage.ErrUnavailable, err)
	}
	encoded, err := storage.Unframe("audit event", t.store.name(event), event.Value)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", storage.ErrOutcomeUnknown, err.Error())
	}
	// The event tells who asked for what and when: no two changes have the same.
	if storage.HashAudit(encoded) == t.head.Hash {
		return event.CreateRevision, nil
	}
	return 0, &storage.ConflictError{Revision: first(response, 1).GetModRevision()}
}
