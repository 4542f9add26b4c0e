package cli

import (
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/roster"
)

func TestPlanMakesKeysvcHaveWhatTheProductHas(t *testing.T) {
	t.Parallel()
	at := func(version int64) *int64 { return &version }
	has := func(id, role string, state keysvcv1.MemberState, version int64) *keysvcv1.Member {
		return &keysvcv1.Member{MemberId: id, Role: role, State: state, SourceVersion: version}
	}
	const active, suspended, removed = keysvcv1.MemberState_MEMBER_STATE_ACTIVE, keysvcv1.MemberState_MEMBER_STATE_SUSPENDED, keysvcv1.MemberState_MEMBER_STATE_REMOVED
	var plan memberPlan
	plan.add("acme", []roster.Member{
		{Line: 2, MemberID: "new", Role: "owner", State: roster.Active, WorkspaceID: "acme"},
		{Line: 3, MemberID: "same", Role: "owner", State: roster.Active, SourceVersion: at(4), WorkspaceID: "acme"},
		{Line: 4, MemberID: "behind", Role: "owner", State: roster.Active, SourceVersion: at(3), WorkspaceID: "acme"},
		{Line: 5, MemberID: "role", Role: "manager", State: roster.Active, SourceVersion: at(5), WorkspaceID: "acme"},
		{Line: 6, MemberID: "idle", Role: "owner", State: roster.Suspended, WorkspaceID: "acme"},
		{Line: 7, MemberID: "version", Role: "owner", State: roster.Active, SourceVersion: at(9), WorkspaceID: "acme"},
		{Line: 8, MemberID: "back", Role: "owner", State: roster.Active, SourceVersion: at(9), WorkspaceID: "acme"},
		{Line: 9, MemberID: "late", Role: "admin", State: roster.Active, SourceVersion: at(3), WorkspaceID: "acme"},
		{Line: 10, MemberID: "equal", Role: "admin", State: roster.Active, SourceVersion: at(4), WorkspaceID: "acme"},
		{Line: 11, MemberID: "leaves", State: roster.Removed, WorkspaceID: "acme"},
		{Line: 12, MemberID: "left", State: roster.Removed, SourceVersion: at(9), WorkspaceID: "acme"},
		{Line: 13, MemberID: "never", State: roster.Removed, WorkspaceID: "acme"},
		{Line: 14, MemberID: "dead", Role: "owner", State: roster.Active, SourceVersion: at(4), WorkspaceID: "acme"},
		{Line: 15, MemberID: "goes", State: roster.Removed, SourceVersion: at(4), WorkspaceID: "acme"},
	}, []*keysvcv1.Member{
		has("same", "owner", active, 4), has("behind", "owner", active, 4), has("role", "owner", active, 4), has("idle", "owner", active, 4),
		has("version", "owner", active, 4), has("back", "member", removed, 4), has("late", "owner", active, 4), has("equal", "owner", active, 4),
		has("leaves", "owner", suspended, 4), has("left", "owner", removed, 4), has("absent", "owner", active, 4), has("gone", "owner", removed, 4),
		has("dead", "owner", removed, 4), has("goes", "owner", active, 4),
	})
	plan.sort()
	const want = `  -  acme  absent   owner, active; the file does not have the member
  -  acme  leaves   owner, suspended
  ~  acme  idle     owner, active → owner, suspended
  ~  acme  role     owner, active → manager, active
  ~  acme  version  source_version 4 → 9
  +  acme  back     owner, active; was removed before
  +  acme  new      owner, active
  !  acme  late     line 9 has source_version 3, and keysvc has 4
  !  acme  dead     line 14 has source_version 4 as keysvc has, with other content: owner, removed → owner, active
  !  acme  equal    line 10 has source_version 4 as keysvc has, with other content: owner, active → admin, active
  !  acme  goes     line 15 has source_version 4 as keysvc has, with other content: owner, active → removed
`
	if got := plan.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := plan.summary(), "2 to add, 3 to change, 2 to remove, 4 unchanged, 1 outdated, 3 of the same version with other content."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// What the plan makes is what it then finds.
	var again memberPlan
	again.add("acme", []roster.Member{{Line: 2, MemberID: "ann", Role: "owner", State: roster.Suspended, SourceVersion: at(3)}},
		[]*keysvcv1.Member{has("ann", "owner", suspended, 3)})
	if len(again.steps) != 0 || !strings.HasPrefix(again.summary(), "0 to add, 0 to change, 0 to remove, 1 unchanged") {
		t.Errorf("got %s", again.text())
	}
}
