package keys_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// auditScene is a world with a few changes of two workspaces by two callers.
type auditScene struct {
	*keystest.World
	key, other string
	// halfway is a time between the changes, and revision the revision of the newest one before it.
	halfway  time.Time
	revision int64
}

func newAuditScene(t *testing.T) *auditScene {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	s := &auditScene{World: w}
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	s.key = w.Create("acme", "ann", "signatures:read").GetKey().GetKeyId()
	w.Put("other", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	s.other = w.Create("other", "ann", "signatures:read").GetKey().GetKeyId()
	s.revision = w.Projection.Revision()
	w.Clock.Advance(time.Hour)
	s.halfway = w.Clock.Now()
	guard := keystest.Actor
	guard.Caller = "guard"
	w.Must(w.RevokeKey(t.Context(), guard, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: s.key}))
	w.Must(w.RemoveMember(t.Context(), guard, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}))
	return s
}

// all reads all pages of a list, and returns what happened in words, newest first.
func (s *auditScene) all(t *testing.T, visible access.Workspaces, request *keysvcv1.ListAuditEventsRequest) []string {
	t.Helper()
	words := []string{}
	var events []*keysvcv1.AuditEvent
	for pages := 0; ; pages++ {
		response, err := s.ListAuditEvents(t.Context(), visible, request)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, response.GetEvents()...)
		if response.GetNextPageToken() == "" {
			break
		}
		if pages > 100 {
			t.Fatal("the list does not end")
		}
		request.PageToken = response.GetNextPageToken()
	}
	request.PageToken = ""
	for index, event := range events {
		if index > 0 && event.GetRevision() >= events[index-1].GetRevision() {
			t.Errorf("revision %d after %d", event.GetRevision(), events[index-1].GetRevision())
		}
		words = append(words, fmt.Sprintf("%s %s", event.GetWorkspaceId(), event.GetAction().String()[len("AUDIT_ACTION_"):]))
	}
	return words
}

func TestAuditEventsPassEveryFilter(t *testing.T) {
	s := newAuditScene(t)
	const (
		policy              = " POLICY_APPLIED"
		put, created        = "acme MEMBER_PUT", "acme KEY_CREATED"
		otherPut, otherMade = "other MEMBER_PUT", "other KEY_CREATED"
		revoked, removed    = "acme KEY_REVOKED", "acme MEMBER_REMOVED"
	)
	stamp := timestamppb.New(s.halfway)
	for name, test := range map[string]struct {
		request *keysvcv1.ListAuditEventsRequest
		want    []string
	}{
		"all":            {&keysvcv1.ListAuditEventsRequest{}, []string{removed, revoked, otherMade, otherPut, created, put, policy}},
		"a workspace":    {&keysvcv1.ListAuditEventsRequest{WorkspaceId: "other"}, []string{otherMade, otherPut}},
		"no workspace":   {&keysvcv1.ListAuditEventsRequest{WorkspaceId: "nowhere"}, []string{}},
		"a key":          {&keysvcv1.ListAuditEventsRequest{KeyId: s.key}, []string{revoked, created}},
		"another's key":  {&keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", KeyId: s.other}, []string{}},
		"a member":       {&keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", MemberId: "ann"}, []string{removed, revoked, created, put}},
		"members alike":  {&keysvcv1.ListAuditEventsRequest{MemberId: "ann"}, []string{removed, revoked, otherMade, otherPut, created, put}},
		"a caller":       {&keysvcv1.ListAuditEventsRequest{Caller: "guard"}, []string{removed, revoked}},
		"nobody":         {&keysvcv1.ListAuditEventsRequest{Caller: "guar"}, []string{}},
		"since":          {&keysvcv1.ListAuditEventsRequest{Since: stamp}, []string{removed, revoked}},
		"until":          {&keysvcv1.ListAuditEventsRequest{Until: stamp}, []string{otherMade, otherPut, created, put, policy}},
		"at no time":     {&keysvcv1.ListAuditEventsRequest{Since: stamp, Until: stamp}, []string{}},
		"later":          {&keysvcv1.ListAuditEventsRequest{AfterRevision: s.revision}, []string{removed, revoked}},
		"after all":      {&keysvcv1.ListAuditEventsRequest{AfterRevision: s.revision + 100}, []string{}},
		"earlier":        {&keysvcv1.ListAuditEventsRequest{BeforeRevision: 3}, []string{put, policy}},
		"exactly one":    {&keysvcv1.ListAuditEventsRequest{BeforeRevision: s.revision + 1, AfterRevision: s.revision - 1}, []string{otherMade}},
		"several":        {&keysvcv1.ListAuditEventsRequest{KeyId: s.key, Caller: "guard", AfterRevision: s.revision}, []string{revoked}},
		"nothing passes": {&keysvcv1.ListAuditEventsRequest{KeyId: s.other, Caller: "guard"}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, test.request.PageSize = range []int32{0, 1, 2, 1000} {
				if got := s.all(t, access.All(), test.request); !slices.Equal(got, test.want) {
					t.Errorf("by %d: %q, want %q", test.request.GetPageSize(), got, test.want)
				}
			}
		})
	}
}

// TestAuditEventsAreOfVisibleWorkspacesOnly: a reader that is limited to some workspaces sees neither
// others nor the policy, and must say which one it wants to see.
func TestAuditEventsAreOfVisibleWorkspacesOnly(t *testing.T) {
	s := newAuditScene(t)
	only := access.Only("other")
	if got := s.all(t, only, &keysvcv1.ListAuditEventsRequest{WorkspaceId: "other"}); len(got) != 2 {
		t.Errorf("its own: %q", got)
	}
	for _, id := range []string{"acme", "nowhere"} {
		for _, refused := range []bool{false, true} {
			if got := s.all(t, only, &keysvcv1.ListAuditEventsRequest{WorkspaceId: id, KeyId: s.key, Refused: refused}); len(got) != 0 {
				t.Errorf("of %s: %q", id, got)
			}
		}
	}
	_, err := s.ListAuditEvents(t.Context(), only, &keysvcv1.ListAuditEventsRequest{})
	if keystest.ReasonOf(err) != problem.FieldInvalid {
		t.Errorf("without a workspace: %v", err)
	}
	for _, refused := range []bool{false, true} {
		_, err = s.ListAuditEvents(t.Context(), access.Workspaces{}, &keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", Refused: refused})
		if keystest.ReasonOf(err) != problem.CallerNotAllowed {
			t.Errorf("without the right: %v", err)
		}
	}
}

// sourceOf is a source of events.
type sourceOf struct {
	events []storage.AuditEvent // by descending revision
	reads  int
}

func (s *sourceOf) ScanAuditEvents(_ context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	s.reads++
	var scan storage.AuditScan
	for _, event := range s.events {
		if query.Before > 0 && event.Revision >= query.Before || event.Revision <= query.After {
			continue
		}
		if len(scan.Events) == query.Limit {
			scan.Next = event.Revision + 1
			break
		}
		scan.Events = append(scan.Events, event)
	}
	return scan, nil
}

// together is a source whose pages have all events of a revision or none, as etcdstore's.
type together struct{ sourceOf }

func (s *together) ScanAuditEvents(_ context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	var scan storage.AuditScan
	for index, event := range s.events {
		if query.Before > 0 && event.Revision >= query.Before || event.Revision <= query.After {
			continue
		}
		if len(scan.Events) >= query.Limit && s.events[index-1].Revision != event.Revision {
			scan.Next = event.Revision + 1
			break
		}
		scan.Events = append(scan.Events, event)
	}
	return scan, nil
}

// TestEventsOfOneRevisionAreListedOnce: a migration into etcd gives several events one revision.
func TestEventsOfOneRevisionAreListedOnce(t *testing.T) {
	source := &together{}
	for sequence := int64(40); sequence > 0; sequence-- {
		revision := sequence/7 + 1
		source.events = append(source.events, storage.AuditEvent{Revision: revision, Record: &storagev1.AuditRecord{Sequence: sequence, Caller: strconv.FormatInt(sequence%2, 10)}})
	}
	for _, size := range []int{1, 2, 3, 7, 8, 50} {
		for _, caller := range []string{"", "1"} {
			query, last, count := keys.AuditQuery{PageSize: size, Caller: caller}, int64(41), 0
			for {
				page, err := keys.ReadAuditLog(t.Context(), source, "epoch", query)
				if err != nil {
					t.Fatal(err)
				}
				if len(page.Events) > size {
					t.Errorf("a page of %d events, want %d at most", len(page.Events), size)
				}
				for _, event := range page.Events {
					if event.Record.GetSequence() >= last {
						t.Fatalf("size %d: %d follows on %d", size, event.Record.GetSequence(), last)
					}
					last = event.Record.GetSequence()
					count++
				}
				if query.PageToken = page.NextPageToken; query.PageToken == "" {
					break
				}
			}
			if want := map[string]int{"": 40, "1": 20}[caller]; count != want {
				t.Errorf("size %d, caller %q: %d events, want %d", size, caller, count, want)
			}
		}
	}
}

// TestAPageOfEventsIsBoundedWork: a page of a filter that nothing passes ends after a number of reads,
// and the list with a time to begin at ends after 10,000 older events.
func TestAPageOfEventsIsBoundedWork(t *testing.T) {
	const events = 25_000
	begin := time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	source := &sourceOf{}
	for revision := int64(events); revision > 0; revision-- {
		at := begin.Add(time.Duration(revision) * time.Second)
		if revision == events-9_000 || revision == 5 {
			at = at.AddDate(1, 0, 0) // a clock that was set back
		}
		source.events = append(source.events, storage.AuditEvent{
			Revision: revision, Record: &storagev1.AuditRecord{Time: timestamppb.New(at), Caller: "web"},
		})
	}
	read := func(query keys.AuditQuery) (found []int64, pages int) {
		for {
			source.reads = 0
			page, err := keys.ReadAuditLog(t.Context(), source, "epoch", query)
			if err != nil {
				t.Fatal(err)
			}
			if pages++; source.reads > 10 {
				t.Errorf("page %d took %d reads", pages, source.reads)
			}
			for _, event := range page.Events {
				found = append(found, event.Revision)
			}
			if query.PageToken = page.NextPageToken; query.PageToken == "" {
				return found, pages
			}
		}
	}
	if found, pages := read(keys.AuditQuery{Caller: "nobody", PageSize: 10}); len(found) > 0 || pages != 3 {
		t.Errorf("nothing passes: %d in %d pages, want 0 in 3", len(found), pages)
	}
	if found, pages := read(keys.AuditQuery{Caller: "web", PageSize: 1000}); len(found) != events || pages != 25 {
		t.Errorf("everything passes: %d in %d pages, want %d in 25", len(found), pages, events)
	}
	since := begin.Add((events - 9) * time.Second)
	found, _ := read(keys.AuditQuery{Since: &since, PageSize: 5})
	if want := []int64{events, events - 1, events - 2, events - 3, events - 4}; !slices.Equal(found[:5], want) || len(found) != 11 || found[10] != events-9_000 {
		t.Errorf("since: %d", found)
	}
}

// refusalsOf is a source of refusals, by descending sequence.
type refusalsOf struct {
	sourceOf

	refusals []*storagev1.RefusalRecord
}

func (s *refusalsOf) ListRefusals(_ context.Context, query storage.Query) (storage.RefusalPage, error) {
	var page storage.RefusalPage
	before := int64(math.MaxInt64)
	if query.Cursor != "" {
		before, _ = strconv.ParseInt(query.Cursor, 10, 64)
	}
	for _, refusal := range s.refusals {
		switch {
		case refusal.GetSequence() >= before || query.WorkspaceID != "" && refusal.GetWorkspaceId() != query.WorkspaceID:
		case len(page.Refusals) == query.Limit:
			page.Next = strconv.FormatInt(page.Refusals[len(page.Refusals)-1].GetSequence(), 10)
			return page, nil
		default:
			page.Refusals = append(page.Refusals, refusal)
		}
	}
	return page, nil
}

// TestRefusalsPassEveryFilter lists what was refused by pages of any size. The page says how far the
// stream has come, so that its reader can go on there.
func TestRefusalsPassEveryFilter(t *testing.T) {
	source := &refusalsOf{}
	begin := time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	for sequence := int64(9); sequence > 0; sequence-- {
		first := begin.Add(time.Duration(sequence) * time.Hour)
		source.refusals = append(source.refusals, &storagev1.RefusalRecord{
			Sequence: sequence, Time: timestamppb.New(first), LastTime: timestamppb.New(first.Add(time.Hour)), Count: sequence,
			WorkspaceId: []string{"acme", "other"}[sequence%2], Caller: []string{"web", "guard", ""}[sequence%3],
			KeyId: fmt.Sprintf("Key%013d", sequence), MemberId: "ann",
		})
	}
	since, until := begin.Add(8*time.Hour), begin.Add(3*time.Hour)
	for name, test := range map[string]struct {
		query keys.AuditQuery
		want  []int64
	}{
		"all":         {keys.AuditQuery{}, []int64{9, 8, 7, 6, 5, 4, 3, 2, 1}},
		"a workspace": {keys.AuditQuery{WorkspaceID: "acme"}, []int64{8, 6, 4, 2}},
		"a caller":    {keys.AuditQuery{Caller: "web"}, []int64{9, 6, 3}},
		"a key":       {keys.AuditQuery{KeyID: "Key0000000000004"}, []int64{4}},
		"a member":    {keys.AuditQuery{MemberID: "bob"}, nil},
		"later":       {keys.AuditQuery{AfterRevision: 6}, []int64{9, 8, 7}},
		"exactly one": {keys.AuditQuery{AfterRevision: 5, BeforeRevision: 7}, []int64{6}},
		"since":       {keys.AuditQuery{Since: &since}, []int64{9, 8, 7}},
		"until":       {keys.AuditQuery{Until: &until}, []int64{2, 1}},
	} {
		test.query.Refused = true
		for _, test.query.PageSize = range []int{1, 2, 100} {
			var got []int64
			for {
				page, err := keys.ReadAuditLog(t.Context(), source, "epoch", test.query)
				if err != nil {
					t.Fatal(err)
				}
				if first := test.query.PageToken == ""; first && test.query.BeforeRevision == 0 && test.query.WorkspaceID == "" && page.Revision != 9 {
					t.Errorf("%s: the stream is at %d, want 9", name, page.Revision)
				}
				for _, event := range page.Events {
					got = append(got, event.Refusal.GetSequence())
				}
				if test.query.PageToken = page.NextPageToken; test.query.PageToken == "" {
					break
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s by %d: %d, want %d", name, test.query.PageSize, got, test.want)
			}
		}
	}
	// A store that keeps none says so.
	_, err := keys.ReadAuditLog(t.Context(), &sourceOf{}, "epoch", keys.AuditQuery{Refused: true})
	if keystest.ReasonOf(err) != problem.NotImplemented {
		t.Errorf("without a stream: %v", err)
	}
}
