package trio_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/test/trio"
)

func TestMain(m *testing.M) {
	status := trio.Main(m.Run)
	if err := goleak.Find(); err != nil && status == 0 {
		panic(err)
	}
	os.Exit(status)
}

// patience is for what must come, also on a busy machine.
const patience = 60 * time.Second

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put puts a name through a client until the context ends.
func put(ctx context.Context, client *clientv3.Client, value string) error {
	_, err := client.Put(ctx, "name", value)
	return err
}

// get returns what a member says when it asks the cluster.
func get(ctx context.Context, client *clientv3.Client) (string, error) {
	response, err := client.Get(ctx, "name")
	if err != nil || len(response.Kvs) == 0 {
		return "", err
	}
	return string(response.Kvs[0].Value), nil
}

func TestMembersDieStandStillAndAreCutOff(t *testing.T) {
	cluster := trio.New(t, trio.Config{})
	ctx := limited(t)
	source, err := cluster.Source("test")
	must(t, err)
	clients, err := source.Clients()
	must(t, err)
	for index, client := range clients {
		must(t, put(ctx, client, "one"))
		if got, err := get(ctx, clients[(index+1)%len(clients)]); err != nil || got != "one" {
			t.Fatalf("got %q, %v", got, err)
		}
	}

	// A killed leader has a successor, and follows when it is back.
	old, err := cluster.Leader(ctx)
	must(t, err)
	must(t, old.Kill())
	leader, err := cluster.Leader(ctx)
	must(t, err)
	if leader == old {
		t.Fatal("the killed member leads")
	}
	must(t, put(ctx, clients[leader.Index], "two"))
	must(t, old.Restart(ctx))
	if got, err := get(ctx, clients[old.Index]); err != nil || got != "two" {
		t.Fatalf("got %q, %v", got, err)
	}

	// A stopped leader has a successor as well. Its clients hear nothing.
	leader, err = cluster.Leader(ctx)
	must(t, err)
	must(t, leader.Stop())
	if next, err := cluster.Leader(ctx); err != nil || next == leader {
		t.Fatalf("the stopped member leads: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	if _, err := get(short, clients[leader.Index]); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stopped member: %v, want no answer", err)
	}
	cancel()
	must(t, leader.Continue())
	if got, err := get(ctx, clients[leader.Index]); err != nil || got != "two" {
		t.Fatalf("got %q, %v", got, err)
	}

	// A member that is cut off from the others does not answer a linearizable read.
	for name, wires := range map[string]func(trio.Wires){"cut": trio.Wires.Cut, "held": trio.Wires.Hold} {
		alone, err := cluster.Follower(ctx)
		must(t, err)
		wires(alone.Apart())
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		if got, err := get(short, clients[alone.Index]); err == nil {
			t.Errorf("%s: a member that is alone says %q", name, got)
		}
		cancel()
		other, err := cluster.Leader(ctx)
		must(t, err)
		must(t, put(ctx, clients[other.Index], name))
		alone.Apart().Mend()
		if got, err := get(ctx, clients[alone.Index]); err != nil || got != name {
			t.Fatalf("%s: got %q, %v", name, got, err)
		}
	}

	// What is sent over a wire that is held arrives later.
	leader, err = cluster.Leader(ctx)
	must(t, err)
	wire := source.To(leader)
	wire.Hold()
	late := make(chan error, 1)
	go func() { late <- put(ctx, clients[leader.Index], "late") }()
	follower, err := cluster.Follower(ctx)
	must(t, err)
	if got, err := get(ctx, clients[follower.Index]); err != nil || got == "late" {
		t.Errorf("the wire is held, and got %q, %v", got, err)
	}
	wire.Mend()
	must(t, <-late)
	if got, err := get(ctx, clients[follower.Index]); err != nil || got != "late" {
		t.Errorf("got %q, %v", got, err)
	}

	// Over a slow wire everything arrives later, in both directions; but not what was on its way when the wire was cut.
	began := time.Now()
	wire.Slow(20*time.Millisecond, 30*time.Millisecond)
	must(t, put(ctx, clients[leader.Index], "slow"))
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("answered after %v, want 50 ms", took)
	}
	wire.Slow(0, time.Hour)
	go func() { late <- put(ctx, clients[leader.Index], "answer on its way") }()
	for got := ""; got != "answer on its way"; {
		got, err = get(ctx, clients[follower.Index])
		must(t, err)
	}
	wire.Cut()
	if err := <-late; err == nil {
		t.Error("an answer arrived that was on its way when the wire was cut")
	}
	wire.Mend()

	target, err := cluster.Follower(ctx)
	must(t, err)
	must(t, target.Lead(ctx))
	if leader, err := cluster.Leader(ctx); err != nil || leader != target {
		t.Errorf("%v leads, %v", leader, err)
	}
}

func TestOlderDataComesBack(t *testing.T) {
	cluster := trio.New(t, trio.Config{})
	ctx := limited(t)
	client, err := cluster.Members[0].Client()
	must(t, err)
	must(t, put(ctx, client, "older"))
	folder := filepath.Join(t.TempDir(), "copy")
	must(t, cluster.CopyData(folder))
	must(t, put(ctx, client, "newer"))
	must(t, cluster.Compact(ctx, 0))
	for _, member := range cluster.Members {
		must(t, member.Defragment(ctx))
	}
	must(t, cluster.PutData(ctx, folder))
	if got, err := get(ctx, client); err != nil || got != "older" {
		t.Errorf("got %q, %v; want the older value", got, err)
	}
}

func TestReplicas(t *testing.T) {
	for name, secured := range map[string]bool{"unix sockets": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			cluster := trio.New(t, trio.Config{Replicas: 3, TLS: secured})
			ctx := limited(t)
			var config keyclient.Config
			if secured {
				certificate, key := cluster.Certs().Pair("admin")
				config.TLS = &keyclient.TLS{CAFile: cluster.Certs().CA, CertFile: certificate, KeyFile: key}
			}
			for _, replica := range cluster.Replicas {
				client, err := keyclient.New(replica.Address(), config)
				must(t, err)
				defer client.Close()
				_, err = client.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
					WorkspaceId: "acme", MemberId: replica.Name(), Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				})
				must(t, err)
				must(t, replica.Restart(ctx))
			}
		})
	}
}
