package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// walkCallers is how many goroutines validate, each one call after the other.
const walkCallers = 16

// putInterval is the time between two changes of a member's role.
const putInterval = 20 * time.Millisecond

// TestValidationsBesidePolicyChecks prints how long validations take on an idle server,
// beside changes of a member's role, and beside those and ApplyPolicy with validate_only,
// which walks over every key. The three take turns, so that a slower machine slows all of
// them. It needs -measure for 1,000,000 keys; without it, a few keys show that it works.
func TestValidationsBesidePolicyChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	count, rounds, round := 2_000, 1, 50*time.Millisecond
	if *measure {
		count, rounds, round = 1_000_000, 5, 8*time.Second
	}
	path := newStore(t)
	tokens := fill(t, path, count, 0)
	server := startProcess(t, "TestProcessServer", serverVariable+"="+realServer, fileVariable+"="+path)
	t.Cleanup(func() { server.end(t) })
	server.address = server.line(t, "address")
	load := &walkLoad{
		tokens:   tokens,
		keysvc:   keysvcv1.NewValidationServiceClient(dial(t, server.address)),
		members:  keysvcv1.NewMemberServiceClient(dial(t, server.address)),
		policies: keysvcv1.NewPolicyServiceClient(dial(t, server.address)),
	}
	kinds := []struct {
		name   string
		beside []func(context.Context, *testing.T)
	}{
		{name: "idle"},
		{name: "PutMember every " + putInterval.String(), beside: []func(context.Context, *testing.T){load.putMembersSlowly}},
		{name: "the same and ApplyPolicy", beside: []func(context.Context, *testing.T){load.putMembersSlowly, load.checkPolicies}},
	}
	took := make([][]time.Duration, len(kinds))
	for range rounds {
		for i, kind := range kinds {
			took[i] = append(took[i], load.run(t, round, kind.beside)...)
		}
	}
	for i, kind := range kinds {
		t.Logf("%-30s %s, %.0f a second", kind.name, percentiles(took[i]), float64(len(took[i]))/(round*time.Duration(rounds)).Seconds())
	}
	t.Logf("PutMember %s", percentiles(load.puts))
	t.Logf("ApplyPolicy, validate_only: %s", percentiles(load.checks))
}

// walkLoad is what the clients of TestValidationsBesidePolicyChecks share.
type walkLoad struct {
	tokens   []string
	next     atomic.Int64
	keysvc   keysvcv1.ValidationServiceClient
	members  keysvcv1.MemberServiceClient
	policies keysvcv1.PolicyServiceClient
	// puts and checks are how long each call took. Each is written by one goroutine at a time.
	puts, checks []time.Duration
}

// run validates for a time, beside other work, and returns how long each call took.
func (l *walkLoad) run(t *testing.T, round time.Duration, beside []func(context.Context, *testing.T)) []time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), round)
	defer cancel()
	var workers sync.WaitGroup
	for _, work := range beside {
		workers.Go(func() { work(ctx, t) })
	}
	took := make([][]time.Duration, walkCallers)
	for i := range took {
		workers.Go(func() {
			for ctx.Err() == nil {
				text := l.tokens[l.next.Add(1)%int64(len(l.tokens))]
				began := time.Now()
				response, err := l.keysvc.ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{Token: text, RequiredScope: "signatures:read"})
				took[i] = append(took[i], time.Since(began))
				if err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
					t.Error(response.GetDecision(), err)
					return
				}
			}
		})
	}
	workers.Wait()
	return slices.Concat(took...)
}

func (l *walkLoad) putMembersSlowly(ctx context.Context, t *testing.T) {
	l.putMembers(ctx, t, putInterval)
}

// putMembers changes the role of a member at every interval.
func (l *walkLoad) putMembers(ctx context.Context, t *testing.T, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		began := time.Now()
		_, err := l.members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
			WorkspaceId: "other", MemberId: "bob", Role: []string{"manager", "admin"}[i%2], State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		})
		l.puts = append(l.puts, time.Since(began))
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// checkPolicies asks, one call after the other, what a policy would change in which managers have
// one scope less.
func (l *walkLoad) checkPolicies(ctx context.Context, t *testing.T) {
	active, err := l.policies.GetPolicy(t.Context(), &keysvcv1.GetPolicyRequest{})
	if err != nil {
		t.Error(err)
		return
	}
	wanted := active.GetPolicy()
	for _, role := range wanted.GetRoles() {
		if role.GetName() == "manager" {
			role.Scopes = role.GetScopes()[1:]
		}
	}
	for ctx.Err() == nil {
		began := time.Now()
		_, err := l.policies.ApplyPolicy(t.Context(), &keysvcv1.ApplyPolicyRequest{
			Policy: wanted, ReplacesDigest: active.GetDigest(), ValidateOnly: true,
		})
		l.checks = append(l.checks, time.Since(began))
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// percentiles describes how long calls took.
func percentiles(took []time.Duration) string {
	if len(took) == 0 {
		return "no calls"
	}
	slices.Sort(took)
	at := func(share float64) time.Duration {
		return took[int(share*float64(len(took)-1))].Round(time.Microsecond)
	}
	return fmt.Sprintf("%d calls, p50 %s, p99 %s, p99.9 %s, max %s", len(took), at(0.5), at(0.99), at(0.999), at(1))
}
