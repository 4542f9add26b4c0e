package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	nearWorkspaces = 64
	// nearKeys are asked about all the time and stay.
	nearKeys = 2_000
	// nearRevokes is how many keys are revoked a second.
	nearRevokes = 1_000
	// nearStaleness is the server's default bound.
	nearStaleness = time.Second
)

// nearKey is a key of TestMeasureNearCache.
type nearKey struct{ workspace, id, token string }

// TestMeasureNearCache prints how many requests a second a service decides from memory, alone and
// while 1,000 keys a second are revoked, in turn. A request is what a Guard does, from the metadata
// to the principal; each processor has one goroutine that makes them. The server is another process
// on the same processors. The test fails if a revoked key is accepted in a request that began more
// than S after its revoke was acknowledged.
func TestMeasureNearCache(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	live, rounds, slice := 100, 1, 50*time.Millisecond
	if *measure {
		live, rounds, slice = nearKeys, 6, 2*time.Second
	}
	server := startServer(t, realServer)
	doomed := int(slice.Seconds()*nearRevokes) * rounds
	keys := nearCacheKeys(t, server, live+doomed)
	client, err := keyclient.New(server.address, keyclient.Config{AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	guard, err := keyauth.NewGuard(client, keyauth.Config{})
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]keyauth.Request, live)
	for index := range requests {
		requests[index] = keyauth.Request{Name: "bench", Requirement: keyauth.Scope(quickScope), Authorization: []string{"Bearer " + keys[index].token}}
	}
	for client.NearCache().Fresh == 0 || client.NearCache().Entries < len(keys) {
		for index := range keys { // until all of them are in memory
			if _, err := client.Validate(t.Context(), keyauth.Question{Token: keys[index].token, Requirement: keyauth.Scope(quickScope)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var alone, beside, ratios []float64
	var lags []time.Duration
	decideNear(t, guard, requests, slice) // not counted
	for round := range rounds {
		alone = append(alone, decideNear(t, guard, requests, slice))
		part := keys[live+round*doomed/rounds : live+(round+1)*doomed/rounds]
		revoked := make(chan []time.Duration, 1)
		go func() { revoked <- revokeNear(t, client, part) }()
		beside = append(beside, decideNear(t, guard, requests, slice))
		lags = append(lags, <-revoked...)
		ratios = append(ratios, beside[round]/alone[round])
	}
	fmt.Printf("near-cache, %d goroutines, decisions a second: alone %s; beside %d revokes a second %s; ratio %s\n",
		runtime.GOMAXPROCS(0), spread(alone), nearRevokes, spread(beside), spread(ratios))
	fmt.Printf("last accepted after the acknowledgement of a revoke: %s\n", shares(lags))
	if longest := slices.Max(lags); longest > nearStaleness {
		t.Errorf("a revoked key was accepted %s after its revoke was acknowledged; S is %s", longest, nearStaleness)
	}
}

// decideNear decides requests for some time, with a goroutine for each processor, and returns how
// many it decided a second.
func decideNear(t *testing.T, guard *keyauth.Guard, requests []keyauth.Request, slice time.Duration) float64 {
	t.Helper()
	var decided atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for worker := range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			ctx := metadata.NewIncomingContext(context.Background(), metadata.MD{})
			count := int64(0)
			for next := worker * 7; count%256 != 0 || count == 0 || time.Since(began) < slice; next++ {
				admitted, err := guard.Admit(ctx, requests[next%len(requests)])
				if err != nil {
					t.Error(err)
					return
				}
				if _, ok := keyauth.PrincipalFrom(admitted); !ok {
					t.Error("no principal")
				}
				count++
			}
			decided.Add(count)
		})
	}
	running.Wait()
	return float64(decided.Load()) / time.Since(began).Seconds()
}

// revokeNear revokes keys, nearRevokes a second, and asks about each until it is refused. It returns
// for each how long after the acknowledgement the last request began that was accepted; 0 if none
// was.
func revokeNear(t *testing.T, client *keyclient.Client, keys []nearKey) []time.Duration {
	lags := make([]time.Duration, len(keys))
	began := time.Now()
	var next atomic.Int64
	var running sync.WaitGroup
	for range 64 {
		running.Go(func() {
			for {
				index := int(next.Add(1)) - 1
				if index >= len(keys) {
					return
				}
				time.Sleep(time.Until(began.Add(time.Duration(index) * time.Second / nearRevokes)))
				key := keys[index]
				if _, err := client.Keys.RevokeKey(context.Background(), &keysvcv1.RevokeKeyRequest{WorkspaceId: key.workspace, KeyId: key.id}); err != nil {
					t.Error(err)
					return
				}
				for acknowledged := time.Now(); ; {
					asked := time.Now()
					answer, err := client.Validate(context.Background(), keyauth.Question{Token: key.token, Requirement: keyauth.Scope(quickScope)})
					if err == nil && answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
						break
					}
					if err == nil {
						lags[index] = asked.Sub(acknowledged)
					}
				}
			}
		})
	}
	running.Wait()
	return lags
}

// nearCacheKeys makes keys in several workspaces.
func nearCacheKeys(t *testing.T, server *worker, count int) []nearKey {
	t.Helper()
	client, err := keyclient.New(server.address, keyclient.Config{AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	keys := make([]nearKey, count)
	var running sync.WaitGroup
	for number := range nearWorkspaces {
		workspace := fmt.Sprintf("bench%d", number)
		running.Go(func() {
			if _, err := client.Members.PutMember(context.Background(), &keysvcv1.PutMemberRequest{
				WorkspaceId: workspace, MemberId: quickMember, Role: quickRole, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
			}); err != nil {
				t.Error(err)
				return
			}
			for index := number; index < count; index += nearWorkspaces {
				made, err := client.Keys.CreateKey(context.Background(), &keysvcv1.CreateKeyRequest{
					WorkspaceId: workspace, MemberId: quickMember, Name: "k", Scopes: []string{quickScope},
				})
				if err != nil {
					t.Error(err)
					return
				}
				keys[index] = nearKey{workspace: workspace, id: made.GetKey().GetKeyId(), token: made.GetToken()}
			}
		})
	}
	running.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return keys
}
