package server_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// clustered is a store that several servers may share, and that may not answer.
type clustered struct {
	storage.Store
	down atomic.Bool
}

// Status implements storage.StatusReader.
func (c *clustered) Status(context.Context) storage.Status {
	return storage.Status{Members: make([]storage.StoreMember, 3), Down: c.down.Load()}
}

// TestOutageOfAClusterIsTold: the watch of a store in a cluster is resumed in silence, so an outage is told because the store
// says so.
func TestOutageOfAClusterIsTold(t *testing.T) {
	t.Parallel()
	var h heard
	told := make(chan struct{}, 2)
	store := &clustered{}
	m := newMachine()
	with := m.options()
	with.wrap = func(own storage.Store) storage.Store { store.Store = own; return store }
	with.hooks = events.Hooks{
		StoreDown: func(reason error) { h.add("down: %v", reason); told <- struct{}{} },
		StoreBack: func(revision int64) { h.add("back at %d", revision); told <- struct{}{} },
	}
	b := start(t, with)
	revision := b.putMember(t, "acme", "ann", "owner").GetRevision()
	b.awaitServing(t, grpc_health_v1.HealthCheckResponse_SERVING)

	store.down.Store(true)
	waitFor(t, told, "the outage")
	b.awaitServing(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if wrong := b.status(t).GetProblems(); len(wrong) != 1 || wrong[0].GetProblemId() != "etcd-down" {
		t.Errorf("the status has %v", wrong)
	}

	store.down.Store(false)
	waitFor(t, told, "the end of the outage")
	b.awaitServing(t, grpc_health_v1.HealthCheckResponse_SERVING)
	if wrong := b.status(t).GetProblems(); len(wrong) != 0 {
		t.Errorf("the status has %v", wrong)
	}
	if got, want := h.take(), []string{"down: the store does not answer", fmt.Sprintf("back at %d", revision)}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// held is a store that others may share, and whose barrier nobody gets while hold is held.
type held struct {
	storage.Store
	hold sync.RWMutex
}

// Barrier implements storage.BarrierReader.
func (h *held) Barrier(ctx context.Context) (storage.Barrier, error) {
	h.hold.RLock()
	defer h.hold.RUnlock()
	return h.Store.Barrier(ctx)
}

// TestCallsThatWaitForTheStoreAreAllRead: while the store does not answer, calls are read as they come. If they waited to be
// read, their clients would have given them up once the store answers, and each would look like a rapid reset.
func TestCallsThatWaitForTheStoreAreAllRead(t *testing.T) {
	t.Parallel()
	calls := 400 * runtime.GOMAXPROCS(0) // three times as many as may wait for a processor
	store := &held{}
	b := start(t, options{
		wrap:     func(own storage.Store) storage.Store { store.Store = own; return store },
		settings: func(s *config.Settings) { s.MaxStreams, s.MaxOpenStreams, s.MaxInFlight = 2*calls, 4*calls, 4*calls },
	})
	b.putMember(t, "acme", "ann", "owner")
	token := b.create(t, "acme", "ann", "emails:read").GetToken()
	var asked sync.WaitGroup
	store.hold.Lock()
	answer := sync.OnceFunc(store.hold.Unlock)
	defer answer()
	for range calls {
		asked.Go(func() {
			response, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read"})
			if err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
				t.Errorf("got %v, %v", response.GetDecision(), err)
			}
		})
	}
	b.waitInFlight(t, callers.Validation, int64(calls))
	answer()
	asked.Wait()
}
