package storagetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Model is what a store should hold, in plain maps. It may be used by several goroutines.
type Model struct {
	mutex      sync.Mutex
	revision   int64
	time       time.Time
	policy     *storagev1.PolicyRecord
	settings   *storagev1.SettingsRecord
	workspaces map[string]*modelWorkspace // by id; the empty id is the policy's
}

type modelWorkspace struct {
	head    storage.Head
	record  *storagev1.WorkspaceRecord
	members map[string]*storagev1.MemberRecord
	keys    map[string]*storagev1.KeyRecord
	events  []storage.AuditEvent // oldest first
	records Records
	// listed is what each event must list.
	listed [][]*storagev1.RecordChange
}

// NewModel returns the model of an empty store.
func NewModel() *Model { return &Model{workspaces: make(map[string]*modelWorkspace)} }

// Apply takes over a committed change.
func (m *Model) Apply(change *storage.Change, revision int64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	workspace := m.workspaces[change.WorkspaceID]
	if workspace == nil {
		workspace = &modelWorkspace{
			members: make(map[string]*storagev1.MemberRecord),
			keys:    make(map[string]*storagev1.KeyRecord),
			records: make(Records),
		}
		m.workspaces[change.WorkspaceID] = workspace
	}
	workspace.listed = append(workspace.listed, workspace.records.Apply(change))
	encoded, err := storage.Encode(change.Event)
	if err != nil {
		panic(err)
	}
	workspace.head = change.Expect.After(encoded)
	workspace.events = append(workspace.events, storage.AuditEvent{Record: change.Event, Encoded: encoded})
	if change.PutPolicy != nil {
		m.policy = change.PutPolicy
	}
	if change.PutSettings != nil {
		m.settings = change.PutSettings
	}
	if change.PutWorkspace != nil {
		workspace.record = change.PutWorkspace
	}
	for _, member := range change.PutMembers {
		workspace.members[member.GetMemberId()] = member
	}
	for _, member := range change.DeleteMembers {
		delete(workspace.members, member.GetMemberId())
	}
	for _, key := range change.PutKeys {
		workspace.keys[key.GetKeyId()] = key
	}
	for _, key := range change.DeleteKeys {
		delete(workspace.keys, key.GetKeyId())
	}
	m.revision = max(m.revision, revision)
	if at := change.Event.GetTime().AsTime(); at.After(m.time) {
		m.time = at
	}
}

// Revision returns the revision of the newest change.
func (m *Model) Revision() int64 {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.revision
}

// Compare fails the test if the store does not hold what the model holds. It reads the store in
// every way.
func (m *Model) Compare(t testing.TB, store storage.Store) {
	t.Helper()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.compareLoad(t, store)
	ids := append(slices.Sorted(maps.Keys(m.workspaces)), "nobody's")
	var all []*storagev1.KeyRecord
	reads := newReaders()
	defer reads.wait()
	for _, id := range ids {
		workspace := m.workspaces[id]
		if workspace == nil {
			workspace = &modelWorkspace{}
		}
		keys := newestFirst(workspace.keys)
		all = append(all, keys...)
		m.compareKeys(t, store, reads, id, keys)
		reads.start(func() { m.compareMembers(t, store, id, workspace) })
		reads.start(func() { m.compareEvents(t, store, id, workspace) })
	}
	compareAll(t, store, all)
}

// readers are functions that read a store at the same time, because each read may take a network's
// round trip. They must not end the test, only say that it failed.
type readers struct {
	group sync.WaitGroup
	slots chan struct{}
}

func newReaders() *readers { return &readers{slots: make(chan struct{}, 16)} }

// start starts a function as soon as there is a free slot.
func (r *readers) start(read func()) {
	r.slots <- struct{}{}
	r.group.Go(func() {
		defer func() { <-r.slots }()
		read()
	})
}

func (r *readers) wait() { r.group.Wait() }

func (m *Model) compareLoad(t testing.TB, store storage.Store) {
	t.Helper()
	var items []storage.Item
	position, err := store.Load(live(t), func(item storage.Item) error {
		items = append(items, item)
		return nil
	})
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if position.Revision != m.revision || !position.Time.Equal(m.time) {
		t.Errorf("Load: position %+v, want revision %d and time %v", position, m.revision, m.time)
	}
	loaded := m.sortLoaded(t, items)
	if !proto.Equal(loaded.policy, m.policy) {
		t.Errorf("Load: policy %v, want %v", loaded.policy, m.policy)
	}
	if !proto.Equal(loaded.settings, m.settings) {
		t.Errorf("Load: settings %v, want %v", loaded.settings, m.settings)
	}
	for id, got := range loaded.workspaces {
		want := m.workspaces[id]
		if want == nil {
			t.Errorf("Load: workspace %q, which there should not be", id)
			continue
		}
		if got.head != want.head {
			t.Errorf("Load: head of %q is %+v, want %+v", id, got.head, want.head)
		}
		if !proto.Equal(got.record, want.record) {
			t.Errorf("Load: workspace %v, want %v", got.record, want.record)
		}
		equalMaps(t, "Load: member of "+id, got.members, want.members)
		equalMaps(t, "Load: key of "+id, got.keys, want.keys)
	}
	for id := range m.workspaces {
		if loaded.workspaces[id] == nil {
			t.Errorf("Load: workspace %q is missing", id)
		}
	}
}

// sortLoaded builds a model of what Load visited, and checks the order.
func (m *Model) sortLoaded(t testing.TB, items []storage.Item) *Model {
	t.Helper()
	loaded := NewModel()
	stage := 0
	sequences := make(map[string]int64)
	heads := make(map[string]bool)
	for _, item := range items {
		id, kind := "", 0
		switch {
		case item.Policy != nil:
			kind = 1
		case item.Settings != nil:
			kind = 2
		case item.Workspace != nil:
			id, kind = item.Workspace.GetWorkspaceId(), 3
		case item.Member != nil:
			id, kind = item.Member.GetWorkspaceId(), 4
		case item.Head != nil:
			id, kind = item.Head.WorkspaceID, 5
		case item.Key != nil:
			id, kind = item.Key.GetWorkspaceId(), 6
		case item.Usage != nil:
			continue // the tests of usage check these
		default:
			t.Errorf("Load: damaged %+v", item.Damaged)
			continue
		}
		if kind < stage {
			t.Errorf("Load: an item of kind %d after one of kind %d", kind, stage)
		}
		stage = kind
		workspace := loaded.workspaces[id]
		if workspace == nil {
			workspace = &modelWorkspace{
				members: make(map[string]*storagev1.MemberRecord),
				keys:    make(map[string]*storagev1.KeyRecord),
			}
			loaded.workspaces[id] = workspace
		}
		twice := false
		switch kind {
		case 1:
			twice, loaded.policy = loaded.policy != nil, item.Policy
		case 2:
			twice, loaded.settings = loaded.settings != nil, item.Settings
		case 3:
			twice, workspace.record = workspace.record != nil, item.Workspace
		case 4:
			memberID := item.Member.GetMemberId()
			twice, workspace.members[memberID] = workspace.members[memberID] != nil, item.Member
		case 5:
			twice, workspace.head, heads[id] = heads[id], item.Head.Head, true
		case 6:
			keyID := item.Key.GetKeyId()
			twice, workspace.keys[keyID] = workspace.keys[keyID] != nil, item.Key
			if item.Key.GetSequence() < sequences[id] {
				t.Errorf("Load: key of sequence %d after one of sequence %d in workspace %q", item.Key.GetSequence(), sequences[id], id)
			}
			sequences[id] = item.Key.GetSequence()
		}
		if twice {
			t.Errorf("Load: visited twice: %+v", item)
		}
	}
	return loaded
}

func (m *Model) compareKeys(t testing.TB, store storage.Store, reads *readers, id string, want []*storagev1.KeyRecord) {
	t.Helper()
	if id != "" {
		reads.start(func() { equalLists(t, "ListKeys of "+id, ListKeys(t, store, id, 3), want) })
	}
	for _, key := range want {
		reads.start(func() { m.compareKey(t, store, id, key) })
	}
}

func (m *Model) compareKey(t testing.TB, store storage.Store, id string, key *storagev1.KeyRecord) {
	t.Helper()
	for _, asked := range []string{id, ""} {
		got, revision, err := store.GetKey(live(t), asked, key.GetKeyId())
		if err != nil || !proto.Equal(got, key) || revision != m.revision {
			t.Errorf("GetKey(%q, %s) = %v, %d, %v; want %v, %d", asked, key.GetKeyId(), got, revision, err, key, m.revision)
		}
	}
	if _, _, err := store.GetKey(live(t), "nobody's", key.GetKeyId()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("GetKey of another workspace: %v, want ErrNotFound", err)
	}
	for _, requestID := range key.GetRequestIds() {
		if got, _, err := store.FindRequest(live(t), id, requestID); err != nil || got != key.GetKeyId() {
			t.Errorf("FindRequest(%q, %q) = %q, %v; want %q", id, requestID, got, err, key.GetKeyId())
		}
	}
}

func (m *Model) compareMembers(t testing.TB, store storage.Store, id string, workspace *modelWorkspace) {
	t.Helper()
	var want []*storagev1.MemberRecord
	for _, memberID := range slices.Sorted(maps.Keys(workspace.members)) {
		member := workspace.members[memberID]
		want = append(want, member)
		got, revision, err := store.GetMember(live(t), id, memberID)
		if err != nil || !proto.Equal(got, member) || revision != m.revision {
			t.Errorf("GetMember(%q, %q) = %v, %d, %v; want %v, %d", id, memberID, got, revision, err, member, m.revision)
		}
		if _, _, err := store.GetMember(live(t), "nobody's", memberID); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("GetMember of another workspace: %v, want ErrNotFound", err)
		}
	}
	equalLists(t, "ListMembers of "+id, ListMembers(t, store, id, 3), want)
}

func (m *Model) compareEvents(t testing.TB, store storage.Store, id string, workspace *modelWorkspace) {
	t.Helper()
	got := ListAuditEvents(t, store, id, 5)
	slices.Reverse(got)
	if len(got) != len(workspace.events) {
		t.Errorf("ListAuditEvents of %q: %d events, want %d", id, len(got), len(workspace.events))
		return
	}
	var head storage.Head
	for index, event := range got {
		want := workspace.events[index]
		if !proto.Equal(event.Record, want.Record) || !slices.Equal(event.Encoded, want.Encoded) {
			t.Errorf("ListAuditEvents of %q: %v, want %v", id, event.Record, want.Record)
		}
		equalLists(t, fmt.Sprintf("records listed by event %d of %q", event.Record.GetSequence(), id),
			event.Record.GetChanges(), workspace.listed[index])
		if !head.Follows(event.Record) {
			t.Errorf("ListAuditEvents of %q: event %d does not follow on the one before", id, event.Record.GetSequence())
		}
		head = head.After(event.Encoded)
	}
}

// compareAll compares the list of all workspaces' keys. It compares the order within each
// workspace. The order across workspaces is left to the backend.
func compareAll(t testing.TB, store storage.Store, want []*storagev1.KeyRecord) {
	t.Helper()
	got := ListKeys(t, store, "", 7)
	if len(got) != len(want) {
		t.Errorf("ListKeys of all workspaces: %d keys, want %d", len(got), len(want))
	}
	byWorkspace := func(keys []*storagev1.KeyRecord) []*storagev1.KeyRecord {
		keys = slices.Clone(keys)
		slices.SortStableFunc(keys, func(a, b *storagev1.KeyRecord) int {
			return cmp.Compare(a.GetWorkspaceId(), b.GetWorkspaceId())
		})
		return keys
	}
	equalLists(t, "ListKeys of all workspaces", byWorkspace(got), byWorkspace(want))
}

func newestFirst(keys map[string]*storagev1.KeyRecord) []*storagev1.KeyRecord {
	return slices.SortedFunc(maps.Values(keys), func(a, b *storagev1.KeyRecord) int {
		return int(b.GetSequence() - a.GetSequence())
	})
}

func equalLists[M proto.Message](t testing.TB, title string, got, want []M) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d records, want %d", title, len(got), len(want))
		return
	}
	for index := range got {
		if !proto.Equal(got[index], want[index]) {
			t.Errorf("%s: record %d is %v, want %v", title, index, got[index], want[index])
		}
	}
}

func equalMaps[M proto.Message](t testing.TB, title string, got, want map[string]M) {
	t.Helper()
	for id, record := range got {
		if expected, found := want[id]; !found || !proto.Equal(record, expected) {
			t.Errorf("%s: %v, want %v", title, record, want[id])
		}
	}
	for id := range want {
		if _, found := got[id]; !found {
			t.Errorf("%s: %q is missing", title, id)
		}
	}
}

// ListKeys reads all pages of a workspace's keys, or of all workspaces'.
func ListKeys(t testing.TB, store storage.Store, workspaceID string, limit int) []*storagev1.KeyRecord {
	t.Helper()
	return allPages(t, limit, func(cursor string) ([]*storagev1.KeyRecord, string, error) {
		page, err := store.ListKeys(live(t), storage.Query{WorkspaceID: workspaceID, Cursor: cursor, Limit: limit})
		return page.Keys, page.Next, err
	})
}

// ListMembers reads all pages of a workspace's members.
func ListMembers(t testing.TB, store storage.Store, workspaceID string, limit int) []*storagev1.MemberRecord {
	t.Helper()
	return allPages(t, limit, func(cursor string) ([]*storagev1.MemberRecord, string, error) {
		page, err := store.ListMembers(live(t), storage.Query{WorkspaceID: workspaceID, Cursor: cursor, Limit: limit})
		return page.Members, page.Next, err
	})
}

// ListAuditEvents reads all pages of a workspace's audit events, newest first.
func ListAuditEvents(t testing.TB, store storage.Store, workspaceID string, limit int) []storage.AuditEvent {
	t.Helper()
	return allPages(t, limit, func(cursor string) ([]storage.AuditEvent, string, error) {
		page, err := store.ListAuditEvents(live(t), storage.Query{WorkspaceID: workspaceID, Cursor: cursor, Limit: limit})
		return page.Events, page.Next, err
	})
}

// allPages reads all pages. If that fails, so does the test, and what was read is returned.
func allPages[R any](t testing.TB, limit int, read func(cursor string) ([]R, string, error)) []R {
	t.Helper()
	var all []R
	for cursor := ""; ; {
		records, next, err := read(cursor)
		if err != nil {
			t.Errorf("reading a page: %v", err)
			return all
		}
		if len(records) > limit {
			t.Errorf("a page of %d records, asked for %d", len(records), limit)
		}
		all = append(all, records...)
		if next == "" {
			return all
		}
		if len(records) == 0 {
			t.Errorf("a page without records that is not the last")
			return all
		}
		cursor = next
	}
}

// Check passes everything that can be read of a store to a storage.Checker, and fails the test
// if there are problems. Nothing may change the store meanwhile.
func Check(t testing.TB, store storage.Store) {
	t.Helper()
	checker := &storage.Checker{}
	heads := map[string]bool{}
	var items []storage.Item
	position, err := store.Load(live(t), func(item storage.Item) error {
		items = append(items, item)
		if item.Head != nil {
			heads[item.Head.WorkspaceID] = true
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	checker.Position(position)
	for _, item := range items {
		checker.Item(item)
	}
	for id := range heads {
		events := ListAuditEvents(t, store, id, storage.MaxPage)
		slices.Reverse(events)
		for _, event := range events {
			checker.AuditEvent(event)
		}
	}
	for _, problem := range checker.Problems() {
		t.Errorf("check: %s", problem)
	}
}

// live returns the test's context without its end, so that clean-ups can use it.
func live(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }
