package main

import (
	"context"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	signaturesv1 "github.com/scribe-mail/keysvc/examples/signatures/gen/scribe/signatures/v1"
	"github.com/scribe-mail/keysvc/examples/signatures/signatures"
)

// service is the downstream service, with a listener for gRPC and one for HTTP.
type service struct {
	httpAddress, grpcAddress string

	http *http.Server
	grpc *grpc.Server
}

// startService serves gRPC and HTTP. Three lines protect it: the Guard, and the two
// interceptors. HTTP uses the same Guard.
func startService(ctx context.Context, keysvc *keyclient.Client, httpAddress, grpcAddress string) (*service, error) {
	guard, err := signaturesv1.NewSignaturesServiceGuard(keysvc, keyauth.Config{
		Tables: []keyauth.Table{keyauth.Health(), keyauth.Reflection()},
	})
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(guard.StreamServerInterceptor()),
	)
	implementation := signatures.New(time.Now)
	signaturesv1.RegisterSignaturesServiceServer(server, implementation)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	// A method that is in no table would be denied to everybody: better to know at start.
	if err := guard.Covers(server); err != nil {
		return nil, err
	}
	routes, err := implementation.HTTP(guard)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	grpcListener, err := config.Listen(ctx, "tcp", grpcAddress)
	if err != nil {
		return nil, err
	}
	httpListener, err := config.Listen(ctx, "tcp", httpAddress)
	if err != nil {
		return nil, err
	}
	s := &service{
		httpAddress: httpListener.Addr().String(),
		grpcAddress: grpcListener.Addr().String(),
		http:        &http.Server{Handler: routes, ReadHeaderTimeout: 10 * time.Second},
		grpc:        server,
	}
	go s.grpc.Serve(grpcListener) //nolint:errcheck // ends with stop
	go s.http.Serve(httpListener) //nolint:errcheck // ends with stop
	return s, nil
}

func (s *service) stop() {
	s.grpc.Stop()
	s.http.Close() //nolint:errcheck // the program ends
}
