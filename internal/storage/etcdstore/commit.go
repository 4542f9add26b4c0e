package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/patience" //nolint:depguard // it imports nothing
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// transaction is a change in the form of one etcd transaction. A change that passes
// Change.Validate fits into etcd's limits of 128 comparisons and 128 operations: each operation
// that Validate counts is at most one of either, and the store adds four of either.
type transaction struct {
	store  *Store
	change *storage.Change
	event  []byte       // the audit event, encoded
	head   storage.Head // after the change
	// expected is the head before the change as it is stored, and sum that of the records after it.
	expected storedHead
	sum      integrity.Sum

	// If all compares hold, etcd executes parts. Otherwise it reads checks, which show which
	// comparison failed.
	compares []clientv3.Cmp
	parts    []clientv3.Op
	checks   []check
}

// check belongs to one comparison. It reads what was compared.
type check struct {
	read clientv3.Op
	// judge returns an error if what was found is not as expected.
	judge func(found *mvccpb.KeyValue) error
}

// Commit implements storage.Store. After the transaction was sent, a caller who gives up no longer
// ends the call: only the end of the transaction shows the outcome. But the caller's deadline bounds the
// search for it.
//
// If the transaction was lost and excluded by a fence, the error is a ConflictError with the revision of the fence:
// nothing was changed, the head is another one now, and the caller makes the change anew.
func (s *Store) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if err := change.Validate(); err != nil {
		return 0, err
	}
	done, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	if err := s.admit(change.Narrows); err != nil {
		return 0, err
	}
	// 1. Read what the change replaces, and list its hashes in the event. This comes first
	// because the new head is the hash of the event.
	m := s.memory.Load() // one for the whole call: a Load in between begins with an older one
	ranks, err := s.completeEvent(ctx, m, change)
	if err != nil {
		return 0, err
	}
	// 2. Compare what is replaced with the memory, and build the transaction. It compares the head that
	// step 1 read, so a change in between makes it fail.
	planned, err := m.plan(change, change.Event.GetChanges())
	if err != nil {
		return 0, err
	}
	t, err := s.transaction(ctx, change, planned, ranks)
	if err != nil {
		return 0, err
	}
	// 3. Refuse the change without a connection, or while the outcome of an earlier one is
	// unknown. Nothing was sent so far, so the change certainly has no effect.
	if s.members.allDown() {
		return 0, fmt.Errorf("%w: not connected", storage.ErrUnavailable)
	}
	if s.isInDoubt(change.WorkspaceID) {
		return 0, fmt.Errorf("%w: the outcome of an earlier change is not known yet", storage.ErrUnavailable)
	}
	// 4. Send, and wait for the outcome whatever happens to the caller, until shortly before the
	// caller's deadline.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience.Within(ctx, s.config.Timeout))
	defer cancel()
	revision, err := t.commit(limited)
	conflict, exists := (*storage.ConflictError)(nil), (*storage.ExistsError)(nil)
	switch {
	case errors.As(err, &conflict):
		s.told.raise(conflict.Revision)
	case errors.As(err, &exists):
		s.told.raise(exists.Revision)
	}
	if err != nil {
		return 0, err
	}
	s.done(planned, change.Expect, t.head, revision)
	raise(&s.newest, revision)
	s.told.raise(revision)
	return revision, nil
}

// transaction builds the transaction of a change. ranks are the ranks of the keys to
// delete.
func (s *Store) transaction(ctx context.Context, change *storage.Change, planned *plan, ranks map[string]string) (*transaction, error) {
	event, err := storage.Encode(change.Event)
	if err != nil {
		return nil, notEncodable(err)
	}
	t := &transaction{store: s, change: change, event: event, head: change.Expect.After(event), sum: planned.sum}
	if t.expected, err = s.storedHead(ctx, change.WorkspaceID, change.Expect); err != nil {
		return nil, err
	}
	t.expect(s.holds(nameHeader, "=", s.header), nameHeader, func(found *mvccpb.KeyValue) error {
		if string(found.GetValue()) == s.header {
			return nil
		}
		return s.errHistory()
	})
	t.expect(s.holdsHead(change.WorkspaceID, t.expected), headName(change.WorkspaceID), func(found *mvccpb.KeyValue) error {
		return judgeHead(change.WorkspaceID, change.Expect, found)
	})
	if policy := change.ExpectPolicy; policy != nil {
		stored, err := s.storedHead(ctx, "", *policy)
		if err != nil {
			return nil, err
		}
		t.expect(s.holdsHead("", stored), headName(""), func(found *mvccpb.KeyValue) error {
			return judgeHead("", *policy, found)
		})
	}
	// If a head were lost, the chain would begin again and overwrite the old events.
	next := auditName(change.WorkspaceID, t.head.Sequence)
	t.expect(s.isAbsent(next), next, func(found *mvccpb.KeyValue) error {
		if found == nil {
			return nil
		}
		return &storage.DamagedError{Kind: "head", Name: change.WorkspaceID, Problem: "an audit event is ahead of it"}
	})
	if err := errors.Join(t.records(), t.keys(ranks)); err != nil {
		return nil, notEncodable(err)
	}
	t.requestIDs()
	if err := t.finish(); err != nil {
		return nil, notEncodable(err)
	}
	return t, nil
}

// expect adds a comparison with what is stored under a name.
func (t *transaction) expect(compare clientv3.Cmp, name string, judge func(found *mvccpb.KeyValue) error) {
	t.compares = append(t.compares, compare)
	t.checks = append(t.checks, check{read: t.store.get(name), judge: judge})
}

// putRecord adds the put of a record.
func (t *transaction) putRecord(name string, record proto.Message) error {
	payload, err := storage.Encode(record)
	t.parts = append(t.parts, t.store.putFrame(name, payload))
	return err
}

// records adds the policy, the settings, the workspace and the members.
func (t *transaction) records() error {
	var problems []error
	change := t.change
	if change.PutPolicy != nil {
		problems = append(problems, t.putRecord(namePolicy, change.PutPolicy))
	}
	if change.PutSettings != nil {
		problems = append(problems, t.putRecord(nameSettings, change.PutSettings))
	}
	if change.PutWorkspace != nil {
		problems = append(problems, t.putRecord(workspaceName(change.WorkspaceID), change.PutWorkspace))
	}
	for _, member := range change.PutMembers {
		problems = append(problems, t.putRecord(memberName(change.WorkspaceID, member.GetMemberId()), member))
	}
	for _, member := range change.DeleteMembers {
		t.parts = append(t.parts, t.store.delete(memberName(change.WorkspaceID, member.GetMemberId())))
	}
	return errors.Join(problems...)
}

// keys adds the keys and their index entries.
func (t *transaction) keys(ranks map[string]string) error {
	var problems []error
	s, change := t.store, t.change
	// A new key ranks after everything that this process has seen. So keys that were created
	// one after the other by one process, or after seeing each other, are in that order
	// (ADR 0009).
	rank := rankAfter(s.seen.Load())
	for _, keyID := range change.AbsentKeyIDs {
		t.expect(s.isAbsent(idName(keyID)), idName(keyID), func(found *mvccpb.KeyValue) error {
			if found == nil {
				return nil
			}
			return &storage.ExistsError{KeyID: keyID, Revision: found.ModRevision}
		})
	}
	for _, key := range change.PutKeys {
		keyID := key.GetKeyId()
		name := keyName(change.WorkspaceID, key.GetSequence(), keyID)
		problems = append(problems, t.putRecord(name, key))
		if !change.IsNew(key) {
			t.expectKey(keyID, name)
			continue
		}
		t.parts = append(t.parts,
			s.putFrame(idName(keyID), idEntry{rank: rank, name: name}.encode()),
			s.putFrame(orderName(rank, keyID), []byte(name)))
	}
	for _, key := range change.DeleteKeys {
		keyID := key.GetKeyId()
		name := keyName(change.WorkspaceID, key.GetSequence(), keyID)
		t.expectKey(keyID, name)
		t.parts = append(t.parts,
			s.delete(name), s.delete(idName(keyID)), s.delete(orderName(ranks[keyID], keyID)), s.delete(usageName(keyID)))
	}
	return errors.Join(problems...)
}

// expectKey expects that a key's record is stored under a name.
func (t *transaction) expectKey(keyID, name string) {
	t.expect(t.store.isThere(name), name, func(found *mvccpb.KeyValue) error {
		if found != nil {
			return nil
		}
		return fmt.Errorf("%w: key %s of that sequence is not in the workspace", storage.ErrInvalidChange, keyID)
	})
}

// requestIDs adds the index entries of request ids.
func (t *transaction) requestIDs() {
	s, change := t.store, t.change
	for _, requestID := range change.AbsentRequestIDs {
		name := requestName(change.WorkspaceID, requestID)
		t.expect(s.isAbsent(name), name, func(found *mvccpb.KeyValue) error {
			if found == nil {
				return nil
			}
			keyID, err := storage.Unframe("request", name, found.Value)
			if err != nil {
				return err
			}
			return &storage.ExistsError{RequestID: requestID, KeyID: string(keyID), Revision: found.ModRevision}
		})
		for _, key := range change.PutKeys {
			if slices.Contains(key.GetRequestIds(), requestID) {
				t.parts = append(t.parts, s.putFrame(name, []byte(key.GetKeyId())))
				break
			}
		}
	}
	for _, requestID := range change.FreedRequestIDs {
		t.parts = append(t.parts, s.delete(requestName(change.WorkspaceID, requestID)))
	}
	for _, key := range change.DeleteKeys {
		for _, requestID := range key.GetRequestIds() {
			t.parts = append(t.parts, s.delete(requestName(change.WorkspaceID, requestID)))
		}
	}
}

// finish adds the audit event, the head and, last, the feed entry.
func (t *transaction) finish() error {
	s, change := t.store, t.change
	head, err := frameHead(change.WorkspaceID, t.head, s.tagOf(change.WorkspaceID, t.head, t.sum))
	if err != nil {
		return err
	}
	feed, err := storage.Encode(change.Feed(0, t.head.Hash))
	if err != nil {
		return err
	}
	changed := encodeTime(nameTime, change.Event.GetTime().AsTime())
	// The feed entry is last: etcd sends the events of a transaction in the order of its
	// operations, and watchers take the feed entry for the end of the change.
	t.parts = append(t.parts,
		s.putFrame(auditName(change.WorkspaceID, t.head.Sequence), t.event),
		s.put(headName(change.WorkspaceID), head),
		clientv3.OpTxn([]clientv3.Cmp{s.holds(nameTime, "<", changed)}, []clientv3.Op{s.put(nameTime, changed)}, nil),
		s.putFrame(nameFeedHead, feed))
	return nil
}

// commit sends the transaction and returns its revision, or why it was refused. Before the context
// has ended, it returns only what is final.
func (t *transaction) commit(ctx context.Context) (int64, error) {
	s, overloaded := t.store, error(nil)
	for _, index := range s.members.order(s.members.first()) {
		response, err := t.send(ctx, index)
		switch {
		case err == nil && response.Succeeded:
			return response.Header.GetRevision(), nil
		case err == nil:
			return 0, t.why(response)
		case isOverloaded(err): // this member has not taken it
			overloaded = err
			continue
		case isRefusal(err): // etcd has not executed it, and will not
			return 0, unavailable(err)
		case isFull(err): // etcd may have executed it, but will not do so later
			return t.look(ctx, err)
		}
		// Any other error: etcd may have executed the transaction, or may still do so.
		s.members.silent(index)
		s.config.Log.WarnContext(ctx, "the answer to a commit was lost; looking for its outcome",
			"workspace_id", t.change.WorkspaceID, "member", index, "error", err)
		return t.resolve(ctx)
	}
	return 0, unavailable(overloaded)
}

// send sends the transaction to one member, and waits for its answer as long as one attempt lasts, or until the
// member turns out to be silent. Half of the time is left for the search for the outcome.
func (t *transaction) send(ctx context.Context, index int) (*clientv3.TxnResponse, error) {
	s, attempt := t.store, t.store.config.Attempt
	if deadline, has := ctx.Deadline(); has {
		attempt = min(attempt, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer s.whenSilent(ctx, index, func() { giveUp(errSilent) })()
	reads := make([]clientv3.Op, len(t.checks))
	for index, check := range t.checks {
		reads[index] = check.read
	}
	response, err := s.members.clients[index].Txn(ctx).If(t.compares...).Then(t.parts...).Else(reads...).Commit()
	switch {
	case err == nil:
		s.members.answered(index)
		raise(&s.seen, response.Header.GetRevision())
	case errors.Is(context.Cause(ctx), errSilent):
		err = fmt.Errorf("%w: %w", errSilent, err)
	}
	return response, err
}

// why returns the error of the first comparison that failed. response has what checks read.
func (t *transaction) why(response *clientv3.TxnResponse) error {
	for index, check := range t.checks {
		if err := check.judge(first(response, index)); err != nil {
			return err
		}
	}
	// Everything is as expected except the bytes of the head.
	return &storage.DamagedError{Kind: "head", Name: t.change.WorkspaceID, Problem: "not in the form that this version writes"}
}

// judgeHead compares the stored head of a workspace with the expected one; found is nil if
// none is stored.
func judgeHead(workspaceID string, expected storage.Head, found *mvccpb.KeyValue) error {
	var head storage.Head
	if found != nil {
		var err error
		if head, err = decodeHead(workspaceID, found.Value); err != nil {
			return err
		}
	}
	if head != expected {
		return &storage.ConflictError{Revision: found.GetModRevision()}
	}
	return nil
}

// holdsHead compares a workspace's head with its stored form.
func (s *Store) holdsHead(workspaceID string, stored storedHead) clientv3.Cmp {
	if stored.value == "" {
		return s.isAbsent(headName(workspaceID))
	}
	return s.holds(headName(workspaceID), "=", stored.value)
}

func decodeHead(workspaceID string, value []byte) (storage.Head, error) {
	record := &storagev1.HeadRecord{}
	if err := storage.Decode("head", headName(workspaceID), value, record); err != nil {
		return storage.Head{}, &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: problemOf(err)}
	}
	return storage.HeadOf(workspaceID, record)
}

func decodeID(keyID string, value []byte) (idEntry, error) {
	payload, err := storage.Unframe("id", idName(keyID), value)
	if err != nil {
		return idEntry{}, &storage.DamagedError{Kind: "key", Name: keyID, Problem: "index entry: " + problemOf(err)}
	}
	entry, ok := parseIDEntry(payload)
	if !ok {
		return idEntry{}, &storage.DamagedError{Kind: "key", Name: keyID, Problem: "not an index entry"}
	}
	return entry, nil
}

// notEncodable returns the error for text that is not UTF-8.
func notEncodable(err error) error {
	return fmt.Errorf("%w: %w", storage.ErrInvalidChange, err)
}

func problemOf(err error) string {
	if damaged, ok := err.(*storage.DamagedError); ok { //nolint:errorlint // Decode wraps nothing
		return damaged.Problem
	}
	return err.Error()
}
