package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// clientsVariable makes TestProcessClients validate, at the address in it.
const clientsVariable = "KEYSVC_BENCH_CLIENTS"

const (
	// clientCount near-caches validate every key while it is revoked, each of them once per
	// validatePause.
	clientCount   = 8
	validatePause = time.Millisecond
	// warmTimeout bounds the wait for the clients' first ALLOWED.
	warmTimeout = 5 * time.Second
	// staleness is S, the server's default.
	staleness = time.Second
)

// TestProcessClients is eight services of TestRevokeEndsAnswersWithinS, in their own process.
// For the line "validate TOKEN" they begin to validate, and write "warm" once each was answered
// ALLOWED. For "stop" they end, and write when the last validation began that was ALLOWED, and
// how many answers came from memory so far.
func TestProcessClients(t *testing.T) {
	address := os.Getenv(clientsVariable)
	if address == "" {
		t.Skip("only for TestRevokeEndsAnswersWithinS")
	}
	clients := make([]*keyclient.Client, clientCount)
	for index := range clients {
		client, err := keyclient.New(address, keyclient.Config{AllowPlaintext: true})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		clients[index] = client
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		token, found := strings.CutPrefix(lines.Text(), "validate ")
		if !found {
			t.Fatalf("read %q", lines.Text())
		}
		var last atomic.Int64
		ctx, stop := context.WithCancel(t.Context())
		warm := make(chan struct{}, clientCount)
		var running sync.WaitGroup
		for _, client := range clients {
			running.Go(func() { validate(ctx, client, token, &last, warm) })
		}
		timer := time.After(warmTimeout)
	warming:
		for range clientCount {
			select {
			case <-warm:
			case <-timer:
				break warming
			}
		}
		fmt.Println("warm ")
		lines.Scan()
		stop()
		running.Wait()
		hits := int64(0)
		for _, client := range clients {
			hits += client.NearCache().Hits
		}
		fmt.Println("last", last.Load(), hits)
	}
}

// validate validates a token until the context ends. last is set to the start of the last
// validation that was answered ALLOWED, in Unix nanoseconds.
func validate(ctx context.Context, client *keyclient.Client, token string, last *atomic.Int64, warm chan<- struct{}) {
	question := keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")}
	for first := true; ctx.Err() == nil; time.Sleep(validatePause) {
		started := time.Now().UnixNano()
		answer, err := client.Validate(ctx, question)
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			continue
		}
		for before := last.Load(); before < started && !last.CompareAndSwap(before, started); before = last.Load() {
		}
		if first {
			first = false
			warm <- struct{}{}
		}
	}
}

// TestRevokeEndsAnswersWithinS lets eight near-caches in one process validate a key while it is
// revoked, key after key, in a server in another process. It takes the start of the last
// validation that was ALLOWED, minus the acknowledgement of the revoke. That must not be more
// than S, and after AwaitRevision there must be none. With -measure it takes 10,000 keys and
// prints the distribution.
func TestRevokeEndsAnswersWithinS(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	keys := 30
	if *measure {
		keys = 10_000
	}
	t.Run("quiet", func(t *testing.T) {
		server := startServer(t, realServer)
		measureRevokes(t, keys, server.address, server.address, nil)
	})
	// The clients' connections are delayed, cut and made again, so that messages overtake each
	// other.
	t.Run("network", func(t *testing.T) {
		server := startServer(t, realServer)
		measureRevokes(t, max(4, keys/20), server.address, startProxy(t, server.address), nil)
	})
	// The server is killed and started again, and each of the processes is stopped for a while.
	t.Run("processes", func(t *testing.T) {
		server := &restarted{file: filepath.Join(t.TempDir(), "keysvc.db")}
		server.start(t)
		t.Cleanup(func() { server.process.end(t) })
		address := server.process.address
		measureRevokes(t, max(4, keys/20), address, address, server.disturb)
	})
}

// restarted is a server that is killed from time to time.
type restarted struct {
	file    string
	process *worker
}

func (r *restarted) start(t *testing.T) {
	t.Helper()
	environment := []string{serverVariable + "=" + realServer, fileVariable + "=" + r.file}
	if r.process != nil {
		environment = append(environment, addressVariable+"="+r.process.address)
	}
	r.process = startProcess(t, "TestProcessServer", environment...)
	r.process.address = r.process.line(t, "address")
}

// disturb kills and stops processes until the context ends.
func (r *restarted) disturb(ctx context.Context, t *testing.T, clients *worker) {
	t.Helper()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(500 * time.Millisecond)):
		}
		switch stopped := r.process; rand.IntN(3) {
		case 0:
			if err := stopped.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = stopped.Wait() // the error is that it was killed
			r.start(t)
		case 1:
			stopped = clients
			fallthrough
		default:
			for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
				if err := stopped.Process.Signal(signal); err != nil {
					t.Error(err)
				}
				if signal == syscall.SIGSTOP {
					time.Sleep(rand.N(1500 * time.Millisecond))
				}
			}
		}
	}
}

// measureRevokes revokes keys. Clients connect to their own address. If disturb is not nil, it
// runs meanwhile.
func measureRevokes(t *testing.T, count int, address, clientAddress string, disturb func(context.Context, *testing.T, *worker)) {
	t.Helper()
	control := dial(t, address)
	management, members, feed := keysvcv1.NewKeyServiceClient(control), keysvcv1.NewMemberServiceClient(control), keysvcv1.NewSyncServiceClient(control)
	clients := startProcess(t, "TestProcessClients", clientsVariable+"="+clientAddress)
	defer clients.end(t)
	if disturb != nil {
		ctx, cancel := context.WithCancel(t.Context())
		var disturbing sync.WaitGroup
		disturbing.Go(func() { disturb(ctx, t, clients) })
		defer disturbing.Wait()
		defer cancel()
	}
	var lasts []time.Duration
	var lapsed int32
	never, hits := 0, int64(0)
	for index := range count {
		workspace := fmt.Sprint("w", index/500)
		if index%500 == 0 {
			persist(t, func(ctx context.Context) error {
				_, err := members.PutMember(ctx, &keysvcv1.PutMemberRequest{
					WorkspaceId: workspace, MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				})
				return err
			})
		}
		var made *keysvcv1.CreateKeyResponse
		persist(t, func(ctx context.Context) (err error) {
			made, err = management.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
				WorkspaceId: workspace, MemberId: "ann", Name: "k", Scopes: []string{"signatures:read"},
			})
			return err
		})
		clients.write(t, "validate "+made.GetToken())
		clients.line(t, "warm")
		time.Sleep(3 * validatePause) // so that memory answers
		var revoked *keysvcv1.RevokeKeyResponse
		persist(t, func(ctx context.Context) (err error) {
			revoked, err = management.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: made.GetKey().GetKeyId()})
			return err
		})
		acknowledged := time.Now().UnixNano()
		persist(t, func(ctx context.Context) error {
			waited, err := feed.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: revoked.GetRevision(), Epoch: revoked.GetEpoch()})
			lapsed += waited.GetLapsed()
			return err
		})
		awaited := time.Now().UnixNano()
		time.Sleep(5 * validatePause)
		clients.write(t, "stop")
		var allowed int64
		fmt.Sscan(clients.line(t, "last"), &allowed, &hits)
		if allowed > awaited {
			t.Errorf("key %d: ALLOWED %s after AwaitRevision had returned", index, time.Duration(allowed-awaited))
		}
		last := time.Duration(allowed - acknowledged)
		if last > staleness {
			t.Errorf("key %d: ALLOWED %s after the acknowledgement", index, last)
		}
		if last <= 0 {
			never++
		}
		lasts = append(lasts, max(0, last))
	}
	slices.Sort(lasts)
	at := func(share float64) time.Duration { return lasts[min(len(lasts)-1, int(share*float64(len(lasts))))] }
	t.Logf("%d keys, %d clients, %d hits: last ALLOWED after the acknowledgement: none for %d keys; p50 %s, p99 %s, p99.9 %s, max %s; %d leases lapsed",
		count, clientCount, hits, never, at(0.5), at(0.99), at(0.999), lasts[len(lasts)-1], lapsed)
}

// persist makes a call until a server answers it. The changes that are made so may be repeated.
func persist(t *testing.T, call func(ctx context.Context) error) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := call(ctx)
		cancel()
		if err == nil {
			return
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// startProxy passes connections on to a server. After a random time, a connection stalls for up
// to 1.5 s or is cut.
func startProxy(t *testing.T, to string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var passing sync.WaitGroup
	var open sync.Map
	passing.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			for _, each := range []net.Conn{client, server} {
				open.Store(each, nil)
			}
			cut := func() { client.Close(); server.Close(); open.Delete(client); open.Delete(server) }
			ends := time.Now().Add(time.Duration(rand.IntN(3000)) * time.Millisecond)
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				passing.Go(func() {
					defer cut()
					buffer := make([]byte, 16<<10)
					for {
						pair[0].SetReadDeadline(ends)
						read, err := pair[0].Read(buffer)
						if read > 0 && rand.IntN(200) == 0 {
							time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond) // a stall
						}
						if _, writeErr := pair[1].Write(buffer[:read]); err != nil || writeErr != nil {
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		listener.Close()
		open.Range(func(each, _ any) bool { each.(io.Closer).Close(); return true })
		passing.Wait()
	})
	return listener.Addr().String()
}
