package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// shaky is a store behind a network that loses transactions and answers.
type shaky struct {
	*etcdstore.Store
	*network

	t      *testing.T
	prefix string
	model  *storagetest.Model
}

// shortTimeout is the Timeout of tests that let it pass. What must not time out, New above all, has
// to fit into it on a machine with a load of ten.
const shortTimeout = 2 * time.Second

// newShaky returns a store over a network that the test can break. A timeout of 0 is the default.
func newShaky(t *testing.T, timeout time.Duration) *shaky {
	t.Helper()
	s := &shaky{network: &network{}, t: t, prefix: newPrefix(), model: storagetest.NewModel()}
	s.Store = open(t, etcdstore.Config{Members: s.clients(t), Prefix: s.prefix, Timeout: timeout})
	return s
}

// do commits a change that must succeed, both as Commit reports it and as etcd stores it.
func (s *shaky) do(workspace *storagetest.Workspace, change *storage.Change) int64 {
	s.t.Helper()
	revision, err := s.Commit(s.t.Context(), change)
	if err != nil {
		s.t.Fatalf("Commit: %v", err)
	}
	s.model.Apply(change, revision)
	workspace.Follow(change)
	return revision
}

// head returns a workspace's stored head.
func (s *shaky) head(workspaceID string) storage.Head {
	s.t.Helper()
	var head storage.Head
	_, err := s.Load(s.t.Context(), func(item storage.Item) error {
		if item.Head != nil && item.Head.WorkspaceID == workspaceID {
			head = item.Head.Head
		}
		return nil
	})
	if err != nil {
		s.t.Fatalf("Load: %v", err)
	}
	return head
}

// lost commits a change that must be a conflict with its own fence and must have changed nothing but the
// fence. The workspace follows the fence.
func (s *shaky) lost(workspace *storagetest.Workspace, change *storage.Change) {
	s.t.Helper()
	_, err := s.Commit(s.t.Context(), change)
	conflict := (*storage.ConflictError)(nil)
	if !errors.As(err, &conflict) {
		s.t.Fatalf("Commit: %v, want a conflict", err)
	}
	if barrier, err := s.Barrier(s.t.Context()); err != nil || conflict.Revision != barrier.Revision {
		s.t.Fatalf("the conflict is with revision %d, the fence has %d, %v", conflict.Revision, barrier.Revision, err)
	}
	expected := change.Expect
	expected.Fence++
	if got := s.head(workspace.ID); got != expected {
		s.t.Fatalf("the head is %+v, want %+v", got, expected)
	}
	workspace.Head = expected
}

// finish compares the store with what was acknowledged.
func (s *shaky) finish() {
	s.t.Helper()
	s.set(nil)
	s.model.Compare(s.t, s.Store)
	mustBeSound(s.t, s.prefix)
}

func TestLostTransactionIsFencedAndAConflict(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	// The first change of a workspace, which has no head yet.
	var late *sent
	s.next(func(sent *sent) (*clientv3.TxnResponse, error) { late = sent; return lose() })
	first := workspace.PutMember("member", "admin")
	s.lost(workspace, first)
	// The lost transaction arrives after all, twice.
	for range 2 {
		if response, err := late.deliver(); err != nil || response.Succeeded {
			t.Fatalf("a transaction behind its fence: succeeded %t, %v", response.Succeeded, err)
		}
	}
	if _, err := s.Commit(t.Context(), first); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("Commit at the head before the fence: %v, want ErrConflict", err)
	}
	second := workspace.PutMember("member", "admin")
	second.PutWorkspace = first.PutWorkspace
	s.do(workspace, second)

	s.next(loseTransaction)
	s.lost(workspace, workspace.CreateKey(storagetest.KeyID(1), "request"))
	// The ids of the lost change are still free.
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(1), "request"))
	s.next(hang)
	s.Store = open(t, etcdstore.Config{Members: s.clients(t), Prefix: s.prefix, Timeout: 200 * time.Millisecond})
	s.lost(workspace, workspace.CreateKey(storagetest.KeyID(2)))
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(2)))

	// The policy has a head as well.
	policy := storagetest.NewWorkspace("")
	s.next(loseTransaction)
	s.lost(policy, storagetest.ApplyPolicy(policy.Head, "policy"))
	s.do(policy, storagetest.ApplyPolicy(policy.Head, "policy"))
	s.finish()
}

func TestLostAnswerIsResolvedAsCommitted(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.next(loseAnswer)
	revisions := []int64{s.do(workspace, workspace.PutMember("member", "admin"))}
	for number := range 3 {
		s.next(loseAnswer)
		revisions = append(revisions, s.do(workspace, workspace.CreateKey(storagetest.KeyID(number), fmt.Sprint("request ", number))))
	}
	if head := s.head("w"); head != workspace.Head || head.Fence != 0 {
		t.Errorf("the head is %+v, want %+v: nothing had to be fenced", head, workspace.Head)
	}
	for change, err := range s.Watch(t.Context(), storage.Barrier{}) {
		if err != nil || change.Revision != revisions[0] {
			t.Fatalf("Watch: %+v, %v; want revision %d", change, err, revisions[0])
		}
		if revisions = revisions[1:]; len(revisions) == 0 {
			break
		}
	}
	s.finish()
}

// TestTransactionDeliveredBeforeItsFenceCommits delivers the transaction after the search for
// its outcome has begun, but before the fence.
func TestTransactionDeliveredBeforeItsFenceCommits(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	var late *sent
	s.next(
		func(sent *sent) (*clientv3.TxnResponse, error) { late = sent; return lose() },
		func(fence *sent) (*clientv3.TxnResponse, error) {
			if response, err := late.deliver(); err != nil || !response.Succeeded {
				t.Errorf("the late transaction: %v", err)
			}
			return fence.deliver()
		})
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(1)))
	s.finish()
}

func TestLostFenceIsRepeated(t *testing.T) {
	for name, faults := range map[string][]func(*sent) (*clientv3.TxnResponse, error){
		"two fences are lost":                        {loseTransaction, loseTransaction, loseTransaction},
		"the answer to a fence is lost":              {loseTransaction, loseAnswer},
		"a fence, and the answer to another is lost": {loseTransaction, loseTransaction, loseAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShaky(t, 0)
			workspace := storagetest.NewWorkspace("w")
			s.do(workspace, workspace.PutMember("member", "admin"))
			s.next(faults...)
			s.lost(workspace, workspace.CreateKey(storagetest.KeyID(1)))
			s.do(workspace, workspace.CreateKey(storagetest.KeyID(1)))
			s.finish()
		})
	}
}

// TestLostTransactionOvertakenByAnotherChangeIsAConflict loses a transaction, and another
// process changes the workspace before the outcome is looked for.
func TestLostTransactionOvertakenByAnotherChangeIsAConflict(t *testing.T) {
	s := newShaky(t, 0)
	other := open(t, etcdstore.Config{Members: newClients(t), Prefix: s.prefix})
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	mine, others := workspace.CreateKey(storagetest.KeyID(1)), workspace.CreateKey(storagetest.KeyID(2))
	s.next(func(*sent) (*clientv3.TxnResponse, error) {
		revision, err := other.Commit(t.Context(), others)
		if err != nil {
			t.Errorf("Commit: %v", err)
		}
		s.model.Apply(others, revision)
		return lose()
	})
	if _, err := s.Commit(t.Context(), mine); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("Commit: %v, want ErrConflict", err)
	}
	s.finish()
}

// TestOutcomeIsUnknownUntilEtcdAnswers blocks everything until Commit gives up the search:
// only then is the outcome unknown. Until the outcome is resolved, changes of the workspace
// are refused. It is resolved once etcd can be reached again.
func TestOutcomeIsUnknownUntilEtcdAnswers(t *testing.T) {
	for name, committed := range map[string]bool{"the transaction is lost": false, "its answer is lost": true} {
		t.Run(name, func(t *testing.T) {
			s := newShaky(t, shortTimeout)
			workspace := storagetest.NewWorkspace("w")
			s.do(workspace, workspace.PutMember("member", "admin"))
			var late *sent
			var once sync.Once
			s.set(func(sent *sent) (*clientv3.TxnResponse, error) {
				once.Do(func() {
					late = sent
					if committed {
						_, _ = sent.deliver()
					}
				})
				return lose()
			})
			change := workspace.CreateKey(storagetest.KeyID(1))
			if _, err := s.Commit(t.Context(), change); !errors.Is(err, storage.ErrOutcomeUnknown) {
				t.Fatalf("Commit: %v, want ErrOutcomeUnknown", err)
			}
			// However long etcd is away, a workspace has at most one search for an outcome.
			if _, err := s.Commit(t.Context(), change); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("Commit while the outcome is looked for: %v, want ErrUnavailable", err)
			}
			resolved := make(chan struct{}, 1)
			s.next(func(fence *sent) (*clientv3.TxnResponse, error) {
				defer func() { resolved <- struct{}{} }()
				return fence.deliver()
			})
			select {
			case <-resolved:
			case <-time.After(10 * time.Second):
				t.Fatal("nobody looks for the outcome")
			}
			want := storagetest.After(change)
			if !committed {
				want = change.Expect
				want.Fence++
			}
			if got := s.head("w"); got != want {
				t.Fatalf("the head is %+v, want %+v", got, want)
			}
			if response, err := late.deliver(); err != nil || response.Succeeded {
				t.Errorf("the transaction, once more: succeeded %t, %v", response.Succeeded, err)
			}
			if s.head("w") != want {
				t.Error("the outcome has changed")
			}
		})
	}
}

// TestNoSpaceAfterExecutionCountsAsCommitted: etcd checks its quota twice. The second time,
// it has executed the transaction and answers that there is no space.
func TestNoSpaceAfterExecutionCountsAsCommitted(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	s.next(func(sent *sent) (*clientv3.TxnResponse, error) {
		if response, err := sent.deliver(); err != nil || !response.Succeeded {
			t.Errorf("the transaction: %v", err)
		}
		return nil, rpctypes.ErrNoSpace
	})
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(1), "request"))

	// The first check of the quota: etcd has not executed the transaction, and nothing has to
	// be fenced.
	s.next(func(*sent) (*clientv3.TxnResponse, error) { return nil, rpctypes.ErrNoSpace })
	if _, err := s.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(2))); !errors.Is(err, storage.ErrFull) {
		t.Errorf("Commit: %v, want ErrFull", err)
	}
	if head := s.head("w"); head != workspace.Head {
		t.Errorf("the head is %+v, want %+v", head, workspace.Head)
	}
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(2)))
	s.finish()
}

// TestCloseEndsTheSearchForAnOutcome closes the store while it looks for an outcome.
func TestCloseEndsTheSearchForAnOutcome(t *testing.T) {
	s := newShaky(t, shortTimeout)
	workspace := storagetest.NewWorkspace("w")
	s.set(loseTransaction)
	if _, err := s.Commit(t.Context(), workspace.PutMember("member", "admin")); !errors.Is(err, storage.ErrOutcomeUnknown) {
		t.Fatalf("Commit: %v, want ErrOutcomeUnknown", err)
	}
	begun := time.Now()
	if err := s.Close(); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(begun))
	}
}

// TestCancelledCommitReturnsItsOutcome cancels a commit after its transaction was sent.
func TestCancelledCommitReturnsItsOutcome(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	ctx, cancel := context.WithCancel(t.Context())
	s.next(func(sent *sent) (*clientv3.TxnResponse, error) {
		cancel()
		if sent.ctx.Err() != nil {
			t.Error("the transaction ends with its caller")
		}
		return sent.deliver()
	})
	change := workspace.CreateKey(storagetest.KeyID(1))
	revision, err := s.Commit(ctx, change)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	s.model.Apply(change, revision)
	s.finish()
}

// TestProjectionFollowsTheFence: a projection does not have to load again for the change
// after a lost one.
func TestProjectionFollowsTheFence(t *testing.T) {
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	s.next(loseTransaction)
	s.lost(workspace, workspace.CreateKey(storagetest.KeyID(1)))
	fenced := workspace.Head
	s.do(workspace, workspace.CreateKey(storagetest.KeyID(1)))
	var seen []*storage.Committed
	for change, err := range s.Watch(t.Context(), storage.Barrier{}) {
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		if seen = append(seen, change); len(seen) == 3 {
			break
		}
	}
	fence := seen[1]
	if fence.Head.Head != fenced || fence.Head.WorkspaceID != "w" || len(fence.Put)+len(fence.DeletedKeys)+len(fence.DeletedMembers) > 0 ||
		fence.Revision <= seen[0].Revision || fence.Revision >= seen[2].Revision || !fence.Time.IsZero() {
		t.Errorf("the fence, as watched: %+v", fence)
	}

	world := keystest.NewWorld(t, shakyBackend{s}, nil)
	world.Put("acme", "ann", "owner", 1)
	for number := range 3 {
		memberID := fmt.Sprintf("bob%d", number)
		s.next(loseTransaction, loseAnswer, loseTransaction)
		if _, err := world.PutMember(t.Context(), keystest.Actor, putMember("acme", memberID)); err != nil {
			t.Errorf("PutMember, lost twice: %v", err)
		}
		s.next(loseAnswer)
		world.Create("acme", "ann", "signatures:read")
	}
}

// TestRandomLossesLoseNothingAcknowledged makes changes over a network that randomly loses
// and delays transactions and answers. What was acknowledged is stored, and nothing else.
func TestRandomLossesLoseNothingAcknowledged(t *testing.T) {
	const seed, changes = 1, 150
	random := rand.New(rand.NewPCG(seed, 0))
	s := newShaky(t, 0)
	workspace := storagetest.NewWorkspace("w")
	s.do(workspace, workspace.PutMember("member", "admin"))
	var floating []*sent
	s.set(func(sent *sent) (*clientv3.TxnResponse, error) {
		// Transactions that were held back may arrive first, or arrive again.
		for _, late := range floating {
			if random.IntN(4) == 0 {
				if _, err := late.deliver(); err != nil {
					t.Errorf("delivering late: %v", err)
				}
			}
		}
		if len(floating) > 10 {
			floating = floating[1:]
		}
		switch random.IntN(5) {
		case 0:
			floating = append(floating, sent)
			return lose()
		case 1:
			floating = append(floating, sent)
			return loseAnswer(sent)
		}
		return sent.deliver()
	})
	lost := 0
	for number := range changes {
		change := workspace.CreateKey(storagetest.KeyID(number), fmt.Sprint("request ", number))
		revision, err := s.Commit(t.Context(), change)
		switch {
		case err == nil:
			s.model.Apply(change, revision)
			workspace.Follow(change)
		case errors.Is(err, storage.ErrConflict):
			lost++
			fenced := workspace.Head
			fenced.Fence++
			if workspace.Head = s.head("w"); workspace.Head != fenced {
				t.Fatalf("the head is %+v, want %+v", workspace.Head, fenced)
			}
		default:
			t.Fatalf("Commit %d: %v", number, err)
		}
	}
	t.Logf("%d of %d changes were lost", lost, changes)
	s.set(nil)
	s.do(workspace, workspace.PutMember("member", "owner"))
	s.finish()
}

// TestFenceExcludesChangesThatWereBuiltBefore: a call that finds nothing to change raises the fence,
// and then no transaction that another process lost can be executed any more.
func TestFenceExcludesChangesThatWereBuiltBefore(t *testing.T) {
	for name, answers := range map[string][]func(*sent) (*clientv3.TxnResponse, error){
		"answered":           nil,
		"the answer is lost": {loseAnswer},
		"it is lost":         {loseTransaction, loseTransaction},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShaky(t, 0)
			other := open(t, etcdstore.Config{Members: newClients(t), Prefix: s.prefix})
			fencer, is := storage.As[storage.Fencer](s.Store)
			if !is {
				t.Fatal("the store is no Fencer")
			}
			workspace := storagetest.NewWorkspace("w")
			// A workspace that does not exist yet, and then one that does.
			for range 2 {
				before := workspace.Head
				var late *sent
				s.next(func(sent *sent) (*clientv3.TxnResponse, error) {
					late = sent
					return nil, rpctypes.ErrRequestTooLarge // counts as refused, so this store does not fence it
				})
				lost := workspace.PutMember("member", "admin")
				if _, err := s.Commit(t.Context(), lost); !errors.Is(err, storage.ErrUnavailable) {
					t.Fatalf("Commit: %v", err)
				}
				s.next(answers...)
				revision, err := fencer.Fence(t.Context(), "w", before)
				if err != nil {
					t.Fatalf("Fence: %v", err)
				}
				if response, err := late.deliver(); err != nil || response.Succeeded {
					t.Fatalf("a transaction behind the fence: succeeded %t, %v", response.Succeeded, err)
				}
				fenced := before
				fenced.Fence++
				if got := s.head("w"); got != fenced {
					t.Fatalf("the head is %+v, want %+v", got, fenced)
				}
				// Somebody else who saw the same head has nothing to raise any more.
				again, err := other.Fence(t.Context(), "w", before)
				if err != nil || again != revision || s.head("w") != fenced {
					t.Fatalf("Fence again: %d, %v, want %d", again, err, revision)
				}
				barrier, err := s.Barrier(t.Context())
				if err != nil || barrier.Revision != revision || barrier.Hash == before.Hash || barrier.Hash == [32]byte{} {
					t.Fatalf("the barrier is %+v, %v, want revision %d and a hash of its own", barrier, err, revision)
				}
				workspace.Head = fenced
				lost.Link("w", fenced)
				made := s.do(workspace, lost)
				var conflict *storage.ConflictError
				if _, err := fencer.Fence(t.Context(), "w", fenced); !errors.As(err, &conflict) || conflict.Revision != made {
					t.Fatalf("Fence at an older head: %v, want a conflict with %d", err, made)
				}
			}
			if _, err := fencer.Fence(t.Context(), "nobody", workspace.Head); !errors.Is(err, storage.ErrConflict) {
				t.Errorf("Fence without a head: %v", err)
			}
			s.finish()
		})
	}
}
