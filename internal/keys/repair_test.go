package keys_test

import (
	"errors"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// TestRepairTimesKeepsTheVersionOfARemoval: a push that is older than the removal of a workspace
// stays outdated after the removal's time was repaired.
func TestRepairTimesKeepsTheVersionOfARemoval(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	version := int64(9)
	w.Must(w.RemoveWorkspace(t.Context(), keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme", SourceVersion: &version}))
	hourAgo := w.Clock.Now().Add(-time.Hour)
	manager := keys.New(keys.Config{Store: w.Store, Projection: w.Projection, Now: func() time.Time { return hourAgo }})
	if repaired, err := manager.RepairTimes(t.Context(), keystest.Actor, true); err != nil || repaired.Workspaces != 1 {
		t.Fatalf("RepairTimes: %+v, %v; want 1 workspace", repaired, err)
	}
	outdated := version - 1
	_, _, err := manager.PutMember(t.Context(), keystest.Actor, keys.MemberSpec{
		WorkspaceID: "acme", MemberID: "ann", Role: "manager", State: keys.MemberActive, SourceVersion: &outdated,
	})
	if found, is := errors.AsType[*problem.Error](err); !is || found.Reason != problem.SourceVersionOutdated {
		t.Errorf("a push with version %d after a removal with version %d: %v, want SOURCE_VERSION_OUTDATED", outdated, version, err)
	}
}
