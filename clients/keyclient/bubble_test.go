package keyclient_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// bufferedTarget is a local target. The dialer chooses where it leads.
const bufferedTarget = "passthrough:///127.0.0.1:7480"

// dialer connects to a listener in memory, and counts.
func dialer(listener *bufconn.Listener, dials *atomic.Int64) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		dials.Add(1)
		return listener.DialContext(ctx)
	})
}

// serve serves the methods of a test, until the test or bubble ends.
func serve(t testing.TB, handler grpc.StreamHandler, config keyclient.Config) *keyclient.Client {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnknownServiceHandler(handler))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	config.DialOptions = append(config.DialOptions, dialer(listener, new(atomic.Int64)))
	return newClient(t, bufferedTarget, config)
}

// answering is a keysvc that gives every validation the same answer.
func answering(response *keysvcv1.ValidateKeyResponse, err error) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		if receiveErr := stream.RecvMsg(new(keysvcv1.ValidateKeyRequest)); receiveErr != nil {
			return receiveErr
		}
		if err != nil {
			return err
		}
		return stream.SendMsg(response)
	}
}
