package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// reporting is a store whose status tests set.
type reporting struct {
	storage.Store
	status func(ctx context.Context) storage.Status
}

// Status implements storage.StatusReader.
func (r *reporting) Status(ctx context.Context) storage.Status { return r.status(ctx) }

func (b *bench) status(t *testing.T) *keysvcv1.GetStatusResponse {
	t.Helper()
	response, err := keysvcv1.NewStatusServiceClient(b.conn).GetStatus(testContext(t), &keysvcv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func TestStatusCountsAndDatesWhatThereIs(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	b.putMember(t, "other", "bob", "owner")
	b.create(t, "acme", "ann", "emails:read")
	b.clock.pass(time.Hour)
	last := b.create(t, "other", "bob", "emails:read")
	b.clock.pass(time.Minute)
	got := b.status(t)
	if got.GetKeys().GetTotal() != 2 || got.GetMemberCount() != 2 || got.GetWorkspaceCount() != 2 ||
		got.GetRevision() != last.GetRevision() || got.GetEpoch() != last.GetEpoch() || got.GetVersion() == "" {
		t.Errorf("got %s", prototext.Format(got))
	}
	states := got.GetKeys().GetStates()
	if len(states) != 5 || states[0].GetState() != keysvcv1.KeyState_KEY_STATE_ACTIVE || states[0].GetCount() != 2 ||
		got.GetKeys().GetExpiringWithin_30Days() != 0 || got.GetKeys().ExpiringWithin_7Days == nil {
		t.Errorf("got %s", prototext.Format(got.GetKeys()))
	}
	made := last.GetKey().GetCreateTime().AsTime()
	// Each reading moves the clock by a microsecond.
	near := func(at, want time.Time) bool { return at.Sub(want).Abs() < time.Second }
	if !got.GetLastCommitTime().AsTime().Equal(made) || !near(got.GetServerTime().AsTime(), made.Add(time.Minute)) ||
		!near(got.GetStartTime().AsTime(), testTime) || got.GetLastBackupTime() != nil {
		t.Errorf("the last change was at %s, and it says %s", made, prototext.Format(got))
	}
	if store := got.GetStore(); store.GetState() != keysvcv1.StoreState_STORE_STATE_OK || store.GetFileBytes() == 0 ||
		store.GetDiskBytes() < store.GetDiskFreeBytes() || store.GetDiskBytes() == 0 {
		t.Errorf("the store is %s", prototext.Format(store))
	}
	if got.GetAuditSink().GetState() != keysvcv1.FollowerState_FOLLOWER_STATE_OFF || got.GetAnchor().GetState() != keysvcv1.FollowerState_FOLLOWER_STATE_OK ||
		got.GetClock().GetState() != keysvcv1.ClockState_CLOCK_STATE_OK || !got.GetClock().GetPurges() || len(got.GetCertificates()) != 0 {
		t.Errorf("got %s", prototext.Format(got))
	}
}

func TestStatusSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	store := &reporting{status: func(context.Context) storage.Status {
		return storage.Status{
			Full: true, FileBytes: 5, FreeBytes: 4, ReserveBytes: 3, DiskFreeBytes: 0, DiskBytes: 7,
			Sink: storage.Follower{On: true, Failing: true, Revision: 6}, Anchor: storage.Follower{On: true, Full: true, Revision: 8},
		}
	}}
	b := start(t, options{
		wrap:     func(inner storage.Store) storage.Store { store.Store = inner; return store },
		settings: func(s *config.Settings) { s.MaxSessions = 1 },
	})
	b.join(t, &keysvcv1.SyncHello{})
	got := b.status(t)
	var ids []string
	for _, problem := range got.GetProblems() {
		if problem.GetSeverity() != keysvcv1.ProblemSeverity_PROBLEM_SEVERITY_ERROR || problem.GetDescription() == "" || problem.GetAction() == "" {
			t.Errorf("got %s", prototext.Format(problem))
		}
		ids = append(ids, problem.GetProblemId())
	}
	if len(ids) != 3 || ids[0] != "disk-full" || ids[1] != "sink-failing" || ids[2] != "sessions-full" {
		t.Errorf("got %q", ids)
	}
	if got.GetStore().GetState() != keysvcv1.StoreState_STORE_STATE_FULL || got.GetStore().GetFileBytes() != 5 || got.GetStore().GetFreeBytes() != 4 ||
		got.GetAuditSink().GetState() != keysvcv1.FollowerState_FOLLOWER_STATE_FAILING || got.GetAuditSink().GetRevision() != 6 ||
		got.GetAnchor().GetState() != keysvcv1.FollowerState_FOLLOWER_STATE_FULL {
		t.Errorf("got %s", prototext.Format(got))
	}
	if sessions := got.GetSessions(); sessions.GetOpen() != 1 || sessions.GetLimit() != 1 {
		t.Errorf("got %s", prototext.Format(sessions))
	}
}

// TestStatusAnswersWhileTheDiskHangs: the store waits for its context, as the bbolt store does.
func TestStatusAnswersWhileTheDiskHangs(t *testing.T) {
	t.Parallel()
	store := &reporting{status: func(ctx context.Context) storage.Status {
		<-ctx.Done()
		return storage.Status{Silent: true}
	}}
	b := start(t, options{wrap: func(inner storage.Store) storage.Store { store.Store = inner; return store }})
	got := b.status(t)
	if got.GetStore().GetState() != keysvcv1.StoreState_STORE_STATE_SILENT || len(got.GetProblems()) != 1 || got.GetProblems()[0].GetProblemId() != "disk-silent" {
		t.Errorf("got %s", prototext.Format(got))
	}
}

func TestStatusOfAStoreThatCannotTell(t *testing.T) {
	t.Parallel()
	b := start(t, options{wrap: func(inner storage.Store) storage.Store { return struct{ storage.Store }{inner} }})
	got := b.status(t)
	if got.GetStore().GetState() != keysvcv1.StoreState_STORE_STATE_UNSPECIFIED || got.GetAuditSink().GetState() != keysvcv1.FollowerState_FOLLOWER_STATE_UNSPECIFIED || len(got.GetProblems()) != 0 {
		t.Errorf("got %s", prototext.Format(got))
	}
}
