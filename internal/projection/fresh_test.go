package projection_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// asked is a store whose barriers a test answers.
type asked struct {
	fake

	// sent receives a channel for each barrier that is asked for. The test sends the answer on
	// that channel.
	sent chan chan storage.Barrier
	// count is how many barriers were asked for.
	count atomic.Int64
}

func (a *asked) Barrier(ctx context.Context) (storage.Barrier, error) {
	a.count.Add(1)
	answer := make(chan storage.Barrier)
	select {
	case a.sent <- answer:
	case <-ctx.Done():
		return storage.Barrier{}, ctx.Err()
	}
	select {
	case barrier := <-answer:
		return barrier, nil
	case <-ctx.Done():
		return storage.Barrier{}, ctx.Err()
	}
}

// newAsked returns a store at revision 7, with the built-in policy.
func newAsked() *asked {
	return &asked{fake: fake{load: holding(7, scribe()), watch: idle}, sent: make(chan chan storage.Barrier)}
}

// TestFreshJoinsNoBarrierThatWasSent: calls that come while a barrier is read share the next
// barrier, because the present one may have begun before a change that they must see.
func TestFreshJoinsNoBarrierThatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newAsked()
		p := loaded(t, store)
		var fresh atomic.Int64
		var calls sync.WaitGroup
		call := func() {
			if err := p.Fresh(t.Context()); err != nil {
				t.Error(err)
			}
			fresh.Add(1)
		}
		calls.Go(call)
		first := <-store.sent
		for range 5 {
			calls.Go(call)
		}
		synctest.Wait()
		first <- storage.Barrier{Revision: 7}
		second := <-store.sent
		synctest.Wait()
		if got := fresh.Load(); got != 1 {
			t.Errorf("%d calls returned with the first barrier, want 1", got)
		}
		second <- storage.Barrier{Revision: 7}
		calls.Wait()
		if sent := store.count.Load(); sent != 2 {
			t.Errorf("%d barriers were sent, want 2: the second is shared", sent)
		}
	})
}

func TestFreshWaitsForTheBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, changes := newAsked(), make(chan *storage.Committed)
		store.watch = sending(changes)
		p := loaded(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = p.Follow(ctx) })
		done := make(chan error, 1)
		go func() { done <- p.Fresh(ctx) }()
		(<-store.sent) <- storage.Barrier{Revision: 8}
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Fresh returned before the projection had come to the barrier: %v", err)
		default:
		}
		changes <- &storage.Committed{Revision: 8, Head: storage.WorkspaceHead{WorkspaceID: "acme"}}
		if err := <-done; err != nil {
			t.Error(err)
		}
		cancel()
		running.Wait()
	})
}

// TestFreshEndsWithItsContext: other calls that wait for the same barrier go on.
func TestFreshEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newAsked()
		p := loaded(t, store)
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		ended, other := make(chan error, 1), make(chan error, 1)
		go func() { ended <- p.Fresh(short) }()
		answer := <-store.sent
		go func() { other <- p.Fresh(t.Context()) }()
		if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		answer <- storage.Barrier{Revision: 7}
		(<-store.sent) <- storage.Barrier{Revision: 7}
		if err := <-other; err != nil {
			t.Error(err)
		}
	})
}

// TestFreshIsUnavailableWithoutAnAnswer has a barrier that never returns.
func TestFreshIsUnavailableWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := loaded(t, newAsked())
		if err := p.Fresh(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}

// TestFreshEndsFollowOnAnotherHistory has a barrier that is behind what was applied, or has
// another hash at that revision.
func TestFreshEndsFollowOnAnotherHistory(t *testing.T) {
	for name, barrier := range map[string]storage.Barrier{
		"behind":       {Revision: 6},
		"another hash": {Revision: 7, Hash: [32]byte{2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newAsked()
				store.load = func(visit func(storage.Item) error) (storage.Position, error) {
					return storage.Position{Revision: 7, Hash: [32]byte{1}}, visit(scribe())
				}
				p := loaded(t, store)
				ended := make(chan error, 1)
				go func() { ended <- p.Follow(t.Context()) }()
				synctest.Wait()
				go func() { (<-store.sent) <- barrier }()
				if err := p.Fresh(t.Context()); !errors.Is(err, storage.ErrHistoryChanged) {
					t.Errorf("Fresh: %v", err)
				}
				if err := <-ended; !errors.Is(err, storage.ErrHistoryChanged) {
					t.Errorf("Follow: %v", err)
				}
			})
		})
	}
}

// TestUnreadablePolicyDenies: from a policy that cannot be read until the next readable one, no
// policy is active, whatever the policy before allowed.
func TestUnreadablePolicyDenies(t *testing.T) {
	store := openStore(t)
	var head storage.Head
	applyPolicy(t, store, &head, nil)
	workspace := storagetest.NewWorkspace("acme")
	commit(t, store, workspace, workspace.PutMember("member", "admin"))
	commit(t, store, workspace, workspace.CreateKey(storagetest.KeyID(1)))
	p := loaded(t, store)
	stop := follow(t, p)
	change := storagetest.ApplyPolicy(head, "not a policy")
	revision, err := store.Commit(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, p, revision)
	for _, id := range []string{storagetest.KeyID(1), storagetest.KeyID(2)} {
		if found := p.Find(id); !errors.Is(found.Damaged, storage.ErrDamaged) || found.Policy != nil {
			t.Errorf("%s: damaged is %v", id, found.Damaged)
		}
	}
	if _, _, err := p.Policy(); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Policy: %v", err)
	}
	if _, err := p.Workspace("acme").ActivePolicy(); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("ActivePolicy: %v", err)
	}
	stop() // one goroutine at a time may call Load and Follow
	if _, err := p.Load(t.Context()); err != nil {
		t.Errorf("loaded anew: %v: the keys must go on to be refused", err)
	}
	if found := p.Find(storagetest.KeyID(1)); !errors.Is(found.Damaged, storage.ErrDamaged) {
		t.Errorf("loaded anew: damaged is %v", found.Damaged)
	}
	if _, err := projection.New(store, nil).Load(t.Context()); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("a first Load: %v", err)
	}
	follow(t, p)
	head = storagetest.After(change)
	waitFor(t, p, applyPolicy(t, store, &head, nil))
	if found := p.Find(storagetest.KeyID(1)); found.Damaged != nil || found.Policy == nil {
		t.Errorf("with a policy again: damaged is %v", found.Damaged)
	}
}

// BenchmarkFresh measures the barrier that every validation takes on bbolt.
func BenchmarkFresh(b *testing.B) {
	p := loaded(b, openStore(b))
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Fresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
