package server_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// shared is a store that several servers of a test use. Its barrier is not local, as that of a store in etcd.
type shared struct{ storage.Store }

// startBeside starts another server over the store of b, with a wall clock that is ahead of b's by so much.
func startBeside(t *testing.T, b *bench, ahead time.Duration) (*bench, *machine) {
	t.Helper()
	m := newMachine()
	m.pass(0, b.clock.Now().Add(ahead).Sub(testTime))
	with := m.options()
	with.wrap = func(storage.Store) storage.Store { return shared{b.store} }
	return start(t, with), m
}

// startShared starts a server over a store that others may share.
func startShared(t *testing.T) (*bench, *machine) {
	t.Helper()
	m := newMachine()
	with := m.options()
	with.wrap = func(own storage.Store) storage.Store { return shared{own} }
	return start(t, with), m
}

// serving returns what grpc.health says, of the server and of a service.
func (b *bench) serving(t *testing.T) (all, service grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	client := grpc_health_v1.NewHealthClient(b.conn)
	var states []grpc_health_v1.HealthCheckResponse_ServingStatus
	for _, name := range []string{"", keysvcv1.ValidationService_ServiceDesc.ServiceName} {
		response, err := client.Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, response.GetStatus())
	}
	return states[0], states[1]
}

// awaitServing waits until grpc.health says so of everything.
func (b *bench) awaitServing(t *testing.T, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	ctx := testContext(t)
	watch, err := grpc_health_v1.NewHealthClient(b.conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: keysvcv1.ValidationService_ServiceDesc.ServiceName})
	if err != nil {
		t.Fatal(err)
	}
	for {
		response, err := watch.Recv()
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if response.GetStatus() == want {
			break
		}
	}
}

// TestServersWithDifferentClocksAgreeOnWhatHasEnded: once a server shows a change, nothing ends later than that
// change, and nothing is stamped before it, by its clock.
func TestServersWithDifferentClocksAgreeOnWhatHasEnded(t *testing.T) {
	t.Parallel()
	behind, _ := startShared(t)
	ahead, m := startBeside(t, behind, 30*time.Second)
	ahead.putMember(t, "acme", "ann", "owner")
	made := ahead.createFor(t, 10*time.Second)
	lasting := ahead.createFor(t, time.Hour)
	behind.expectAllowed(t, made.GetToken(), "signatures:read")
	m.pass(11*time.Second, 0)
	ahead.expectRefused(t, made.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
	changed := ahead.push(t, "acme", "bob", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	behind.expectRefused(t, made.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
	revoked, err := behind.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: lasting.GetKey().GetKeyId()})
	if err != nil {
		t.Fatal(err)
	}
	if at, before := revoked.GetKey().GetRevokeTime().AsTime(), changed.GetMember().GetUpdateTime().AsTime(); at.Before(before) {
		t.Errorf("revoked at %s, before the change of %s that the server showed", at, before)
	}
}

// TestServerWhoseClockIsApartSaysSo: a server whose clock differs by minutes from that of the other one says NOT_SERVING and
// takes only away, until its clock is set right.
func TestServerWhoseClockIsApartSaysSo(t *testing.T) {
	t.Parallel()
	behind, clock := startShared(t)
	ahead, m := startBeside(t, behind, 3*time.Minute)
	ahead.putMember(t, "acme", "ann", "owner")
	short, long := ahead.createFor(t, time.Minute), ahead.createFor(t, time.Hour)
	m.pass(2*time.Minute, 0) // short has ended by the clock of the server that made it
	clock.pass(2*time.Minute, 0)
	if _, err := ahead.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{
		WorkspaceId: "acme", KeyId: ahead.createFor(t, time.Hour).GetKey().GetKeyId(),
	}); err != nil {
		t.Fatal(err)
	}

	// The doubt begins with the change, and not only with the next look at the clocks.
	behind.expectAllowed(t, long.GetToken(), "signatures:read")
	_, err := behind.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: short.GetToken(), RequiredScope: "signatures:read"})
	expectUnsure(t, "a token that has ended by the other clock", err)
	_, err = behind.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"}})
	expectUnsure(t, "creating a key", err)
	if _, err := behind.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: short.GetKey().GetKeyId()}); err != nil {
		t.Errorf("revoking a key: %v", err)
	}
	behind.awaitServing(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if all, service := behind.serving(t); all != grpc_health_v1.HealthCheckResponse_NOT_SERVING || service != all {
		t.Errorf("health says %s of all, and %s of validation", all, service)
	}
	got := behind.status(t)
	if len(got.GetProblems()) != 1 || got.GetProblems()[0].GetProblemId() != "clock-apart" || got.GetClock().GetState() != keysvcv1.ClockState_CLOCK_STATE_APART ||
		got.GetClock().GetOthersAhead().AsDuration().Round(time.Minute) != 3*time.Minute {
		t.Errorf("the status is %v, %v", got.GetProblems(), got.GetClock())
	}

	clock.pass(0, 3*time.Minute) // set right
	behind.awaitServing(t, grpc_health_v1.HealthCheckResponse_SERVING)
	behind.create(t, "acme", "ann", "signatures:read")
	behind.expectAllowed(t, long.GetToken(), "signatures:read")
	if lines := behind.log.lines("nobody knows which is right"); len(lines) != 1 || !strings.Contains(lines[0], "ERROR") {
		t.Errorf("the log says %q", lines)
	}
	// The changes from before and after two minutes have passed are reported once each.
	if lines := behind.log.lines("far ahead of this server's clock"); len(lines) != 2 {
		t.Errorf("the log says %q", lines)
	}
}

// TestStartWithAClockALittleBehindWaits starts servers with a wall clock behind the newest change.
func TestStartWithAClockALittleBehindWaits(t *testing.T) {
	t.Parallel()
	b, _ := startShared(t)
	newest := b.putMember(t, "acme", "ann", "owner").GetMember().GetUpdateTime().AsTime()
	for name, test := range map[string]struct {
		behind time.Duration
		alone  bool
		allow  bool
		stands bool // the wall clock stands still while the start waits
		waits  int
		starts bool
	}{
		"not behind":                    {behind: 0, starts: true},
		"a little behind":               {behind: 5 * time.Second, waits: 1, starts: true},
		"too far behind":                {behind: 5*time.Second + time.Millisecond},
		"a little behind, and stands":   {behind: 3 * time.Second, stands: true, waits: 1},
		"too far behind, allowed":       {behind: time.Hour, allow: true, starts: true},
		"a little behind, allowed":      {behind: time.Second, allow: true, starts: true},
		"a file, a little behind":       {behind: time.Millisecond, alone: true},
		"a file, far behind, allowed":   {behind: time.Hour, alone: true, allow: true, starts: true},
		"a file, not behind":            {alone: true, starts: true},
		"a little behind, and is ended": {behind: time.Second, waits: -1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			m.pass(0, newest.Sub(testTime)-test.behind)
			settings := config.Defaults()
			settings.AllowClockBehind = test.allow
			waits := 0
			served := server.Store(shared{b.store})
			if test.alone {
				served = b.store
			}
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			started, err := server.New(ctx, server.Config{
				Store: served, Settings: settings, Policy: policy.Default(), InMemory: true, Now: m.Now,
				Passed: m.options().passed,
				Wait: func(ctx context.Context, wait time.Duration) bool {
					if wait > 5*time.Second { // another component, which waits for the stop
						<-ctx.Done()
						return false
					}
					waits++
					if test.waits < 0 {
						cancel()
						return false
					}
					if !test.stands {
						m.pass(wait, 0)
					}
					return true
				},
			})
			if (err == nil) != test.starts || waits != max(test.waits, -test.waits) {
				t.Errorf("after %d waits: %v; want %d waits, and that it starts: %t", waits, err, test.waits, test.starts)
			}
			if err != nil && test.waits >= 0 && !strings.Contains(err.Error(), "behind the last commit") {
				t.Errorf("refused with %v", err)
			}
			if err == nil {
				started.Stop(testContext(t))
			}
		})
	}
}
