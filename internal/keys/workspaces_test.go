package keys_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// listedWorkspaces returns the ids of all pages of a list of workspaces, and how many pages there were.
func listedWorkspaces(t *testing.T, manager *keys.Manager, visible access.Workspaces, query keys.WorkspaceQuery) (ids []string, pages int) {
	t.Helper()
	for {
		page, err := manager.ListWorkspaces(t.Context(), visible, query)
		if err != nil {
			t.Fatal(err)
		}
		for _, each := range page.Workspaces {
			ids = append(ids, each.ID)
		}
		if pages++; page.NextPageToken == "" {
			return ids, pages
		}
		query.PageToken = page.NextPageToken
	}
}

func TestWorkspacesAreListedInPagesByTheirIDs(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	var all, active []string
	// Fewer than a stride and more than two pages, not in the order of the ids.
	for number := range 61 {
		id := fmt.Sprintf("w%02d", number*7%61)
		w.Put(id, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		all = append(all, id)
		if number%3 == 0 {
			if _, err := w.Verbs.Manager.RemoveWorkspace(t.Context(), actorIn(access.All()), id, nil); err != nil {
				t.Fatal(err)
			}
			continue
		}
		active = append(active, id)
	}
	slices.Sort(all)
	slices.Sort(active)
	manager := w.Verbs.Manager
	for size, pages := range map[int]int{1: 61, 7: 9, 60: 2, 61: 1, 0: 2, 5000: 1} {
		if got, count := listedWorkspaces(t, manager, access.All(), keys.WorkspaceQuery{PageSize: size}); !slices.Equal(got, all) || count != pages {
			t.Errorf("pages of %d: got %q in %d pages, want %d", size, got, count, pages)
		}
	}
	both := []keys.WorkspaceState{keys.WorkspaceRemoved, keys.WorkspaceActive}
	if got, _ := listedWorkspaces(t, manager, access.All(), keys.WorkspaceQuery{States: both}); !slices.Equal(got, all) {
		t.Errorf("got %q, want all", got)
	}
	if got, _ := listedWorkspaces(t, manager, access.All(), keys.WorkspaceQuery{States: both[1:], PageSize: 9}); !slices.Equal(got, active) {
		t.Errorf("got %q, want %q", got, active)
	}
	// Somebody who sees some workspaces is told of no other, and of none that does not exist.
	some := access.Only("w60", "w05", "nowhere", "w17")
	if got, _ := listedWorkspaces(t, manager, some, keys.WorkspaceQuery{PageSize: 1}); !slices.Equal(got, []string{"w05", "w17", "w60"}) {
		t.Errorf("got %q", got)
	}
	if got, _ := listedWorkspaces(t, manager, access.Only("nowhere"), keys.WorkspaceQuery{}); got != nil {
		t.Errorf("got %q", got)
	}
	_, err := manager.ListWorkspaces(t.Context(), access.Workspaces{}, keys.WorkspaceQuery{})
	if keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("somebody who sees none: %v", err)
	}
}

func TestListedWorkspaceHasItsCountsAndTimes(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, member := range []string{"ann", "bob"} {
		w.Put("acme", member, "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	}
	w.Create("acme", "ann", "signatures:read")
	w.Create("acme", "bob", "signatures:read")
	list := func() *keys.Workspace {
		t.Helper()
		page, err := w.Verbs.Manager.ListWorkspaces(t.Context(), access.All(), keys.WorkspaceQuery{})
		if err != nil || len(page.Workspaces) != 1 || page.Revision != w.Projection.Revision() || page.Epoch == "" {
			t.Fatalf("got %+v, %v", page, err)
		}
		return page.Workspaces[0]
	}
	got := list()
	if got.ID != "acme" || got.State != keys.WorkspaceActive || got.Keys != 2 || got.Members != 2 || got.CreateTime.IsZero() || !got.RemoveTime.IsZero() {
		t.Errorf("got %+v", got)
	}
	if totals := w.Projection.Totals(); totals.Keys != 2 || totals.Members != 2 || totals.Workspaces != 1 || totals.Damaged != 0 {
		t.Errorf("got %+v", totals)
	}
	if _, err := w.Verbs.Manager.RemoveWorkspace(t.Context(), actorIn(access.All()), "acme", nil); err != nil {
		t.Fatal(err)
	}
	if got := list(); got.State != keys.WorkspaceRemoved || got.Keys != 2 || got.RemoveTime.Before(got.CreateTime) || got.RemoveTime.IsZero() {
		t.Errorf("removed, it is %+v", got)
	}
}

// TestWorkspacesAreNotListedWithoutABarrier: a list that reads the projection alone must first have
// what was acknowledged before the call.
func TestWorkspacesAreNotListedWithoutABarrier(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	manager, _ := guarded(t, w)
	w.Put("beta", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	// The projection of this manager does not follow, so it never has what was changed since.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if page, err := manager.ListWorkspaces(ended, access.All(), keys.WorkspaceQuery{}); err == nil {
		t.Errorf("got %+v from before a change", page)
	}
}
