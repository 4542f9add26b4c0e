package storagetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// refusalTests run where a store has the optional behaviour.
var refusalTests = []test{
	{"RefusalsAreListedNewestFirst", withRefusals(testRefusalPages)},
	{"RefusalsOfAWorkspace", withRefusals(testRefusalsOfWorkspace)},
	{"NewestRefusalsAreKept", withRefusals(testRefusalsBounded)},
	{"RefusalsAreOutsideOfRevisionsAndWatch", withRefusals(testRefusalsOutside)},
	{"RefusalsHonourContextAndClose", withRefusals(testRefusalsContext)},
}

func withRefusals(run func(s *suite, refusals storage.RefusalStore)) func(s *suite) {
	return func(s *suite) {
		if refusals, has := storage.As[storage.RefusalStore](s.store); has {
			run(s, refusals)
		}
	}
}

// refusals returns count refusals of a workspace, which name their number.
func refusals(workspaceID string, from, count int) []*storagev1.RefusalRecord {
	var made []*storagev1.RefusalRecord
	for number := from; number < from+count; number++ {
		made = append(made, &storagev1.RefusalRecord{
			Time: timestamppb.New(now()), LastTime: timestamppb.New(now().Add(time.Second)), Count: int64(number),
			Kind: storagev1.RefusalKind_REFUSAL_KIND_CHANGE, Method: "keysvc.v1.KeyService/RevokeKey", Caller: "gateway",
			CallerCredential: "uid 7", ActorMemberId: "anna", Peer: "192.0.2.1", RequestId: "request",
			WorkspaceId: workspaceID, KeyId: KeyID(number), MemberId: "member", Code: "ABORTED", Reason: "CONFLICT",
		})
	}
	return made
}

// list reads all pages of refusals and checks the bounds of each. It returns their counts.
func (s *suite) listRefusals(store storage.RefusalReader, query storage.Query) []int64 {
	s.Helper()
	var counts []int64
	last := int64(0)
	for {
		page, err := store.ListRefusals(s.ctx, query)
		if err != nil {
			s.Fatalf("ListRefusals(%+v): %v", query, err)
		}
		if page.Revision != s.model.Revision() || len(page.Refusals) > query.Bounded().Limit || page.Next != "" && len(page.Refusals) == 0 {
			s.Fatalf("ListRefusals(%+v): %d refusals at revision %d, next %q", query, len(page.Refusals), page.Revision, page.Next)
		}
		for _, refusal := range page.Refusals {
			if sequence := refusal.GetSequence(); sequence < 1 || last > 0 && sequence >= last {
				s.Fatalf("ListRefusals: sequence %d after %d", sequence, last)
			}
			last = refusal.GetSequence()
			counts = append(counts, refusal.GetCount())
		}
		if query.Cursor = page.Next; query.Cursor == "" {
			return counts
		}
	}
}

// down returns the numbers from high to low.
func down(high, low int) []int64 {
	var numbers []int64
	for number := high; number >= low; number-- {
		numbers = append(numbers, int64(number))
	}
	return numbers
}

func (s *suite) putRefusals(store storage.RefusalWriter, refusals []*storagev1.RefusalRecord) {
	s.Helper()
	if err := store.PutRefusals(s.ctx, refusals); err != nil {
		s.Fatalf("PutRefusals: %v", err)
	}
}

func testRefusalPages(s *suite, store storage.RefusalStore) {
	if got := s.listRefusals(store, storage.Query{Limit: 10}); len(got) != 0 {
		s.Errorf("ListRefusals of a new store: %v", got)
	}
	s.putRefusals(store, nil)
	first := refusals("w", 1, 1)
	s.putRefusals(store, first)
	s.putRefusals(store, refusals("w", 2, 9))
	for _, limit := range []int{1, 3, 10, 11, storage.MaxPage} {
		if got := s.listRefusals(store, storage.Query{Limit: limit}); !slices.Equal(got, down(10, 1)) {
			s.Errorf("ListRefusals, pages of %d: %v", limit, got)
		}
	}
	if got := s.listRefusals(store, storage.Query{Limit: 10, MaxBytes: 1}); !slices.Equal(got, down(10, 1)) {
		s.Errorf("ListRefusals, pages of a byte: %v", got)
	}
	page, err := store.ListRefusals(s.ctx, storage.Query{Limit: 10})
	if err != nil {
		s.Fatalf("ListRefusals: %v", err)
	}
	want := refusals("w", 1, 1)[0]
	got := page.Refusals[9]
	want.Time, want.LastTime, want.Sequence = got.GetTime(), got.GetLastTime(), first[0].GetSequence()
	if !proto.Equal(got, want) || !got.GetTime().IsValid() || !got.GetLastTime().AsTime().After(got.GetTime().AsTime()) {
		s.Errorf("ListRefusals: %v, want %v", got, want)
	}
	for _, cursor := range []string{"x", "-1", "0", "01", strings.Repeat("9", 40), "1\x00"} {
		if _, err := store.ListRefusals(s.ctx, storage.Query{Limit: 1, Cursor: cursor}); !errors.Is(err, storage.ErrInvalidCursor) {
			s.Errorf("ListRefusals, cursor %q: %v, want ErrInvalidCursor", cursor, err)
		}
	}
	s.reopen()
	reopened, _ := storage.As[storage.RefusalStore](s.store)
	s.putRefusals(reopened, refusals("w", 11, 1))
	if got := s.listRefusals(reopened, storage.Query{Limit: 4}); !slices.Equal(got, down(11, 1)) {
		s.Errorf("ListRefusals, reopened: %v", got)
	}
}

func testRefusalsOfWorkspace(s *suite, store storage.RefusalStore) {
	for number := 1; number <= 9; number++ {
		s.putRefusals(store, refusals(fmt.Sprintf("w%d", number%2), number, 1))
	}
	s.putRefusals(store, refusals("", 10, 1))
	for _, limit := range []int{1, 2, 100} {
		if got := s.listRefusals(store, storage.Query{WorkspaceID: "w1", Limit: limit}); !slices.Equal(got, []int64{9, 7, 5, 3, 1}) {
			s.Errorf("ListRefusals of w1, pages of %d: %v", limit, got)
		}
	}
	if got := s.listRefusals(store, storage.Query{WorkspaceID: "w", Limit: 2}); len(got) != 0 {
		s.Errorf("ListRefusals of another workspace: %v", got)
	}
}

func testRefusalsBounded(s *suite, store storage.RefusalStore) {
	const step = 2500
	for from := 1; from < storage.MaxRefusals+step; from += step {
		s.putRefusals(store, refusals("w", from, step))
	}
	if got := s.listRefusals(store, storage.Query{Limit: storage.MaxPage}); !slices.Equal(got, down(storage.MaxRefusals+step, step+1)) {
		s.Errorf("ListRefusals: %d refusals, want the newest %d", len(got), storage.MaxRefusals)
	}
	s.putRefusals(store, refusals("w", 1, storage.MaxRefusals+1))
	if got := s.listRefusals(store, storage.Query{Limit: storage.MaxPage}); !slices.Equal(got, down(storage.MaxRefusals+1, 2)) {
		s.Errorf("ListRefusals: %d refusals, want the newest %d of one call", len(got), storage.MaxRefusals)
	}
}

func testRefusalsOutside(s *suite, store storage.RefusalStore) {
	workspace := s.begin("w")
	before := s.model.Revision()
	s.putRefusals(store, refusals("w", 1, 3))
	s.unchanged()
	if barrier, err := s.store.Barrier(s.ctx); err != nil || barrier.Revision != before {
		s.Errorf("Barrier: %v, %v; want revision %d", barrier, err, before)
	}
	revision := s.do(workspace, workspace.PutMember("other", "admin"))
	for committed, err := range s.store.Watch(s.ctx, at(before)) {
		if err != nil || committed.Revision != revision {
			s.Errorf("Watch: revision %v, %v; want %d", committed, err, revision)
		}
		break
	}
}

func testRefusalsContext(s *suite, store storage.RefusalStore) {
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := store.PutRefusals(ended, refusals("w", 1, 1)); !errors.Is(err, context.Canceled) {
		s.Errorf("PutRefusals: %v, want context.Canceled", err)
	}
	if _, err := store.ListRefusals(ended, storage.Query{Limit: 1}); !errors.Is(err, context.Canceled) {
		s.Errorf("ListRefusals: %v, want context.Canceled", err)
	}
	s.reopen() // store is closed now
	if err := store.PutRefusals(s.ctx, refusals("w", 1, 1)); !errors.Is(err, storage.ErrUnavailable) {
		s.Errorf("PutRefusals after Close: %v, want ErrUnavailable", err)
	}
	if _, err := store.ListRefusals(s.ctx, storage.Query{Limit: 1}); !errors.Is(err, storage.ErrUnavailable) {
		s.Errorf("ListRefusals after Close: %v, want ErrUnavailable", err)
	}
}
