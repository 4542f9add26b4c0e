package etcd_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	keysvc "github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/test/trio"
)

// lagging are the clients of a store whose watch goes over wires of its own, so that a test can hold back the
// watch and nothing else.
type lagging struct {
	*trio.Source
	// asked gets a value once the store was read.
	asked  chan struct{}
	config etcdstore.Config
}

var laggings atomic.Int64

// newLagging returns the configuration of such a store. A held watch is not opened elsewhere during the test.
func newLagging(t *testing.T, prefix string) *lagging {
	t.Helper()
	source, err := cluster.Source("lag" + string('a'+rune(laggings.Add(1))))
	if err != nil {
		t.Fatal(err)
	}
	l := &lagging{Source: source, asked: make(chan struct{}, 1)}
	l.config = etcdstore.Config{
		Members: newClients(t), Prefix: prefix, Stuck: time.Minute, UsageGranularity: -1,
		Connect: func(member int) (*clientv3.Client, error) { return dial(source.Wires[member].Address()) },
	}
	for _, client := range l.config.Members {
		client.KV = &askedKV{client.KV, l.asked}
	}
	return l
}

// isAsked returns once the store was read.
func (l *lagging) isAsked(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-l.asked:
	case <-ctx.Done():
		t.Fatal("the store is not read")
	}
}

// askedKV tells of each transaction that was answered, and so of each read.
type askedKV struct {
	clientv3.KV
	asked chan<- struct{}
}

// Txn implements clientv3.KV.
func (kv *askedKV) Txn(ctx context.Context) clientv3.Txn {
	return &askedTxn{kv.KV.Txn(ctx), kv.asked}
}

type askedTxn struct {
	clientv3.Txn
	asked chan<- struct{}
}

// If implements clientv3.Txn.
func (txn *askedTxn) If(compares ...clientv3.Cmp) clientv3.Txn {
	return &askedTxn{txn.Txn.If(compares...), txn.asked}
}

// Then implements clientv3.Txn.
func (txn *askedTxn) Then(parts ...clientv3.Op) clientv3.Txn {
	return &askedTxn{txn.Txn.Then(parts...), txn.asked}
}

// Else implements clientv3.Txn.
func (txn *askedTxn) Else(parts ...clientv3.Op) clientv3.Txn {
	return &askedTxn{txn.Txn.Else(parts...), txn.asked}
}

// Commit implements clientv3.Txn.
func (txn *askedTxn) Commit() (*clientv3.TxnResponse, error) {
	response, err := txn.Txn.Commit()
	select {
	case txn.asked <- struct{}{}:
	default:
	}
	return response, err
}

// startReplica starts a server over a store, with everything that wraps the store, and returns a connection to it.
func startReplica(t *testing.T, store *etcdstore.Store) *grpc.ClientConn {
	t.Helper()
	settings := config.Defaults()
	settings.Store, settings.DrainTimeout = config.EtcdStore, time.Second
	settings.TraceEndpoint, settings.TraceOneIn = "http://127.0.0.1:1", 1_000_000_000
	running, err := keysvc.New(t.Context(), keysvc.Config{Store: store, Settings: settings, Policy: policy.Default()})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- running.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		running.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func mustPutMember(ctx context.Context, t *testing.T, conn *grpc.ClientConn, memberID, role string) *keysvcv1.PutMemberResponse {
	t.Helper()
	response, err := keysvcv1.NewMemberServiceClient(conn).PutMember(ctx, put(memberID, role))
	if err != nil {
		t.Fatalf("PutMember: %v", err)
	}
	return response
}

// TestServerExcludesLostTransactions is TestNothingToChangeExcludesLostTransactions with two whole servers: what wraps the
// store of a server must not keep it from raising the fence (R5 of docs/replication.md).
func TestServerExcludesLostTransactions(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := newShaky(t, shortTimeout)
	first := startReplica(t, s.Store)
	second := startReplica(t, open(t, etcdstore.Config{Members: newClients(t), Prefix: s.prefix}))
	mustPutMember(ctx, t, second, "ann", "member")
	// The first server loses a transaction, and whatever it sends afterwards.
	late := make(chan *sent, 1)
	s.set(func(sent *sent) (*clientv3.TxnResponse, error) {
		select {
		case late <- sent:
		default:
		}
		return lose()
	})
	defer s.set(nil)
	if _, err := keysvcv1.NewMemberServiceClient(first).PutMember(ctx, put("ann", "owner")); status.Code(err) != codes.Unknown {
		t.Fatalf("PutMember through the first server: %v, want UNKNOWN", err)
	}
	mustPutMember(ctx, t, second, "ann", "member") // which ann is
	if response, err := (<-late).deliver(); err != nil || response.Succeeded {
		t.Errorf("the late transaction: %+v, %v", response, err)
	}
}

// hello opens a stream of a near-cache and sends its first message.
func hello(ctx context.Context, t *testing.T, conn *grpc.ClientConn, message *keysvcv1.SyncHello) keysvcv1.SyncService_SyncClient {
	t.Helper()
	stream, err := keysvcv1.NewSyncServiceClient(conn).Sync(ctx)
	if err == nil {
		err = stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: message}})
	}
	if err != nil {
		t.Fatalf("Sync: %v", err)
	}
	return stream
}

// welcomed returns the answer to hello.
func welcomed(t *testing.T, stream keysvcv1.SyncService_SyncClient) *keysvcv1.SyncWelcome {
	t.Helper()
	response, err := stream.Recv()
	if err != nil || response.GetWelcome() == nil {
		t.Fatalf("no welcome: %v, %v", response, err)
	}
	return response.GetWelcome()
}

// resuming returns the message with which a near-cache goes on that has seen nothing since its welcome.
func resuming(welcome *keysvcv1.SyncWelcome) *keysvcv1.SyncHello {
	return &keysvcv1.SyncHello{
		Epoch: welcome.GetEpoch(), Revision: welcome.GetRevision(), AuditHash: welcome.GetAuditHash(),
		HashRevision: welcome.GetHashRevision(), VisibleWorkspaces: welcome.GetVisibleWorkspaces(),
	}
}

// TestOutageRenewsSessions breaks the watch of a server. When it is open again, the sessions end
// before they are sent another change, and resume without a reset (S8 of docs/coherence.md).
func TestOutageRenewsSessions(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lag := newLagging(t, newPrefix())
	conn := startReplica(t, open(t, lag.config))
	other := startReplica(t, open(t, etcdstore.Config{Members: newClients(t), Prefix: lag.config.Prefix}))
	at := mustPutMember(ctx, t, conn, "ann", "member").GetRevision()
	stream := hello(ctx, t, conn, &keysvcv1.SyncHello{})
	welcome := welcomed(t, stream)
	if welcome.GetRevision() < at {
		t.Fatalf("the session begins at revision %d, before %d", welcome.GetRevision(), at)
	}
	lag.Wires.Cut()
	changed := mustPutMember(ctx, t, other, "ann", "owner").GetRevision()
	lag.Wires.Mend()
	for {
		response, err := stream.Recv()
		if err != nil {
			t.Fatalf("the session ended without Goodbye: %v", err)
		}
		if response.GetEvents().GetRevision() >= changed {
			t.Fatalf("before Goodbye came %v", response)
		}
		if response.GetGoodbye() != nil {
			break
		}
	}
	resumed := hello(ctx, t, conn, resuming(welcome))
	if again := welcomed(t, resumed); again.GetReset_() {
		t.Errorf("the session was reset: %v", again)
	}
	for {
		response, err := resumed.Recv()
		if err != nil {
			t.Fatalf("the change does not come: %v", err)
		}
		if response.GetEvents().GetRevision() >= changed {
			return
		}
	}
}

// TestSessionAtAReplicaThatLagsIsWaitedFor: a near-cache comes to a server whose watch has not yet brought what the near-cache knows
// from another server. It is not reset (R10 of docs/replication.md).
func TestSessionAtAReplicaThatLagsIsWaitedFor(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lag := newLagging(t, newPrefix())
	behind := startReplica(t, open(t, lag.config))
	other := startReplica(t, open(t, etcdstore.Config{Members: newClients(t), Prefix: lag.config.Prefix}))
	mustPutMember(ctx, t, behind, "ann", "member")
	lag.Wires.Hold()
	changed := mustPutMember(ctx, t, other, "ann", "owner").GetRevision()
	welcome := welcomed(t, hello(ctx, t, other, &keysvcv1.SyncHello{}))
	if welcome.GetRevision() < changed {
		t.Fatalf("the session began at revision %d, before %d", welcome.GetRevision(), changed)
	}
	select {
	case <-lag.asked: // by something before
	default:
	}
	stream := hello(ctx, t, behind, resuming(welcome))
	lag.isAsked(ctx, t)
	lag.Wires.Mend()
	if again := welcomed(t, stream); again.GetReset_() || again.GetRevision() < welcome.GetRevision() {
		t.Errorf("after revision %d the session was reset, or went back: %v", welcome.GetRevision(), again)
	}
}

// TestPageTokensAndRequestsHoldAtAReplicaThatLags lists through one server and goes on through another, whose watch has
// not brought what the first page reflects, such as a member who was suspended since. A request that the first one has answered is known there as well.
func TestPageTokensAndRequestsHoldAtAReplicaThatLags(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lag := newLagging(t, newPrefix())
	behind := startReplica(t, open(t, lag.config))
	first := startReplica(t, open(t, etcdstore.Config{Members: newClients(t), Prefix: lag.config.Prefix}))
	create := func(conn *grpc.ClientConn, memberID, requestID string) (string, error) {
		response, err := keysvcv1.NewKeyServiceClient(conn).CreateKey(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: memberID, Name: requestID, Scopes: []string{"signatures:read"}, RequestId: &requestID,
		})
		return response.GetKey().GetKeyId(), err
	}
	// What is listed has the states of keys and members, which a server knows by its watch.
	lists := map[string]func(ctx context.Context, conn *grpc.ClientConn, size int32, token string) (listed []string, next string, err error){
		"ListKeys": func(ctx context.Context, conn *grpc.ClientConn, size int32, token string) (listed []string, _ string, _ error) {
			page, err := keysvcv1.NewKeyServiceClient(conn).ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: size, PageToken: token})
			for _, key := range page.GetKeys() {
				listed = append(listed, fmt.Sprint(key.GetKeyId(), " ", key.GetMemberId(), " ", key.GetState()))
			}
			return listed, page.GetNextPageToken(), err
		},
		"ListMembers": func(ctx context.Context, conn *grpc.ClientConn, size int32, token string) (listed []string, _ string, _ error) {
			page, err := keysvcv1.NewMemberServiceClient(conn).ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: "acme", PageSize: size, PageToken: token})
			for _, member := range page.GetMembers() {
				listed = append(listed, fmt.Sprint(member.GetMemberId(), " ", member.GetRole(), " ", member.GetState()))
			}
			return listed, page.GetNextPageToken(), err
		},
		"ListAuditEvents": func(ctx context.Context, conn *grpc.ClientConn, size int32, token string) (listed []string, _ string, _ error) {
			page, err := keysvcv1.NewAuditServiceClient(conn).ListAuditEvents(ctx, &keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", PageSize: size, PageToken: token})
			for _, event := range page.GetEvents() {
				listed = append(listed, event.GetRequestId()+event.GetKeyId()+event.GetMemberId())
			}
			return listed, page.GetNextPageToken(), err
		},
	}
	for _, memberID := range []string{"ann", "bob", "cid"} {
		mustPutMember(ctx, t, first, memberID, "owner")
	}
	for _, requestID := range []string{"one", "two"} {
		if _, err := create(first, "cid", requestID); err != nil {
			t.Fatal(err)
		}
	}
	states := 0
	for name, list := range lists {
		lag.Wires.Hold()
		made, err := create(first, "ann", name)
		if err != nil {
			t.Fatal(err)
		}
		mustPutMember(ctx, t, first, name, "member")
		// The member of the keys on the second page is suspended, or no longer is.
		changed := put("cid", "owner")
		if states++; states%2 > 0 {
			changed.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		}
		if _, err := keysvcv1.NewMemberServiceClient(first).PutMember(ctx, changed); err != nil {
			t.Fatal(err)
		}
		whole, _, err := list(ctx, first, 100, "")
		if err != nil {
			t.Fatal(err)
		}
		page, token, err := list(ctx, first, 2, "")
		if err != nil || token == "" {
			t.Fatalf("%s: %q, %v", name, token, err)
		}
		short, end := context.WithTimeout(ctx, 300*time.Millisecond)
		if listed, _, err := list(short, behind, 100, token); err == nil {
			t.Errorf("%s: the server that lags answers %q", name, listed)
		}
		end()
		type answer struct {
			listed []string
			err    error
		}
		rest, repeated := make(chan answer, 1), make(chan error, 1)
		for _, call := range []func(){
			func() {
				listed, _, err := list(ctx, behind, 100, token)
				rest <- answer{listed, err}
			},
			func() {
				_, err := create(behind, "ann", name)
				repeated <- err
			},
		} {
			select {
			case <-lag.asked: // by something before
			default:
			}
			go call()
			lag.isAsked(ctx, t)
		}
		lag.Wires.Mend()
		got := <-rest
		if got.err != nil || !slices.Equal(slices.Concat(page, got.listed), whole) {
			t.Errorf("%s: through the first server %q, then through the other one %q, %v; want %q", name, page, got.listed, got.err, whole)
		}
		if err := <-repeated; status.Code(err) != codes.AlreadyExists || !strings.Contains(fmt.Sprint(status.Convert(err).Details()), made) {
			t.Errorf("the request again, through the other server: %v, want ALREADY_EXISTS with %s", err, made)
		}
	}
}
