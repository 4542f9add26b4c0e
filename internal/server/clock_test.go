package server_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// machine has a wall clock and counts the time that passes.
type machine struct {
	*testClock
	passed atomic.Int64
}

func newMachine() *machine { return &machine{testClock: &testClock{now: testTime}} }

func (m *machine) options() options {
	return options{clock: m.testClock, passed: func() time.Duration { return time.Duration(m.passed.Load()) }}
}

// pass lets the time d pass, and also sets the wall clock forward or back by set.
func (m *machine) pass(d, set time.Duration) {
	m.passed.Add(int64(d))
	m.testClock.pass(d + set)
}

// expectUnsure checks that an error is CLOCK_UNSURE.
func expectUnsure(t *testing.T, what string, err error) {
	t.Helper()
	reason := ""
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	if status.Code(err) != codes.Unavailable || reason != "CLOCK_UNSURE" {
		t.Errorf("%s: got %v, reason %q; want UNAVAILABLE, CLOCK_UNSURE", what, err, reason)
	}
}

// createFor creates a key that ends after life.
func (b *bench) createFor(t *testing.T, life time.Duration) *keysvcv1.CreateKeyResponse {
	t.Helper()
	made, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"},
		ExpireTime: timestamppb.New(b.clock.Now().Add(life)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestKeyExpiresOnTimeThoughClockWasSetBack: a key made for ten seconds ends after ten seconds.
func TestKeyExpiresOnTimeThoughClockWasSetBack(t *testing.T) {
	t.Parallel()
	m := newMachine()
	b := start(t, m.options())
	b.putMember(t, "acme", "ann", "owner")
	made := b.createFor(t, 10*time.Second)
	b.expectAllowed(t, made.GetToken(), "signatures:read")
	m.pass(9*time.Second, -time.Hour)
	b.expectAllowed(t, made.GetToken(), "signatures:read")
	m.pass(3*time.Second, 0)
	b.expectRefused(t, made.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
	m.pass(0, -400*24*time.Hour)
	b.expectRefused(t, made.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
	b.create(t, "acme", "ann", "signatures:read") // changes go on although the clock is behind
}

// TestClockSetForwardHoldsUpWhatNeedsTheTime: calls that depend on the right time are refused
// until an operator has restarted the server, calls that only take away go on, and nothing is
// stored with the wrong time.
func TestClockSetForwardHoldsUpWhatNeedsTheTime(t *testing.T) {
	t.Parallel()
	const ahead = 200 * 24 * time.Hour
	m := newMachine()
	b := start(t, m.options())
	b.putMember(t, "acme", "ann", "owner")
	long, short, leaked := b.create(t, "acme", "ann", "signatures:read"), b.createFor(t, time.Hour), b.create(t, "acme", "ann", "signatures:read")
	m.pass(time.Second, ahead)

	b.expectAllowed(t, long.GetToken(), "signatures:read") // it is valid at either time
	_, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: short.GetToken(), RequiredScope: "signatures:read"})
	expectUnsure(t, "a key that is expired by the wall clock only", err)
	grant, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: long.GetToken(), RequiredScope: "signatures:read", IncludeGrant: true})
	if err != nil || grant.GetGrant().GetValidFor().AsDuration() > 366*24*time.Hour-ahead {
		t.Errorf("a grant for %s, %v; want it to end by the wall clock", grant.GetGrant().GetValidFor().AsDuration(), err)
	}
	_, err = b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"}})
	expectUnsure(t, "creating a key", err)
	rotate := func(overlap time.Duration) error {
		_, err := b.keys.RotateKey(testContext(t), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: long.GetKey().GetKeyId(), Overlap: durationpb.New(overlap)})
		return err
	}
	expectUnsure(t, "rotating a key", rotate(time.Hour))

	if err := rotate(0); err != nil {
		t.Errorf("rotating a key without an overlap: %v", err)
	}
	revoked, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: leaked.GetKey().GetKeyId()})
	if err != nil {
		t.Fatalf("revoking a key: %v", err)
	}
	if at := revoked.GetKey().GetRevokeTime().AsTime(); at.After(testTime.Add(time.Minute)) {
		t.Errorf("revoked at %s, which is the wrong time", at)
	}
	b.push(t, "acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	b.putMember(t, "acme", "ann", "owner")

	// When the clock is right again, tokens are decided on. The rest waits for a restart.
	m.pass(time.Second, -ahead)
	b.expectAllowed(t, short.GetToken(), "signatures:read")
	expectUnsure(t, "rotating a key after the clock is right", rotate(time.Hour))
	b.stop(t, patience)
	if lines := b.log.lines("the wall clock was set forward"); len(lines) != 1 || !strings.Contains(lines[0], "ERROR") {
		t.Errorf("the log says: %q", lines)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	with := m.options()
	with.file = b.file
	again := start(t, with)
	again.create(t, "acme", "ann", "signatures:read")
	again.expectAllowed(t, short.GetToken(), "signatures:read")
}

// TestStartFarAheadOfLastCommitPurgesNothing: a start with a clock that is months ahead loses
// no record.
func TestStartFarAheadOfLastCommitPurgesNothing(t *testing.T) {
	t.Parallel()
	m := newMachine()
	b := start(t, m.options())
	b.putMember(t, "acme", "ann", "owner")
	b.stop(t, patience)
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		pass  time.Duration
		allow bool
		warns int
	}{{29 * 24 * time.Hour, false, 0}, {2 * 24 * time.Hour, false, 1}, {0, true, 0}} {
		m.pass(test.pass, 0)
		with := m.options()
		with.file = b.file
		with.settings = func(s *config.Settings) { s.AllowClockAhead = test.allow }
		again := start(t, with)
		again.stop(t, patience)
		if err := again.store.Close(); err != nil {
			t.Fatal(err)
		}
		if lines := again.log.lines("nothing will be purged"); len(lines) != test.warns {
			t.Errorf("after %s, allowed %t: the log says %q", test.pass, test.allow, lines)
		}
	}
}
