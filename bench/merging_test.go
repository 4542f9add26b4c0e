package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// mergingCallers are the numbers of callers that TestMeasureMerging has.
var mergingCallers = []int{1, 16, 64, 256}

// TestMeasureMerging prints how many validations a service gets through a keyclient.Client, with
// merging and without, beside the empty calls of a gRPC server without tuning. The near-cache is
// off, so that keysvc is asked each time. Each server is a process of its own; BENCH_AFTER names a
// binary to use in the place of this version. No figure is judged.
func TestMeasureMerging(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	rounds, slice := 1, 5*time.Millisecond
	if *measure {
		rounds, slice = 12, 200*time.Millisecond
	}
	idle := startServer(t, emptyServer)
	var keysvc *worker
	if binary := os.Getenv(afterVariable); binary != "" {
		keysvc = startBinary(t, binary, "serve", "--dev")
	} else {
		keysvc = startServer(t, realServer)
	}
	tokens := mergingTokens(t, keysvc)
	emptyClient, emptyRequest := keysvcv1.NewValidationServiceClient(dial(t, idle.address)), &keysvcv1.ValidateKeyRequest{
		TokenDigest: make([]byte, 32), KeyId: "0123456789abcdef", RequiredScope: quickScope,
	}
	arms := []mergingArm{{name: "empty", ask: func(int) error {
		_, err := emptyClient.ValidateKey(context.Background(), emptyRequest)
		return err
	}}}
	for _, each := range []struct {
		name     string
		separate bool
	}{{"separate", true}, {"merged", false}} {
		client, err := keyclient.New(keysvc.address, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true, SeparateCalls: each.separate})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		arms = append(arms, mergingArm{name: each.name, ask: func(next int) error {
			answer, err := client.Validate(context.Background(), keyauth.Question{Token: tokens[next%len(tokens)], Requirement: keyauth.Scope(quickScope)})
			if err == nil && answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
				err = fmt.Errorf("decision %v", answer.Decision)
			}
			return err
		}})
	}
	for _, callers := range mergingCallers {
		for index := range arms {
			arms[index].rates, arms[index].times = nil, nil
			arms[index].run(t, callers, slice) // not counted
			arms[index].rates, arms[index].times = nil, nil
		}
		order := []int{0, 1, 2}
		for range rounds {
			for _, index := range order {
				arms[index].run(t, callers, slice)
			}
			slices.Reverse(order)
		}
		describeMerging(callers, arms)
	}
}

// mergingTokens makes keys, and returns their tokens.
func mergingTokens(t *testing.T, server *worker) (tokens []string) {
	t.Helper()
	client, err := keyclient.New(server.address, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if _, err := client.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: quickWorkspace, MemberId: quickMember, Role: quickRole, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	for range quickKeys {
		made, err := client.Keys.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
			WorkspaceId: quickWorkspace, MemberId: quickMember, Name: "k", Scopes: []string{quickScope},
		})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, made.GetToken())
	}
	return tokens
}

// mergingArm is one way to ask. rates has the questions a second of each slice; times a sample of
// the time that a question takes.
type mergingArm struct {
	name  string
	ask   func(next int) error
	rates []float64
	times []time.Duration
}

// run lets a number of callers ask for some time.
func (a *mergingArm) run(t *testing.T, callers int, slice time.Duration) {
	t.Helper()
	var asked atomic.Int64
	var running sync.WaitGroup
	sampled := make([][]time.Duration, callers)
	began := time.Now()
	for caller := range callers {
		running.Go(func() {
			count := 0
			for last := began; ; count++ { // at least one question, however slow the machine
				if err := a.ask(caller + count*callers); err != nil {
					t.Errorf("%s: %v", a.name, err)
					break
				}
				now := time.Now()
				sampled[caller] = append(sampled[caller], now.Sub(last))
				if last = now; now.Sub(began) >= slice {
					count++
					break
				}
			}
			asked.Add(int64(count))
		})
	}
	running.Wait()
	a.rates = append(a.rates, float64(asked.Load())/time.Since(began).Seconds())
	a.times = append(a.times, slices.Concat(sampled...)...)
	if t.Failed() {
		t.FailNow()
	}
}

// describeMerging prints the figures of a number of callers.
func describeMerging(callers int, arms []mergingArm) {
	var text strings.Builder
	for index := range arms {
		arm := &arms[index]
		fmt.Fprintf(&text, "%3d callers, %-8s %s a second; %s\n", callers, arm.name, spread(slices.Clone(arm.rates)), shares(arm.times))
	}
	ratio := func(over, under *mergingArm) {
		var ratios []float64
		for round := range over.rates {
			ratios = append(ratios, over.rates[round]/under.rates[round])
		}
		fmt.Fprintf(&text, "%3d callers, %s ÷ %s %s\n", callers, over.name, under.name, spread(ratios))
	}
	ratio(&arms[1], &arms[0])
	ratio(&arms[2], &arms[0])
	ratio(&arms[2], &arms[1])
	fmt.Print(text.String())
}
