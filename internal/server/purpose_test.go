package server_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// servePurpose serves another listener of a bench, for a purpose, and returns a connection
// to it.
func (b *bench) servePurpose(t *testing.T, purpose config.Purpose) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- b.server.ServePurpose(listener, purpose) }()
	t.Cleanup(func() {
		b.stop(t, patience)
		if err := waitFor(t, served, "the end of serving"); err != nil {
			t.Errorf("serving ended with: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestListenersServeTheirPurposeOnly calls every method of every service on a listener of
// each purpose: those that are not served are UNIMPLEMENTED, and change nothing.
func TestListenersServeTheirPurposeOnly(t *testing.T) {
	t.Parallel()
	reflection := []string{grpc_reflection_v1.ServerReflection_ServiceDesc.ServiceName, grpc_reflection_v1alpha.ServerReflection_ServiceDesc.ServiceName}
	management := append([]string{"keysvc.v1.BackupService", "keysvc.v1.CallerService", "keysvc.v1.DebugService", "keysvc.v1.KeyService", "keysvc.v1.MemberService", "keysvc.v1.PolicyService", "keysvc.v1.SettingsService", "keysvc.v1.StatusService"}, reflection...)
	validation := []string{"keysvc.v1.CallerService", "keysvc.v1.ValidationService", "keysvc.v1.StatusService", "keysvc.v1.SyncService"}
	purposes := map[config.Purpose][]string{
		config.PurposeAll:        append(slices.Clone(management), validation...),
		config.PurposeValidation: validation,
		config.PurposeManagement: management,
		config.PurposeHealth:     nil,
	}
	if len(purposes) != len(config.Purposes())-1 { // metrics are served over HTTP
		t.Error("a purpose is not tested")
	}
	services := []grpc.ServiceDesc{
		keysvcv1.KeyService_ServiceDesc, keysvcv1.MemberService_ServiceDesc, keysvcv1.PolicyService_ServiceDesc, keysvcv1.SettingsService_ServiceDesc,
		keysvcv1.ValidationService_ServiceDesc, keysvcv1.SyncService_ServiceDesc, keysvcv1.CallerService_ServiceDesc, keysvcv1.StatusService_ServiceDesc, keysvcv1.BackupService_ServiceDesc, keysvcv1.DebugService_ServiceDesc,
		grpc_reflection_v1.ServerReflection_ServiceDesc, grpc_reflection_v1alpha.ServerReflection_ServiceDesc,
	}
	for purpose, served := range purposes {
		t.Run(string(purpose), func(t *testing.T) {
			t.Parallel()
			b := start(t, options{})
			conn, before := b.servePurpose(t, purpose), b.dump(t)
			for _, service := range services {
				want := slices.Contains(served, service.ServiceName)
				for _, method := range service.Methods {
					err := conn.Invoke(testContext(t), "/"+service.ServiceName+"/"+method.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
					if got := status.Code(err) != codes.Unimplemented; got != want {
						t.Errorf("%s/%s: %v; served should be %t", service.ServiceName, method.MethodName, err, want)
					}
				}
				for _, method := range service.Streams {
					err := endOfStream(t, conn, "/"+service.ServiceName+"/"+method.StreamName)
					if got := status.Code(err) != codes.Unimplemented; got != want {
						t.Errorf("%s/%s: %v; served should be %t", service.ServiceName, method.StreamName, err, want)
					}
				}
			}
			expectUnchanged(t, before, b.dump(t))
			response, err := grpc_health_v1.NewHealthClient(conn).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: "keysvc.v1.KeyService"})
			if err != nil || response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
				t.Errorf("health: %v, %v", response, err)
			}
		})
	}
}

// endOfStream opens a stream, sends nothing, and returns how it ends.
func endOfStream(t *testing.T, conn *grpc.ClientConn, method string) error {
	t.Helper()
	stream, err := conn.NewStream(testContext(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	return stream.RecvMsg(&emptypb.Empty{})
}

// TestListenersShareTheirBounds: a purpose has no slots of its own.
func TestListenersShareTheirBounds(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := start(t, options{wrap: g.wrap, settings: func(s *config.Settings) { s.MaxInFlight = 1 }})
	management := keysvcv1.NewKeyServiceClient(b.servePurpose(t, config.PurposeManagement))
	call := b.listKeys(testContext(t))
	waitFor(t, g.entered, "the call")
	_, err := management.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
	expectError(t, err, codes.ResourceExhausted, "TOO_MANY_REQUESTS")
	g.release(t)
	if err := waitFor(t, call, "an answer"); err != nil {
		t.Error(err)
	}
}

// TestStopDrainsEveryListener: a call on a listener of a purpose is waited for as well.
func TestStopDrainsEveryListener(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := start(t, options{wrap: g.wrap})
	management := keysvcv1.NewKeyServiceClient(b.servePurpose(t, config.PurposeManagement))
	answer := make(chan error, 1)
	go func() {
		_, err := management.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
		answer <- err
	}()
	waitFor(t, g.entered, "the call")
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b.stop(t, patience)
	}()
	for dialling := testContext(t); ; { // until the listener is closed
		conn, err := b.listen.DialContext(dialling)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	g.release(t)
	if err := waitFor(t, answer, "the answer"); err != nil {
		t.Errorf("the call in flight got %v", err)
	}
	waitFor(t, stopped, "the stop")
	if strings.Contains(b.log.String(), "cut off") {
		t.Errorf("something was cut off:\n%s", b.log)
	}
}
