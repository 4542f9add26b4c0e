package server_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// waitUntil waits until a condition holds.
func waitUntil(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		<-time.After(time.Millisecond) // no event says so
	}
}

// another returns another connection to the server.
func (b *bench) another(t *testing.T) *grpc.ClientConn {
	t.Helper()
	client, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.listen.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestOpenStreamsOfAllConnectionsAreBounded: connections that open as many streams as they can leave
// something to others, and the more of them there are, the less each gets.
func TestOpenStreamsOfAllConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const limit, clients, each = 256, 10, 60
	b := start(t, options{settings: func(s *config.Settings) { s.MaxOpenStreams = limit }})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	refused := make(chan error, clients*each)
	for range clients {
		client := keysvcv1.NewSyncServiceClient(b.another(t))
		for range each {
			stream, err := client.Sync(ctx) // without a hello
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := stream.Recv()
				if ctx.Err() == nil {
					refused <- err
				}
			}()
		}
	}
	for range clients*each - limit {
		if found := expectError(t, waitFor(t, refused, "a refusal"), codes.ResourceExhausted, "TOO_MANY_REQUESTS"); found.retry == nil {
			t.Fatal("a refusal without RetryInfo")
		}
	}
	// Other connections go on, for validations and for everything else.
	b.putMember(t, "acme", "ann", "owner")
	b.expectAllowed(t, b.create(t, "acme", "ann", "emails:read").GetToken(), "emails:read")
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING)
	if half := b.server.HalfOpen(); half < limit/4 || half > limit {
		t.Errorf("%d streams are open, of %d", half, limit)
	}
	cancel()
	waitUntil(t, "the end of all streams", func() bool { return b.server.OpenStreams() == 0 })
}

// TestNearCachesAreNoOpenStreams: sessions have a bound of their own.
func TestNearCachesAreNoOpenStreams(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) { s.MaxOpenStreams = 16 }})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	for range 100 {
		stream, err := b.sync.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if open := b.server.OpenStreams(); open != 0 {
		t.Errorf("%d streams are open beside the sessions", open)
	}
	cancel()
	b.waitInFlight(t, callers.Session, 0)
	waitUntil(t, "the end of all streams", func() bool { return b.server.OpenStreams() == 0 })
}

// TestWatchesOfHealthAreBounded: watches have places of their own, and a caller leaves some to others.
func TestWatchesOfHealthAreBounded(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	clients := []grpc_health_v1.HealthClient{grpc_health_v1.NewHealthClient(b.another(t)), grpc_health_v1.NewHealthClient(b.another(t))}
	limit := b.callsOf(callers.Watch).Limit
	open, refused := int64(0), false
	for ; !refused && open <= limit; open++ {
		watch, err := clients[open%2].Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if refused = status.Code(err) == codes.ResourceExhausted; err != nil && !refused {
			t.Fatal(err)
		}
	}
	if open-1 != limit*3/4 {
		t.Errorf("a caller has %d watches, of %d; want three quarters", open-1, limit)
	}
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING)
	cancel()
	b.waitInFlight(t, callers.Watch, 0)
}
