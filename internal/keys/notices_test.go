package keys_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const noticeDay = 24 * time.Hour

// noticeWorld is a world with a list of notices that goes on.
type noticeWorld struct {
	*keystest.World
	t    *testing.T
	next string
}

func newNoticeWorld(t *testing.T) *noticeWorld {
	t.Helper()
	w := &noticeWorld{World: keystest.NewWorld(t, keystest.NewBolt(t), nil), t: t}
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	return w
}

// createFor creates a key that lives for a time, and returns its id and token.
func (w *noticeWorld) createFor(workspaceID, memberID string, life time.Duration) (id, token string) {
	w.t.Helper()
	answer, err := w.CreateKey(w.t.Context(), keystest.Actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: "k", Scopes: []string{"emails:read"},
		ExpireTime: timestamppb.New(w.Clock.Now().Add(life)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.GetKey().GetKeyId(), answer.GetToken()
}

// notices reads on, with pages of a size, and returns "days of key" for each notice.
func (w *noticeWorld) notices(visible access.Workspaces, query keys.NoticeQuery) []string {
	w.t.Helper()
	var found []string
	for {
		query.PageToken = w.next
		page, err := w.Manager.ListNotices(w.t.Context(), visible, query)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, each := range page.Notices {
			found = append(found, fmt.Sprint(each.Days, " of ", each.Key.ID))
		}
		if w.next = page.NextPageToken; page.Waiting == 0 {
			return found
		}
	}
}

// TestKeyHasNoticesBeforeItsEnd looks every hour, and says when the notices of keys with these lives
// are found.
func TestKeyHasNoticesBeforeItsEnd(t *testing.T) {
	t.Parallel()
	for life, want := range map[time.Duration][]int{
		365 * noticeDay:                         {30, 7, 1},
		30*noticeDay + 61*time.Minute:           {30, 7, 1},
		30*noticeDay + 59*time.Minute:           {7, 1},
		7*noticeDay + 2*time.Hour:               {7, 1},
		7 * noticeDay:                           {1},
		noticeDay + time.Hour - time.Nanosecond: nil,
		time.Hour:                               nil,
	} {
		t.Run(life.String(), func(t *testing.T) {
			t.Parallel()
			w := newNoticeWorld(t)
			id, _ := w.createFor("acme", "ann", life)
			end := w.Clock.Now().Add(life)
			w.notices(access.All(), keys.NoticeQuery{})
			var got []int
			for w.Clock.Now().Before(end.Add(2 * noticeDay)) {
				if left := end.Sub(w.Clock.Now()); left > 31*noticeDay {
					w.Clock.Advance(left - 31*noticeDay)
				} else {
					w.Clock.Advance(time.Hour)
				}
				for _, notice := range w.notices(access.All(), keys.NoticeQuery{}) {
					var days int
					if _, err := fmt.Sscanf(notice, "%d of "+id, &days); err != nil {
						t.Fatal(notice, err)
					}
					got = append(got, days)
					if left := end.Sub(w.Clock.Now()); left > time.Duration(days)*noticeDay || left < time.Duration(days)*noticeDay-time.Hour {
						t.Errorf("the notice of %d days came %s before the end", days, left)
					}
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestNoticeEndsWithItsReason: whatever ends a key, or moves its end, ends its notices.
func TestNoticeEndsWithItsReason(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]struct {
		do func(w *noticeWorld, id string) error
		// want is how many notices there are afterwards.
		want int
	}{
		"nothing": {func(*noticeWorld, string) error { return nil }, 1},
		"revoked": {func(w *noticeWorld, id string) error {
			_, err := w.RevokeKey(t.Context(), keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: id})
			return err
		}, 0},
		"rotated": {func(w *noticeWorld, id string) error {
			_, err := w.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: id, Overlap: durationpb.New(noticeDay)})
			return err
		}, 0},
		"member removed": {func(w *noticeWorld, _ string) error {
			_, err := w.RemoveMember(t.Context(), keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"})
			return err
		}, 0},
		"workspace removed": {func(w *noticeWorld, _ string) error {
			_, err := w.RemoveWorkspace(t.Context(), keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"})
			return err
		}, 0},
		"member suspended": {func(w *noticeWorld, _ string) error {
			w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
			return nil
		}, 1},
		"renamed": {func(w *noticeWorld, id string) error {
			_, _, err := w.Manager.UpdateKey(t.Context(), keystest.Actor, keys.KeyUpdate{WorkspaceID: "acme", KeyID: id, Mask: []string{"name"}, Name: "other"})
			return err
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newNoticeWorld(t)
			id, _ := w.createFor("acme", "ann", 60*noticeDay)
			w.Clock.Advance(55 * noticeDay)
			page, err := w.Manager.ListNotices(t.Context(), access.All(), keys.NoticeQuery{})
			if err != nil || len(page.Notices) != 1 {
				t.Fatalf("before: %v, %v", page, err)
			}
			before := page.Notices[0]
			if err := change.do(w, id); err != nil {
				t.Fatal(err)
			}
			if got := w.notices(access.All(), keys.NoticeQuery{}); len(got) != change.want {
				t.Errorf("got %q, want %d", got, change.want)
			}
			query := projection.EndingQuery{Now: w.Clock.Now(), Leads: keys.NoticeLeads(), Limit: 1}
			if _, count := w.Projection.Ending(t.Context(), query); count != change.want {
				t.Errorf("%d keys end, want %d", count, change.want)
			}
			// What was read before tells, too.
			still, err := w.Manager.Still(t.Context(), access.All(), before)
			if err != nil || (still != nil) != (change.want == 1) || still != nil && still.ID != before.ID {
				t.Errorf("still: %+v, %v", still, err)
			}
			if name == "nothing" {
				w.Clock.Advance(4*noticeDay + time.Minute)
				if still, err := w.Manager.Still(t.Context(), access.All(), before); still != nil || err != nil {
					t.Errorf("with a newer notice: %+v, %v", still, err)
				}
			}
			if name != "rotated" {
				return
			}
			// A new end begins anew.
			w.Clock.Advance(50 * noticeDay)
			if got := w.notices(access.All(), keys.NoticeQuery{}); len(got) != 1 || !strings.HasPrefix(got[0], "30 of ") {
				t.Errorf("after the rotation: %q", got)
			}
		})
	}
}

// TestNoticesAreOfKeysInUseAndApartOfUnusedOnes.
func TestNoticesAreOfKeysInUseAndApartOfUnusedOnes(t *testing.T) {
	t.Parallel()
	w := newNoticeWorld(t)
	_, early := w.createFor("acme", "ann", 60*noticeDay)
	_, late := w.createFor("acme", "ann", 60*noticeDay)
	w.createFor("acme", "ann", 60*noticeDay)
	w.Clock.Advance(5 * noticeDay)
	w.Want(early, "emails:read", decide.NoReason)
	w.Clock.Advance(30*noticeDay + time.Hour)
	w.Want(late, "emails:read", decide.NoReason)
	is, not := true, false
	for in, want := range map[*bool]int{nil: 3, &is: 1, &not: 2} {
		page, err := w.Manager.ListNotices(t.Context(), access.All(), keys.NoticeQuery{InUse: in})
		if err != nil || len(page.Notices) != want {
			t.Errorf("%v: %v, %v", in, page, err)
		}
		for _, each := range page.Notices {
			if in != nil && each.InUse != *in || each.InUse && each.Key.LastUsedTime.IsZero() {
				t.Errorf("got %+v", each)
			}
		}
	}
}

// TestNoticesAreOfWorkspacesThatTheCallerSees.
func TestNoticesAreOfWorkspacesThatTheCallerSees(t *testing.T) {
	t.Parallel()
	w := newNoticeWorld(t)
	ids := make(map[string]string)
	for _, workspace := range []string{"acme", "other", "third"} {
		w.Put(workspace, "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		ids[workspace], _ = w.createFor(workspace, "ann", 60*noticeDay)
		w.Clock.Advance(time.Minute)
	}
	w.Clock.Advance(40 * noticeDay)
	for _, test := range []struct {
		visible   access.Workspaces
		workspace string
		want      []string
	}{
		{access.All(), "", []string{"acme", "other", "third"}},
		{access.All(), "other", []string{"other"}},
		{access.Only("acme", "third", "nowhere"), "", []string{"acme", "third"}},
		{access.Only("acme"), "acme", []string{"acme"}},
		{access.Only("acme"), "other", nil},
		{access.Only("acme"), "nowhere", nil},
	} {
		w.next = ""
		var want []string
		for _, each := range test.want {
			want = append(want, "30 of "+ids[each])
		}
		if got := w.notices(test.visible, keys.NoticeQuery{WorkspaceID: test.workspace, PageSize: 1}); !slices.Equal(got, want) {
			t.Errorf("%v in %q: got %q, want %q", test.visible, test.workspace, got, want)
		}
	}
	_, err := w.Manager.ListNotices(t.Context(), access.Workspaces{}, keys.NoticeQuery{})
	if keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("a caller without workspaces: %v", err)
	}
	page, err := w.Manager.ListNotices(t.Context(), access.All(), keys.NoticeQuery{WorkspaceID: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Manager.Still(t.Context(), access.Only("acme"), page.Notices[0]); keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("a notice of another workspace: %v", err)
	}
}

// TestNoticesGoOnWhereTheyEnded makes keys with random lives, reads on after random times in pages of
// random sizes, over restarts, and compares with what a reader that never sleeps is told.
func TestNoticesGoOnWhereTheyEnded(t *testing.T) {
	t.Parallel()
	for seed := range uint64(race.Rounds(5, 1)) {
		random := rand.New(rand.NewPCG(seed, 15))
		w := newNoticeWorld(t)
		leads := keys.NoticeLeads()
		type life struct{ issued, end time.Time }
		lives, told := make(map[string]life), make(map[string]int)
		last := w.Clock.Now()
		for range 40 {
			for range random.IntN(6) {
				span := time.Duration(random.Int64N(int64(90 * noticeDay)))
				id, _ := w.createFor("acme", "ann", time.Hour+span)
				lives[id] = life{w.Clock.Now(), w.Clock.Now().Add(time.Hour + span)}
			}
			w.Clock.Advance(time.Duration(random.Int64N(int64(6 * noticeDay))))
			if random.IntN(10) == 0 {
				w.Restart(true)
			}
			now := w.Clock.Now()
			var want []string
			for id, each := range lives {
				for _, lead := range leads {
					if due := each.end.Add(-lead); !now.Before(due) {
						if due.After(last) && !each.issued.Add(time.Hour).After(due) {
							want = append(want, fmt.Sprint(int(lead/noticeDay), " of ", id))
						}
						break // at most the newest one
					}
				}
			}
			got := w.notices(access.All(), keys.NoticeQuery{PageSize: 1 + random.IntN(5)})
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, %s: got %q, want %q", seed, now, got, want)
			}
			for _, each := range got {
				if told[each]++; told[each] > 1 {
					t.Errorf("%s came twice", each)
				}
			}
			last = now
		}
		if len(told) < 20 {
			t.Errorf("only %d notices", len(told))
		}
	}
}

// TestNoticesSinceATimeHaveEndedKeys, and those of now have not.
func TestNoticesSinceATimeHaveEndedKeys(t *testing.T) {
	t.Parallel()
	w := newNoticeWorld(t)
	id, _ := w.createFor("acme", "ann", 60*noticeDay)
	begin := w.Clock.Now()
	w.Clock.Advance(61 * noticeDay)
	if got := w.notices(access.All(), keys.NoticeQuery{}); got != nil {
		t.Errorf("of a key that has ended: %q", got)
	}
	for after, want := range map[time.Time][]string{
		time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC): nil,
		begin: {"1 of " + id}, begin.Add(59 * noticeDay): nil, time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC): {"1 of " + id},
	} {
		w.next = ""
		if got := w.notices(access.All(), keys.NoticeQuery{DueAfter: &after}); !slices.Equal(got, want) {
			t.Errorf("after %s: got %q", after, got)
		}
	}
}

// TestNoticesWaitForAClockThatIsTrusted.
func TestNoticesWaitForAClockThatIsTrusted(t *testing.T) {
	t.Parallel()
	w := newNoticeWorld(t)
	w.createFor("acme", "ann", 60*noticeDay)
	unsure := errors.New("unsure")
	manager := keys.New(keys.Config{
		Store: w.Store, Projection: w.Projection, ClockTrusted: func() error { return unsure },
		Now: func() time.Time { return w.Clock.Now().Add(55 * noticeDay) },
	})
	if _, err := manager.ListNotices(context.Background(), access.All(), keys.NoticeQuery{}); !errors.Is(err, unsure) {
		t.Errorf("got %v", err)
	}
}

// FuzzParseNoticePlace: a text is refused, or is exactly what its place is written as.
func FuzzParseNoticePlace(f *testing.F) {
	for _, seed := range []string{
		"", "::", ":~:", "1774353600000000:~:", "1774353600000000:VXH6gz35rInRE3Ep:1774353600000000", "-1:~:", "01:~:", "1:x:1", "253402300800000000::", "a:b:c:d",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		place, err := keys.ParseNoticePlace(text)
		if err != nil {
			if !errors.Is(err, storage.ErrInvalidCursor) || place != (keys.NoticePlace{}) {
				t.Errorf("got %+v, %v", place, err)
			}
			return
		}
		if again := place.String(); again != text {
			t.Errorf("%q is %q", text, again)
		}
		if place.Due.Year() > 9999 || place.NotEndedBy.Year() > 9999 {
			t.Errorf("got %+v", place)
		}
	})
}
