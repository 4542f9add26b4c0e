package storagetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var concurrencyTests = []test{
	{"ChangesOfOneWorkspaceLoseNoUpdate", testOneWorkspace},
	{"ChangesOfManyWorkspacesDoNotConflict", testManyWorkspaces},
	{"ReadersSeeWholeChanges", testReadersSeeWholeChanges},
	{"CancelledChangesChangeNothing", testCancelWhileWaiting},
}

// testOneWorkspace increments a count in one record from many goroutines. A lost update
// would show in the count, a gap in the audit events.
func testOneWorkspace(s *suite) {
	const callers, each = 16, 8
	workspace := s.begin("w")
	s.do(workspace, workspace.CreateKey(KeyID(1)))
	key := s.getKey("w", KeyID(1))
	s.do(workspace, workspace.UpdateKey(key, rename("0")))
	var mutex sync.Mutex // guards workspace, and keeps the model's changes in order
	var conflicts atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for done := 0; done < each; {
				mutex.Lock()
				at := *workspace
				mutex.Unlock()
				stored, _, err := s.store.GetKey(s.ctx, "w", KeyID(1))
				if err != nil {
					s.Errorf("GetKey: %v", err)
					return
				}
				count, err := strconv.Atoi(stored.GetName())
				if err != nil {
					s.Errorf("the key's name: %v", err)
					return
				}
				change := at.UpdateKey(stored, rename(strconv.Itoa(count+1)))
				// If the record is newer than the head, the head is stale and the change a conflict.
				revision, err := s.store.Commit(s.ctx, change)
				switch {
				case errors.Is(err, storage.ErrConflict):
					conflicts.Add(1)
				case err != nil:
					s.Errorf("Commit: %v", err)
					return
				default:
					mutex.Lock()
					s.model.Apply(change, revision)
					workspace.Follow(change)
					mutex.Unlock()
					done++
				}
			}
		})
	}
	group.Wait()
	if got := s.getKey("w", KeyID(1)).GetName(); got != strconv.Itoa(callers*each) {
		s.Errorf("counted to %s, want %d", got, callers*each)
	}
	if want := int64(3 + callers*each); workspace.Head.Sequence != want {
		s.Errorf("the head is at event %d, want %d", workspace.Head.Sequence, want)
	}
	s.Logf("%d conflicts", conflicts.Load())
}

// testManyWorkspaces changes many workspaces from a goroutine each. None of them meets a
// conflict, and no revision is returned twice.
func testManyWorkspaces(s *suite) {
	const callers, each = 32, 12
	var revisions sync.Map
	var group sync.WaitGroup
	for caller := range callers {
		group.Go(func() {
			workspace := NewWorkspace(fmt.Sprintf("w%d", caller))
			before := int64(0)
			for index := range each {
				change := workspace.PutMember("member", "admin")
				if index > 0 {
					change = workspace.CreateKey(KeyID(caller*1000+index), fmt.Sprintf("request %d", index))
				}
				revision, err := s.store.Commit(s.ctx, change)
				if err != nil {
					s.Errorf("Commit: %v", err)
					return
				}
				if _, twice := revisions.LoadOrStore(revision, true); twice || revision <= before {
					s.Errorf("Commit: revision %d after %d, or twice", revision, before)
				}
				before = revision
				s.model.Apply(change, revision)
				workspace.Follow(change)
			}
		})
	}
	group.Wait()
}

// testReadersSeeWholeChanges reads while changes are made that each put a key and a member.
// A reader that sees one part of a change sees all of it, and sees every acknowledged
// change.
func testReadersSeeWholeChanges(s *suite) {
	const changes = 60
	workspace := s.begin("w")
	s.create(workspace, KeyID(1))
	write := func(number int) (int64, error) {
		change := workspace.UpdateKey(s.model.key("w", KeyID(1)), rename(strconv.Itoa(number)))
		change.PutMembers = workspace.PutMember("member", strconv.Itoa(number)).PutMembers
		revision, err := s.store.Commit(s.ctx, change)
		if err == nil {
			s.model.Apply(change, revision)
			workspace.Follow(change)
		}
		return revision, err
	}
	if _, err := write(0); err != nil {
		s.Fatalf("Commit: %v", err)
	}
	base := workspace.Head.Sequence // the event of change 0
	var acknowledged atomic.Int64
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					s.readWhole(base, acknowledged.Load())
				}
			}
		})
	}
	for number := 1; number <= changes; number++ {
		if _, err := write(number); err != nil {
			s.Errorf("Commit: %v", err)
			break
		}
		acknowledged.Store(int64(number))
	}
	close(done)
	group.Wait()
}

// key returns a key of the model.
func (m *Model) key(workspaceID, keyID string) *storagev1.KeyRecord {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.workspaces[workspaceID].keys[keyID]
}

// readWhole reads the store in several ways, and fails the test if it sees a part of a change, or
// not yet the acknowledged change. Change n has the audit event base+n. It makes n the name of
// the key and the role of the member.
func (s *suite) readWhole(base, acknowledged int64) {
	var key, member string
	var head int64
	position, err := s.store.Load(s.ctx, func(item storage.Item) error {
		switch {
		case item.Key != nil:
			key = item.Key.GetName()
		case item.Member != nil:
			member = item.Member.GetRole()
		case item.Head != nil:
			head = item.Head.Head.Sequence
		}
		return nil
	})
	want := strconv.FormatInt(head-base, 10)
	if err != nil || key != want || member != want || head-base < acknowledged {
		s.Errorf("Load: key %s, member %s, event %d, %v; at least %d was acknowledged", key, member, head-base, err, acknowledged)
	}
	page, err := s.store.ListAuditEvents(s.ctx, storage.Query{WorkspaceID: "w", Limit: 1})
	if err != nil || len(page.Events) != 1 || page.Events[0].Record.GetSequence() < head || page.Revision < position.Revision {
		s.Errorf("ListAuditEvents: %+v, %v; want event %d or a later one", page, err, head)
		return
	}
	newest := page.Events[0].Record.GetSequence() - base
	stored, revision, err := s.store.GetKey(s.ctx, "w", KeyID(1))
	if err != nil || revision < page.Revision {
		s.Errorf("GetKey: revision %d, %v; want %d or later", revision, err, page.Revision)
		return
	}
	if number, err := strconv.ParseInt(stored.GetName(), 10, 64); err != nil || number < newest {
		s.Errorf("GetKey: change %s, though the audit event of %d was seen before", stored.GetName(), newest)
	}
}

// testCancelWhileWaiting cancels changes that may be waiting or being committed. A change
// that is reported as cancelled has changed nothing.
func testCancelWhileWaiting(s *suite) {
	const workspaces, each = 16, 10
	var group sync.WaitGroup
	for index := range workspaces {
		group.Go(func() {
			workspace := NewWorkspace(fmt.Sprintf("w%d", index))
			for round := 0; round < each; {
				ctx, cancel := context.WithCancel(s.ctx)
				change := workspace.PutMember("member", "admin")
				if round%2 == 1 {
					go cancel()
				}
				revision, err := s.store.Commit(ctx, change)
				cancel()
				switch {
				case err == nil:
					s.model.Apply(change, revision)
					workspace.Follow(change)
				case !errors.Is(err, context.Canceled):
					s.Errorf("Commit: %v", err)
					return
				}
				round++
			}
		})
	}
	group.Wait()
}
