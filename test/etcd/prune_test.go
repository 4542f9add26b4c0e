package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// pruned is a store whose audit events are pruned, and what it should hold.
type pruned struct {
	t          *testing.T
	random     *rand.Rand
	prefix     string
	store      *etcdstore.Store
	workspaces []*storagetest.Workspace
	keys       map[string]*storagev1.KeyRecord
	created    int
	newest     int64
}

func newPruned(t *testing.T) *pruned {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := &pruned{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), prefix: newPrefix(),
		workspaces: []*storagetest.Workspace{storagetest.NewWorkspace("a"), storagetest.NewWorkspace("b")},
		keys:       make(map[string]*storagev1.KeyRecord),
	}
	p.store = open(t, etcdstore.Config{Members: []*clientv3.Client{newClient(t)}, Prefix: p.prefix})
	for _, workspace := range p.workspaces {
		// The first event puts the workspace as well, so it stays. Without the event that deleted the member, the
		// member would count as lost.
		first := workspace.PutMember("first", "admin")
		p.commit(workspace, first)
		p.commit(workspace, workspace.PutMember("m", "admin"))
		p.commit(workspace, workspace.DeleteMembers(first.PutMembers...))
	}
	return p
}

func (p *pruned) commit(workspace *storagetest.Workspace, change *storage.Change) {
	p.t.Helper()
	p.newest = mustFollow(p.t, p.store, workspace, change)
}

// change makes a number of changes of all kinds.
func (p *pruned) change(count int) {
	for range count {
		workspace := p.workspaces[p.random.IntN(len(p.workspaces))]
		var key *storagev1.KeyRecord
		for _, each := range p.keys { // any
			if each.GetWorkspaceId() == workspace.ID {
				key = each
				break
			}
		}
		switch kind := p.random.IntN(6); {
		case kind == 0 || key == nil:
			p.created++
			change := workspace.CreateKey(storagetest.KeyID(p.created), fmt.Sprint("request", p.created))
			p.commit(workspace, change)
			p.keys[change.PutKeys[0].GetKeyId()] = change.PutKeys[0]
		case kind == 1:
			p.commit(workspace, workspace.PutMember(fmt.Sprint("m", p.random.IntN(3)), "member"))
		case kind == 2:
			p.commit(workspace, workspace.DeleteKey(key))
			delete(p.keys, key.GetKeyId())
		case kind == 3 && key.GetRevokeTime() == nil:
			change := workspace.RevokeKey(key)
			p.commit(workspace, change)
			p.keys[key.GetKeyId()] = change.PutKeys[0]
		default:
			name := fmt.Sprint("name", p.random.IntN(1000))
			change := workspace.UpdateKey(key, func(record *storagev1.KeyRecord) { record.Name = name })
			p.commit(workspace, change)
			p.keys[key.GetKeyId()] = change.PutKeys[0]
		}
	}
}

// prune prunes what is before a time, after the sink has everything.
func (p *pruned) prune(before time.Time) int64 {
	p.t.Helper()
	if err := p.store.PutSinkPosition(p.t.Context(), storage.Barrier{Revision: p.newest}); err != nil {
		p.t.Fatalf("PutSinkPosition: %v", err)
	}
	deleted, err := p.store.PruneAudit(p.t.Context(), before)
	if err != nil {
		p.t.Fatalf("PruneAudit: %v", err)
	}
	mustBeSound(p.t, p.prefix)
	return deleted
}

// TestPrunedStoreIsSound: after pruning the store is sound, all records are there, lists of events go on, a
// watch has no gap, and changes go on.
func TestPrunedStoreIsSound(t *testing.T) {
	sequential(t)
	t.Parallel()
	p := newPruned(t)
	future := time.Now().Add(time.Hour)
	// 1. Without a sink, and before a time at which there was nothing, all stays.
	if deleted, err := p.store.PruneAudit(t.Context(), future); err != nil || deleted != 0 {
		t.Fatalf("without a sink: %d, %v", deleted, err)
	}
	p.change(60)
	if deleted := p.prune(time.Now().Add(-100 * 365 * 24 * time.Hour)); deleted != 0 {
		t.Fatalf("%d young events were deleted", deleted)
	}
	// 2. A watch sees each change once, and no deletion.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	barrier, err := p.store.Barrier(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watched, ended := make(chan int64, 1000), make(chan error, 1)
	go func() {
		for change, err := range p.store.Watch(ctx, barrier) {
			if err != nil {
				ended <- err
				return
			}
			watched <- change.Revision
		}
	}()
	total := int64(0)
	for range 4 {
		p.change(40)
		total += p.prune(future)
		if got := len(storagetest.ListKeys(t, p.store, "a", 7)) + len(storagetest.ListKeys(t, p.store, "b", 7)); got != len(p.keys) {
			t.Errorf("%d keys, want %d", got, len(p.keys))
		}
	}
	if total < 40 {
		t.Errorf("%d of 220 events were deleted", total)
	}
	p.change(1)
	for revision := int64(0); revision != p.newest; {
		select {
		case revision = <-watched:
		case err := <-ended:
			t.Fatalf("Watch: %v", err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
	// 3. The lists have what is left, newest first, on pages of any size.
	whole := storagetest.ListAuditEvents(t, p.store, "a", 1000)
	for _, size := range []int{1, 3} {
		paged := storagetest.ListAuditEvents(t, p.store, "a", size)
		if len(paged) != len(whole) {
			t.Fatalf("%d events on pages of %d, %d on one page", len(paged), size, len(whole))
		}
		for index := range paged {
			if !proto.Equal(paged[index].Record, whole[index].Record) {
				t.Errorf("pages of %d: event %d differs", size, index)
			}
		}
	}
	// 4. An event that pruning keeps is missed.
	newest := whole[0].Record.GetSequence()
	mustDelete(t, newClient(t), p.prefix+"data/audit/a\x00"+fmt.Sprintf("%016x", 1<<63-1-newest))
	if page, err := p.store.ListAuditEvents(t.Context(), storage.Query{WorkspaceID: "a", Limit: 10}); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("ListAuditEvents without the newest event: %d events, %v", len(page.Events), err)
	}
}

// aged is a workspace with a member and a key that is renamed, so that its events are of few records. Event 1 puts workspace and member, event 2
// the key, and each further event another name.
type aged struct {
	*storagetest.Workspace
	store *etcdstore.Store
	key   *storagev1.KeyRecord
}

// newAged makes such a workspace. number is that of its key.
func newAged(t *testing.T, store *etcdstore.Store, id string, number int) *aged {
	t.Helper()
	a := &aged{Workspace: storagetest.NewWorkspace(id), store: store}
	a.commit(t, a.PutMember("member", "admin"))
	create := a.CreateKey(storagetest.KeyID(number))
	a.commit(t, create)
	a.key = create.PutKeys[0]
	return a
}

func (a *aged) commit(t *testing.T, change *storage.Change) int64 {
	t.Helper()
	return mustFollow(t, a.store, a.Workspace, change)
}

// rename renames the key at a time, or now if it is zero, and returns the revision.
func (a *aged) rename(t *testing.T, at time.Time) int64 {
	t.Helper()
	change := a.UpdateKey(a.key, func(record *storagev1.KeyRecord) { record.Name += "." })
	if !at.IsZero() {
		change.Event.Time = timestamppb.New(at)
	}
	a.key = change.PutKeys[0]
	return a.commit(t, change)
}

// events returns the sequences of the events that are stored, the newest first.
func (a *aged) events(t *testing.T, client *clientv3.Client, prefix string) (sequences []int64) {
	t.Helper()
	folder := prefix + "data/audit/" + a.ID + "\x00"
	response, err := client.Get(t.Context(), folder, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range response.Kvs {
		for sequence := range a.Head.Sequence {
			if string(pair.Key) == folder+complementOf(sequence+1) {
				sequences = append(sequences, sequence+1)
			}
		}
	}
	return sequences
}

// TestPruningStopsAtTheSink: the event that the sink ends with stays, and whatever is newer or young. Of the rest these stay:
// the last event of each record, and the newest one.
func TestPruningStopsAtTheSink(t *testing.T) {
	t.Parallel()
	client, prefix := newClient(t), newPrefix()
	a := newAged(t, open(t, etcdConfig(t, prefix)), "w", 1)
	young := time.Date(2026, time.March, 1, 0, 0, 0, 0, time.UTC) // other events are of January
	a.rename(t, time.Time{})
	a.rename(t, young) // 4: by a process whose clock is ahead
	a.rename(t, young)
	sunk := a.rename(t, time.Time{}) // 6
	for range 3 {
		a.rename(t, time.Time{})
	}
	if err := a.store.PutSinkPosition(t.Context(), storage.Barrier{Revision: sunk}); err != nil {
		t.Fatal(err)
	}
	deleted, err := a.store.PruneAudit(t.Context(), young)
	if got, want := a.events(t, client, prefix), []int64{9, 8, 7, 6, 5, 4, 3, 1}; err != nil || deleted != 1 || !slices.Equal(got, want) {
		t.Errorf("PruneAudit: %d, %v; left are the events %d, want %d", deleted, err, got, want)
	}
	mustBeSound(t, prefix)
}

// TestPruningLeavesDamageAlone: a workspace with damage keeps all its events, which show what was lost.
func TestPruningLeavesDamageAlone(t *testing.T) {
	t.Parallel()
	client, prefix := newClient(t), newPrefix()
	store := open(t, etcdConfig(t, prefix))
	workspaces, newest := make(map[string]*aged), int64(0)
	for number, id := range []string{"event", "head", "record", "sound"} {
		workspaces[id] = newAged(t, store, id, number+1)
		for range 3 {
			newest = workspaces[id].rename(t, time.Time{})
		}
	}
	mustPut(t, client, prefix+"data/audit/event\x00"+complementOf(3), "damaged")
	mustPut(t, client, prefix+"data/members/record\x00member", "damaged")
	mustDelete(t, client, prefix+"data/heads/head")
	if err := store.PutSinkPosition(t.Context(), storage.Barrier{Revision: newest + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.PruneAudit(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for id, workspace := range workspaces {
		want := []int64{5, 4, 3, 2, 1}
		if id == "sound" {
			want = []int64{5, 1}
		}
		if got := workspace.events(t, client, prefix); !slices.Equal(got, want) {
			t.Errorf("%s: left are the events %d, want %d", id, got, want)
		}
	}
}
