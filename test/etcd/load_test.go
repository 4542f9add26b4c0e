package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// describe describes an item. A key and its view have one description.
func describe(item storage.Item) string {
	view := item.KeyView
	if item.Key != nil {
		view = &storage.KeyView{}
		view.Set(item.Key)
	}
	if view == nil {
		for _, record := range []proto.Message{item.Policy, item.Workspace, item.Member} {
			if record.ProtoReflect().IsValid() {
				return fmt.Sprintf("%T %v", record, record)
			}
		}
		return fmt.Sprintf("%+v %+v %+v", item.Head, item.Usage, item.Damaged)
	}
	return fmt.Sprintf("key %q %q %q %q %q %d %d %q %q %q %v %v %v", view.KeyID, view.WorkspaceID, view.MemberID, view.WorkspaceIncarnation,
		view.MemberIncarnation, view.Sequence, view.ChangeSequence, view.Scopes, view.AllowedCIDRs, view.RequestIDs, view.CreateTime, view.Revoked, view.Secrets)
}

// loadBoth returns what Load visits, after it has compared it with what LoadViews visits.
func loadBoth(t *testing.T, store *etcdstore.Store) []string {
	t.Helper()
	var items, views []string
	position, err := store.Load(t.Context(), func(item storage.Item) error {
		items = append(items, describe(item))
		return nil
	})
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	expected := 0
	again, err := store.LoadViews(t.Context(), func(storage.Expected) { expected++ }, func(item storage.Item) error {
		if item.Key != nil {
			t.Error("LoadViews visits a decoded key")
		}
		views = append(views, describe(item))
		return nil
	})
	if err != nil || expected != 1 || again != position {
		t.Fatalf("LoadViews: %+v, %v, expect was called %d times; Load: %+v", again, err, expected, position)
	}
	// The addresses in pointers of two loads differ.
	if len(items) != len(views) {
		t.Fatalf("Load visits %d items, LoadViews %d", len(items), len(views))
	}
	for index := range items {
		if items[index] != views[index] && strings.HasPrefix(items[index], "key ") {
			t.Fatalf("item %d: Load %s, LoadViews %s", index, items[index], views[index])
		}
	}
	return items
}

// keysOf returns the ids of the keys that a Load visits, in its order, by workspace.
func keysOf(t *testing.T, store *etcdstore.Store) map[string][]string {
	t.Helper()
	keys := make(map[string][]string)
	expect := func(storage.Expected) { clear(keys) }
	_, err := store.LoadViews(t.Context(), expect, func(item storage.Item) error {
		if view := item.KeyView; view != nil {
			keys[string(view.WorkspaceID)] = append(keys[string(view.WorkspaceID)], string(view.KeyID))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("LoadViews: %v", err)
	}
	return keys
}

// fillWorkspace adds a workspace with keys to a store, some of each change, and returns their ids in
// the order that Load promises.
func fillWorkspace(t *testing.T, store storage.Store, id string, changes, together, first int, name string) []string {
	t.Helper()
	workspace := storagetest.NewWorkspace(id)
	var ids []string
	for number := range changes + 1 {
		var change *storage.Change
		if number == 0 {
			change = workspace.PutMember("member", "admin")
		} else {
			some := make([]string, together)
			for index := range some {
				some[index] = storagetest.KeyID(first + (number-1)*together + index)
			}
			change = createKeys(workspace, name, some...)
			slices.Reverse(some) // keys of one sequence come in the reverse order of their names
			ids = append(ids, some...)
		}
		mustFollow(t, store, workspace, change)
	}
	return ids
}

// createKeys creates several keys in one change.
func createKeys(workspace *storagetest.Workspace, name string, ids ...string) *storage.Change {
	change := workspace.CreateKey(ids[0])
	for _, id := range ids[1:] {
		record := proto.CloneOf(change.PutKeys[0])
		record.KeyId = id
		change.PutKeys, change.AbsentKeyIDs = append(change.PutKeys, record), append(change.AbsentKeyIDs, id)
	}
	for _, record := range change.PutKeys {
		record.Name = name
	}
	return change
}

func TestLoadVisitsTheKeysOfEachWorkspaceInOrder(t *testing.T) {
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{newClient(t)}, Prefix: newPrefix()})
	want := make(map[string][]string)
	for index, id := range []string{"b", "a", "a b", "ab", "c", "d"} {
		want[id] = fillWorkspace(t, store, id, 7*index, 1+3*index, 1000*index, "a key")
	}
	delete(want, "b") // it has none
	if got := keysOf(t, store); !equalLists(got, want) {
		t.Errorf("LoadViews visits %v, want %v", got, want)
	}
	if err := store.PutUsage(t.Context(), []storage.Usage{{KeyID: want["a"][0], Time: time.Unix(5, 6)}, {KeyID: want["d"][1], Time: time.Unix(7, 8)}}); err != nil {
		t.Fatal(err)
	}
	if items := loadBoth(t, store); !strings.Contains(items[len(items)-1], "<nil>") {
		t.Errorf("the last item is %s, want a use", items[len(items)-1])
	}
}

func equalLists(a, b map[string][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for id := range a {
		if !slices.Equal(a[id], b[id]) {
			return false
		}
	}
	return true
}

// TestLoadOfALargeWorkspace loads a workspace whose keys do not fit into what Load holds, between
// workspaces whose keys do.
func TestLoadOfALargeWorkspace(t *testing.T) {
	// Not parallel: it compacts the etcd of all tests, and others read its history.
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{newClient(t)}, Prefix: newPrefix()})
	want := map[string][]string{
		"a": fillWorkspace(t, store, "a", 3, 2, 1_000_000, "a key"),
		// 80 changes of 420 KiB are 34 MiB.
		"b": fillWorkspace(t, store, "b", 80, 14, 2_000_000, strings.Repeat("x", 30<<10)),
		"c": fillWorkspace(t, store, "c", 3, 2, 3_000_000, "a key"),
	}
	if got := keysOf(t, store); !equalLists(got, want) {
		t.Errorf("LoadViews visits %d, %d and %d keys, or in another order; want %d, %d and %d",
			len(got["a"]), len(got["b"]), len(got["c"]), len(want["a"]), len(want["b"]), len(want["c"]))
	}
}

// TestLoadBeginsAgainAfterACompaction compacts what a Load reads, while it reads.
func TestLoadBeginsAgainAfterACompaction(t *testing.T) {
	client, prefix, workspace := filled(t)
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	newest := 0
	compact := func() {
		change := workspace.CreateKey(storagetest.KeyID(100 + newest))
		newest++
		revision := mustFollow(t, store, workspace, change)
		if _, err := client.Compact(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
	}
	// 1. Load cannot take back what it has visited.
	_, err := store.Load(t.Context(), func(item storage.Item) error {
		if item.Policy != nil {
			compact()
		}
		return nil
	})
	if !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Load: %v, want ErrUnavailable", err)
	}
	// 2. LoadViews begins again, at a newer revision.
	expected, keys := 0, 0
	position, err := store.LoadViews(t.Context(), func(storage.Expected) { expected++; keys = 0 }, func(item storage.Item) error {
		if item.Policy != nil && expected < 3 {
			compact()
		}
		if item.KeyView != nil {
			keys++
		}
		return nil
	})
	barrier, _ := store.Barrier(t.Context())
	if err != nil || expected != 3 || keys != 2+newest || position.Revision != barrier.Revision {
		t.Errorf("LoadViews: %v, %d attempts, %d keys, want 3 and %d", err, expected, keys, 2+newest)
	}
	// 3. It gives up after some attempts.
	expected = 0
	_, err = store.LoadViews(t.Context(), func(storage.Expected) { expected++ }, func(item storage.Item) error {
		if item.Policy != nil {
			compact()
		}
		return nil
	})
	if !errors.Is(err, storage.ErrUnavailable) || expected != 3 {
		t.Errorf("LoadViews: %v after %d attempts, want ErrUnavailable after 3", err, expected)
	}
}

// TestLoadReadsOnAtAnotherMember has a member that is not there, and one that never answers.
func TestLoadReadsOnAtAnotherMember(t *testing.T) {
	t.Parallel()
	client, prefix, _ := filled(t)
	silent := filepath.Join(t.TempDir(), "silent")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, address := range map[string]string{"absent": silent + "-not", "silent": silent} {
		other, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + address}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		other.KV = client.KV // so that nothing but streams fails at this member
		store := open(t, etcdstore.Config{Members: []*clientv3.Client{other, client}, Prefix: prefix})
		if items := loadBoth(t, store); len(items) < 6 {
			t.Errorf("%s: %d items", name, len(items))
		}
	}
}

// TestLoadThroughAProxyNamesTheCause loads through etcd's own proxy, which has no streams, as etcd
// before 3.7 has none.
func TestLoadThroughAProxyNamesTheCause(t *testing.T) {
	client, prefix, _ := filled(t)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kv, done := grpcproxy.NewKvProxy(client)
	etcdserverpb.RegisterKVServer(server, kv)
	go func() { _ = server.Serve(listener) }()
	defer func() { server.Stop(); <-done }()
	through, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + listener.Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{through}, Prefix: prefix})
	_, err = store.Load(t.Context(), func(storage.Item) error { return nil })
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "3.7") {
		t.Errorf("Load: %v, want ErrUnavailable that names the version", err)
	}
}

// TestLoadEndsWithItsContext ends the context of a Load that waits for its visitor.
func TestLoadEndsWithItsContext(t *testing.T) {
	client, prefix, _ := filled(t)
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := store.Load(ctx, func(storage.Item) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Load: %v, want the context's error", err)
	}
	failure := errors.New("enough")
	for kind := range 4 {
		_, err := store.Load(t.Context(), func(item storage.Item) error {
			if kind == 0 || kind == 1 && item.Member != nil || kind == 2 && item.Key != nil || kind == 3 && item.Usage != nil {
				return failure
			}
			return nil
		})
		if !errors.Is(err, failure) {
			t.Errorf("Load: %v, want the visitor's error", err)
		}
	}
}
