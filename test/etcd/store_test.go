package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// filled returns a store with one record of each kind, under a new prefix.
func filled(t *testing.T) (client *clientv3.Client, prefix string, workspace *storagetest.Workspace) {
	t.Helper()
	client, prefix, workspace = newClient(t), newPrefix(), storagetest.NewWorkspace("w")
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	for _, next := range []func() *storage.Change{
		func() *storage.Change { return workspace.PutMember("member", "admin") },
		func() *storage.Change { return workspace.CreateKey(storagetest.KeyID(1), "request") },
		func() *storage.Change { return workspace.CreateKey(storagetest.KeyID(2)) },
	} {
		mustFollow(t, store, workspace, next())
	}
	policy := storagetest.ApplyPolicy(storage.Head{}, "policy")
	mustCommit(t, store, policy)
	mustCommit(t, store, storagetest.PutSettings(storagetest.After(policy), time.Second))
	if err := store.PutUsage(t.Context(), []storage.Usage{{KeyID: storagetest.KeyID(1), Time: time.Unix(1, 2)}}); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, prefix)
	return client, prefix, workspace
}

func mustCommit(t testing.TB, store storage.Store, change *storage.Change) int64 {
	t.Helper()
	revision, err := store.Commit(t.Context(), change)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	return revision
}

// mustFollow is mustCommit, after which the workspace goes on from the change.
func mustFollow(t testing.TB, store storage.Store, workspace *storagetest.Workspace, change *storage.Change) int64 {
	t.Helper()
	revision := mustCommit(t, store, change)
	workspace.Follow(change)
	return revision
}

func mustDelete(t testing.TB, client *clientv3.Client, name string) {
	t.Helper()
	if _, err := client.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func mustPut(t testing.TB, client *clientv3.Client, name, value string) {
	t.Helper()
	if _, err := client.Put(t.Context(), name, value); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentNewMakesOneStore(t *testing.T) {
	prefix := newPrefix()
	client := newClient(t)
	epochs := make([]string, 8)
	var group sync.WaitGroup
	for index := range epochs {
		group.Go(func() {
			store, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
			if err != nil {
				t.Errorf("New: %v", err)
				return
			}
			epochs[index] = store.Epoch()
			_ = store.Close()
		})
	}
	group.Wait()
	if epochs[0] == "" || slices.ContainsFunc(epochs, func(epoch string) bool { return epoch != epochs[0] }) {
		t.Errorf("the epochs are %q", epochs)
	}
}

func TestNothingIsNoStoreAndNoDamage(t *testing.T) {
	config := etcdstore.Config{Members: newClients(t), Prefix: newPrefix()}
	if report, err := etcdstore.Check(t.Context(), config); !errors.Is(err, storage.ErrAbsent) || errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Check: %+v, %v", report, err)
	}
	if _, err := etcdstore.OpenExport(t.Context(), config); !errors.Is(err, storage.ErrAbsent) || errors.Is(err, storage.ErrDamaged) {
		t.Errorf("OpenExport: %v", err)
	}
}

func TestNewRefusesOtherSchemasAndDamage(t *testing.T) {
	header := func(record *storagev1.HeaderRecord) string {
		payload, err := storage.Encode(record)
		if err != nil {
			t.Fatal(err)
		}
		return string(storage.Frame("data/header", payload))
	}
	for name, test := range map[string]struct {
		name, value string
		want        error
	}{
		"newer schema":          {"data/header", header(&storagev1.HeaderRecord{Schema: storage.Newest + 1, Epoch: "e"}), storage.ErrNewer},
		"older schema":          {"data/header", header(&storagev1.HeaderRecord{Schema: storage.SchemaFirst, Epoch: "e"}), storage.ErrOlder},
		"header without schema": {"data/header", header(&storagev1.HeaderRecord{Epoch: "e"}), storage.ErrDamaged},
		"header without epoch":  {"data/header", header(&storagev1.HeaderRecord{Schema: 1}), storage.ErrDamaged},
		"header is garbage":     {"data/header", "garbage", storage.ErrDamaged},
		"header is empty":       {"data/header", "", storage.ErrDamaged},
		// Something is stored, so this is not a new store: its header was lost.
		"header is missing":        {"data/heads/w", "", storage.ErrDamaged},
		"prefix of something else": {"something", "else", storage.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			client, prefix := newClient(t), newPrefix()
			mustPut(t, client, prefix+test.name, test.value)
			_, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
			if !errors.Is(err, test.want) {
				t.Errorf("New: %v, want %v", err, test.want)
			}
		})
	}
}

// TestLoadAndWatchYieldDamagedRecordsAsDamaged damages records and compares what Load and
// Watch yield.
func TestLoadAndWatchYieldDamagedRecordsAsDamaged(t *testing.T) {
	for name, want := range map[string]storage.Damaged{
		"data/policy":              {},
		"data/settings":            {Settings: true},
		"data/workspaces/w":        {WorkspaceID: "w"},
		"data/members/w\x00member": {WorkspaceID: "w", MemberID: "member"},
		"data/heads/w":             {WorkspaceID: "w", Head: true},
		"data/keys/w\x007ffffffffffffffd" + storagetest.KeyID(1): {WorkspaceID: "w", KeyID: storagetest.KeyID(1)},
	} {
		client, prefix, workspace := filled(t)
		log, err := os.CreateTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		config := etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix, Log: slog.New(slog.NewTextHandler(log, nil))}
		store := open(t, config)
		mustPut(t, client, prefix+name, "garbage")
		found := 0
		_, err = store.Load(t.Context(), func(item storage.Item) error {
			if item.Damaged != nil {
				found++
				got := *item.Damaged
				got.Err = nil
				if got != want || !errors.Is(item.Damaged.Err, storage.ErrDamaged) {
					t.Errorf("%q: Load: damaged %+v, want %+v", name, item.Damaged, want)
				}
			}
			return nil
		})
		if err != nil || found != 1 {
			t.Errorf("%q: Load: %d are damaged, %v", name, found, err)
		}
		if said, err := os.ReadFile(log.Name()); err != nil || !strings.Contains(string(said), "checksum mismatch") {
			t.Errorf("%q: the log is %q, %v", name, said, err)
		}
		if want.Head {
			if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(3))); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("Commit at a damaged head: %v", err)
			}
			// A workspace without its head is not a new one.
			mustDelete(t, client, prefix+name)
			if _, err := store.Commit(t.Context(), storagetest.NewWorkspace("w").PutMember("member", "admin")); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("Commit without a head: %v", err)
			}
			_, err := store.Load(t.Context(), func(item storage.Item) error {
				if item.Damaged != nil && item.Damaged.Head && item.Damaged.WorkspaceID == "w" {
					found++
				}
				return nil
			})
			if err != nil || found != 2 {
				t.Errorf("Load without a head: %d are damaged, %v", found, err)
			}
		}
	}
}

// TestReplacedStoreIsErrHistoryChanged replaces the store that a process serves, as
// restoring a backup would.
func TestReplacedStoreIsErrHistoryChanged(t *testing.T) {
	client, prefix, workspace := filled(t)
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	position, err := store.Load(t.Context(), func(storage.Item) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	payload, err := storage.Encode(&storagev1.HeaderRecord{Schema: 1, Epoch: "another"})
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, client, prefix+"data/header", string(storage.Frame("data/header", payload)))
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrHistoryChanged) {
		t.Errorf("Load: %v, want ErrHistoryChanged", err)
	}
	if _, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(3))); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Commit: %v, want ErrUnavailable", err)
	}
	for _, err := range store.Watch(t.Context(), position.Barrier()) {
		if !errors.Is(err, storage.ErrHistoryChanged) {
			t.Errorf("Watch: %v, want ErrHistoryChanged", err)
		}
	}
	if err := store.PutUsage(t.Context(), []storage.Usage{{KeyID: storagetest.KeyID(1), Time: time.Now()}}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("PutUsage: %v, want ErrUnavailable", err)
	}
}

// TestCompactionEndsOnlyWatchesThatNeedTheHistory compacts the history. A watcher that
// needs it gets ErrGap, and one that does not goes on.
func TestCompactionEndsOnlyWatchesThatNeedTheHistory(t *testing.T) {
	client, prefix, workspace := filled(t)
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	position, err := store.Load(t.Context(), func(storage.Item) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	// Other tenants write to the cluster, so the store's newest revision is old.
	var newest int64
	for range 10 {
		response, err := client.Put(t.Context(), "/others/"+prefix, "x")
		if err != nil {
			t.Fatal(err)
		}
		newest = response.Header.GetRevision()
	}
	if _, err := client.Compact(t.Context(), newest); err != nil {
		t.Fatal(err)
	}
	for _, err := range store.Watch(t.Context(), storage.Barrier{}) {
		if !errors.Is(err, storage.ErrGap) {
			t.Errorf("Watch: %v, want ErrGap", err)
		}
	}
	if records, err := store.ListFeed(t.Context(), 100); err != nil || len(records) > 0 {
		t.Errorf("ListFeed: %v, %v; want nothing: even the newest entry is gone", records, err)
	}
	heard := make(chan struct{})
	store = open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix, Connect: func(member int) (*clientv3.Client, error) {
		close(heard)
		return dial(endpoint)
	}})
	var changing sync.WaitGroup
	changing.Go(func() {
		<-heard
		mustPut(t, client, "/others/"+prefix, "x")
		mustCommit(t, store, workspace.CreateKey(storagetest.KeyID(3)))
	})
	for change, err := range store.Watch(t.Context(), position.Barrier()) {
		if err != nil || change.Head.WorkspaceID != "w" {
			t.Errorf("Watch: %+v, %v", change, err)
		}
		break
	}
	changing.Wait()
	// What was committed after the compaction is still there.
	if records, err := store.ListFeed(t.Context(), 100); err != nil || len(records) != 1 || records[0].GetSubject() != storagetest.KeyID(3) {
		t.Errorf("ListFeed: %v, %v", records, err)
	}
	mustBeSound(t, prefix)
}

// TestWatchShowsWhatWasWrittenSinceTheLoad: something else has written a record after the load and before the watch. The watch
// breaks off at once, so that the store is loaded anew. If etcd has compacted that time, the watch goes on.
func TestWatchShowsWhatWasWrittenSinceTheLoad(t *testing.T) {
	client, prefix, workspace := filled(t)
	opened := make(chan struct{}, 100)
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix, Connect: func(member int) (*clientv3.Client, error) {
		opened <- struct{}{}
		return connect(member)
	}})
	load := func() storage.Barrier {
		t.Helper()
		position, err := store.Load(t.Context(), func(storage.Item) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return position.Barrier()
	}
	first := load()
	mustPut(t, client, prefix+"data/members/w\x00stranger", "x")
	for change, err := range store.Watch(t.Context(), first) {
		if !errors.Is(err, storage.ErrGap) {
			t.Fatalf("Watch: %v, %v, want ErrGap", change, err)
		}
	}
	deleted, err := client.Delete(t.Context(), prefix+"data/members/w\x00stranger")
	if err != nil {
		t.Fatal(err)
	}
	second := load()
	mustPut(t, client, "/others/"+prefix, "x")
	latest, err := client.Put(t.Context(), "/others/"+prefix, "x")
	if err != nil || latest.Header.GetRevision() <= deleted.Header.GetRevision() {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), latest.Header.GetRevision()); err != nil {
		t.Fatal(err)
	}
	for len(opened) > 0 {
		<-opened
	}
	var changing sync.WaitGroup
	changing.Go(func() {
		<-opened
		<-opened // the second time, it begins after what was compacted
		mustCommit(t, store, workspace.CreateKey(storagetest.KeyID(3)))
	})
	for change, err := range store.Watch(t.Context(), second) {
		if err != nil || change.Head.WorkspaceID != "w" {
			t.Fatalf("Watch after a compaction: %+v, %v", change, err)
		}
		break
	}
	changing.Wait()
}

// TestStoresAndStrangersShareACluster has two stores and another client in one cluster. One
// store's prefix, without its last slash, is the beginning of the other's.
func TestStoresAndStrangersShareACluster(t *testing.T) {
	client := newClient(t)
	prefix := strings.TrimSuffix(newPrefix(), "/")
	var stores []*etcdstore.Store
	for _, each := range []string{prefix + "/", prefix + "0/"} {
		stores = append(stores, open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: each}))
	}
	if stores[0].Epoch() == stores[1].Epoch() {
		t.Error("two stores have one epoch")
	}
	const changes = 20
	var group sync.WaitGroup
	for _, store := range stores {
		model, workspace := storagetest.NewModel(), storagetest.NewWorkspace("w")
		change := workspace.PutMember("member", "admin")
		model.Apply(change, mustCommit(t, store, change))
		workspace.Follow(change)
		group.Go(func() {
			for number := range changes {
				change := workspace.CreateKey(storagetest.KeyID(number), fmt.Sprint(number))
				revision, err := store.Commit(t.Context(), change)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				model.Apply(change, revision)
				workspace.Follow(change)
				if _, err := client.Put(t.Context(), prefix, "not a store's"); err != nil {
					t.Error(err)
				}
			}
		})
		defer func() { model.Compare(t, store) }()
	}
	for _, store := range stores {
		group.Go(func() {
			sequence := int64(0)
			for change, err := range store.Watch(t.Context(), storage.Barrier{}) {
				if err != nil || change.Head.Head.Sequence != sequence+1 {
					t.Errorf("Watch: %+v, %v after event %d", change, err, sequence)
					return
				}
				if sequence++; sequence == changes+1 {
					return
				}
			}
		})
	}
	group.Wait()
}

// TestKeysOfTwoProcessesAreListedInOrderOfCreation creates keys from two processes in turn.
// Each has seen the other's keys when it creates its own, so the list of all keys is in
// that order.
func TestKeysOfTwoProcessesAreListedInOrderOfCreation(t *testing.T) {
	prefix := newPrefix()
	var want []string
	var stores []*etcdstore.Store
	var workspaces []*storagetest.Workspace
	for index := range 2 {
		stores = append(stores, open(t, etcdstore.Config{Members: newClients(t), Prefix: prefix}))
		workspaces = append(workspaces, storagetest.NewWorkspace(fmt.Sprint("w", index)))
		mustFollow(t, stores[index], workspaces[index], workspaces[index].PutMember("member", "admin"))
	}
	for number := range 20 {
		store, workspace := stores[number%2], workspaces[number%2]
		if _, _, err := store.FindRequest(t.Context(), "w0", "any"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		// Key ids that sort differently from the order of creation.
		keyID := storagetest.KeyID(7 * number % 20)
		mustFollow(t, store, workspace, workspace.CreateKey(keyID))
		want = append(want, keyID)
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 3, 20, 100} {
		var got []string
		for _, key := range storagetest.ListKeys(t, stores[0], "", limit) {
			got = append(got, key.GetKeyId())
		}
		if !slices.Equal(got, want) {
			t.Errorf("ListKeys by %d: %v, want %v", limit, got, want)
		}
	}
}

// TestPagesSplitKeysOfOneRank creates keys at the same time, so that some share a rank, and
// reads pages that end within a rank.
func TestPagesSplitKeysOfOneRank(t *testing.T) {
	sequential(t)
	const workspaces, each = 32, 4
	store := open(t, etcdstore.Config{Members: newClients(t), Prefix: newPrefix()})
	var mutex sync.Mutex
	revisions := make(map[string]int64)
	begun := make(chan struct{})
	var group sync.WaitGroup
	for index := range workspaces {
		workspace := storagetest.NewWorkspace(fmt.Sprint("w", index))
		mustFollow(t, store, workspace, workspace.PutMember("member", "admin"))
		group.Go(func() {
			<-begun
			for number := range each {
				change := workspace.CreateKey(storagetest.KeyID(index*each + number))
				revision, err := store.Commit(t.Context(), change)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				workspace.Follow(change)
				mutex.Lock()
				revisions[storagetest.KeyID(index*each+number)] = revision
				mutex.Unlock()
			}
		})
	}
	close(begun)
	group.Wait()
	all := storagetest.ListKeys(t, store, "", storage.MaxPage)
	for _, limit := range []int{1, 3, 7, workspaces * each} {
		pages := storagetest.ListKeys(t, store, "", limit)
		if len(pages) != workspaces*each {
			t.Fatalf("ListKeys by %d: %d keys, want %d", limit, len(pages), workspaces*each)
		}
		for index := range pages {
			if pages[index].GetKeyId() != all[index].GetKeyId() {
				t.Fatalf("ListKeys by %d: key %d is %s, want %s", limit, index, pages[index].GetKeyId(), all[index].GetKeyId())
			}
		}
	}
	swapped := 0
	for index := 1; index < len(all); index++ {
		if revisions[all[index-1].GetKeyId()] < revisions[all[index].GetKeyId()] {
			swapped++
		}
	}
	t.Logf("%d of %d neighbours, created at once, are not in the order of their revisions", swapped, len(all)-1)
}

func TestUnreachableEtcdIsErrUnavailable(t *testing.T) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + filepath.Join(t.TempDir(), "nobody")}, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	config := etcdstore.Config{Members: []*clientv3.Client{client}, Timeout: 300 * time.Millisecond}
	begun := time.Now()
	if _, err := etcdstore.New(t.Context(), config); !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("New: %v, want ErrUnavailable alone", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("New took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := etcdstore.New(ctx, config); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("New: %v, want the context's error", err)
	}
}

// TestStoreSurvivesARestartOfEtcd stops etcd below a store and starts it again. What was
// acknowledged is stored, and watches and changes go on.
func TestStoreSurvivesARestartOfEtcd(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "keysvc-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	server, err := startServer(folder, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { server.stop() }()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// Long enough that even on a busy machine only the two calls without etcd fail. Each of them
	// waits this long. A commit that timed out while etcd is up might be stored, and the model
	// would lack it.
	store, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Timeout: 8 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	model, workspace := storagetest.NewModel(), storagetest.NewWorkspace("w")
	commit := func(change *storage.Change) error {
		revision, err := store.Commit(t.Context(), change)
		if err == nil {
			model.Apply(change, revision)
			workspace.Follow(change)
		}
		return err
	}
	if err := commit(workspace.PutMember("member", "admin")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	watched := make(chan int64, 100)
	var watching sync.WaitGroup
	watching.Go(func() {
		defer close(watched)
		for change, err := range store.Watch(ctx, storage.Barrier{}) {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Watch: %v", err)
				}
				return
			}
			watched <- change.Head.Head.Sequence
		}
	})
	if err := commit(workspace.CreateKey(storagetest.KeyID(1), "request")); err != nil {
		t.Fatal(err)
	}
	server.stop()
	err = commit(workspace.CreateKey(storagetest.KeyID(2)))
	if !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrOutcomeUnknown) {
		t.Errorf("Commit without etcd: %v", err)
	}
	if _, err := store.Load(ctx, func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Load without etcd: %v, want ErrUnavailable", err)
	}
	if server, err = startServer(folder, 0); err != nil {
		t.Fatal(err)
	}
	for { // until the fence of the failed commit is there, and Load shows the raised head
		_, err = store.Load(ctx, func(item storage.Item) error {
			if item.Head != nil {
				workspace.Head = item.Head.Head
			}
			return nil
		})
		if err == nil {
			if err = commit(workspace.CreateKey(storagetest.KeyID(3))); err == nil {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("after the restart: %v", err)
		}
	}
	for sequence := range watched {
		if sequence == workspace.Head.Sequence {
			break
		}
	}
	cancel()
	watching.Wait()
	model.Compare(t, store)
}

// TestFullEtcdRefusesChangesAndServesReads fills etcd up to its quota.
func TestFullEtcdRefusesChangesAndServesReads(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "keysvc-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	server, err := startServer(folder, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer server.stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// On a busy machine an answer may take long. A commit that gave up would raise the fence, and be a conflict here.
	store, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Timeout: 2 * patience, Attempt: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	// At the same time, so that some pass etcd's first check of the quota and fail the second.
	const workspaces = 32
	var refusals atomic.Int64
	var group sync.WaitGroup
	begun, model := make(chan struct{}), storagetest.NewModel()
	for index := range workspaces {
		workspace := storagetest.NewWorkspace(fmt.Sprint("w", index))
		change := workspace.PutMember("member", "admin")
		model.Apply(change, mustCommit(t, store, change))
		workspace.Follow(change)
		group.Go(func() {
			<-begun
			for number := range 100 {
				change := workspace.CreateKey(storagetest.KeyID(100*index + number))
				change.PutKeys[0].Name = strings.Repeat("x", 30<<10)
				revision, err := store.Commit(t.Context(), change)
				if err != nil {
					refusals.Add(1)
					if !errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrOutcomeUnknown) {
						t.Errorf("Commit: %v, want ErrFull", err)
					}
					return
				}
				model.Apply(change, revision)
				workspace.Follow(change)
			}
		})
	}
	close(begun)
	group.Wait()
	if refusals.Load() != workspaces {
		t.Errorf("%d of %d are refused in the end", refusals.Load(), workspaces)
	}
	// Refused changes have changed nothing.
	model.Compare(t, store)
	report, err := etcdstore.Check(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("Check: %v, %v", report.Problems, err)
	}
}
