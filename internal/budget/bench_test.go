package budget

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// BenchmarkGate measures a validation behind a gate, and without one.
func BenchmarkGate(b *testing.B) {
	pass := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(ctx, request)
	}
	gate := NewGate(Config{
		Budget: New(limit), MaxMessageBytes: 1 << 20, Unary: pass, Stopping: context.Background(), Refused: func(Snapshot) {}, Places: &places{},
		Status: func(_ context.Context, err error) error { return status.Convert(err).Err() },
	})
	gated := gate.Services(grpc.NewServer(gate.Options()...))
	plain := grpc.NewServer(grpc.UnaryInterceptor(pass), gate.Options()[1], gate.Options()[2])
	for name, server := range map[string]interface {
		grpc.ServiceRegistrar
		Serve(listener net.Listener) error
		Stop()
	}{"gate": gated, "plain": plain} {
		keysvcv1.RegisterValidationServiceServer(server, validationService{world: &world{}})
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		go func() { _ = server.Serve(listener) }()
		defer server.Stop()
		connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = connection.Close() }()
		client := keysvcv1.NewValidationServiceClient(connection)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(parallel *testing.PB) {
				for parallel.Next() {
					if _, err := client.ValidateKey(b.Context(), &keysvcv1.ValidateKeyRequest{Token: "scribe_ksk1_0123456789", RequiredScope: "emails:read"}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
