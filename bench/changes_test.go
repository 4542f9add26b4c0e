package bench

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// measure asks for the figures that take minutes.
var measure = flag.Bool("measure", false, "print the figures that take minutes")

// callers is how many callers make changes at a time.
const callers = 64

// BenchmarkChanges measures one change with 64 callers, in one workspace and in 64: first
// creates, then whole lives of keys (create, rotate, revoke).
func BenchmarkChanges(b *testing.B) {
	for _, workspaces := range []int{1, callers} {
		for _, whole := range []bool{false, true} {
			name := "create"
			if whole {
				name = "create+rotate+revoke"
			}
			b.Run(fmt.Sprintf("%s/workspaces=%d", name, workspaces), func(b *testing.B) {
				p := start(b, newStore(b))
				p.raiseLimit(b)
				defer p.close()
				for number := range workspaces {
					_, err := p.manager.PutMember(context.Background(), actor, &keysvcv1.PutMemberRequest{
						WorkspaceId: fmt.Sprint("w", number), MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
					})
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ResetTimer()
				began := time.Now()
				var taken atomic.Int64
				var changes atomic.Int64
				var workers sync.WaitGroup
				for caller := range callers {
					workers.Go(func() {
						for taken.Add(1) <= int64(b.N) {
							made, err := p.life(fmt.Sprint("w", caller%workspaces), whole)
							if err != nil {
								b.Error(err)
								return
							}
							changes.Add(made)
						}
					})
				}
				workers.Wait()
				b.ReportMetric(float64(changes.Load())/time.Since(began).Seconds(), "changes/s")
			})
		}
	}
}

// raiseLimit lets a workspace have as many keys as any policy may allow.
func (p *process) raiseLimit(tb testing.TB) {
	tb.Helper()
	active, err := p.manager.GetPolicy(context.Background(), access.All(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	wanted := active.GetPolicy()
	wanted.Limits.LiveKeysPerWorkspace = 1_000_000
	_, err = p.manager.ApplyPolicy(context.Background(), actor, &keysvcv1.ApplyPolicyRequest{
		Policy: wanted, ReplacesDigest: active.GetDigest(),
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// life creates a key and, if whole, rotates and revokes it. It returns the number of changes.
func (p *process) life(workspaceID string, whole bool) (int64, error) {
	ctx := context.Background()
	created, err := p.manager.CreateKey(ctx, actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: "ann", Name: "bench", Scopes: []string{"signatures:read"},
	})
	if err != nil {
		return 0, err
	}
	if !whole {
		return 1, nil
	}
	_, err = p.manager.RotateKey(ctx, actor, &keysvcv1.RotateKeyRequest{
		WorkspaceId: workspaceID, KeyId: created.GetKey().GetKeyId(), Overlap: durationpb.New(time.Hour),
	})
	if err != nil {
		return 1, err
	}
	_, err = p.manager.RevokeKey(ctx, actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: created.GetKey().GetKeyId()})
	return 3, err
}

// TestMeasurePurge prints how validations fare while a million keys are purged, and how they
// fare on the idle process.
func TestMeasurePurge(t *testing.T) {
	if testing.Short() || !*measure {
		t.Skip("prints figures only; ask for them with -measure")
	}
	path := newStore(t)
	fill(t, path, 1_000_000, 100*24*time.Hour)
	p := start(t, path)
	defer p.close()
	ctx := context.Background()
	_, err := p.manager.PutMember(ctx, actor, &keysvcv1.PutMemberRequest{
		WorkspaceId: "live", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	if err != nil {
		t.Fatal(err)
	}
	created, err := p.manager.CreateKey(ctx, actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "live", MemberId: "ann", Name: "bench", Scopes: []string{"signatures:read"},
	})
	if err != nil {
		t.Fatal(err)
	}
	idle := make(chan struct{})
	time.AfterFunc(3*time.Second, func() { close(idle) })
	t.Logf("idle:   %s", p.validateUntil(t, created.GetToken(), idle))
	purged := make(chan struct{})
	go func() {
		defer close(purged)
		began := time.Now()
		swept, err := p.manager.Sweep(ctx, actor)
		if err != nil {
			t.Error(err)
		}
		t.Logf("purged %d keys in %.1f s", swept.Keys, time.Since(began).Seconds())
	}()
	t.Logf("purge:  %s", p.validateUntil(t, created.GetToken(), purged))
}

// validateUntil validates 5,000 times a second, and describes how long each validation took.
func (p *process) validateUntil(t *testing.T, text string, end <-chan struct{}) string {
	t.Helper()
	var took []time.Duration
	ticker := time.NewTicker(200 * time.Microsecond)
	defer ticker.Stop()
	for {
		select {
		case <-end:
			slices.Sort(took)
			at := func(share float64) time.Duration { return took[int(share*float64(len(took)-1))] }
			return fmt.Sprintf("%d validations, p50 %s, p99 %s, p99.9 %s, max %s", len(took), at(0.5), at(0.99), at(0.999), at(1))
		case <-ticker.C:
			began := time.Now()
			answer, err := p.validator.Validate(context.Background(), validation.Question{
				Workspaces: access.All(),
				Token:      text, Requirement: decide.Requirement{Scope: "signatures:read"},
			})
			took = append(took, time.Since(began))
			if err != nil || answer.Decision != decide.Allowed {
				t.Fatal(answer.Decision, err)
			}
		}
	}
}
