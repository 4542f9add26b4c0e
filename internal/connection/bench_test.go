package connection_test

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/scribe-mail/keysvc/internal/connection"
)

// BenchmarkCall measures what a unary call costs, server and client together, on a connection that a
// Set has and on one of gRPC alone. The figure to compare is the processor's time (cpu-ns/op).
func BenchmarkCall(b *testing.B) {
	a := newAuthority(b)
	used := a.server(b, tls.RequireAndVerifyClientCert)
	client := a.client(a.issue(b, "ann"))
	own := used.Clone()
	own.NextProtos = []string{"h2"}
	for _, each := range []struct {
		name   string
		set    bool
		kind   connection.Kind
		server credentials.TransportCredentials
		client credentials.TransportCredentials
	}{
		{"plain/grpc", false, 0, insecure.NewCredentials(), insecure.NewCredentials()},
		{"plain/set", true, connection.Loopback, nil, insecure.NewCredentials()},
		{"tls/grpc", false, 0, credentials.NewTLS(own), client},
		{"tls/set", true, connection.TLS, nil, client},
	} {
		b.Run(each.name, func(b *testing.B) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			began, address := time.Now(), inner.Addr().String()
			if each.set {
				set := connection.New(connection.Config{
					Judge: &judge{}, MaxConnections: 100, MaxPerSource: 100, MaxStreams: 1000, MaxHeaderBytes: 16 << 10,
					Silence: time.Minute, Now: time.Now, Elapsed: func() time.Duration { return time.Since(began) },
				})
				listener := &connection.Listener{Kind: each.kind, TLS: func() (*tls.Config, error) { return used, nil }}
				each.server, inner = set.Credentials(), set.Listen(inner, listener)
			}
			server := grpc.NewServer(grpc.Creds(each.server), grpc.UnknownServiceHandler(handle))
			go server.Serve(inner)
			defer server.Stop()
			conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(each.client))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			request := wrapperspb.String("80")
			call := func() {
				var response wrapperspb.BytesValue
				if err := conn.Invoke(b.Context(), "/t/answer", request, &response); err != nil {
					b.Error(err)
				}
			}
			call()
			b.ReportAllocs()
			b.SetParallelism(32)
			before := processorTime(b)
			b.ResetTimer()
			calls := atomic.Int64{}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					call()
					calls.Add(1)
				}
			})
			b.ReportMetric(float64(processorTime(b)-before)/float64(calls.Load()), "cpu-ns/op")
		})
	}
}

// processorTime returns the processor's time of this process.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
