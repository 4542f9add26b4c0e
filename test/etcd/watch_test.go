package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/test/trio"
)

// following is a watch in a goroutine, which ends with the test.
type following struct {
	changes chan *storage.Committed
	err     chan error
}

// follow watches a store.
func (r *replica) follow(ctx context.Context, after storage.Barrier) *following {
	f := &following{changes: make(chan *storage.Committed, 1000), err: make(chan error, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		for change, err := range r.Watch(ctx, after) {
			if err != nil {
				f.err <- err
				return
			}
			f.changes <- change
		}
	})
	r.t.Cleanup(func() { cancel(); running.Wait() })
	return f
}

// until returns once the watch has yielded a revision.
func (f *following) until(ctx context.Context, t *testing.T, revision int64) *storage.Committed {
	t.Helper()
	for {
		select {
		case change := <-f.changes:
			if change.Revision >= revision {
				return change
			}
		case err := <-f.err:
			t.Fatalf("Watch: %v", err)
		case <-ctx.Done():
			t.Fatalf("Watch has not come to revision %d", revision)
		}
	}
}

// TestStuckWatchIsOpenedElsewhere stops the member that is watched, and then only the connection of the watch. The first does
// not wait until the watch counts as stuck.
func TestStuckWatchIsOpenedElsewhere(t *testing.T) {
	t.Parallel()
	cluster, ctx := newCluster(t)
	victim, err := cluster.Follower(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := newReplica(t, cluster, "a", victim, etcdstore.Config{Stuck: time.Hour})
	workspace := storagetest.NewWorkspace("w")
	watch := r.follow(ctx, r.position(ctx))
	watch.until(ctx, t, mustFollow(t, r, workspace, workspace.PutMember("member", "admin")))
	if first := <-r.watched; first != victim {
		t.Fatalf("%s is watched, want %s", first.Name(), victim.Name())
	}
	if err := victim.Stop(); err != nil {
		t.Fatal(err)
	}
	other := newReplica(t, cluster, "b", cluster.Members[(victim.Index+1)%3], etcdstore.Config{})
	revision := mustCommit(t, other, workspace.CreateKey(storagetest.KeyID(1)))
	begun := time.Now()
	barrier, err := r.Barrier(ctx)
	if err != nil || barrier.Revision != revision {
		t.Fatalf("Barrier: %+v, %v, want revision %d", barrier, err, revision)
	}
	watch.until(ctx, t, revision)
	t.Logf("the watch came to the barrier in %s", time.Since(begun))
	if second := <-r.watched; second == victim {
		t.Errorf("%s is watched again", victim.Name())
	}
	if err := victim.Continue(); err != nil {
		t.Fatal(err)
	}

	hung, err := cluster.Source("hung")
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan int, 1000)
	clients, err := r.Clients()
	if err != nil {
		t.Fatal(err)
	}
	store := open(t, etcdstore.Config{Members: clients, Connect: func(index int) (*clientv3.Client, error) {
		opened <- index
		return dial(hung.To(cluster.Members[index]).Address())
	}})
	alone := &replica{Store: store, t: t}
	watch = alone.follow(ctx, alone.position(ctx))
	workspace.Head = headOf(ctx, t, other, "w")
	watch.until(ctx, t, mustFollow(t, other, workspace, workspace.PutMember("member", "member")))
	first := <-opened
	hung.To(cluster.Members[first]).Hold()
	revision = mustCommit(t, other, workspace.PutMember("member", "admin"))
	if barrier, err := alone.Barrier(ctx); err != nil || barrier.Revision != revision {
		t.Fatalf("Barrier: %+v, %v, want revision %d", barrier, err, revision)
	}
	watch.until(ctx, t, revision)
	if second := <-opened; second == first {
		t.Errorf("member %d is watched again", second)
	}
}

// TestWatchGoesOnAfterAnOutage: a watch stays open at a member that has lost the others, and one that breaks off meanwhile is opened
// again before the outage ends. If etcd compacts while a watch is broken off and nothing changes, the watch goes on as well.
func TestWatchGoesOnAfterAnOutage(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cluster := trio.New(t, trio.Config{Programs: &trio.Programs{Etcd: program}, Election: 200 * time.Millisecond})
	leader, err := cluster.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := newReplica(t, cluster, "a", leader, etcdstore.Config{Timeout: 500 * time.Millisecond})
	patient := newReplica(t, cluster, "patient", leader, etcdstore.Config{})
	resumed := make(chan struct{}, 1000)
	r.OnResume(func() { resumed <- struct{}{} })
	workspace := storagetest.NewWorkspace("w")
	watch := r.follow(ctx, r.position(ctx))
	// The answer to a change may be lost in an election, so a change is made until it is acknowledged.
	change := func(role string) {
		t.Helper()
		for {
			workspace.Head = headOf(ctx, t, patient, "w")
			revision, err := r.Commit(ctx, workspace.PutMember("member", role))
			if err == nil {
				watch.until(ctx, t, revision)
				return
			}
			if !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrOutcomeUnknown) && !errors.As(err, new(*storage.ConflictError)) {
				t.Fatalf("Commit: %v", err)
			}
		}
	}
	change("admin")
	outage := func(meanwhile func()) {
		t.Helper()
		leader, err := cluster.Leader(ctx)
		if err != nil {
			t.Fatal(err)
		}
		client, err := leader.Client()
		if err != nil {
			t.Fatal(err)
		}
		// A watch that asks for a leader ends when the member has had none for a while.
		led := client.Watch(clientv3.WithRequireLeader(ctx), "led", clientv3.WithCreatedNotify())
		<-led
		for _, member := range cluster.Members {
			if member != leader {
				if err := member.Stop(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range led {
		}
		meanwhile()
		for _, member := range cluster.Members {
			if err := member.Continue(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if watched := <-r.watched; watched != leader {
		t.Fatalf("%s is watched, want %s, the leader", watched.Name(), leader.Name())
	}
	outage(func() {})
	change("member")
	if got := len(resumed); got != 0 {
		t.Errorf("the watch of a member that lived was opened again %d times", got)
	}
	if leader, err = cluster.Leader(ctx); err != nil {
		t.Fatal(err)
	}
	outage(func() {
		r.Wires.Cut()
		r.Wires.Mend()
		// Whoever asked etcd where to begin would dial nobody now.
		for watched := (*trio.Member)(nil); watched != leader; {
			select {
			case watched = <-r.watched:
			case <-ctx.Done():
				t.Fatal("the watch is not opened before the outage ends")
			}
		}
		// It stays open while its history cannot be compared.
		for range 2 {
			if _, err := r.Barrier(ctx); err == nil {
				t.Error("a barrier in an outage")
			}
		}
	})
	change("owner")
	if got := len(r.watched); got != 0 {
		t.Errorf("the watch was opened again %d times in the outage", got)
	}
	<-resumed
	for len(resumed) > 0 {
		<-resumed
	}
	r.Wires.Cut()
	client, err := leader.Client()
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, client, "/others/", "x")
	if err := cluster.Compact(ctx, 0); err != nil {
		t.Fatal(err)
	}
	r.Wires.Mend()
	select {
	case <-resumed:
	case err := <-watch.err:
		t.Fatalf("Watch after a compaction in which nothing was lost: %v", err)
	}
	change("admin")
}

// TestSlowConsumerIsNoStuckWatch: a watch whose consumer takes its time stays where it is.
func TestSlowConsumerIsNoStuckWatch(t *testing.T) {
	t.Parallel()
	const stuck = 300 * time.Millisecond
	clients := newClients(t)
	var opened atomic.Int64
	store := open(t, etcdstore.Config{
		Members: clients, Prefix: newPrefix(), Stuck: stuck,
		Connect: func(member int) (*clientv3.Client, error) { opened.Add(1); return dial(endpoints[member]) },
	})
	workspace, seen := storagetest.NewWorkspace("w"), 0
	commit := func() {
		mustFollow(t, store, workspace, workspace.PutMember("member", fmt.Sprint("role ", seen)))
	}
	commit()
	for change, err := range store.Watch(t.Context(), storage.Barrier{}) {
		if err != nil || change.Head.WorkspaceID != "w" {
			t.Fatalf("Watch: %+v, %v", change, err)
		}
		if seen++; seen == 4 {
			break
		}
		// The next change is there, a caller was told of it, and the consumer is busy for longer than a watch
		// may take.
		commit()
		for begun := time.Now(); time.Since(begun) < stuck*3/2; {
			if _, err := store.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("the watch was opened %d times, want once", got)
	}
}

// breaks is a log that counts how often watches have broken off.
type breaks struct {
	slog.Handler
	reached chan int64
}

func (b *breaks) Handle(_ context.Context, record slog.Record) error {
	record.Attrs(func(attribute slog.Attr) bool {
		if attribute.Key == "broken" {
			b.reached <- attribute.Value.Int64()
		}
		return true
	})
	return nil
}

func (b *breaks) Enabled(context.Context, slog.Level) bool { return true }

// TestOutageResumesTheWatch: whatever an outage of etcd breaks, the watch goes on afterwards without a load. Only if
// what was applied last has been compacted meanwhile, the store must be loaded.
func TestOutageResumesTheWatch(t *testing.T) {
	t.Parallel()
	cluster, ctx := newCluster(t)
	log := &breaks{slog.DiscardHandler, make(chan int64, 1000)}
	config := etcdstore.Config{Prefix: "/outage/"}
	r := newReplica(t, cluster, "cut", cluster.Members[0], etcdstore.Config{Prefix: config.Prefix, Timeout: time.Second, Log: slog.New(log)})
	other := newReplica(t, cluster, "other", cluster.Members[1], config)
	workspace := storagetest.NewWorkspace("w")
	watch := r.follow(ctx, r.position(ctx))
	do := func(change *storage.Change) int64 {
		t.Helper()
		return mustFollow(t, other, workspace, change)
	}
	outage := func() {
		t.Helper()
		for broken := int64(0); broken < 8; {
			select {
			case broken = <-log.reached:
			case err := <-watch.err:
				t.Fatalf("Watch: %v", err)
			case <-ctx.Done():
				t.Fatal("the watch does not break off")
			}
		}
	}
	watch.until(ctx, t, do(workspace.PutMember("member", "admin")))
	for name, breaking := range map[string][2]func(){
		"cut":  {r.Wires.Cut, r.Wires.Mend},
		"held": {r.Wires.Hold, r.Wires.Mend},
	} {
		breaking[0]()
		// A caller of the replica makes it notice wires that are held.
		ended, asking := make(chan struct{}), sync.WaitGroup{}
		asking.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
					_, _ = r.Barrier(ctx)
				}
			}
		})
		revisions := []int64{do(workspace.PutMember("member", name)), do(workspace.PutMember("member", "admin"))}
		if name == "cut" {
			outage()
		}
		breaking[1]()
		var got []int64
		for len(got) < len(revisions) {
			select {
			case change := <-watch.changes:
				got = append(got, change.Revision)
			case err := <-watch.err:
				t.Fatalf("Watch, %s: %v", name, err)
			case <-ctx.Done():
				t.Fatalf("Watch, %s: not resumed", name)
			}
		}
		if !slices.Equal(got, revisions) {
			t.Errorf("Watch, %s: revisions %d, want %d", name, got, revisions)
		}
		close(ended)
		asking.Wait()
	}
	r.Wires.Cut()
	do(workspace.PutMember("member", "owner"))
	if err := cluster.Compact(ctx, 0); err != nil {
		t.Fatal(err)
	}
	r.Wires.Mend()
	select {
	case err := <-watch.err:
		if !errors.Is(err, storage.ErrGap) || errors.Is(err, storage.ErrHistoryChanged) {
			t.Errorf("Watch after a compaction: %v, want ErrGap", err)
		}
	case <-ctx.Done():
		t.Error("Watch after a compaction stays silent")
	}
}
