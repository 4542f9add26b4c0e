package bench

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

var soakTime = flag.Duration("soak", 3*time.Second, "how long TestNothingGrowsUnderLoad runs; its figures of memory mean something from ten minutes on")

const (
	soakWorkspaces = 4
	soakMembers    = 10 // per workspace
	soakKeys       = 50 // per member
	soakSamples    = 40
	soakChurners   = 8
)

// soak is a keysvc in another process, near-caches in this process, half of them over a bad
// network, and keys that are changed all the time. No key is added, so memory must not grow.
type soak struct {
	t          *testing.T
	keys       []*soakKey
	clients    []*keyclient.Client
	management keysvcv1.KeyServiceClient
	members    keysvcv1.MemberServiceClient
	feed       keysvcv1.SyncServiceClient
	changes    atomic.Int64
	asked      atomic.Int64
	allowed    atomic.Int64
	ended      atomic.Int64
}

// soakKey is a key with its newest token. Its mutex is held while it changes.
type soakKey struct {
	workspace, member, id string
	mutex                 sync.Mutex
	token                 atomic.Pointer[string]
}

// TestNothingGrowsUnderLoad looks for growth: of memory or goroutines, in the server or in its
// clients. Some changes are awaited, and no cache may then answer from before them.
func TestNothingGrowsUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	server := startServer(t, realServer)
	control := dial(t, server.address)
	s := &soak{
		t: t, management: keysvcv1.NewKeyServiceClient(control), members: keysvcv1.NewMemberServiceClient(control), feed: keysvcv1.NewSyncServiceClient(control),
	}
	s.fill()
	for index := range clientCount {
		address := server.address
		if index%2 == 1 {
			address = startProxy(t, server.address)
		}
		client, err := keyclient.New(address, keyclient.Config{AllowPlaintext: true, NearCacheEntries: len(s.keys) / 2})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		s.clients = append(s.clients, client)
	}
	// No deadline: the server would know it, and might end a call a little earlier.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer time.AfterFunc(*soakTime, cancel).Stop()
	var running sync.WaitGroup
	for _, client := range s.clients {
		running.Go(func() { s.validate(ctx, client) })
		running.Go(func() { s.watch(ctx, client) })
	}
	for range soakChurners { // some of them wait for clients without a connection
		running.Go(func() { s.churn(ctx) })
	}
	samples := s.sample(ctx, server)
	running.Wait()
	t.Logf("%d changes, %d validations of which %d allowed, %d streams ended", s.changes.Load(), s.asked.Load(), s.allowed.Load(), s.ended.Load())
	if s.changes.Load() == 0 || s.allowed.Load() == 0 {
		t.Error("nothing was changed, or nothing allowed")
	}
	if *soakTime >= 10*time.Minute {
		s.judge(samples)
	}
}

// fill creates the keys.
func (s *soak) fill() {
	for number := range soakWorkspaces * soakMembers {
		workspace, member := fmt.Sprint("w", number%soakWorkspaces), fmt.Sprint("m", number)
		if err := s.put(s.t.Context(), workspace, member, "owner"); err != nil {
			s.t.Fatal(err)
		}
		for range soakKeys {
			made, err := s.management.CreateKey(s.t.Context(), &keysvcv1.CreateKeyRequest{
				WorkspaceId: workspace, MemberId: member, Name: "k", Scopes: []string{"signatures:read"},
			})
			if err != nil {
				s.t.Fatal(err)
			}
			key := &soakKey{workspace: workspace, member: member, id: made.GetKey().GetKeyId()}
			key.token.Store(new(made.GetToken()))
			s.keys = append(s.keys, key)
		}
	}
}

func (s *soak) put(ctx context.Context, workspace, member, role string) error {
	_, err := s.members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: workspace, MemberId: member, Role: role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	return err
}

func (s *soak) any() *soakKey { return s.keys[rand.IntN(len(s.keys))] }

func question(token string) keyauth.Question {
	return keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")}
}

// validate validates keys until the context ends.
func (s *soak) validate(ctx context.Context, client *keyclient.Client) {
	for ; ctx.Err() == nil; time.Sleep(validatePause) {
		answer, err := client.Validate(ctx, question(*s.any().token.Load()))
		s.asked.Add(1)
		if err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED {
			s.allowed.Add(1)
		}
	}
}

// watch keeps a stream open until its key may no longer read, or for a while.
func (s *soak) watch(ctx context.Context, client *keyclient.Client) {
	for ; ctx.Err() == nil; time.Sleep(validatePause) {
		watching, cancel := context.WithTimeout(ctx, rand.N(10*time.Second))
		if _, err := client.Watch(watching, question(*s.any().token.Load())); err == nil {
			s.ended.Add(1)
		}
		cancel()
	}
}

// churn changes keys and members, and checks that no cache answers from before an awaited
// change.
func (s *soak) churn(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		key := s.any()
		var err error
		switch rand.IntN(10) {
		case 0:
			// The member's keys may do nothing for a moment.
			if err = s.put(ctx, key.workspace, key.member, "member"); err == nil {
				err = s.put(ctx, key.workspace, key.member, "owner")
			}
		default:
			err = s.rotate(ctx, key)
		}
		if err != nil && ctx.Err() == nil {
			s.t.Error(err)
		}
		s.changes.Add(1)
	}
}

func (s *soak) rotate(ctx context.Context, key *soakKey) error {
	key.mutex.Lock()
	defer key.mutex.Unlock()
	old := *key.token.Load()
	overlap := time.Duration(rand.IntN(2)) * time.Second
	rotated, err := s.management.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: key.workspace, KeyId: key.id, Overlap: durationpb.New(overlap)})
	if overlap > 0 && status.Code(err) == codes.FailedPrecondition {
		return nil // the last overlap has not ended
	}
	if err != nil {
		return err
	}
	key.token.Store(new(rotated.GetToken()))
	if overlap > 0 || rand.IntN(10) > 0 {
		return nil
	}
	if _, err := s.feed.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: rotated.GetRevision(), Epoch: rotated.GetEpoch()}); err != nil {
		return err
	}
	for index, client := range s.clients {
		if answer, err := client.Validate(ctx, question(old)); err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED {
			s.t.Errorf("client %d honours a secret that was rotated away, after AwaitRevision", index)
		}
	}
	return nil
}

// sample is the memory and the goroutines of both processes.
type sample struct {
	server, serverGoroutines, clients, clientGoroutines int64
}

// sample takes samples until the context ends.
func (s *soak) sample(ctx context.Context, server *worker) (samples []sample) {
	ticker := time.NewTicker(*soakTime / soakSamples)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return samples
		case <-ticker.C:
		}
		var taken sample
		taken.server, taken.serverGoroutines = memory(s.t, server)
		runtime.GC()
		var own runtime.MemStats
		runtime.ReadMemStats(&own)
		taken.clients, taken.clientGoroutines = int64(own.HeapInuse+own.StackInuse), int64(runtime.NumGoroutine())
		samples = append(samples, taken)
		s.t.Logf("server %.1f MiB, %d goroutines; clients %.1f MiB, %d goroutines",
			float64(taken.server)/(1<<20), taken.serverGoroutines, float64(taken.clients)/(1<<20), taken.clientGoroutines)
	}
}

// judge compares the last quarter of the samples with the one before it.
func (s *soak) judge(samples []sample) {
	quarter := len(samples) / 4
	for name, value := range map[string]func(sample) int64{
		"memory of the server":      func(taken sample) int64 { return taken.server },
		"memory of the clients":     func(taken sample) int64 { return taken.clients },
		"goroutines of the server":  func(taken sample) int64 { return taken.serverGoroutines },
		"goroutines of the clients": func(taken sample) int64 { return taken.clientGoroutines },
	} {
		median := func(of []sample) int64 {
			values := make([]int64, len(of))
			for index, taken := range of {
				values[index] = value(taken)
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		before, after := median(samples[2*quarter:3*quarter]), median(samples[3*quarter:])
		if after > before+before/10 {
			s.t.Errorf("%s: %d, and %d later", name, before, after)
		}
	}
}
