package projection_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestReadersSeeWholeRevisionsThatNeverGoBack changes the keys of several workspaces at once
// while readers find them.
func TestReadersSeeWholeRevisionsThatNeverGoBack(t *testing.T) {
	const writers, changes = 3, 30
	store := openStore(t)
	var head storage.Head
	applyPolicy(t, store, &head, nil)
	p := loaded(t, store)
	follow(t, p)
	ids := make([]string, writers)
	for writer := range ids {
		ids[writer] = storagetest.KeyID(writer)
	}
	// committed maps each revision to the changed key, and to the number of its changes up to
	// then.
	type version struct{ writer, number int }
	var mutex sync.Mutex
	committed := make(map[int64]version)
	var writing, reading sync.WaitGroup
	for writer := range writers {
		writing.Go(func() {
			workspace := storagetest.NewWorkspace(fmt.Sprintf("workspace %d", writer))
			commit(t, store, workspace, workspace.PutMember("member", "admin"))
			created := workspace.CreateKey(ids[writer])
			record := created.PutKeys[0]
			change := created
			for number := range changes {
				if number > 0 {
					change = workspace.UpdateKey(record, func(key *storagev1.KeyRecord) {
						key.Scopes = []string{fmt.Sprintf("number:n%d", number)}
						key.MemberId = fmt.Sprintf("member %d", number)
						key.Secrets[0].ExpireTime = timestamppb.New(time.Unix(int64(number), 0))
					})
					record = change.PutKeys[0]
				}
				revision := commit(t, store, workspace, change)
				mutex.Lock()
				committed[revision] = version{writer, number}
				mutex.Unlock()
				waitFor(t, p, revision)
			}
		})
	}
	type sight struct {
		revision int64
		version
	}
	done := make(chan struct{})
	sights := make([][]sight, 2)
	for reader := range sights {
		reading.Go(func() {
			last := int64(0)
			for round := 0; ; round++ {
				select {
				case <-done:
					return
				default:
					runtime.Gosched() // other goroutines need a processor, too
				}
				writer := round % writers
				found := p.Find(ids[writer])
				if found.Revision < last {
					t.Errorf("revision %d after %d", found.Revision, last)
					return
				}
				last = found.Revision
				if key := found.Subject().Key; key != nil {
					number := int(key.ExpireTime / int64(time.Second))
					if key.Scopes[0] == "emails:read" {
						number = 0
					} else if key.Scopes[0] != fmt.Sprintf("number:n%d", number) || key.Member != fmt.Sprintf("member %d", number) {
						t.Errorf("a key of two changes: %+v", key)
						return
					}
					if seen := sights[reader]; len(seen) == 0 || seen[len(seen)-1] != (sight{found.Revision, version{writer, number}}) {
						sights[reader] = append(seen, sight{found.Revision, version{writer, number}})
					}
				}
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	// The content of every revision is known only now.
	newest := make(map[int64]map[int]int)
	state := make(map[int]int)
	for revision := int64(1); revision <= p.Revision(); revision++ {
		if made, found := committed[revision]; found {
			state[made.writer] = made.number
		}
		newest[revision] = make(map[int]int)
		for writer, number := range state {
			newest[revision][writer] = number
		}
	}
	for _, seen := range sights {
		for _, each := range seen {
			if want := newest[each.revision][each.writer]; each.number != want {
				t.Fatalf("at revision %d key %d was change %d, want %d", each.revision, each.writer, each.number, want)
			}
		}
	}
}

func TestWaitForReturnsAtItsRevision(t *testing.T) {
	t.Run("reached", func(t *testing.T) {
		p := loaded(t, &fake{load: holding(7, scribe())})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for _, revision := range []int64{-1, 0, 6, 7} {
			if err := p.WaitFor(ended, revision); err != nil {
				t.Errorf("%d: got %v: what is reached needs no waiting", revision, err)
			}
		}
	})
	t.Run("context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := loaded(t, &fake{load: holding(7, scribe())})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := p.WaitFor(ctx, 8); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("each waiter is woken when it is time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			changes := make(chan *storage.Committed)
			ctx, cancel := context.WithCancel(t.Context())
			p := loaded(t, &fake{load: holding(7, scribe()), watch: sending(changes)})
			var running sync.WaitGroup
			running.Go(func() { _ = p.Follow(ctx) })
			var woken [4]atomic.Bool
			for index := range woken {
				running.Go(func() {
					if err := p.WaitFor(ctx, int64(8+index)); err != nil {
						t.Errorf("waiter %d: %v", index, err)
					}
					woken[index].Store(true)
				})
			}
			for reached := range woken {
				synctest.Wait()
				for index := range woken {
					if got := woken[index].Load(); got != (index < reached) {
						t.Errorf("at revision %d: waiter for %d is awake: %t", 7+reached, 8+index, got)
					}
				}
				changes <- &storage.Committed{Revision: int64(8 + reached), Head: storage.WorkspaceHead{WorkspaceID: "acme"}}
			}
			synctest.Wait()
			cancel()
			running.Wait()
		})
	})
	t.Run("by a load", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := &fake{load: holding(7, scribe())}
			p := loaded(t, store)
			var waiting sync.WaitGroup
			waiting.Go(func() {
				if err := p.WaitFor(t.Context(), 9); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			store.load = holding(9, scribe())
			if _, err := p.Load(t.Context()); err != nil {
				t.Error(err)
			}
			waiting.Wait()
		})
	})
}

// sending returns a watch that yields the changes from a channel.
func sending(changes <-chan *storage.Committed) func(context.Context, storage.Barrier, func(*storage.Committed, error) bool) {
	return func(ctx context.Context, _ storage.Barrier, yield func(*storage.Committed, error) bool) {
		for {
			select {
			case change := <-changes:
				if !yield(change, nil) {
					return
				}
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

// breaking is a store whose watches end and whose loads fail when a test wants it.
type breaking struct {
	storage.Store

	broken chan error // ends the watch with that error; nil ends it without an error
	loads  atomic.Int64
	refuse func(load int64) error
}

func (b *breaking) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	if err := b.refuse(b.loads.Add(1)); err != nil {
		return storage.Position{}, err
	}
	return b.Store.Load(ctx, visit)
}

func (b *breaking) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		ended := make(chan error, 1)
		var waiting sync.WaitGroup
		defer waiting.Wait()
		defer cancel()
		waiting.Go(func() {
			select {
			case err := <-b.broken:
				ended <- err
				cancel()
			case <-watching.Done():
			}
		})
		for change, err := range b.Store.Watch(watching, after) {
			if err != nil && ctx.Err() == nil && watching.Err() != nil {
				if err = <-ended; err == nil {
					return
				}
			}
			if !yield(change, err) {
				return
			}
		}
	}
}

// TestFollowLoadsAgainAfterEveryKindOfBreak commits changes while the projection cannot follow.
// Until it has loaded again it shows its last state, and afterwards the changes.
func TestFollowLoadsAgainAfterEveryKindOfBreak(t *testing.T) {
	for _, test := range []struct {
		name    string
		ends    error
		refuses []error // the errors of the loads that follow, before one succeeds
	}{
		{"store went down", storage.ErrUnavailable, nil},
		{"gap", storage.ErrGap, nil},
		{"watch ended without an error", nil, nil},
		{"unknown error", errors.New("cable bitten through"), nil},
		{"store stays down for a while", storage.ErrUnavailable, []error{storage.ErrUnavailable, storage.ErrUnavailable, storage.ErrUnavailable}},
		{"policy damaged for a while", storage.ErrUnavailable, []error{damaged("policy")}},
		{"load timed out", storage.ErrUnavailable, []error{context.DeadlineExceeded}},
	} {
		t.Run(test.name, func(t *testing.T) {
			reloading, resume := make(chan struct{}), make(chan struct{})
			store := &breaking{Store: openStore(t), broken: make(chan error)}
			store.refuse = func(load int64) error {
				switch {
				case load == 1:
					return nil
				case load == 2:
					close(reloading)
					<-resume
				}
				if at := int(load - 2); at < len(test.refuses) {
					return test.refuses[at]
				}
				return nil
			}
			var head storage.Head
			applyPolicy(t, store, &head, nil)
			acme := storagetest.NewWorkspace("acme")
			commit(t, store, acme, acme.PutMember("member", "admin"))
			create := acme.CreateKey(storagetest.KeyID(1))
			before := commit(t, store, acme, create)
			p := loaded(t, store)
			follow(t, p)
			used, at := p.Find(storagetest.KeyID(1)).Last, begin.Add(time.Hour).Truncate(time.Microsecond)
			used.Raise(at)

			store.broken <- test.ends
			<-reloading
			commit(t, store, acme, acme.RevokeKey(create.PutKeys[0]))
			newest := commit(t, store, acme, acme.CreateKey(storagetest.KeyID(2)))
			found := p.Find(storagetest.KeyID(1))
			if found.Revision != before || !found.Exists || found.Subject().Key.Revoked {
				t.Errorf("while the store is down: got %+v", found)
			}
			close(resume)
			waitFor(t, p, newest)
			if got := store.loads.Load(); got != int64(2+len(test.refuses)) {
				t.Errorf("%d loads", got)
			}
			found = p.Find(storagetest.KeyID(1))
			if !found.Exists || !found.Subject().Key.Revoked || !p.Find(storagetest.KeyID(2)).Exists {
				t.Errorf("after the reload: got %+v", found)
			}
			// Uses that are not stored yet survive the load.
			if got := p.LastUsed(storagetest.KeyID(1)); !got.Equal(at) {
				t.Errorf("last used: got %s, want %s", got, at)
			}
			// A validation that found the key before the load notes its use after it.
			at = at.Add(time.Second)
			if got := p.LastUsed(storagetest.KeyID(1)); !used.Raise(at) || !p.LastUsed(storagetest.KeyID(1)).Equal(at) {
				t.Errorf("last used: got %s before and %s after, want %s", got, p.LastUsed(storagetest.KeyID(1)), at)
			}
			// Following goes on.
			waitFor(t, p, commit(t, store, acme, acme.PutMember("other", "admin")))
			compare(t, store.Store, p)
		})
	}
}

func TestAnotherHistoryEndsFollow(t *testing.T) {
	broken := func(_ context.Context, _ storage.Barrier, yield func(*storage.Committed, error) bool) {
		yield(nil, storage.ErrUnavailable)
	}
	good := holding(7, scribe(), workspaceItem("acme", "first"))
	for name, then := range map[string]func(func(storage.Item) error) (storage.Position, error){
		"the store returns it": func(func(storage.Item) error) (storage.Position, error) {
			return storage.Position{}, fmt.Errorf("reopening: %w", storage.ErrHistoryChanged)
		},
		"the revision went back": holding(6, scribe()),
		"the store is empty":     holding(0),
	} {
		t.Run(name, func(t *testing.T) {
			store := &fake{load: good, watch: broken}
			p := loaded(t, store)
			store.load = then
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := p.Follow(ctx); !errors.Is(err, storage.ErrHistoryChanged) {
				t.Fatalf("got %v, want ErrHistoryChanged", err)
			}
			if p.Revision() != 7 || p.Workspace("acme").Current == nil {
				t.Errorf("revision %d: the other history shows", p.Revision())
			}
		})
	}
	t.Run("the same revision again", func(t *testing.T) {
		p := loaded(t, &fake{load: good})
		if _, err := p.Load(t.Context()); err != nil || p.Revision() != 7 {
			t.Errorf("got %v, revision %d", err, p.Revision())
		}
	})
}

func TestFollowEndsWithItsContext(t *testing.T) {
	failing := func(context.Context, storage.Barrier, func(*storage.Committed, error) bool) {}
	for name, store := range map[string]*fake{
		"while watching": {watch: idle},
		"while loading anew fails": {
			watch: failing,
			load: func(func(storage.Item) error) (storage.Position, error) {
				return storage.Position{}, storage.ErrUnavailable
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := projection.New(store, nil)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if err := p.Follow(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
	t.Run("before it began", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p := projection.New(&fake{watch: idle}, nil)
		if err := p.Follow(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// TestFollowRetriesWithBackoff: a store that cannot be loaded or watched gets 20 to 1000 calls
// of Load in a minute.
func TestFollowRetriesWithBackoff(t *testing.T) {
	unavailable := func(func(storage.Item) error) (storage.Position, error) {
		return storage.Position{}, storage.ErrUnavailable
	}
	gap := func(_ context.Context, _ storage.Barrier, yield func(*storage.Committed, error) bool) {
		yield(nil, storage.ErrGap)
	}
	for name, store := range map[string]*fake{
		"loads fail":   {load: unavailable, watch: gap},
		"watches fail": {load: holding(7, scribe()), watch: gap},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const most = 1000
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				loads, load := 0, store.load
				store.load = func(visit func(storage.Item) error) (storage.Position, error) {
					if loads++; loads > most {
						cancel() // in the bubble, time stands still while a goroutine runs
					}
					return load(visit)
				}
				_ = projection.New(store, nil).Follow(ctx)
				if loads > most || loads < 20 {
					t.Errorf("%d loads within a minute", loads)
				}
			})
		})
	}
}

// TestReadsRaceWithChangesAndLoads is for the race detector: it calls every read during changes
// and loads.
func TestReadsRaceWithChangesAndLoads(t *testing.T) {
	store := &breaking{Store: openStore(t), broken: make(chan error), refuse: func(int64) error { return nil }}
	var head storage.Head
	applyPolicy(t, store, &head, nil)
	p := loaded(t, store)
	follow(t, p)
	acme := storagetest.NewWorkspace("acme")
	commit(t, store, acme, acme.PutMember("member", "admin"))
	keyID := storagetest.KeyID(1)
	create := acme.CreateKey(keyID)
	record := create.PutKeys[0]
	waitFor(t, p, commit(t, store, acme, create))

	done := make(chan struct{})
	var reading sync.WaitGroup
	presented := newToken(t, keyID)
	for range 2 {
		reading.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					runtime.Gosched()
				}
				found := p.Find(keyID)
				grant, _ := decide.Authenticate(presented.Presented(), found.Subject(), "", begin)
				_ = grant.Effective()
				if !found.Last.IsZero() {
					found.Last.Raise(begin)
				}
				_ = p.Workspace("acme").Has(&projection.Member{})
				_, _ = p.Member("acme", "member")
				_ = p.LiveKeys("acme", begin, 10)
				_ = p.Dead("acme", begin, 10)
				_, _ = p.Effect(t.Context(), nil, begin)
				_, _, _ = p.Policy()
				_ = p.Workspaces()
				_ = p.LastUsed(keyID)
				_ = p.Epoch()
			}
		})
	}
	for round := range 60 {
		switch round % 5 {
		case 0:
			commit(t, store, acme, acme.PutMember("member", "manager"))
		case 1:
			commit(t, store, acme, acme.CreateKey(storagetest.KeyID(2+round)))
		case 2:
			change := acme.UpdateKey(record, func(key *storagev1.KeyRecord) { key.Scopes = []string{"assets:read"} })
			commit(t, store, acme, change)
			record = change.PutKeys[0]
		case 3:
			applyPolicy(t, store, &head, nil)
		case 4:
			store.broken <- storage.ErrUnavailable
		}
	}
	waitFor(t, p, commit(t, store, acme, acme.PutMember("member", "owner")))
	close(done)
	reading.Wait()
	compare(t, store.Store, p)
}

func TestFindAllocatesNothing(t *testing.T) {
	keyID, ofBad := storagetest.KeyID(1), storagetest.KeyID(2)
	p := loaded(t, &fake{load: holding(
		7, scribe(), workspaceItem("acme", "first"), memberItem("acme", "ann"),
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", MemberID: "bad", Err: damaged("member")}},
		storage.Item{Key: keyRecord("acme", "ann", keyID, 1)}, storage.Item{Key: keyRecord("acme", "bad", ofBad, 1)},
	)})
	for name, id := range map[string]string{"hit": keyID, "miss": storagetest.KeyID(99), "malformed": "", "damaged": ofBad} {
		t.Run(name, func(t *testing.T) {
			if allocations := testing.AllocsPerRun(1000, func() { p.Find(id) }); allocations != 0 {
				t.Errorf("%v allocations", allocations)
			}
		})
	}
}

func BenchmarkFind(b *testing.B) {
	const keys = 100_000
	items := []storage.Item{scribe(), workspaceItem("acme", "first"), memberItem("acme", "ann")}
	for number := range keys {
		items = append(items, storage.Item{Key: keyRecord("acme", "ann", storagetest.KeyID(number), int64(number+1))})
	}
	p := loaded(b, &fake{load: holding(7, items...)})
	ids := make([]string, keys)
	for number := range ids {
		ids[number] = storagetest.KeyID((number * 7919) % (2 * keys)) // every other one is a miss
	}
	b.ReportAllocs()
	for number := 0; b.Loop(); number++ {
		if found := p.Find(ids[number%keys]); found.Policy == nil {
			b.Fatal("no policy")
		}
	}
}

// compare fails the test if a projection does not show what the store holds. It compares the
// projection with the records, and with another projection that was just loaded.
func compare(t *testing.T, store storage.Store, p *projection.Projection) {
	t.Helper()
	fresh := loaded(t, store)
	if p.Revision() != fresh.Revision() || p.Epoch() != store.Epoch() {
		t.Errorf("revision %d, want %d", p.Revision(), fresh.Revision())
	}
	got, want := slices.Sorted(slices.Values(p.Workspaces())), slices.Sorted(slices.Values(fresh.Workspaces()))
	if !slices.Equal(got, want) {
		t.Errorf("workspaces %q, want %q", got, want)
	}
	for _, workspaceID := range append(want, "") {
		if got, want := p.Workspace(workspaceID), fresh.Workspace(workspaceID); got.Head != want.Head ||
			!reflect.DeepEqual(got.Current, want.Current) || got.Policy.Digest != want.Policy.Digest {
			t.Errorf("workspace %q: got %+v, want %+v", workspaceID, got, want)
		}
		for _, offset := range []time.Duration{-1, 0, 1, time.Hour, 300 * 24 * time.Hour, 400 * 24 * time.Hour} {
			moment := begin.Add(offset)
			if got, want := p.LiveKeys(workspaceID, moment, 1<<30), fresh.LiveKeys(workspaceID, moment, 1<<30); got != want {
				t.Errorf("workspace %q at %s: %d live keys, want %d", workspaceID, offset, got, want)
			}
			for most, live := 0, fresh.LiveKeys(workspaceID, moment, 1<<30); most < 2*live+2; most++ {
				if got := p.HasRoom(workspaceID, moment, most); got != (live < most) {
					t.Errorf("workspace %q at %s has %d live keys of at most %d, and room: %t", workspaceID, offset, live, most, got)
				}
			}
			if got, want := p.Dead(workspaceID, moment, 1<<30), fresh.Dead(workspaceID, moment, 1<<30); !reflect.DeepEqual(got, want) {
				t.Errorf("workspace %q at %s: dead %+v, want %+v", workspaceID, offset, got, want)
			}
		}
		if workspaceID == "" {
			continue
		}
		for _, record := range storagetest.ListMembers(t, store, workspaceID, 100) {
			member, err := p.Member(workspaceID, record.GetMemberId())
			if err != nil || member == nil || member.Member != memberOf(record) || member.SourceVersion != record.GetSourceVersion() {
				t.Errorf("member %s of %q: got %+v, %v; want %v", record.GetMemberId(), workspaceID, member, err, record)
			}
		}
		for _, record := range storagetest.ListKeys(t, store, workspaceID, 100) {
			compareKey(t, p, fresh, record)
		}
	}
}

func compareKey(t *testing.T, p, fresh *projection.Projection, record *storagev1.KeyRecord) {
	t.Helper()
	got, want := p.Find(record.GetKeyId()), fresh.Find(record.GetKeyId())
	if got.Damaged != nil || got.Subject().Key == nil || !reflect.DeepEqual(got.Subject(), want.Subject()) || got.Last.IsZero() {
		t.Errorf("key %s: got %+v, want %+v", record.GetKeyId(), got, want)
		return
	}
	key := got.Subject().Key
	if key.Workspace != record.GetWorkspaceId() || key.Member != record.GetMemberId() ||
		key.WorkspaceIncarnation != record.GetWorkspaceIncarnation() || key.MemberIncarnation != record.GetMemberIncarnation() ||
		!slices.Equal(key.Scopes, record.GetScopes()) || key.Revoked != (record.GetRevokeTime() != nil) || key.Held != (record.GetHoldTime() != nil) ||
		key.ExpireTime != record.GetSecrets()[0].GetExpireTime().AsTime().UnixNano() ||
		len(key.AllowedPrefixes) != len(record.GetAllowedCidrs()) {
		t.Errorf("key %+v, want %v", key, record)
	}
	for index, prefix := range key.AllowedPrefixes {
		if prefix.String() != record.GetAllowedCidrs()[index] {
			t.Errorf("prefix %s, want %s", prefix, record.GetAllowedCidrs()[index])
		}
	}
	for index, secret := range record.GetSecrets() {
		if !slices.Equal(key.Secrets[index].Hash.Sum[:], secret.GetHash()[:len(key.Secrets[index].Hash.Sum)]) || uint32(key.Secrets[index].Hash.Scheme) != secret.GetScheme() {
			t.Errorf("secret %d of %s is another", index, record.GetKeyId())
		}
	}
}

func memberOf(record *storagev1.MemberRecord) decide.Member {
	return decide.Member{
		Incarnation: record.GetIncarnation(), WorkspaceIncarnation: record.GetWorkspaceIncarnation(), Role: record.GetRole(),
		Active:  record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
		Removed: record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
	}
}

// TestFollowEndsIfTheHistoryIsAnother watches from the very change that was applied last, and ends,
// without a load, when the store says that it had another one.
func TestFollowEndsIfTheHistoryIsAnother(t *testing.T) {
	first, second := [32]byte{1}, [32]byte{2}
	var asked []storage.Barrier
	store := &fake{load: func(visit func(storage.Item) error) (storage.Position, error) {
		if len(asked) > 0 {
			t.Error("loaded anew")
		}
		return storage.Position{Revision: 7, Hash: first}, visit(scribe())
	}}
	store.watch = func(_ context.Context, after storage.Barrier, yield func(*storage.Committed, error) bool) {
		asked = append(asked, after)
		change := &storage.Committed{
			Revision: 8, Feed: &storagev1.FeedRecord{WorkspaceId: "acme", AuditHash: second[:]},
			Head: storage.WorkspaceHead{WorkspaceID: "acme"},
		}
		if len(asked) == 1 && yield(change, nil) {
			yield(nil, fmt.Errorf("%w: another change", storage.ErrHistoryChanged))
		}
	}
	p := loaded(t, store)
	if err := p.Follow(t.Context()); !errors.Is(err, storage.ErrHistoryChanged) {
		t.Errorf("Follow: %v, want ErrHistoryChanged", err)
	}
	if want := []storage.Barrier{{Revision: 7, Hash: first}}; !slices.Equal(asked, want) {
		t.Errorf("watched after %v, want %v", asked, want)
	}
	if got := p.Revision(); got != 8 {
		t.Errorf("revision %d, want 8", got)
	}
	// A load that shows another change at that revision ends as well.
	store.load = holding(8, scribe())
	if _, err := p.Load(t.Context()); err != nil {
		t.Errorf("Load without a hash: %v", err)
	}
	store.load = func(func(storage.Item) error) (storage.Position, error) {
		return storage.Position{Revision: 8, Hash: first}, nil
	}
	if _, err := p.Load(t.Context()); err != nil { // the hash of revision 8 is not known any more
		t.Errorf("Load: %v", err)
	}
	store.load = func(func(storage.Item) error) (storage.Position, error) {
		return storage.Position{Revision: 8, Hash: second}, nil
	}
	if _, err := p.Load(t.Context()); !errors.Is(err, storage.ErrHistoryChanged) {
		t.Errorf("Load of another change: %v, want ErrHistoryChanged", err)
	}
}
