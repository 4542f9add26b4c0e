package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// agingStore is a store with a sink whose changes are spread over days.
type agingStore struct {
	*Store
	path, sink string
	config     Config
	// now is the time of the next change, which step later.
	now, begin time.Time
	step       time.Duration
	random     *rand.Rand
	workspaces []*storagetest.Workspace
	keys       map[*storagetest.Workspace][]*storagev1.KeyRecord
	// first has the first member of each workspace.
	first     map[*storagetest.Workspace]*storagev1.MemberRecord
	policy    storage.Head
	made      int
	committed int
}

// openAging returns a store that has come through 200 days of random changes.
func openAging(t *testing.T, changes int) *agingStore {
	t.Helper()
	folder := t.TempDir()
	a := &agingStore{
		path: filepath.Join(folder, "store.db"), sink: filepath.Join(folder, "audit"),
		begin: time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC), step: 200 * 24 * time.Hour / time.Duration(changes),
		random: rand.New(rand.NewPCG(1, 2)), keys: make(map[*storagetest.Workspace][]*storagev1.KeyRecord),
		first: make(map[*storagetest.Workspace]*storagev1.MemberRecord),
	}
	a.now = a.begin
	a.config = Config{
		Create: CreateIfAbsent, Sink: a.sink, SinkReserve: -1, wait: patient, FeedEntries: 64,
		sinkDisk: sink.Disk{Sync: func(*os.File) error { return nil }},
	}
	a.open(t)
	t.Cleanup(func() { _ = a.Store.Close() })
	for index := range 7 {
		a.workspaces = append(a.workspaces, storagetest.NewWorkspace(fmt.Sprintf("w%d", index)))
	}
	for range changes {
		a.change(t)
	}
	return a
}

func (a *agingStore) open(t *testing.T) {
	t.Helper()
	var err error
	if a.Store, err = Open(a.path, a.config); err != nil {
		t.Fatal(err)
	}
	// The test writes thousands of changes, and tests no crash of the machine.
	a.Store.file.database.NoSync = true
}

// days returns the time so many days after the first change.
func (a *agingStore) days(days int) time.Time {
	return a.begin.Add(time.Duration(days) * 24 * time.Hour)
}

func (a *agingStore) commit(t *testing.T, change *storage.Change) {
	t.Helper()
	change.Event.Time = timestamppb.New(a.now)
	if a.committed++; a.committed == 150 { // the clock was wrong for a while
		change.Event.Time = timestamppb.New(a.days(300))
	}
	a.now = a.now.Add(a.step)
	if _, err := a.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

// change makes a random change.
func (a *agingStore) change(t *testing.T) {
	t.Helper()
	// The first workspaces are busy, and the last one has not changed since the first days.
	number := min(a.random.IntN(len(a.workspaces)), a.random.IntN(len(a.workspaces)))
	if number == len(a.workspaces)-1 && a.now.After(a.days(20)) {
		number = 0
	}
	w := a.workspaces[number]
	keys := a.keys[w]
	var change *storage.Change
	switch choice := a.random.IntN(20); {
	case w.Head.Sequence == 0:
		change = w.PutMember("member", "admin")
		a.first[w] = change.PutMembers[0]
	case choice == 0:
		change = storagetest.ApplyPolicy(a.policy, fmt.Sprintf("document %d", a.made))
		a.commit(t, change)
		a.policy = storagetest.After(change)
		return
	case choice < 3:
		change = w.PutMember(fmt.Sprintf("member%d", a.random.IntN(5)), "viewer")
	case choice == 3 && number == 1:
		change = w.RemoveWorkspace()
	case choice == 3 && a.first[w] != nil && number > 1:
		// The event that put this member also put the workspace's record, which stays.
		change = w.DeleteMembers(a.first[w])
		delete(a.first, w)
	case choice < 9 || len(keys) == 0:
		a.made++
		change = w.CreateKey(storagetest.KeyID(a.made))
		keys = append(keys, change.PutKeys[0])
	case choice < 12:
		change = w.DeleteKey(keys[:1+a.random.IntN(min(3, len(keys)))]...)
		keys = keys[len(change.DeleteKeys):]
	default:
		index := a.random.IntN(len(keys))
		if choice < 14 {
			change = w.RevokeKey(keys[index])
		} else {
			change = w.UpdateKey(keys[index], func(key *storagev1.KeyRecord) { key.Name = fmt.Sprint(a.random.IntN(1000)) })
		}
		keys[index] = change.PutKeys[0]
	}
	a.commit(t, change)
	w.Follow(change)
	a.keys[w] = keys
}

// events returns the events in a store's file by revision.
func events(t *testing.T, s *Store) map[int64]*storagev1.AuditRecord {
	t.Helper()
	all := make(map[int64]*storagev1.AuditRecord)
	query := storage.AuditQuery{Limit: storage.MaxPage, All: true}
	for {
		page, err := s.ScanAuditEvents(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range page.Events {
			all[event.Revision] = event.Record
		}
		if page.Next == 0 {
			return all
		}
		query.Before = page.Next
	}
}

// last returns, for each record that the events list, the newest revision, and the hash after it.
func last(all map[int64]*storagev1.AuditRecord) (revisions map[namedRecord]int64, after map[namedRecord][]byte) {
	revisions, after = make(map[namedRecord]int64), make(map[namedRecord][]byte)
	for _, revision := range slices.Sorted(maps.Keys(all)) {
		for _, change := range all[revision].GetChanges() {
			name := namedRecord{all[revision].GetWorkspaceId(), recordID{change.GetKind(), change.GetName()}}
			revisions[name], after[name] = revision, change.GetAfter()
		}
	}
	return revisions, after
}

// clean closes the store, checks its file and its sink, and opens it again.
func (a *agingStore) clean(t *testing.T) Report {
	t.Helper()
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := CheckAnchored(t.Context(), a.path, "", a.sink)
	if err != nil || len(report.Problems) > 0 {
		t.Fatalf("Check: %v %q", err, report.Problems)
	}
	a.open(t)
	if found := a.index.damage; len(found.heads)+len(found.workspaces)+len(found.records)+len(found.missing) > 0 {
		t.Fatalf("the store opens with damage: %v", found)
	}
	return report
}

// TestPruningKeepsTheLastEventOfEachRecord prunes a store after 200 days of changes, several times,
// and goes on with changes in between.
func TestPruningKeepsTheLastEventOfEachRecord(t *testing.T) {
	a := openAging(t, 2000)
	all := events(t, a.Store)
	for round, days := range []int{60, 110, 190} {
		before := a.days(days)
		had := events(t, a.Store)
		deleted, err := a.PruneAudit(t.Context(), before)
		if err != nil {
			t.Fatal(err)
		}
		left := events(t, a.Store)
		if len(left)+int(deleted) != len(had) {
			t.Fatalf("%d days: %d events of %d are left, and PruneAudit says that it deleted %d", days, len(left), len(had), deleted)
		}
		// 1. Everything younger stays, and the last event of each record that exists.
		for revision, event := range all {
			if !event.GetTime().AsTime().Before(before) && left[revision] == nil {
				t.Errorf("%d days: revision %d of %v was deleted", days, revision, event.GetTime().AsTime())
			}
		}
		revisions, after := last(all)
		stay := make(map[int64]bool)
		for name, revision := range revisions {
			if len(after[name]) > 0 {
				if stay[revision] = true; left[revision] == nil {
					t.Errorf("%d days: the last event of %v was deleted", days, name)
				}
			}
		}
		// 2. Of the old ones few others stay.
		others := 0
		for revision, event := range left {
			if event.GetTime().AsTime().Before(before) && !stay[revision] {
				others++
			}
		}
		if others > len(a.workspaces)+20 || round == 0 && deleted < 200 {
			t.Errorf("%d days: %d were deleted, and %d old ones are left that nothing needs", days, deleted, others)
		}
		// 3. The file is sound, and lists its events.
		report := a.clean(t)
		if report.Pruned == 0 || report.AuditEvents != len(left) {
			t.Errorf("%d days: pruned up to %d, %d events", days, report.Pruned, report.AuditEvents)
		}
		a.listed(t, left)
		for range 100 {
			a.change(t)
		}
		for revision, event := range events(t, a.Store) {
			all[revision] = event
		}
	}
}

// listed compares the lists of events with those that are there.
func (a *agingStore) listed(t *testing.T, left map[int64]*storagev1.AuditRecord) {
	t.Helper()
	count := 0
	for _, id := range append([]string{""}, ids(a.workspaces)...) {
		for query := (storage.Query{WorkspaceID: id, Limit: 50}); ; {
			page, err := a.ListAuditEvents(t.Context(), query)
			if err != nil {
				t.Fatal(err)
			}
			if count += len(page.Events); page.Next == "" {
				break
			}
			query.Cursor = page.Next
		}
	}
	if count != len(left) {
		t.Errorf("the lists of the workspaces have %d events, the file %d", count, len(left))
	}
}

func ids(workspaces []*storagetest.Workspace) []string {
	var all []string
	for _, workspace := range workspaces {
		all = append(all, workspace.ID)
	}
	return all
}

// TestCursorOutlivesThePruningOfItsEvent reads a page, prunes the event that the cursor names, and
// reads on.
func TestCursorOutlivesThePruningOfItsEvent(t *testing.T) {
	a := openAging(t, 600)
	left := func() (cursors []string) {
		for query := (storage.Query{WorkspaceID: "w0", Limit: 1}); ; query.Cursor = cursors[len(cursors)-1] {
			page, err := a.ListAuditEvents(t.Context(), query)
			if err != nil {
				t.Fatal(err)
			}
			if page.Next == "" {
				return cursors
			}
			cursors = append(cursors, page.Next)
		}
	}
	cursors := left()
	if deleted, err := a.PruneAudit(t.Context(), a.days(199)); err != nil || deleted == 0 {
		t.Fatal(deleted, err)
	}
	stay, gone := left(), 0
	for _, cursor := range cursors {
		page, err := a.ListAuditEvents(t.Context(), storage.Query{WorkspaceID: "w0", Limit: 1, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(stay, cursor) {
			gone++
		}
		if len(page.Events) > 1 {
			t.Errorf("cursor %s: %d events", cursor, len(page.Events))
		}
	}
	if gone == 0 {
		t.Error("no cursor's event was pruned")
	}
	if _, err := a.ListAuditEvents(t.Context(), storage.Query{WorkspaceID: "w0", Limit: 1, Cursor: "100000"}); !errors.Is(err, storage.ErrInvalidCursor) {
		t.Errorf("a cursor that was never given: %v", err)
	}
}

// TestNothingIsPrunedThatTheSinkDoesNotHave prunes without a sink, with a sink that cannot be
// written, and after a person accepted the store.
func TestNothingIsPrunedThatTheSinkDoesNotHave(t *testing.T) {
	a := openAging(t, 400)
	future := a.days(1000)
	prune := func(what string, wantSome bool) {
		t.Helper()
		deleted, err := a.PruneAudit(t.Context(), future)
		if err != nil || deleted > 0 != wantSome {
			t.Errorf("%s: %d events were deleted, %v", what, deleted, err)
		}
		all := events(t, a.Store)
		if newest := slices.Max(slices.Collect(maps.Keys(all))); newest != a.position.Revision {
			t.Errorf("%s: the newest event is %d of %d", what, newest, a.position.Revision)
		}
	}
	restart := func(sink string) {
		t.Helper()
		if err := a.Store.Close(); err != nil {
			t.Fatal(err)
		}
		a.config.Sink = sink
		a.open(t)
	}
	// 1. No sink.
	restart(SinkOff)
	prune("without a sink", false)
	restart(a.sink)
	// 2. A sink that cannot be written.
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	slow := &slowSink{}
	a.config.sinkDisk = slow.disk()
	a.open(t)
	slow.set(nil, io.ErrUnexpectedEOF, 0)
	change := a.workspaces[0].PutMember("member", "viewer")
	change.Narrows = true
	a.commit(t, change)
	a.workspaces[0].Follow(change)
	prune("with a sink that fails", false)
	slow.set(nil, nil, 0)
	// 3. A store that was accepted: its sink is a new file, without the events before.
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a.sink, filepath.Join(t.TempDir(), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := AcceptAnchor(a.path, Config{Sink: a.sink, SinkReserve: -1}); err != nil {
		t.Fatal(err)
	}
	a.open(t)
	accepted := a.position.Revision
	prune("after accept", false)
	for range 300 {
		a.change(t)
	}
	prune("after accept, and changes", true)
	all := events(t, a.Store)
	for revision := int64(1); revision <= accepted; revision++ {
		if all[revision] == nil {
			t.Fatalf("revision %d was deleted, which the sink does not have", revision)
		}
	}
	a.clean(t)
}

// TestPruningThatBreaksOffLeavesASoundFile ends a pruning after each of its slices.
func TestPruningThatBreaksOffLeavesASoundFile(t *testing.T) {
	a := openAging(t, 1200)
	breakOff := errors.New("the end")
	total := int64(0)
	for slice := 1; ; slice++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := 0
		a.Store.config.pruned = func() {
			if done++; done == slice {
				cancel(breakOff)
			}
		}
		deleted, err := a.PruneAudit(ctx, a.days(180))
		cancel(nil)
		total += deleted
		a.clean(t)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if total < 300 {
		t.Errorf("%d events were deleted", total)
	}
	if again, err := a.PruneAudit(t.Context(), a.days(180)); err != nil || again != 0 {
		t.Errorf("a further run deleted %d events, %v", again, err)
	}
}

// TestFailedCommitOfAPruningTakesTheStoreDown fails the commit of a slice, before and after it was
// written. A Load opens the file again, which is sound.
func TestFailedCommitOfAPruningTakesTheStoreDown(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		a := openAging(t, 400)
		a.Store.config.fault = func(written bool) error {
			if written == wanted {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if _, err := a.PruneAudit(t.Context(), a.days(150)); !errors.Is(err, storage.ErrOutcomeUnknown) {
			t.Errorf("PruneAudit: %v", err)
		}
		a.Store.config.fault = nil
		if _, err := a.PruneAudit(t.Context(), a.days(150)); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("PruneAudit on a store that is down: %v", err)
		}
		if _, err := a.Load(t.Context(), func(item storage.Item) error {
			if item.Damaged != nil {
				t.Errorf("damaged: %v", item.Damaged.Err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if deleted, err := a.PruneAudit(t.Context(), a.days(150)); err != nil || deleted == 0 {
			t.Errorf("PruneAudit after the file was opened again: %d, %v", deleted, err)
		}
		a.clean(t)
	}
}

// TestCommitsGoOnBesideAPruning commits from within a pruning, between its slices.
func TestCommitsGoOnBesideAPruning(t *testing.T) {
	a := openAging(t, 1200)
	committed := 0
	a.Store.config.pruned = func() {
		for range 5 {
			a.change(t)
			committed++
		}
	}
	if deleted, err := a.PruneAudit(t.Context(), a.days(150)); err != nil || deleted == 0 || committed < 10 {
		t.Errorf("%d events were deleted beside %d commits, %v", deleted, committed, err)
	}
	a.clean(t)
}

// TestEventThatIsMissingIsToldApartFromPrunedOnes deletes each event of a pruned store by hand.
func TestEventThatIsMissingIsToldApartFromPrunedOnes(t *testing.T) {
	a := openAging(t, 500)
	if _, err := a.PruneAudit(t.Context(), a.days(120)); err != nil {
		t.Fatal(err)
	}
	pruned := a.clean(t).Pruned
	all := events(t, a.Store)
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	content := readFile(t, a.path)
	revisions, after := last(all)
	needed := make(map[int64]bool)
	for name, revision := range revisions {
		needed[revision] = needed[revision] || len(after[name]) > 0
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	for index, revision := range slices.Sorted(maps.Keys(all)) {
		if index%7 != 0 && revision <= pruned || index%29 != 0 && revision > pruned {
			continue
		}
		if err := os.WriteFile(copied, content, 0o600); err != nil {
			t.Fatal(err)
		}
		edit(t, copied, func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketAudit)).Delete([]byte(number(revision))) })
		report, err := Check(t.Context(), copied)
		if err != nil {
			t.Fatal(err)
		}
		if found := len(report.Problems) > 0; !found && (revision > pruned || needed[revision]) {
			t.Errorf("the event of revision %d was deleted, and nothing was found; pruned up to %d", revision, pruned)
		}
	}
}

// TestStaleRecordIsFoundInAPrunedStore puts an older version of a record back. The store finds which
// one it is, by events with gaps between them.
func TestStaleRecordIsFoundInAPrunedStore(t *testing.T) {
	a := openAging(t, 1000)
	w := a.workspaces[0]
	// A change long ago, and many later ones of other records.
	key := a.keys[w][0]
	var old []byte
	if err := a.file.database.View(func(tx *bolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketKeys)).Cursor()
		for name, value := cursor.First(); name != nil; name, value = cursor.Next() {
			if bytes.Contains(name, []byte(key.GetKeyId())) {
				old = bytes.Clone(value)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	change := w.RevokeKey(key)
	a.commit(t, change)
	w.Follow(change)
	a.keys[w] = a.keys[w][1:]
	for range 500 {
		a.change(t)
	}
	if deleted, err := a.PruneAudit(t.Context(), a.now.Add(-24*time.Hour)); err != nil || deleted == 0 {
		t.Fatal(deleted, err)
	}
	a.clean(t)
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, a.path, func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte(bucketKeys))
		cursor := bucket.Cursor()
		for name, _ := cursor.First(); name != nil; name, _ = cursor.Next() {
			if bytes.Contains(name, []byte(key.GetKeyId())) {
				return bucket.Put(bytes.Clone(name), old)
			}
		}
		return errors.New("the key is not there")
	})
	report, err := Check(t.Context(), a.path)
	if err != nil || !strings.Contains(strings.Join(report.Problems, "\n"), "key "+key.GetKeyId()+": it is not the record") {
		t.Errorf("Check: %v %q", err, report.Problems)
	}
	a.open(t)
	if faults := a.index.workspaces[w.ID].faults; a.index.workspaces[w.ID].damaged != nil || len(faults) != 1 || faults[recordID{kindKey, key.GetKeyId()}] == nil {
		t.Errorf("faults %v, workspace %v", faults, a.index.workspaces[w.ID].damaged)
	}
	// A workspace with damage is not pruned: its events show what was lost.
	count := func() (count int) {
		for _, event := range events(t, a.Store) {
			if event.GetWorkspaceId() == w.ID {
				count++
			}
		}
		return count
	}
	before := count()
	deleted, err := a.PruneAudit(t.Context(), a.now)
	if err != nil || deleted == 0 || count() != before {
		t.Errorf("%d events were deleted, of the workspace with damage %d: %v", deleted, before-count(), err)
	}
}

// TestEventOfTheSinksLastLineIsNotPruned prunes while the line of a newer event is being written. The
// next start compares the event of the last line.
func TestEventOfTheSinksLastLineIsNotPruned(t *testing.T) {
	a := openAging(t, 100)
	if err := a.Store.Close(); err != nil {
		t.Fatal(err)
	}
	slow := &slowSink{}
	a.config.sinkDisk = slow.disk()
	committed := make(chan struct{}, 1)
	a.config.fault = func(written bool) error {
		if written {
			select {
			case committed <- struct{}{}:
			default:
			}
		}
		return nil
	}
	a.open(t)
	w := a.workspaces[0]
	change := w.PutMember("member9", "viewer")
	a.commit(t, change)
	w.Follow(change)
	<-committed
	last := a.position.Revision
	hold := make(chan struct{})
	slow.set(hold, nil, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		change := w.PutMember("member9", "admin")
		change.Event.Time = timestamppb.New(a.now)
		if _, err := a.Commit(context.Background(), change); err != nil {
			t.Errorf("Commit: %v", err)
		}
	}()
	<-committed
	deleted, err := a.PruneAudit(t.Context(), a.days(1000))
	if err != nil || deleted == 0 || events(t, a.Store)[last] == nil {
		t.Errorf("%d events were deleted; revision %d is there: %v; %v", deleted, last, events(t, a.Store)[last] != nil, err)
	}
	slow.set(nil, nil, 0)
	close(hold)
	<-done
	a.config.fault = nil
	a.clean(t)
}
