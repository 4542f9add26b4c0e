package server_test

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// hung is a store whose changes and lists wait, as if its disk hung.
type hung struct {
	*gate

	commits bool
	// busy is the workspace whose changes wait; "" means every workspace.
	busy   string
	mended chan struct{}
}

// Commit implements storage.Store.
func (h *hung) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if h.commits && (h.busy == "" || h.busy == change.WorkspaceID) {
		<-h.mended
	}
	return h.gate.Commit(ctx, change)
}

// callsOf returns the counts of a kind of work.
func (b *bench) callsOf(work callers.Work) server.Calls {
	all := b.server.Calls()
	return all[slices.IndexFunc(all, func(calls server.Calls) bool { return calls.Work == work })]
}

// waitInFlight waits until a number of calls of a kind of work are in flight.
func (b *bench) waitInFlight(t *testing.T, work callers.Work, want int64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for b.callsOf(work).InFlight != want {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls of kind %s are in flight, want %d", b.callsOf(work).InFlight, work, want)
		}
		<-time.After(time.Millisecond) // no event says that a call has come in
	}
}

// kinds returns a call for each kind of work that waits and has a bound.
func (b *bench) kinds(token string) map[callers.Work]func(context.Context) error {
	return map[callers.Work]func(context.Context) error{
		callers.Change: func(ctx context.Context) error {
			_, err := b.members.PutMember(ctx, &keysvcv1.PutMemberRequest{
				WorkspaceId: rand.Text(), MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
			})
			return err
		},
		callers.Read: func(ctx context.Context) error {
			_, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
			return err
		},
		callers.Wait: func(ctx context.Context) error {
			_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{
				Token: token, RequiredScope: "emails:read", MinRevision: 1 << 40, Epoch: b.store.Epoch(),
			})
			return err
		},
	}
}

// TestWaitingCallsTakeNoSlotsOfValidations takes every slot of the other kinds of work: calls
// of those kinds are refused, and validations are not.
func TestWaitingCallsTakeNoSlotsOfValidations(t *testing.T) {
	t.Parallel()
	const most = 2
	store := &hung{gate: newGate(), mended: make(chan struct{})}
	b := start(t, options{
		wrap: func(s storage.Store) storage.Store {
			store.gate.wrap(s)
			return store
		},
		settings: func(s *config.Settings) { s.MaxInFlight = 4 * most },
	})
	b.putMember(t, "acme", "ann", "owner")
	token := b.create(t, "acme", "ann", "emails:read").GetToken()
	kinds := b.kinds(token)
	store.commits = true
	ctx, cancel := context.WithCancel(testContext(t))
	var waiting sync.WaitGroup
	mend := sync.OnceFunc(func() {
		cancel()
		close(store.mended)
		waiting.Wait()
	})
	defer mend()
	for work, call := range kinds {
		for range most {
			waiting.Go(func() {
				for ctx.Err() == nil {
					_ = call(ctx) // a wait for a revision ends by itself, and is repeated
				}
			})
		}
		b.waitInFlight(t, work, most)
	}
	for work, call := range kinds {
		var found details
		for refused := false; !refused; {
			err := call(ctx)
			if refused = status.Code(err) == codes.ResourceExhausted; refused {
				found = expectError(t, err, codes.ResourceExhausted, "TOO_MANY_REQUESTS")
			} else if work != callers.Wait {
				t.Fatalf("one more %s: %v", work, err)
			}
		}
		if found.retry.GetRetryDelay().AsDuration() <= 0 {
			t.Errorf("%s: got %v, want RetryInfo with a delay", work, found.retry)
		}
	}
	for _, item := range []*keysvcv1.ValidateKeyRequest{
		{Token: token, RequiredScope: "emails:read"},
		{Token: token, RequiredScope: "emails:read", IncludeGrant: true, MinRevision: 1, Epoch: b.store.Epoch()},
	} {
		response, err := b.validation.ValidateKey(ctx, item)
		if err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
			t.Errorf("%v, %v; want ALLOWED", response.GetDecision(), err)
		}
		batch, err := b.validation.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{item, item}})
		if err != nil || len(batch.GetResponses()) != 2 || batch.GetResponses()[1].GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
			t.Errorf("%v, %v; want ALLOWED twice", batch, err)
		}
	}
	// Details are in the store: asking for them is a read.
	for _, call := range []func() error{
		func() error {
			_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read", WithDetails: true})
			return err
		},
		func() error {
			_, err := b.validation.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{
				{Token: token, RequiredScope: "emails:read"}, {Token: token, RequiredScope: "emails:read", WithDetails: true},
			}})
			return err
		},
	} {
		expectError(t, call(), codes.ResourceExhausted, "TOO_MANY_REQUESTS")
	}
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING)
	if calls := b.callsOf(callers.Validation); calls.Refused != 0 || calls.InFlight != 0 || calls.Limit != 4*most {
		t.Errorf("validations stand at %+v", calls)
	}
	if lines := len(b.log.lines("calls are refused")); lines != 3 {
		t.Errorf("%d lines tell of what was refused, want one for each kind, as the clock stands still:\n%s", lines, b.log.lines("calls are refused"))
	}
	mend()
	for work := range kinds {
		b.waitInFlight(t, work, 0)
	}
}

// TestSilentStreamsAreNoSessions: a stream takes a slot once its hello comes, and is half-open before.
func TestSilentStreamsAreNoSessions(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) { s.MaxInFlight, s.MaxSessions = 1, 1 }})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var streams []grpc.BidiStreamingClient[keysvcv1.SyncRequest, keysvcv1.SyncResponse]
	for range 10 {
		stream, err := b.sync.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	waitUntil(t, "10 half-open streams", func() bool { return b.server.HalfOpen() == 10 })
	if sessions := b.callsOf(callers.Session); sessions.InFlight != 0 {
		t.Errorf("silent streams have slots: %+v", sessions)
	}
	hello := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
	refused := 0
	for _, stream := range streams[:2] {
		if err := stream.Send(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			refused++
			if found := expectError(t, err, codes.ResourceExhausted, "TOO_MANY_REQUESTS"); found.retry == nil {
				t.Error("without RetryInfo")
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d of 2 sessions were refused, and there is room for one", refused)
	}
	cancel()
	b.waitInFlight(t, callers.Session, 0)
}

// TestOneWorkspaceDoesNotTakeEverySlot: a bulk job of one workspace delays itself, and no
// other workspace.
func TestOneWorkspaceDoesNotTakeEverySlot(t *testing.T) {
	t.Parallel()
	store := &hung{gate: newGate(), mended: make(chan struct{}), busy: "acme"}
	b := start(t, options{
		wrap: func(s storage.Store) storage.Store {
			store.gate.wrap(s)
			return store
		},
		settings: func(s *config.Settings) { s.MaxInFlight = 8 * 4 },
	})
	b.putMember(t, "acme", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read")
	store.commits = true
	rotate := func() error {
		_, err := b.keys.RotateKey(testContext(t), &keysvcv1.RotateKeyRequest{
			WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId(), Overlap: durationpb.New(0),
		})
		return err
	}
	answers := make(chan error, 10)
	for range cap(answers) {
		go func() { answers <- rotate() }()
	}
	for range cap(answers) - 2 { // those that wait have a quarter of the slots
		expectError(t, waitFor(t, answers, "a refusal"), codes.ResourceExhausted, "TOO_MANY_REQUESTS")
	}
	b.putMember(t, "other", "ben", "owner")
	b.expectAllowed(t, created.GetToken(), "emails:read")
	close(store.mended)
	for range 2 {
		if err := waitFor(t, answers, "an answer"); err != nil {
			t.Error(err)
		}
	}
}
