package keyclient_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// several are servers in memory at 127.0.0.1 to 127.0.0.3, which a test stops, kills and revives.
type several struct {
	t       *testing.T
	servers [3]*one
}

// one is one of several servers.
type one struct {
	listener atomic.Pointer[bufconn.Listener]
	server   *grpc.Server
	calls    atomic.Int64
	sessions atomic.Int64
	// resumed counts the sessions that asked to go on at a revision.
	resumed atomic.Int64
	// stopped is closed when a server that stands still goes on; nil while it runs.
	stopped atomic.Pointer[chan struct{}]
}

func newSeveral(t *testing.T) *several {
	s := &several{t: t}
	for index := range s.servers {
		s.servers[index] = &one{}
		s.start(index)
	}
	t.Cleanup(func() {
		for index := range s.servers {
			s.goOn(index)
			s.servers[index].server.Stop()
		}
	})
	return s
}

func (s *several) start(index int) {
	each := s.servers[index]
	listener := bufconn.Listen(1 << 20)
	each.server = grpc.NewServer(grpc.UnknownServiceHandler(each.handle))
	each.listener.Store(listener)
	go each.server.Serve(listener)
}

func (s *several) kill(index int) { s.servers[index].server.Stop() }

// stop makes a server say nothing, as one does that was stopped.
func (s *several) stop(index int) {
	still := make(chan struct{})
	s.servers[index].stopped.Store(&still)
}

func (s *several) goOn(index int) {
	if still := s.servers[index].stopped.Swap(nil); still != nil {
		close(*still)
	}
}

// wait waits while the server stands still.
func (o *one) wait(ctx context.Context) {
	if still := o.stopped.Load(); still != nil {
		select {
		case <-*still:
		case <-ctx.Done():
		}
	}
}

func (o *one) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if method == keysvcv1.SyncService_Sync_FullMethodName {
		return o.session(stream)
	}
	o.calls.Add(1)
	o.wait(stream.Context())
	if err := stream.Context().Err(); err != nil {
		return err
	}
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	return stream.SendMsg(&keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, ByDigest: true})
}

// session is a session without changes.
func (o *one) session(stream grpc.ServerStream) error {
	request := new(keysvcv1.SyncRequest)
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	o.wait(stream.Context())
	o.sessions.Add(1)
	reset := request.GetHello().GetRevision() == 0
	if !reset {
		o.resumed.Add(1)
	}
	if err := stream.SendMsg(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: &keysvcv1.SyncWelcome{
		Staleness: durationpb.New(time.Second), Epoch: "epoch", Revision: 7, Reset_: reset,
	}}}); err != nil {
		return err
	}
	for {
		request := new(keysvcv1.SyncRequest)
		if err := stream.RecvMsg(request); err != nil {
			return err
		}
		o.wait(stream.Context())
		if ping := request.GetPing(); ping != nil {
			if err := stream.SendMsg(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Pong{Pong: &keysvcv1.SyncPong{
				Nonce: ping.GetNonce(), Revision: 7,
			}}}); err != nil {
				return err
			}
		}
	}
}

func (s *several) client(config keyclient.Config) *keyclient.Client {
	config.DialOptions = append(config.DialOptions, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		var index int
		if _, err := fmt.Sscanf(address, "127.0.0.%d:7480", &index); err != nil {
			return nil, err
		}
		listener := s.servers[index-1].listener.Load()
		conn, err := listener.DialContext(ctx)
		if err != nil {
			return nil, status.Error(codes.Unavailable, "nobody listens")
		}
		return conn, nil
	}))
	client := newClient(s.t, "127.0.0.1, 127.0.0.2,127.0.0.3:7480", config)
	// All are connected: each is asked.
	for s.servers[0].calls.Load() == 0 || s.servers[1].calls.Load() == 0 || s.servers[2].calls.Load() == 0 {
		if _, err := client.Validations.ValidateKey(s.t.Context(), &keysvcv1.ValidateKeyRequest{}); err != nil {
			s.t.Fatal(err)
		}
		synctest.Wait()
	}
	return client
}

// ask asks so many questions one after another, and returns the longest time that one took.
func (s *several) ask(client *keyclient.Client, count int) (longest time.Duration) {
	s.t.Helper()
	for range count {
		begun := time.Now()
		if _, err := client.Validate(s.t.Context(), reading(newToken(s.t))); err != nil {
			s.t.Errorf("after %v: %v", time.Since(begun), err)
			break
		}
		longest = max(longest, time.Since(begun))
	}
	return longest
}

func TestCallsAreSpreadOverAList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t)
		client := s.client(keyclient.Config{WithoutNearCache: true})
		before := s.servers[1].calls.Load()
		s.ask(client, 300)
		if got := s.servers[1].calls.Load() - before; got != 100 {
			t.Errorf("%d of 300 calls", got)
		}
	})
}

func TestServerThatDiesIsLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t)
		client := s.client(keyclient.Config{WithoutNearCache: true})
		s.kill(1)
		if longest := s.ask(client, 300); longest > 30*time.Millisecond {
			t.Errorf("a call took %v", longest)
		}
		s.start(1)
		before := s.servers[1].calls.Load()
		time.Sleep(6 * time.Second) // of the bubble's time: the longest pause between two attempts to connect
		s.ask(client, 30)
		if s.servers[1].calls.Load() == before {
			t.Error("the server is back, and not asked")
		}
	})
}

// A server stands still for the time of many calls: the first one waits for a moment, later ones do not.
func TestServerThatStandsStillIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t)
		client := s.client(keyclient.Config{WithoutNearCache: true})
		s.stop(1)
		slow := 0
		for range 900 {
			took := s.ask(client, 1)
			if took > 250*time.Millisecond {
				t.Fatalf("a call took %v", took)
			}
			if took > 0 {
				slow++
			}
			time.Sleep(5 * time.Millisecond)
		}
		if slow == 0 || slow > 4 {
			t.Errorf("%d of 900 calls waited, want 1 and a few attempts later", slow)
		}
		s.goOn(1)
		synctest.Wait()
		time.Sleep(20 * time.Second)
		s.ask(client, 3)
		before := s.servers[1].calls.Load()
		s.ask(client, 300)
		if got := s.servers[1].calls.Load() - before; got != 100 {
			t.Errorf("the server goes on, and gets %d of 300 calls", got)
		}
	})
}

// While all servers are slow, as during an election in etcd, most calls are not sent twice, and no server is left.
func TestCallsAreNotDoubledForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t)
		client := s.client(keyclient.Config{WithoutNearCache: true, SeparateCalls: true})
		var before, after int64
		for _, each := range s.servers {
			before += each.calls.Load()
		}
		for index := range s.servers {
			s.stop(index)
		}
		ended := make(chan error)
		for range 1000 {
			go func() {
				_, err := client.Validate(t.Context(), reading(newToken(t)))
				ended <- err
			}()
		}
		time.Sleep(1500 * time.Millisecond)
		for index := range s.servers {
			s.goOn(index)
		}
		for range 1000 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		for _, each := range s.servers {
			after += each.calls.Load()
		}
		if got := after - before; got < 1000 || got > 1100 {
			t.Errorf("1,000 questions became %d calls", got)
		}
		if longest := s.ask(client, 300); longest > 0 {
			t.Errorf("a call took %v", longest)
		}
	})
}

// Sessions go on elsewhere, are not dropped, and do not all go to one server.
func TestSessionsMoveOn(t *testing.T) {
	for name, lose := range map[string]func(*several, int){"dies": (*several).kill, "stands still": (*several).stop} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSeveral(t)
				var resets atomic.Int64
				var clients []*keyclient.Client
				for range 45 {
					client := s.client(keyclient.Config{NearCacheHooks: keyclient.NearCacheHooks{Reset: func() { resets.Add(1) }}})
					s.ask(client, 1)
					clients = append(clients, client)
				}
				time.Sleep(2 * time.Second)
				first := resets.Load()
				if first != 45 {
					t.Fatalf("%d sessions", first)
				}
				begun := time.Now()
				lose(s, 1)
				lost := s.servers[1].sessions.Load()
				for s.servers[0].resumed.Load()+s.servers[2].resumed.Load() < lost {
					var asking sync.WaitGroup
					for _, client := range clients {
						asking.Go(func() { s.ask(client, 1) }) // services go on asking
					}
					asking.Wait()
					time.Sleep(10 * time.Millisecond)
					if time.Since(begun) > 4*time.Second {
						t.Fatalf("after %v only %d and %d of %d sessions have moved", time.Since(begun), s.servers[0].resumed.Load(), s.servers[2].resumed.Load(), lost)
					}
				}
				t.Logf("%d sessions moved within %v", lost, time.Since(begun))
				if lost < 3 || s.servers[0].resumed.Load() == lost || s.servers[2].resumed.Load() == lost {
					t.Errorf("of %d sessions %d and %d went to the others", lost, s.servers[0].resumed.Load(), s.servers[2].resumed.Load())
				}
				if got := resets.Load() - first; got != 0 {
					t.Errorf("%d sessions were reset", got)
				}
			})
		})
	}
}

func TestListsThatAreRefused(t *testing.T) {
	for target, want := range map[string]string{
		"127.0.0.1,unix:///s":         "not both",
		"127.0.0.1,":                  "no server",
		"127.0.0.1,xds:///b":          "no server",
		"127.0.0.1,keysvc.example.de": "another machine",
	} {
		_, err := keyclient.New(target, keyclient.Config{AllowPlaintext: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
}
