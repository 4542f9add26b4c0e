package bench

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// revokeClients validate every key while it is revoked, each this often.
const (
	revokeClients = 8
	revokePause   = time.Millisecond
	// staleness is S, the server's default.
	staleness = time.Second
)

// TestRevoke has eight near-caches validate a key while it is revoked, key after key, with
// the server in another process, and looks at the start of the last validation that was
// ALLOWED, minus the acknowledgement. It must not be more than S, and after AwaitRevision
// there must be none. With -measure it takes 10,000 keys and prints the distribution; the
// second part cuts, delays and drops the clients' connections.
func TestRevoke(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	keys := 30
	if *measure {
		keys = 10_000
	}
	t.Run("quiet", func(t *testing.T) { measureRevokes(t, keys, false) })
	t.Run("cut", func(t *testing.T) { measureRevokes(t, max(4, keys/20), true) })
}

func measureRevokes(t *testing.T, count int, cut bool) {
	far := startFar(t, "keysvc")
	control := dial(t, far.address)
	management, members, feed := keysvcv1.NewKeyServiceClient(control), keysvcv1.NewMemberServiceClient(control), keysvcv1.NewSyncServiceClient(control)
	var clients []*keyclient.Client
	address := far.address
	if cut {
		address = startProxy(t, far.address)
	}
	for range revokeClients {
		client, err := keyclient.New(address, keyclient.Config{AllowPlaintext: true, NearCache: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		clients = append(clients, client)
	}
	var lasts []time.Duration
	never, lapsed, hits := 0, int32(0), int64(0)
	for index := range count {
		workspace := fmt.Sprint("w", index/500)
		if index%500 == 0 {
			if _, err := members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
				WorkspaceId: workspace, MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
			}); err != nil {
				t.Fatal(err)
			}
		}
		made, err := management.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
			WorkspaceId: workspace, MemberId: "ann", Name: "k", Scopes: []string{"signatures:read"},
		})
		if err != nil {
			t.Fatal(err)
		}
		question := keyauth.Question{Token: made.GetToken(), Requirement: keyauth.Scope("signatures:read")}
		var allowed, after, awaited atomic.Int64 // Unix nanoseconds of starts
		var running sync.WaitGroup
		var warm sync.WaitGroup
		stop := make(chan struct{})
		for _, client := range clients {
			warm.Add(1)
			running.Go(func() {
				var once sync.Once
				defer once.Do(warm.Done)
				for {
					select {
					case <-stop:
						return
					default:
					}
					started := time.Now()
					answer, err := client.Validate(t.Context(), question)
					if err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED {
						later(&allowed, started)
						if end := awaited.Load(); end != 0 && started.UnixNano() > end {
							later(&after, started)
						}
					}
					if err == nil {
						once.Do(warm.Done)
					}
					time.Sleep(revokePause)
				}
			})
		}
		warm.Wait()
		time.Sleep(3 * revokePause) // so that memory answers
		revoked, err := management.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: made.GetKey().GetKeyId()})
		acknowledged := time.Now()
		if err != nil {
			t.Fatal(err)
		}
		waited, err := feed.AwaitRevision(t.Context(), &keysvcv1.AwaitRevisionRequest{Revision: revoked.GetRevision(), Epoch: revoked.GetEpoch()})
		if err != nil {
			t.Fatal(err)
		}
		awaited.Store(time.Now().UnixNano())
		lapsed += waited.GetLapsed()
		time.Sleep(5 * revokePause)
		close(stop)
		running.Wait()
		if after.Load() != 0 {
			t.Errorf("key %d: ALLOWED %s after AwaitRevision had returned", index, time.Duration(after.Load()-awaited.Load()))
		}
		last := time.Duration(allowed.Load() - acknowledged.UnixNano())
		if last > staleness {
			t.Errorf("key %d: ALLOWED %s after the acknowledgement", index, last)
		}
		if last <= 0 {
			never++
		}
		lasts = append(lasts, max(0, last))
	}
	for _, client := range clients {
		hits += client.NearCache().Hits
	}
	slices.Sort(lasts)
	at := func(share float64) time.Duration { return lasts[min(len(lasts)-1, int(share*float64(len(lasts))))] }
	t.Logf("%d keys, %d clients, %d hits: last ALLOWED after the acknowledgement: none for %d keys; p50 %s, p99 %s, p99.9 %s, max %s; %d leases lapsed",
		count, revokeClients, hits, never, at(0.5), at(0.99), at(0.999), lasts[len(lasts)-1], lapsed)
}

// later moves a time forward.
func later(kept *atomic.Int64, at time.Time) {
	for {
		before := kept.Load()
		if before >= at.UnixNano() || kept.CompareAndSwap(before, at.UnixNano()) {
			return
		}
	}
}

// startProxy passes connections on to a server: each for a random while, then it stalls
// for up to 1.5 s or is cut.
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
