package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestMeasureSessions prints how soon the last session receives the event of a revoked key, how
// long AwaitRevision takes, and what a session costs the server in memory.
func TestMeasureSessions(t *testing.T) {
	if testing.Short() || !*measure {
		t.Skip("prints figures only; ask for them with -measure")
	}
	for _, shape := range []struct {
		connections, sessions, rounds int
		idle                          bool
	}{{1, 1, 500, false}, {10, 1, 500, false}, {10, 100, 500, false}, {10, 100, 500, true}, {10, 999, 100, true}} {
		name := fmt.Sprintf("connections=%d/sessions=%d/idle=%t", shape.connections, shape.connections*shape.sessions, shape.idle)
		for _, server := range []string{"keysvc", floorServer} {
			t.Run(name+"/"+server, func(t *testing.T) {
				measureSessions(t, startServer(t, server), shape.connections, shape.sessions, shape.rounds, shape.idle)
			})
		}
	}
}

// heard is when one session received the event of a revision.
type heard struct {
	revision int64
	at       time.Time
}

func measureSessions(t *testing.T, server *worker, connections, each, rounds int, idle bool) {
	before, _ := memory(t, server)
	load := startSessions(t, server.address, connections, each, idle)
	defer load.end()
	after, goroutines := memory(t, server)
	var asked, acknowledged, awaited []time.Duration
	for round := range 2 * rounds {
		took := load.revoke(t, round%2 == 0) // every second revision is awaited, which costs each session an answer
		if round%2 == 0 {
			awaited = append(awaited, took.awaited)
		} else {
			asked, acknowledged = append(asked, took.asked), append(acknowledged, took.acknowledged)
		}
	}
	t.Logf("last session, since the revoke was asked for: %s", shares(asked))
	t.Logf("last session, since it was acknowledged:      %s", shares(acknowledged))
	t.Logf("AwaitRevision, called then:                   %s", shares(awaited[1:])) // the first wait includes the leases from before the start
	t.Logf("a session holds %d bytes of the server's memory, and %d goroutines run there", (after-before)/int64(connections*each), goroutines)
}

// sessionLoad is sessions with a server that hear of each revoke.
type sessionLoad struct {
	keys  keysvcv1.KeyServiceClient
	feed  keysvcv1.SyncServiceClient
	hears chan heard
	count int
	end   func()
}

// startSessions starts so many sessions on each of some connections, and waits until they have begun.
func startSessions(t *testing.T, address string, connections, each int, idle bool) *sessionLoad {
	t.Helper()
	control := dial(t, address)
	load := &sessionLoad{
		keys: keysvcv1.NewKeyServiceClient(control), feed: keysvcv1.NewSyncServiceClient(control),
		hears: make(chan heard, connections*each), count: connections * each,
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := keysvcv1.NewMemberServiceClient(control).PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: "w", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	var clients, began sync.WaitGroup
	load.end = func() { cancel(); clients.Wait() }
	for range connections {
		connection := dial(t, address)
		for range each {
			began.Add(1)
			clients.Go(func() {
				if err := follow(ctx, connection, idle, began.Done, load.hears); ctx.Err() == nil {
					t.Errorf("a session ended: %v", err)
				}
			})
		}
	}
	began.Wait()
	return load
}

// revokeTimes are how long it took until the last session had heard of a revoke, since the call and
// since its acknowledgement, and how long AwaitRevision took.
type revokeTimes struct{ asked, acknowledged, awaited time.Duration }

// revoke creates a key and revokes it. If await is set, it then calls AwaitRevision.
func (l *sessionLoad) revoke(t *testing.T, await bool) revokeTimes {
	t.Helper()
	ctx := t.Context()
	made, err := l.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "w", MemberId: "ann", Name: "bench", Scopes: []string{"signatures:read"}})
	if err != nil {
		t.Fatal(err)
	}
	collect(l.hears, made.GetRevision(), l.count)
	start := time.Now()
	revoked, err := l.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "w", KeyId: made.GetKey().GetKeyId()})
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now()
	var took revokeTimes
	if await {
		if _, err := l.feed.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: revoked.GetRevision(), Epoch: revoked.GetEpoch()}); err != nil {
			t.Fatal(err)
		}
		took.awaited = time.Since(end)
	}
	last := collect(l.hears, revoked.GetRevision(), l.count)
	took.asked, took.acknowledged = last.Sub(start), last.Sub(end)
	return took
}

// collect waits until a number of sessions have received a revision, and returns when the last
// of them did.
func collect(hears <-chan heard, revision int64, sessions int) time.Time {
	var last time.Time
	for sessions > 0 {
		if next := <-hears; next.revision == revision {
			sessions--
			if next.at.After(last) {
				last = next.at
			}
		}
	}
	return last
}

// follow is a client that does what a near-cache does, without keeping entries. An idle one
// asks for no lease.
func follow(ctx context.Context, connection *grpc.ClientConn, idle bool, began func(), hears chan<- heard) error {
	stream, err := keysvcv1.NewSyncServiceClient(connection).Sync(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
		return err
	}
	var mutex sync.Mutex
	applied := int64(0)
	ping := func() error {
		mutex.Lock()
		defer mutex.Unlock()
		return stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: 1, Revision: applied}}})
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		switch kind := response.GetKind().(type) {
		case *keysvcv1.SyncResponse_Welcome:
			applied = kind.Welcome.GetRevision()
			if !idle {
				third := kind.Welcome.GetStaleness().AsDuration() / 3
				ticker := time.NewTicker(third)
				defer ticker.Stop()
				if err := ping(); err != nil {
					return err
				}
				go func() {
					for {
						select {
						case <-ticker.C:
							_ = ping() // Recv returns the error
						case <-ctx.Done():
							return
						}
					}
				}()
			}
			began()
		case *keysvcv1.SyncResponse_Events:
			mutex.Lock()
			applied = kind.Events.GetRevision()
			mutex.Unlock()
			for _, event := range kind.Events.GetEvents() {
				hears <- heard{event.GetRevision(), now}
			}
		}
		if response.GetMark() != nil || response.GetEvents().GetMark() != 0 {
			mutex.Lock()
			err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{Revision: applied}}})
			mutex.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	return dialWith(t, address, insecure.NewCredentials())
}

func dialWith(t *testing.T, address string, over credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(over))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// shares returns the distribution of a sample.
func shares(sample []time.Duration) string {
	slices.Sort(sample)
	at := func(share float64) time.Duration {
		return sample[int(share*float64(len(sample)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %s, p99 %s, max %s", at(0.5), at(0.99), at(1))
}
