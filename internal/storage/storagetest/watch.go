package storagetest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/storage"
)

var watchTests = []test{
	{"YieldsRevisionsInOrder", testWatchOrder},
	{"YieldsWhatChangesPutAndDelete", testWatchContent},
	{"EndsWithItsContext", testWatchCancel},
	{"UnreachableRevisionIsErrGap", testWatchGap},
	{"AnotherHistoryIsErrHistoryChanged", testWatchHistory},
	{"ContinuesLoadWithoutGap", testLoadThenWatch},
	{"YieldsAllChangesOrErrGap", testWatchManyChanges},
	{"ListFeedReturnsTheNewestEntries", testListFeed},
}

// watcher watches a store in a goroutine.
type watcher struct {
	*suite

	changes chan *storage.Committed
	err     chan error // the error that ended it
	cancel  context.CancelFunc
}

func (s *suite) watch(after int64) *watcher { return s.watchAfter(at(after)) }

// at returns a point of the change log whose hash is not known.
func at(revision int64) storage.Barrier { return storage.Barrier{Revision: revision} }

func (s *suite) watchAfter(after storage.Barrier) *watcher {
	ctx, cancel := context.WithCancel(s.ctx)
	w := &watcher{suite: s, changes: make(chan *storage.Committed, 10000), err: make(chan error, 1), cancel: cancel}
	store := s.store
	go func() {
		for change, err := range store.Watch(ctx, after) {
			if err != nil {
				w.err <- err
				continue // nothing may follow
			}
			w.changes <- change
		}
		close(w.changes)
	}()
	return w
}

// next returns the next change.
func (w *watcher) next() *storage.Committed {
	w.Helper()
	select {
	case change := <-w.changes:
		if change == nil {
			w.Fatalf("Watch ended: %v", <-w.err)
		}
		return change
	case <-w.ctx.Done():
		w.Fatal("Watch: a change did not come")
		return nil
	}
}

// end waits for the watch to end and returns its error.
func (w *watcher) end() error {
	w.Helper()
	for {
		select {
		case change := <-w.changes:
			if change == nil {
				return <-w.err
			}
		case <-w.ctx.Done():
			w.Fatal("Watch did not end")
		}
	}
}

func testWatchOrder(s *suite) {
	fromStart := s.watch(0)
	defer fromStart.cancel()
	workspace, other := s.begin("w"), s.begin("other")
	middle := s.create(other, KeyID(1000))
	from := s.model.Revision()
	var revisions []int64
	for index := range 20 {
		workspace := workspace
		if index%3 == 0 {
			workspace = other
		}
		change := workspace.CreateKey(KeyID(index))
		revisions = append(revisions, s.do(workspace, change))
	}
	fromMiddle := s.watch(from)
	defer fromMiddle.cancel()
	also := s.watch(from)
	defer also.cancel()
	for range 3 {
		fromStart.next()
	}
	for _, w := range []*watcher{fromStart, fromMiddle, also} {
		for _, want := range revisions {
			if change := w.next(); change.Revision != want {
				s.Fatalf("Watch: revision %d, want %d", change.Revision, want)
			}
		}
	}
	// All watchers see the next change.
	revision := s.do(other, other.UpdateKey(middle, rename("new")))
	for _, w := range []*watcher{fromStart, fromMiddle, also} {
		if change := w.next(); change.Revision != revision {
			s.Errorf("Watch: revision %d, want %d", change.Revision, revision)
		}
	}
}

func testWatchContent(s *suite) {
	w := s.watch(0)
	defer w.cancel()
	workspace := NewWorkspace("w")
	var changes []*storage.Change
	do := func(change *storage.Change) {
		s.do(workspace, change)
		changes = append(changes, change)
	}
	do(workspace.PutMember("member", "admin"))
	do(workspace.PutMember("other", "admin"))
	do(workspace.CreateKey(KeyID(1), "request"))
	do(workspace.CreateKey(KeyID(2)))
	do(workspace.UpdateKey(s.getKey("w", KeyID(1)), rename("new")))
	do(workspace.RevokeKey(s.getKey("w", KeyID(1))))
	policy := ApplyPolicy(storage.Head{}, "policy")
	s.commit(policy)
	changes = append(changes, policy)
	other, _, err := s.store.GetMember(s.ctx, "w", "other")
	if err != nil {
		s.Fatalf("GetMember: %v", err)
	}
	do(workspace.DeleteMembers(other))
	do(workspace.DeleteKey(s.getKey("w", KeyID(1)), s.getKey("w", KeyID(2))))
	do(workspace.RemoveWorkspace())
	for _, change := range changes {
		got := w.next()
		want := change.Committed(got.Revision, After(change))
		if got.Head != want.Head || !got.Time.Equal(want.Time) {
			s.Errorf("Watch: head %+v at %v, want %+v at %v", got.Head, got.Time, want.Head, want.Time)
		}
		s.equal("Watch: feed entry", got.Feed, want.Feed)
		equalLists(s, "Watch: deleted keys", got.DeletedKeys, want.DeletedKeys)
		equalLists(s, "Watch: deleted members", got.DeletedMembers, want.DeletedMembers)
		equalLists(s, "Watch: put records", putRecords(got), putRecords(want))
	}
}

// putRecords returns the records that a change put, ordered by kind.
func putRecords(change *storage.Committed) []proto.Message {
	var policies, settings, workspaces, members, keys []proto.Message
	for _, item := range change.Put {
		switch {
		case item.Policy != nil:
			policies = append(policies, item.Policy)
		case item.Settings != nil:
			settings = append(settings, item.Settings)
		case item.Workspace != nil:
			workspaces = append(workspaces, item.Workspace)
		case item.Member != nil:
			members = append(members, item.Member)
		case item.Key != nil:
			keys = append(keys, item.Key)
		}
	}
	return append(append(append(append(policies, settings...), workspaces...), members...), keys...)
}

func testWatchCancel(s *suite) {
	w := s.watch(0)
	workspace := s.begin("w")
	w.next()
	w.cancel()
	if err := w.end(); !errors.Is(err, context.Canceled) {
		s.Errorf("Watch ended: %v, want context.Canceled", err)
	}
	// Leaving the loop ends the watch and does not disturb other watches.
	stays := s.watch(s.model.Revision())
	defer stays.cancel()
	s.create(workspace, KeyID(1))
	for change, err := range s.store.Watch(s.ctx, at(0)) {
		if err != nil || change.Head.WorkspaceID != "w" {
			s.Errorf("Watch: %+v, %v", change, err)
		}
		break
	}
	stays.next()
	revision := s.do(workspace, workspace.CreateKey(KeyID(2)))
	if change := stays.next(); change.Revision != revision {
		s.Errorf("Watch: revision %d, want %d", change.Revision, revision)
	}
}

func testWatchGap(s *suite) {
	s.begin("w")
	s.begin("other")
	for _, ahead := range []int64{1, 1000, 1 << 60} {
		w := s.watch(s.model.Revision() + ahead)
		if err := w.end(); !errors.Is(err, storage.ErrHistoryChanged) {
			s.Errorf("Watch after a revision of the future: %v, want ErrHistoryChanged", err)
		}
		w.cancel()
	}
	// After reopening, an older revision may be unreachable. Then the watch ends with ErrGap.
	s.reopen()
	s.begin("third")
	s.followOrGap(0, []string{"w", "other", "third"})
}

// testWatchHistory watches after points of the change log, with the right hash and with another one.
func testWatchHistory(s *suite) {
	workspace := s.begin("w")
	var points []storage.Barrier
	for number := range 4 {
		s.create(workspace, KeyID(number))
		points = append(points, s.barrier())
	}
	for index, point := range points {
		w := s.watchAfter(point)
		if index == len(points)-1 { // the newest
			s.create(workspace, KeyID(index+1))
		}
		if change := w.next(); change.Head.Head.Sequence != int64(index+3) || change.Head.WorkspaceID != "w" {
			s.Errorf("Watch after point %d: %+v", index, change.Head)
		}
		w.cancel()
		point.Hash[0] ^= 1
		w = s.watchAfter(point)
		if err := w.end(); !errors.Is(err, storage.ErrHistoryChanged) {
			s.Errorf("Watch after another change at revision %d: %v, want ErrHistoryChanged", point.Revision, err)
		}
		w.cancel()
	}
}

// followOrGap watches after a revision. It expects ErrGap at once, or one change of each of these
// workspaces, in this order.
func (s *suite) followOrGap(after int64, want []string) {
	s.Helper()
	seen := 0
	for change, err := range s.store.Watch(s.ctx, at(after)) {
		if err != nil {
			if !errors.Is(err, storage.ErrGap) || seen > 0 {
				s.Errorf("Watch: %v after %d changes, want ErrGap at once or all of them", err, seen)
			}
			return
		}
		if change.Head.WorkspaceID != want[seen] {
			s.Errorf("Watch: change %d is of %q, want %q", seen, change.Head.WorkspaceID, want[seen])
		}
		if seen++; seen == len(want) {
			return
		}
	}
}

// testLoadThenWatch loads and then watches, as a projection does, again and again while
// changes are made. There is no gap between what is loaded and what is watched.
func testLoadThenWatch(s *suite) {
	const workspaces, changes = 4, 25
	var group sync.WaitGroup
	all := make([]*Workspace, workspaces)
	for index := range all {
		all[index] = s.begin(fmt.Sprintf("w%d", index))
	}
	done := make(chan struct{})
	for _, workspace := range all {
		group.Go(func() {
			for index := range changes {
				change := workspace.PutMember("member", fmt.Sprintf("role %d", index))
				revision, err := s.store.Commit(s.ctx, change)
				if err != nil {
					s.Errorf("Commit: %v", err)
					return
				}
				s.model.Apply(change, revision)
				workspace.Follow(change)
			}
		})
	}
	go func() { group.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		heads := make(map[string]storage.Head)
		position, err := s.store.Load(s.ctx, func(item storage.Item) error {
			if item.Head != nil {
				heads[item.Head.WorkspaceID] = item.Head.Head
			}
			return nil
		})
		if err != nil {
			s.Fatalf("Load: %v", err)
		}
		if !running {
			break
		}
		ctx, cancel := context.WithCancel(s.ctx)
		stop := context.AfterFunc(s.ctx, cancel)
		go func() {
			select {
			case <-done:
				cancel()
			case <-ctx.Done():
			}
		}()
		followed, last := 0, position.Revision
		for change, err := range s.store.Watch(ctx, position.Barrier()) {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					s.Errorf("Watch after what Load returned: %v", err)
				}
				break
			}
			id := change.Head.WorkspaceID
			if change.Revision <= last || change.Head.Head.Sequence != heads[id].Sequence+1 {
				s.Errorf("Watch: revision %d after %d, event %d of %q after %d",
					change.Revision, last, change.Head.Head.Sequence, id, heads[id].Sequence)
			}
			heads[id], last = change.Head.Head, change.Revision
			if followed++; followed == 3 {
				break
			}
		}
		cancel()
		stop()
	}
}

// testWatchManyChanges makes more changes at the same time than a watcher may lag behind.
// Each watcher sees all changes, or gets ErrGap.
func testWatchManyChanges(s *suite) {
	const workspaces, changes = 64, 25
	w := s.watch(0)
	defer w.cancel()
	slow := s.store.Watch(s.ctx, at(0))
	var group sync.WaitGroup
	for index := range workspaces {
		group.Go(func() {
			workspace := NewWorkspace(fmt.Sprintf("w%d", index))
			for range changes {
				change := workspace.PutMember("member", "admin")
				revision, err := s.store.Commit(s.ctx, change)
				if err != nil {
					s.Errorf("Commit: %v", err)
					return
				}
				s.model.Apply(change, revision)
				workspace.Follow(change)
			}
		})
	}
	sequences := make(map[string]int64)
	last := int64(0)
	for seen := 0; seen < workspaces*changes; seen++ {
		select {
		case err := <-w.err:
			if !errors.Is(err, storage.ErrGap) {
				s.Fatalf("Watch: %v", err)
			}
			seen = workspaces * changes // it was too slow after all
		case change := <-w.changes:
			if change == nil {
				continue
			}
			id := change.Head.WorkspaceID
			if change.Revision <= last || change.Head.Head.Sequence != sequences[id]+1 {
				s.Fatalf("Watch: revision %d after %d, event %d of %q after %d",
					change.Revision, last, change.Head.Head.Sequence, id, sequences[id])
			}
			last, sequences[id] = change.Revision, change.Head.Head.Sequence
		case <-s.ctx.Done():
			s.Fatal("Watch: a change did not come")
		}
	}
	group.Wait()
	seen := int64(0)
	for change, err := range slow {
		if err != nil {
			if !errors.Is(err, storage.ErrGap) || seen > 0 {
				s.Errorf("Watch: %v after %d changes, want ErrGap at once or all of them", err, seen)
			}
			break
		}
		seen++
		if change.Revision == s.model.Revision() {
			if seen != workspaces*changes {
				s.Errorf("Watch: %d changes, want %d", seen, workspaces*changes)
			}
			break
		}
	}
}

// testListFeed checks that the feed entries that are kept are those that watchers saw, up
// to the newest change, also after reopening.
func testListFeed(s *suite) {
	if records, err := s.store.ListFeed(s.ctx, 10); err != nil || len(records) > 0 {
		s.Errorf("ListFeed of an empty store: %v, %v", records, err)
	}
	var want []proto.Message
	made := func(change *storage.Change, revision int64) {
		want = append(want, change.Feed(revision, After(change).Hash))
	}
	policy := ApplyPolicy(storage.Head{}, "policy")
	made(policy, s.commit(policy))
	workspace := NewWorkspace("w")
	do := func(change *storage.Change) {
		made(change, s.commit(change))
		workspace.Follow(change)
	}
	do(workspace.PutMember("member", "admin"))
	for index := range 8 {
		do(workspace.CreateKey(KeyID(index)))
	}
	do(workspace.RevokeKey(s.getKey("w", KeyID(3))))
	do(workspace.DeleteKey(s.getKey("w", KeyID(3))))
	do(workspace.RemoveWorkspace())
	check := func(limit int) int {
		s.Helper()
		records, err := s.store.ListFeed(s.ctx, limit)
		if err != nil || len(records) > limit || len(records) > len(want) {
			s.Fatalf("ListFeed(%d): %d records, %v", limit, len(records), err)
		}
		var got []proto.Message
		for _, record := range records {
			got = append(got, record)
		}
		equalLists(s, fmt.Sprintf("ListFeed(%d)", limit), got, want[len(want)-len(got):])
		return len(got)
	}
	for _, reopened := range []bool{false, true} {
		if reopened {
			s.reopen()
		}
		for _, limit := range []int{1, 5, len(want), 1000, 1 << 20} {
			// Nothing else writes to the store, so at least the newest entry is kept.
			if got := check(limit); got < 1 {
				s.Errorf("ListFeed(%d) after reopening %t: nothing", limit, reopened)
			}
		}
	}
}
