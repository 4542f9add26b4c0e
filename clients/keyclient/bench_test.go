package keyclient_test

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// BenchmarkInterceptor measures the way from incoming metadata to the principal in the context:
// with the answer in memory, for 1 to 16 goroutines per processor, and with a call for each
// request.
func BenchmarkInterceptor(b *testing.B) {
	keysvc := servertest.Start(b, servertest.Options{})
	keysvc.PutMember(b, "acme", "ann", "admin")
	_, token := keysvc.CreateKey(b, "acme", "ann", "signatures:read")
	near := newClient(b, keysvc.Address, keyclient.Config{})
	fresh(b, near)
	for _, each := range []struct {
		name      string
		validator keyauth.Validator
		parallel  int
	}{
		{"Hit", near, 0},
		{"Hit/Parallel1", near, 1},
		{"Hit/Parallel4", near, 4},
		{"Hit/Parallel16", near, 16},
		{"Call", newClient(b, keysvc.Address, keyclient.Config{WithoutNearCache: true}), 0},
	} {
		b.Run(each.name, func(b *testing.B) {
			intercepted := newIntercepted(b, each.validator, token)
			once := func() {
				if err := intercepted(); err != nil {
					b.Error(err)
				}
			}
			once()
			b.ReportAllocs()
			if each.parallel == 0 {
				for b.Loop() {
					once()
				}
				return
			}
			b.SetParallelism(each.parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					once()
				}
			})
		})
	}
}

// newIntercepted returns one request through the interceptor, with a handler that reads the
// principal.
func newIntercepted(tb testing.TB, validator keyauth.Validator, token string) func() error {
	tb.Helper()
	const method = "/test.v1.Signatures/Get"
	guard, err := keyauth.NewGuard(validator, keyauth.Config{
		Tables: []keyauth.Table{{method: keyauth.Scope("signatures:read")}}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(tb.Context(), metadata.Pairs(
		":authority", "x", "authorization", "Bearer "+token, "content-type", "application/grpc", "user-agent", "grpc-go"))
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}})
	intercept, info := guard.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: method}
	handler := func(ctx context.Context, _ any) (any, error) {
		if _, ok := keyauth.PrincipalFrom(ctx); !ok {
			tb.Error("no principal")
		}
		return nil, nil // the result is not used
	}
	return func() error {
		_, err := intercept(ctx, nil, info, handler)
		return err
	}
}

// From metadata to the principal, with the answer in memory.
func TestInterceptorAllocatesLittleOnAHit(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	_, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	client := newClient(t, keysvc.Address, keyclient.Config{})
	fresh(t, client)
	intercepted := newIntercepted(t, client, token)
	if err := intercepted(); err != nil {
		t.Fatal(err)
	}
	// The minimum of several runs, because the client's own goroutines allocate from time to
	// time.
	lowest := testing.AllocsPerRun(1, func() { _ = intercepted() })
	for range 20 {
		lowest = min(lowest, testing.AllocsPerRun(20, func() { _ = intercepted() }))
	}
	if lowest > 2 {
		t.Errorf("%v allocations", lowest)
	}
}
