package storagetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var readTests = []test{
	{"EmptyStoreHasNothing", testEmpty},
	{"EveryKindOfChangeIsRead", testEverything},
	{"ErrorOfVisitEndsLoad", testLoadEndsWithVisit},
	{"KeyPagesAreNewestFirstAndComplete", testKeyPages},
	{"MemberPagesAreByAscendingID", testMemberPages},
	{"AuditPagesAreNewestFirst", testAuditPages},
	{"AuditScansAreByDescendingRevision", testAuditScans},
	{"LimitsAreBounded", testLimits},
	{"PagesEndBeforeTheyAreTooLarge", testPageBytes},
	{"InventedCursorsNeverShowOtherWorkspaces", testInvalidCursors},
	{"RecordsOfOtherWorkspacesAreNotFound", testNotOfThisWorkspace},
	{"RecordsAreNotAliased", testNotAliased},
	{"EndedContextEndsEveryCall", testContextEnded},
}

func testEmpty(s *suite) {
	if s.store.Epoch() == "" {
		s.Error("Epoch: empty")
	}
	position, err := s.store.Load(s.ctx, func(item storage.Item) error {
		s.Errorf("Load: %+v in an empty store", item)
		return nil
	})
	if err != nil || position.Revision != 0 || !position.Time.IsZero() {
		s.Errorf("Load: %+v, %v", position, err)
	}
	for _, id := range []string{"", "w"} {
		if _, _, err := s.store.GetKey(s.ctx, id, KeyID(1)); !errors.Is(err, storage.ErrNotFound) {
			s.Errorf("GetKey: %v, want ErrNotFound", err)
		}
		if page, err := s.store.ListKeys(s.ctx, storage.Query{WorkspaceID: id, Limit: 5}); err != nil || len(page.Keys) > 0 || page.Next != "" || page.Revision != 0 {
			s.Errorf("ListKeys: %+v, %v", page, err)
		}
		if page, err := s.store.ListAuditEvents(s.ctx, storage.Query{WorkspaceID: id, Limit: 5}); err != nil || len(page.Events) > 0 || page.Next != "" {
			s.Errorf("ListAuditEvents: %+v, %v", page, err)
		}
		for _, all := range []bool{false, true} {
			page, err := s.store.ScanAuditEvents(s.ctx, storage.AuditQuery{WorkspaceID: id, All: all, Limit: 5})
			if err != nil || len(page.Events) > 0 || page.Next != 0 || page.Revision != 0 {
				s.Errorf("ScanAuditEvents: %+v, %v", page, err)
			}
		}
	}
	if _, _, err := s.store.GetMember(s.ctx, "w", "member"); !errors.Is(err, storage.ErrNotFound) {
		s.Errorf("GetMember: %v, want ErrNotFound", err)
	}
	if page, err := s.store.ListMembers(s.ctx, storage.Query{WorkspaceID: "w", Limit: 5}); err != nil || len(page.Members) > 0 || page.Next != "" {
		s.Errorf("ListMembers: %+v, %v", page, err)
	}
	s.findRequest("w", "request", "")
}

// testEverything commits one change of each kind and compares the store with the model
// after each.
func testEverything(s *suite) {
	workspace, other := s.begin("w"), NewWorkspace("other")
	policy := ApplyPolicy(storage.Head{}, "policy")
	s.commit(policy)
	s.do(other, other.PutMember("member", "manager"))
	s.do(workspace, workspace.PutMember("second", "member"))
	for index := range 8 {
		s.create(workspace, KeyID(index), fmt.Sprintf("request %d", index))
		s.create(other, KeyID(100+index))
	}
	s.model.Compare(s, s.store)
	s.do(workspace, workspace.UpdateKey(s.getKey("w", KeyID(3)), rename("new name")))
	s.do(workspace, workspace.RevokeKey(s.getKey("", KeyID(4))))
	s.do(workspace, workspace.DeleteKey(s.getKey("w", KeyID(5)), s.getKey("w", KeyID(6))))
	s.do(workspace, workspace.DeleteMembers(&storagev1.MemberRecord{WorkspaceId: "w", MemberId: "second"}))
	s.do(workspace, workspace.PutMember("member", "owner"))
	s.commit(ApplyPolicy(After(policy), "another policy"))
	s.do(other, other.RemoveWorkspace())
	s.model.Compare(s, s.store)
	epoch := s.store.Epoch()
	s.reopen()
	s.model.Compare(s, s.store)
	if s.store.Epoch() != epoch {
		s.Errorf("Epoch: %q after reopening, was %q", s.store.Epoch(), epoch)
	}
}

func testLoadEndsWithVisit(s *suite) {
	workspace := s.begin("w")
	for index := range 3 {
		s.create(workspace, KeyID(index))
	}
	stop, visited := errors.New("stop"), 0
	_, err := s.store.Load(s.ctx, func(storage.Item) error {
		if visited++; visited == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || visited != 3 {
		s.Errorf("Load: %v after %d items, want the error of visit after 3", err, visited)
	}
}

func testKeyPages(s *suite) {
	workspace, other := s.begin("w"), s.begin("w.other")
	const keys = 25
	var want []string
	for index := range keys {
		want = append(want, s.create(workspace, KeyID(index)).GetKeyId())
		s.create(other, KeyID(1000+index))
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 2, 5, keys - 1, keys, keys + 1, storage.MaxPage} {
		if got := keyIDs(ListKeys(s, s.store, "w", limit)); !slices.Equal(got, want) {
			s.Errorf("ListKeys by %d: %v, want %v", limit, got, want)
		}
		if got := ListKeys(s, s.store, "", limit); len(got) != 2*keys {
			s.Errorf("ListKeys of all by %d: %d keys, want %d", limit, len(got), 2*keys)
		}
	}
	// Between pages, keys are added, changed and deleted. A key that exists all the time is
	// returned once, a new key is not returned, and a deleted one is not returned afterwards.
	for _, asked := range []string{"w", ""} {
		var got []string
		query := storage.Query{WorkspaceID: asked, Limit: 4}
		for round := 0; ; round++ {
			page, err := s.store.ListKeys(s.ctx, query)
			if err != nil {
				s.Fatalf("ListKeys: %v", err)
			}
			if page.Revision != s.model.Revision() {
				s.Errorf("ListKeys: revision %d, want %d", page.Revision, s.model.Revision())
			}
			for _, key := range page.Keys {
				if key.GetWorkspaceId() == "w" {
					got = append(got, key.GetKeyId())
				}
			}
			if query.Cursor = page.Next; query.Cursor == "" {
				break
			}
			s.create(workspace, KeyID(len(asked)*1000+2000+round))
			// The key that the cursor names may be deleted.
			if last := page.Keys[len(page.Keys)-1]; round == 1 && last.GetWorkspaceId() == "w" {
				s.do(workspace, workspace.DeleteKey(last))
				want = slices.DeleteFunc(slices.Clone(want), func(id string) bool { return id == last.GetKeyId() })
				got = slices.DeleteFunc(got, func(id string) bool { return id == last.GetKeyId() })
			}
		}
		got = slices.DeleteFunc(got, func(id string) bool { return id >= KeyID(2000) })
		if !slices.Equal(got, want) {
			s.Errorf("ListKeys of %q while keys are added: %v, want %v", asked, got, want)
		}
	}
}

func keyIDs(keys []*storagev1.KeyRecord) []string {
	ids := make([]string, len(keys))
	for index, key := range keys {
		ids[index] = key.GetKeyId()
	}
	return ids
}

func testMemberPages(s *suite) {
	// Ids with common prefixes, put in an order other than theirs.
	ids := []string{"m", "m.", "m-1", "m0", "m00", "a", "z", "M", "m:x", "m@example.com", "member"}
	for _, workspaceID := range []string{"w", "w.", "w0", "w-", "x"} {
		workspace := NewWorkspace(workspaceID)
		for _, id := range ids {
			s.do(workspace, workspace.PutMember(id, "role in "+workspaceID))
		}
	}
	want := slices.Sorted(slices.Values(ids))
	for _, limit := range []int{1, 2, 5, len(ids) - 1, len(ids), len(ids) + 1} {
		var got []string
		for _, member := range ListMembers(s, s.store, "w", limit) {
			got = append(got, member.GetMemberId())
			if member.GetWorkspaceId() != "w" {
				s.Errorf("ListMembers: a member of %q", member.GetWorkspaceId())
			}
		}
		if !slices.Equal(got, want) {
			s.Errorf("ListMembers by %d: %v, want %v", limit, got, want)
		}
	}
}

func testAuditPages(s *suite) {
	workspace, other := s.begin("w"), s.begin("other")
	policy := ApplyPolicy(storage.Head{}, "policy")
	s.commit(policy)
	for index := range 12 {
		s.create(workspace, KeyID(index))
		if index%3 == 0 {
			s.create(other, KeyID(100+index))
		}
	}
	for _, limit := range []int{1, 2, 4, 12, 13, 14} {
		for id, want := range map[string]int64{"w": 13, "other": 5, "": 1, "nobody's": 0} {
			events := ListAuditEvents(s, s.store, id, limit)
			if int64(len(events)) != want {
				s.Errorf("ListAuditEvents of %q by %d: %d events, want %d", id, limit, len(events), want)
			}
			for index, event := range events {
				if event.Record.GetSequence() != want-int64(index) || event.Record.GetWorkspaceId() != id {
					s.Errorf("ListAuditEvents of %q: event %d of %q in place %d", id, event.Record.GetSequence(), event.Record.GetWorkspaceId(), index)
				}
			}
		}
	}
	// A cursor keeps its position when events are added.
	page, err := s.store.ListAuditEvents(s.ctx, storage.Query{WorkspaceID: "w", Limit: 3})
	if err != nil || len(page.Events) != 3 || page.Revision != s.model.Revision() {
		s.Fatalf("ListAuditEvents: %+v, %v", page, err)
	}
	if head := workspace.Head; storage.HashAudit(page.Events[0].Encoded) != head.Hash {
		s.Error("ListAuditEvents: the newest event's bytes have another hash than the head")
	}
	s.create(workspace, KeyID(50))
	page, err = s.store.ListAuditEvents(s.ctx, storage.Query{WorkspaceID: "w", Limit: 3, Cursor: page.Next})
	if err != nil || len(page.Events) != 3 || page.Events[0].Record.GetSequence() != 10 {
		s.Errorf("ListAuditEvents: %+v, %v; want events 10 to 8", page, err)
	}
}

// testAuditScans reads the events of one workspace, of the policy and of all, by pages of any size,
// between any two revisions.
func testAuditScans(s *suite) {
	type made struct {
		workspaceID        string
		sequence, revision int64
	}
	var all []made
	workspaces := []*Workspace{NewWorkspace("w"), NewWorkspace("other")}
	note := func(workspaceID string, sequence, revision int64) {
		all = append([]made{{workspaceID, sequence, revision}}, all...)
	}
	for index := range 9 {
		for number, workspace := range workspaces[:1+index%2] {
			change := workspace.PutMember("member", "admin")
			if index > 1 {
				change = workspace.CreateKey(KeyID(100*number + index))
			}
			note(workspace.ID, change.Event.GetSequence(), s.do(workspace, change))
		}
		if index == 4 {
			note("", 1, s.commit(ApplyPolicy(storage.Head{}, "policy")))
		}
	}
	newest := s.model.Revision()
	for _, query := range []storage.AuditQuery{
		{All: true},
		{WorkspaceID: "w"},
		{WorkspaceID: "other"},
		{WorkspaceID: ""},
		{WorkspaceID: "nobody's"},
		{All: true, After: all[4].revision},
		{All: true, Before: all[4].revision},
		{All: true, Before: all[2].revision, After: all[8].revision},
		{WorkspaceID: "w", Before: all[2].revision, After: all[8].revision},
		{WorkspaceID: "other", Before: all[0].revision, After: 1},
		{All: true, Before: newest + 100},
		{All: true, Before: 1},
		{All: true, After: newest},
		{WorkspaceID: "w", After: newest + 100},
	} {
		var want []made
		for _, event := range all {
			if (query.All || event.workspaceID == query.WorkspaceID) && event.revision > query.After &&
				(query.Before == 0 || event.revision < query.Before) {
				want = append(want, event)
			}
		}
		for _, query.Limit = range []int{1, 2, 5, 100} {
			var got []made
			for _, event := range s.scanAudit(query) {
				got = append(got, made{event.Record.GetWorkspaceId(), event.Record.GetSequence(), event.Revision})
			}
			if !slices.Equal(got, want) {
				s.Errorf("ScanAuditEvents(%+v): %v, want %v", query, got, want)
			}
		}
	}
	// The bytes of an event are those that its hash covers.
	page, err := s.store.ScanAuditEvents(s.ctx, storage.AuditQuery{WorkspaceID: "w", Limit: 1})
	if err != nil || page.Revision != newest || storage.HashAudit(page.Events[0].Encoded) != workspaces[0].Head.Hash {
		s.Errorf("ScanAuditEvents: %+v, %v; want the event of the head at revision %d", page, err, newest)
	}
}

// scanAudit reads all pages of a scan.
func (s *suite) scanAudit(query storage.AuditQuery) []storage.AuditEvent {
	s.Helper()
	var all []storage.AuditEvent
	for {
		page, err := s.store.ScanAuditEvents(s.ctx, query)
		if err != nil {
			s.Fatalf("ScanAuditEvents(%+v): %v", query, err)
		}
		if len(page.Events) > max(1, query.Limit) {
			s.Fatalf("ScanAuditEvents(%+v): %d events", query, len(page.Events))
		}
		all = append(all, page.Events...)
		if page.Next == 0 {
			return all
		}
		if page.Next <= 0 || query.Before > 0 && page.Next >= query.Before {
			s.Fatalf("ScanAuditEvents(%+v): the next page begins before %d", query, page.Next)
		}
		query.Before = page.Next
	}
}

// testPageBytes reads records of very different sizes, bounded by bytes. A page is not
// larger than the bound, has at least one record, and none is left out.
func testPageBytes(s *suite) {
	const records, large = 40, 100 << 10
	workspace, other := s.begin("w"), s.begin("other")
	var want []string
	for index := range records {
		size := 1 + index%5*large/4
		change := workspace.CreateKey(KeyID(index))
		change.PutKeys[0].Name = strings.Repeat("x", size)
		// Audit events of the same size.
		change.Event.Details = map[string]string{"text": change.PutKeys[0].GetName()}
		s.do(workspace, change)
		want = append(want, KeyID(index))
		member := workspace.PutMember(fmt.Sprintf("member%02d", index), strings.Repeat("r", size))
		s.do(workspace, member)
		s.create(other, KeyID(1000+index))
	}
	slices.Reverse(want)
	for _, most := range []int{0, 1, 5*large + 1, 1 << 40} {
		bound := most
		if most < 1 || most > storage.MaxPageBytes {
			bound = storage.MaxPageBytes
		}
		query := func(id, cursor string) storage.Query {
			return storage.Query{WorkspaceID: id, Cursor: cursor, Limit: storage.MaxPage, MaxBytes: most}
		}
		pages := 0
		keys := allPages(s, storage.MaxPage, func(cursor string) ([]*storagev1.KeyRecord, string, error) {
			page, err := s.store.ListKeys(s.ctx, query("w", cursor))
			sized(s, bound, page.Keys)
			pages++
			return page.Keys, page.Next, err
		})
		if got := keyIDs(keys); !slices.Equal(got, want) {
			s.Errorf("ListKeys by %d bytes: %v, want %v", most, got, want)
		}
		// A page is not much smaller than the bound either.
		if fewest := records * large / 2 / bound; bound >= large && (pages < fewest || pages > 2*fewest+1) || most == 1 && pages != records {
			s.Errorf("ListKeys by %d bytes: %d pages, want %d to %d", most, pages, fewest, 2*fewest+1)
		}
		all := allPages(s, storage.MaxPage, func(cursor string) ([]*storagev1.KeyRecord, string, error) {
			page, err := s.store.ListKeys(s.ctx, query("", cursor))
			sized(s, bound, page.Keys)
			return page.Keys, page.Next, err
		})
		if ids := keyIDs(all); len(ids) != 2*records || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 2*records {
			s.Errorf("ListKeys of all by %d bytes: %v", most, ids)
		}
		members := allPages(s, storage.MaxPage, func(cursor string) ([]*storagev1.MemberRecord, string, error) {
			page, err := s.store.ListMembers(s.ctx, query("w", cursor))
			sized(s, bound, page.Members)
			return page.Members, page.Next, err
		})
		if len(members) != records+1 { // and the workspace's first member
			s.Errorf("ListMembers by %d bytes: %d members", most, len(members))
		}
		events := allPages(s, storage.MaxPage, func(cursor string) ([]storage.AuditEvent, string, error) {
			page, err := s.store.ListAuditEvents(s.ctx, query("w", cursor))
			var found []*storagev1.AuditRecord
			for _, event := range page.Events {
				found = append(found, event.Record)
			}
			sized(s, bound, found)
			return page.Events, page.Next, err
		})
		if len(events) != 2*records+1 {
			s.Errorf("ListAuditEvents by %d bytes: %d events", most, len(events))
		}
		scan := storage.AuditQuery{WorkspaceID: "w", Limit: storage.MaxPage, MaxBytes: most}
		for scanned := 0; ; {
			page, err := s.store.ScanAuditEvents(s.ctx, scan)
			if err != nil {
				s.Fatalf("ScanAuditEvents: %v", err)
			}
			var found []*storagev1.AuditRecord
			for _, event := range page.Events {
				found = append(found, event.Record)
			}
			sized(s, bound, found)
			scanned, scan.Before = scanned+len(found), page.Next
			if page.Next > 0 {
				continue
			}
			if scanned != 2*records+1 {
				s.Errorf("ScanAuditEvents by %d bytes: %d events", most, scanned)
			}
			break
		}
	}
}

// sized fails the test if a page has several records that are larger than a bound together.
func sized[Record proto.Message](s *suite, bound int, records []Record) {
	total := 0
	for _, record := range records {
		total += proto.Size(record)
	}
	if len(records) > 1 && total > bound {
		s.Errorf("a page of %d records has %d bytes, more than %d", len(records), total, bound)
	}
}

func testLimits(s *suite) {
	workspace := s.begin("w")
	s.do(workspace, workspace.PutMember("other", "admin"))
	s.create(workspace, KeyID(1))
	s.create(workspace, KeyID(2))
	for limit, want := range map[int]int{-1: 1, 0: 1, 1: 1, storage.MaxPage + 1: 2, 1 << 40: 2} {
		query := storage.Query{WorkspaceID: "w", Limit: limit}
		keys, err := s.store.ListKeys(s.ctx, query)
		if err != nil || len(keys.Keys) != want {
			s.Errorf("ListKeys by %d: %d keys, %v", limit, len(keys.Keys), err)
		}
		members, err := s.store.ListMembers(s.ctx, query)
		if err != nil || len(members.Members) != want {
			s.Errorf("ListMembers by %d: %d members, %v", limit, len(members.Members), err)
		}
		events, err := s.store.ListAuditEvents(s.ctx, query)
		if err != nil || len(events.Events) != want && limit <= 1 {
			s.Errorf("ListAuditEvents by %d: %d events, %v", limit, len(events.Events), err)
		}
		query.WorkspaceID = ""
		if keys, err := s.store.ListKeys(s.ctx, query); err != nil || len(keys.Keys) != want {
			s.Errorf("ListKeys of all by %d: %d keys, %v", limit, len(keys.Keys), err)
		}
	}
}

// testInvalidCursors reads with invented cursors and with cursors of another list. The answer
// is ErrInvalidCursor or, because some of these cursors may happen to be valid, a page of the
// list that was asked for. It is never ErrDamaged and never another workspace's page.
func testInvalidCursors(s *suite) {
	workspace, other := s.begin("w"), s.begin("other")
	s.commit(ApplyPolicy(storage.Head{}, "policy"))
	for index := range 6 {
		s.create(workspace, KeyID(index))
		s.create(other, KeyID(100+index))
	}
	garbage := []string{"\x00", "a\x00b", "\xff\xfe", strings.Repeat("9", 5000)}
	for _, cursor := range garbage {
		s.cursor("w", cursor, true)
	}
	cursors := []string{
		"0", "-1", "1", "2", "007", "+5", "9223372036854775807", "99999999999999999999", "1e3", "0x10",
		" ", "member", "w", "other", KeyID(3), "../..", "%00", "null",
	}
	for _, id := range []string{"w", "other", ""} {
		query := storage.Query{WorkspaceID: id, Limit: 1}
		keys, _ := s.store.ListKeys(s.ctx, query)
		members, _ := s.store.ListMembers(s.ctx, query)
		events, _ := s.store.ListAuditEvents(s.ctx, query)
		cursors = append(cursors, keys.Next, members.Next, events.Next)
	}
	for _, cursor := range cursors {
		for _, id := range []string{"w", "other", "", "nobody's"} {
			s.cursor(id, cursor, false)
		}
	}
}

// cursor reads all lists of a workspace with a cursor.
func (s *suite) cursor(workspaceID, cursor string, refused bool) {
	s.Helper()
	query := storage.Query{WorkspaceID: workspaceID, Cursor: cursor, Limit: 3}
	judge := func(list string, err error) {
		if err != nil && !errors.Is(err, storage.ErrInvalidCursor) || err == nil && refused {
			s.Errorf("%s of %q with the cursor %.40q: %v", list, workspaceID, cursor, err)
		}
	}
	keys, err := s.store.ListKeys(s.ctx, query)
	judge("ListKeys", err)
	members, err := s.store.ListMembers(s.ctx, query)
	judge("ListMembers", err)
	events, err := s.store.ListAuditEvents(s.ctx, query)
	judge("ListAuditEvents", err)
	for _, key := range keys.Keys {
		if workspaceID != "" && key.GetWorkspaceId() != workspaceID {
			s.Errorf("ListKeys of %q with the cursor %q: a key of %q", workspaceID, cursor, key.GetWorkspaceId())
		}
	}
	for _, member := range members.Members {
		if member.GetWorkspaceId() != workspaceID {
			s.Errorf("ListMembers of %q with the cursor %q: a member of %q", workspaceID, cursor, member.GetWorkspaceId())
		}
	}
	for _, event := range events.Events {
		if event.Record.GetWorkspaceId() != workspaceID {
			s.Errorf("ListAuditEvents of %q with the cursor %q: an event of %q", workspaceID, cursor, event.Record.GetWorkspaceId())
		}
	}
}

func testNotOfThisWorkspace(s *suite) {
	workspace := s.begin("w")
	for _, id := range []string{"w.", "W", "v", "ww"} {
		s.begin(id)
	}
	key := s.create(workspace, KeyID(1), "request")
	for _, id := range []string{"w.", "W", "v", "ww", "nobody's", "\x00", "w\x00", "w\x00member"} {
		if _, _, err := s.store.GetKey(s.ctx, id, KeyID(1)); !errors.Is(err, storage.ErrNotFound) {
			s.Errorf("GetKey of %q: %v, want ErrNotFound", id, err)
		}
		s.findRequest(id, "request", "")
		if keys := ListKeys(s, s.store, id, 5); len(keys) > 0 {
			s.Errorf("ListKeys of %q: %v", id, keys)
		}
	}
	for _, id := range []string{"", "short", KeyID(2), strings.Repeat("x", 70000)} {
		if _, _, err := s.store.GetKey(s.ctx, "w", id); !errors.Is(err, storage.ErrNotFound) {
			s.Errorf("GetKey of %.20q: %v, want ErrNotFound", id, err)
		}
	}
	for _, id := range []string{"", "nobody", "member\x00", strings.Repeat("x", 70000)} {
		if _, _, err := s.store.GetMember(s.ctx, "w", id); !errors.Is(err, storage.ErrNotFound) {
			s.Errorf("GetMember of %.20q: %v, want ErrNotFound", id, err)
		}
	}
	s.equal("GetKey of any workspace", s.getKey("", KeyID(1)), key)
}

// testNotAliased keeps records that it has read while the store changes and after the store was
// closed. The records must not change.
func testNotAliased(s *suite) {
	workspace := s.begin("w")
	for index := range 20 {
		s.create(workspace, KeyID(index), fmt.Sprintf("request %d", index))
	}
	var kept []proto.Message
	var encoded [][]byte
	keep := func(record proto.Message) { kept = append(kept, record) }
	_, err := s.store.Load(s.ctx, func(item storage.Item) error {
		switch {
		case item.Workspace != nil:
			keep(item.Workspace)
		case item.Member != nil:
			keep(item.Member)
		case item.Key != nil:
			keep(item.Key)
		}
		return nil
	})
	if err != nil {
		s.Fatalf("Load: %v", err)
	}
	for _, key := range ListKeys(s, s.store, "w", 3) {
		keep(key)
		keep(s.getKey("w", key.GetKeyId()))
	}
	for _, member := range ListMembers(s, s.store, "w", 3) {
		keep(member)
	}
	for _, event := range ListAuditEvents(s, s.store, "w", 3) {
		keep(event.Record)
		encoded = append(encoded, event.Encoded)
	}
	copies, encodedCopies := make([]proto.Message, len(kept)), make([][]byte, len(encoded))
	for index, record := range kept {
		copies[index] = proto.Clone(record)
	}
	for index, bytes := range encoded {
		encodedCopies[index] = slices.Clone(bytes)
	}
	for index := range 20 {
		s.do(workspace, workspace.UpdateKey(s.getKey("w", KeyID(index)), rename(strings.Repeat("new", 100))))
	}
	s.reopen()
	for index, record := range kept {
		s.equal("a record that was read before", record, copies[index])
	}
	for index, bytes := range encoded {
		if !slices.Equal(bytes, encodedCopies[index]) {
			s.Error("the bytes of an audit event have changed")
		}
	}
}

func testContextEnded(s *suite) {
	workspace := s.begin("w")
	key := s.create(workspace, KeyID(1), "request")
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	query := storage.Query{WorkspaceID: "w", Limit: 1}
	for name, call := range map[string]func() error{
		"Load": func() error {
			_, err := s.store.Load(ended, func(storage.Item) error { return nil })
			return err
		},
		"Watch": func() error {
			for _, err := range s.store.Watch(ended, at(s.model.Revision())) {
				return err
			}
			return nil
		},
		"Commit": func() error {
			_, err := s.store.Commit(ended, workspace.UpdateKey(key, rename("new")))
			return err
		},
		"GetKey":          func() error { _, _, err := s.store.GetKey(ended, "w", KeyID(1)); return err },
		"FindRequest":     func() error { _, _, err := s.store.FindRequest(ended, "w", "request"); return err },
		"ListKeys":        func() error { _, err := s.store.ListKeys(ended, query); return err },
		"GetMember":       func() error { _, _, err := s.store.GetMember(ended, "w", "member"); return err },
		"ListMembers":     func() error { _, err := s.store.ListMembers(ended, query); return err },
		"ListAuditEvents": func() error { _, err := s.store.ListAuditEvents(ended, query); return err },
		"ScanAuditEvents": func() error {
			_, err := s.store.ScanAuditEvents(ended, storage.AuditQuery{All: true})
			return err
		},
		"ListFeed": func() error { _, err := s.store.ListFeed(ended, 1); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			s.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	s.unchanged()
}
