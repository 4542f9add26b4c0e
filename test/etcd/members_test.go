package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/test/trio"
)

// patience bounds the waits of tests that break members. Only a test that hangs reaches it.
const patience = 2 * time.Minute

// replica is a store over three members that the test can break, with the wires that lead to them.
type replica struct {
	*etcdstore.Store
	*trio.Source

	t *testing.T
	// members are the members in the order in which the store knows them.
	members []*trio.Member
	// kvs are what sends requests to them.
	kvs []clientv3.KV
	// watched are the members that watches were opened at.
	watched chan *trio.Member
}

// withoutLeader hides from a store which member leads: it would ask that one first.
var withoutLeader = grpc.WithUnaryInterceptor(func(
	ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	err := invoke(ctx, method, request, reply, connection, options...)
	if said, is := reply.(*etcdserverpb.StatusResponse); is {
		said.Leader = 0
	}
	return err
})

// newReplica returns a store that asks a member first, whether it leads or not. Its wires have the name, which is used once. networks are on the way to
// all members.
func newReplica(t *testing.T, cluster *trio.Trio, name string, first *trio.Member, config etcdstore.Config, networks ...*network) *replica {
	t.Helper()
	source, err := cluster.Source(name)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Source: source, t: t, watched: make(chan *trio.Member, 1000)}
	for offset := range cluster.Members {
		member := cluster.Members[(first.Index+offset)%len(cluster.Members)]
		r.members = append(r.members, member)
		client := clientOf(t, source.To(member).Address(), withoutLeader)
		r.kvs = append(r.kvs, client.KV)
		for _, each := range networks {
			client.KV = &faultyKV{client.KV, each}
		}
		config.Members = append(config.Members, client)
	}
	config.Connect = func(index int) (*clientv3.Client, error) {
		r.watched <- r.members[index]
		return dial(source.To(r.members[index]).Address())
	}
	r.Store = open(t, config)
	return r
}

// position loads the store.
func (r *replica) position(ctx context.Context) storage.Barrier {
	r.t.Helper()
	position, err := r.Load(ctx, func(storage.Item) error { return nil })
	if err != nil {
		r.t.Fatalf("Load: %v", err)
	}
	return position.Barrier()
}

// newCluster returns a cluster that the test may break.
func newCluster(t *testing.T) (*trio.Trio, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return trio.New(t, trio.Config{Programs: &trio.Programs{Etcd: program}}), ctx
}

// counted counts what is sent to a member, and may refuse it.
type counted struct {
	clientv3.KV
	sent atomic.Int64
	err  atomic.Pointer[error]
}

// Txn implements clientv3.KV.
func (c *counted) Txn(ctx context.Context) clientv3.Txn {
	c.sent.Add(1)
	if err := c.err.Load(); err != nil {
		return refusing{*err}
	}
	return c.KV.Txn(ctx)
}

// refusing is a transaction that fails.
type refusing struct{ err error }

func (r refusing) If(...clientv3.Cmp) clientv3.Txn        { return r }
func (r refusing) Then(...clientv3.Op) clientv3.Txn       { return r }
func (r refusing) Else(...clientv3.Op) clientv3.Txn       { return r }
func (r refusing) Commit() (*clientv3.TxnResponse, error) { return nil, r.err }

// TestTheLeaderIsAskedOnce: as long as the leader of etcd answers in time, nothing is sent to the others, which would pass it on to the
// leader. An error goes on to the next member at once, and that one is asked first, until the leader says again that it leads.
func TestTheLeaderIsAskedOnce(t *testing.T) {
	t.Parallel()
	const reads = 50
	clients, counts := newClients(t), make([]*counted, 3)
	for index, client := range clients {
		counts[index] = &counted{KV: client.KV}
		client.KV = counts[index]
	}
	store := open(t, etcdstore.Config{Members: clients, Prefix: newPrefix(), Hedge: time.Hour})
	first := slices.IndexFunc(store.Status(t.Context()).Members, func(member storage.StoreMember) bool { return member.Leads })
	if first < 0 {
		t.Fatal("no member leads")
	}
	second, third := (first+1)%3, (first+2)%3
	// read reads, and expects all reads at one member, and few at those that fail: one, and one more each time that the members were
	// asked who leads.
	read := func(all int, failed ...int) {
		t.Helper()
		for _, count := range counts {
			count.sent.Store(0)
		}
		began := time.Now()
		for range reads {
			if _, err := store.Barrier(t.Context()); err != nil {
				t.Fatalf("Barrier: %v", err)
			}
		}
		most := 2 + int64(time.Since(began)/time.Second)
		for index, count := range counts {
			switch got := count.sent.Load(); {
			case index == all && got != reads, index != all && !slices.Contains(failed, index) && got != 0:
				t.Errorf("member %d got %d reads of %d", index, got, reads)
			case slices.Contains(failed, index) && got > most:
				t.Errorf("member %d, which fails, got %d reads, want %d at most", index, got, most)
			}
		}
	}
	read(first)
	counts[first].err.Store(&errLost)
	read(second, first)
	counts[second].err.Store(&errLost)
	read(third, second, first)
	counts[first].err.Store(nil)
	counts[first].sent.Store(0)
	eventually(t, patience, func() bool {
		_, err := store.Barrier(t.Context())
		return err == nil && counts[first].sent.Load() > 0
	}, func() string { return "the leader is not asked again" })
	read(first)
}

// TestStoppedMemberHoldsNoRead stops a member, which then keeps its connections and answers nothing.
func TestStoppedMemberHoldsNoRead(t *testing.T) {
	t.Parallel()
	cluster, ctx := newCluster(t)
	leader, err := cluster.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	follower, err := cluster.Follower(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, victim := range []struct {
		role   string
		member *trio.Member
	}{{"follower", follower}, {"leader", leader}} {
		r := newReplica(t, cluster, victim.role, victim.member, etcdstore.Config{})
		workspace := storagetest.NewWorkspace(victim.role)
		mustFollow(t, r, workspace, workspace.PutMember("member", "admin"))
		mustCommit(t, r, workspace.CreateKey(storagetest.KeyID(len(victim.role)), "request"))
		if err := victim.member.Stop(); err != nil {
			t.Fatal(err)
		}
		for what, read := range map[string]func() error{
			"Barrier": func() error { _, err := r.Barrier(ctx); return err },
			"GetKey":  func() error { _, _, err := r.GetKey(ctx, victim.role, storagetest.KeyID(len(victim.role))); return err },
			"ListMembers": func() error {
				_, err := r.ListMembers(ctx, storage.Query{WorkspaceID: victim.role, Limit: 10})
				return err
			},
			"Load": func() error { _, err := r.Load(ctx, func(storage.Item) error { return nil }); return err },
		} {
			longest := time.Duration(0)
			for range 10 {
				begun := time.Now()
				if err := read(); err != nil {
					t.Errorf("%s, with the %s stopped: %v", what, victim.role, err)
				}
				longest = max(longest, time.Since(begun))
			}
			// A member that holds reads does so until the timeout of 5 s; an election takes up to 2 s.
			if longest > 4*time.Second {
				t.Errorf("%s, with the %s stopped, took %s", what, victim.role, longest)
			}
			t.Logf("%s, with the %s stopped: %s at most", what, victim.role, longest)
		}
		if err := victim.member.Continue(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOnlySilentMembersAreLeft: a commit waits for a member that is slow to make changes as long as it answers reads,
// because all others would be as slow.
func TestOnlySilentMembersAreLeft(t *testing.T) {
	t.Parallel()
	var n network
	clients := n.clients(t)
	compared := &counted{KV: clients[1].KV}
	clients[1].KV = compared
	store := open(t, etcdstore.Config{Members: clients, Prefix: newPrefix(), Attempt: patience, Timeout: patience})
	n.next(func(s *sent) (*clientv3.TxnResponse, error) {
		// The first member has been compared with the others several times before it makes the change.
		for compared.sent.Load() < 3 {
			if s.ctx.Err() != nil {
				return nil, s.ctx.Err()
			}
			time.Sleep(time.Millisecond)
		}
		return s.deliver()
	})
	workspace := storagetest.NewWorkspace("w")
	if _, err := store.Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// TestNothingReadIsAnOutage: members that answer, and have lost each other, make no store.
func TestNothingReadIsAnOutage(t *testing.T) {
	t.Parallel()
	clients, counts := newClients(t), make([]*counted, 3)
	for index, client := range clients {
		counts[index] = &counted{KV: client.KV}
		client.KV = counts[index]
	}
	store := open(t, etcdstore.Config{Members: clients, Prefix: newPrefix()})
	await := func(down bool) {
		t.Helper()
		eventually(t, patience, func() bool { return store.Status(t.Context()).Down == down }, func() string { return fmt.Sprintf("Down is %t", !down) })
	}
	await(false)
	for _, count := range counts {
		count.err.Store(&errLost)
	}
	await(true)
	for _, member := range store.Status(t.Context()).Members {
		if member.Silent {
			t.Errorf("%s counts as silent, and answers", member.Address)
		}
	}
	for _, count := range counts {
		count.err.Store(nil)
	}
	await(false)
}

// TestCommitGoesOnAtAnotherMemberAndHappensOnce stops the member that a commit is sent to, again and again. The lost
// transactions arrive when the member continues.
func TestCommitGoesOnAtAnotherMemberAndHappensOnce(t *testing.T) {
	t.Parallel()
	cluster, ctx := newCluster(t)
	observer := newReplica(t, cluster, "observer", cluster.Members[0], etcdstore.Config{})
	workspace, model := storagetest.NewWorkspace("w"), storagetest.NewModel()
	first := workspace.PutMember("member", "admin")
	model.Apply(first, mustCommit(t, observer, first))
	workspace.Follow(first)
	for round := range 4 {
		leader, err := cluster.Leader(ctx)
		if err != nil {
			t.Fatal(err)
		}
		victim := leader
		if round%2 == 0 {
			if victim, err = cluster.Follower(ctx); err != nil {
				t.Fatal(err)
			}
		}
		config := etcdstore.Config{Timeout: 20 * time.Second}
		if victim != leader {
			// Attempts would last longer than the test may: that the member is silent ends them. Without a leader, no member
			// answers, and attempts end by themselves.
			config.Timeout, config.Attempt = 2*patience, 2*patience
		}
		var n network
		r := newReplica(t, cluster, fmt.Sprint("r", round), victim, config, &n)
		create := workspace.CreateKey(storagetest.KeyID(round), fmt.Sprint("request ", round))
		var begun time.Time
		conflicts := 0
		n.set(func(s *sent) (*clientv3.TxnResponse, error) {
			if s.kv != r.kvs[0] {
				return nil, rpctypes.ErrTooManyRequests // the transaction is to be lost at the victim
			}
			n.set(nil)
			if err := victim.Stop(); err != nil {
				return nil, err
			}
			begun = time.Now()
			return s.kv.Txn(s.ctx).If(s.cmps...).Then(s.then...).Else(s.other...).Commit()
		})
		for {
			revision, err := r.Commit(ctx, create)
			if err == nil {
				model.Apply(create, revision)
				workspace.Follow(create)
				break
			}
			// The manager does this: it follows the fence, and makes the change anew.
			if !errors.Is(err, storage.ErrConflict) {
				t.Fatalf("Commit: %v, want a conflict with the fence", err)
			}
			conflicts++
			workspace.Head = headOf(ctx, t, r, "w")
			create = workspace.CreateKey(storagetest.KeyID(round), fmt.Sprint("request ", round))
		}
		t.Logf("with %s stopped (leader %t): %d conflicts, %s", victim.Name(), victim == leader, conflicts, time.Since(begun))
		// Without a conflict the answer alone was lost: a signal takes a moment to stop a process.
		if begun.IsZero() {
			t.Error("nothing was sent to the member that stands still")
		}
		if err := victim.Continue(); err != nil {
			t.Fatal(err)
		}
		if err := victim.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	model.Compare(t, observer)
	report, err := etcdstore.Check(ctx, etcdstore.Config{Members: []*clientv3.Client{clientOf(t, observer.Endpoints()[0])}})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("Check: %v, %v", report.Problems, err)
	}
	// Every event is of a change that was acknowledged.
	page, err := observer.ListAuditEvents(ctx, storage.Query{WorkspaceID: "w", Limit: 100})
	if err != nil || len(page.Events) != 5 {
		t.Errorf("%d events, %v, want 5", len(page.Events), err)
	}
}

// headOf returns a workspace's head.
func headOf(ctx context.Context, t *testing.T, store storage.Store, workspaceID string) storage.Head {
	t.Helper()
	var head storage.Head
	_, err := store.Load(ctx, func(item storage.Item) error {
		if item.Head != nil && item.Head.WorkspaceID == workspaceID {
			head = item.Head.Head
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return head
}

// TestOlderDataIsErrHistoryChanged puts an older copy of the cluster's data back under a replica that is cut off. A
// key was revoked since the copy. The replica must not go on, however many changes were made on the older data meanwhile:
// none, just as many, or more.
func TestOlderDataIsErrHistoryChanged(t *testing.T) {
	t.Parallel()
	cluster, ctx := newCluster(t)
	for _, more := range []int{-1, 0, 1, 5} {
		t.Run(fmt.Sprint(more), func(t *testing.T) {
			config := etcdstore.Config{Prefix: fmt.Sprintf("/older%d/", more), Timeout: 20 * time.Second}
			r := newReplica(t, cluster, fmt.Sprint("cut", more), cluster.Members[0], config)
			other := newReplica(t, cluster, fmt.Sprint("other", more), cluster.Members[1], config)
			workspace := storagetest.NewWorkspace("w")
			watch := r.follow(ctx, r.position(ctx))
			do := func(change *storage.Change) int64 {
				t.Helper()
				return mustFollow(t, other, workspace, change)
			}
			do(workspace.PutMember("member", "admin"))
			create := workspace.CreateKey(storagetest.KeyID(1))
			before := do(create)
			then := *workspace
			copies := filepath.Join(t.TempDir(), "copies")
			if err := cluster.CopyData(copies); err != nil {
				t.Fatal(err)
			}
			applied := do(workspace.RevokeKey(create.PutKeys[0]))
			watch.until(ctx, t, applied)
			r.Wires.Cut()
			if err := cluster.PutData(ctx, copies); err != nil {
				t.Fatal(err)
			}
			// The other replica was started anew.
			other = newReplica(t, cluster, fmt.Sprint("anew", more), cluster.Members[1], config)
			workspace = &then
			for newest := before; newest < applied+int64(more); {
				if newest = do(workspace.PutMember("member", fmt.Sprint("role ", newest))); newest > applied+int64(more) {
					t.Fatalf("revision %d, want %d", newest, applied+int64(more))
				}
			}
			r.Wires.Mend()
			select {
			case err := <-watch.err:
				if !errors.Is(err, storage.ErrHistoryChanged) {
					t.Errorf("Watch: %v, want ErrHistoryChanged", err)
				}
			case change := <-watch.changes:
				t.Errorf("Watch went on with %+v", change)
			case <-ctx.Done():
				t.Error("Watch stays silent")
			}
		})
	}
}
