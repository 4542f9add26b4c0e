package projection

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// TestListOfWorkspacesGivesWay: changes get in between, and no workspace that stays is missing.
func TestListOfWorkspacesGivesWay(t *testing.T) {
	t.Parallel()
	p := New(nil, nil)
	put := func(id string) {
		item := storage.Item{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: id, Incarnation: "1", CreateTime: timestamppb.New(walkTime)}}
		if err := p.state.add(item); err != nil {
			t.Error(err)
		}
	}
	var want, among []string
	for number := range 4 * stride {
		id := fmt.Sprintf("w%04d", number*7%(4*stride))
		put(id)
		want = append(want, id)
		if number%2 == 0 {
			among = append(among, id)
		}
	}
	slices.Sort(want)
	slices.Sort(among)
	if err := p.state.add(storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: "without-a-record"}}); err != nil {
		t.Fatal(err)
	}
	gaps := 0
	p.gaveWay = func() {
		gaps++
		if !p.mutex.TryLock() {
			t.Error("the lock is held while the walk gives way")
			return
		}
		defer p.mutex.Unlock()
		put(fmt.Sprintf("x%d", gaps)) // after all others
	}
	for limited, wanted := range map[bool][]string{false: want, true: among} {
		gaps = 0
		var got []string
		for query := (WorkspaceQuery{Limit: 100, Active: true, Limited: limited, Among: among}); ; {
			page, next, err := p.ListWorkspaces(query)
			if err != nil {
				t.Fatal(err)
			}
			for _, each := range page {
				if each.ID[0] == 'w' {
					got = append(got, each.ID)
				}
			}
			if query.After = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, wanted) {
			t.Errorf("limited %t: got %d workspaces, want %d", limited, len(got), len(wanted))
		}
		if gaps == 0 {
			t.Errorf("limited %t: it never gave way", limited)
		}
	}
	before := gaps
	if totals := p.Totals(); totals.Workspaces < len(want) || totals.Damaged != 0 || gaps == before {
		t.Errorf("got %+v after %d gaps", totals, gaps-before)
	}
	if p.state.walks.Load() != 0 {
		t.Error("a walk has not ended")
	}
}

func TestDamagedWorkspaceIsAnErrorOfItsPage(t *testing.T) {
	t.Parallel()
	p := New(nil, nil)
	broken := errors.New("broken")
	for _, item := range []storage.Item{
		{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: "a", Incarnation: "1", CreateTime: timestamppb.New(walkTime)}},
		{Damaged: &storage.Damaged{WorkspaceID: "b", Err: broken}},
		{Damaged: &storage.Damaged{WorkspaceID: "a", Head: true, Err: broken}},
	} {
		if err := p.state.add(item); err != nil {
			t.Fatal(err)
		}
	}
	page, next, err := p.ListWorkspaces(WorkspaceQuery{Limit: 1, Active: true})
	if err != nil || len(page) != 1 || page[0].ID != "a" || next != "a" {
		t.Errorf("got %+v, %q, %v", page, next, err)
	}
	if _, _, err := p.ListWorkspaces(WorkspaceQuery{Limit: 1, Active: true, After: next}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if totals := p.Totals(); totals.Damaged != 2 || totals.Workspaces != 1 {
		t.Errorf("got %+v", totals)
	}
}
