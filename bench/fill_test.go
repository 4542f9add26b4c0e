// Package bench measures what keysvc costs. It consists of benchmarks and of programs that
// print figures; no test fails because a machine is slow. Compare figures of one run, with a
// floor that was measured beside them.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// actor makes the changes of the benchmarks.
var actor = audit.Actor{Caller: "bench", Workspaces: access.All()}

// keysPerWorkspace is how many keys fill puts into a workspace.
const keysPerWorkspace = 500

// process is a keysvc without its RPCs.
type process struct {
	path       string
	store      *boltstore.Store
	projection *projection.Projection
	manager    service.Verbs
	validator  *validation.Validator
	recorder   *usage.Recorder
	close      func()
}

// start opens a store and everything above it.
func start(tb testing.TB, path string) *process {
	tb.Helper()
	return startWith(tb, path, boltstore.Config{Create: boltstore.CreateIfAbsent})
}

// startWith is start with a config of the store.
func startWith(tb testing.TB, path string, config boltstore.Config) *process {
	tb.Helper()
	store, err := boltstore.Open(path, config)
	if err != nil {
		tb.Fatal(err)
	}
	p := &process{path: path, store: store, projection: projection.New(store, nil)}
	if _, err := p.projection.Load(context.Background()); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() {
		if err := p.projection.Follow(ctx); !errors.Is(err, context.Canceled) {
			tb.Errorf("following ended: %v", err)
		}
	})
	p.manager = service.Verbs{Manager: keys.New(keys.Config{Store: store, Projection: p.projection})}
	p.recorder = usage.NewRecorder(store, nil)
	p.validator = validation.New(p.projection, store, nil)
	p.validator.RecordTo(p.recorder)
	p.close = func() {
		cancel()
		following.Wait()
		if err := store.Close(); err != nil {
			tb.Error(err)
		}
	}
	if _, err := p.manager.InstallPolicy(context.Background(), actor, policy.Default()); err != nil {
		tb.Fatal(err)
	}
	return p
}

// fill stores a number of keys in a new store, without the verbs of package keys, and returns
// some of their tokens. age is how long ago the keys were revoked; 0 leaves them live.
func fill(tb testing.TB, path string, count int, age time.Duration) []string {
	tb.Helper()
	store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateIfAbsent})
	if err != nil {
		tb.Fatal(err)
	}
	random := mathrand.NewChaCha8([32]byte{1})
	var tokens []string
	var mutex sync.Mutex
	var workers sync.WaitGroup
	next := make(chan int)
	for range 64 {
		workers.Go(func() {
			for number := range next {
				filled, err := fillWorkspace(store, number, min(keysPerWorkspace, count-number*keysPerWorkspace), age, &mutex, random)
				if err != nil {
					tb.Error(err)
					return
				}
				mutex.Lock()
				if len(tokens) < 100_000 {
					tokens = append(tokens, filled...)
				}
				mutex.Unlock()
			}
		})
	}
	for number := 0; number*keysPerWorkspace < count; number++ {
		next <- number
	}
	close(next)
	workers.Wait()
	if err := store.Close(); err != nil {
		tb.Fatal(err)
	}
	return tokens
}

func fillWorkspace(store storage.Store, number, count int, age time.Duration, mutex *sync.Mutex, random io.Reader) ([]string, error) {
	workspaceID := fmt.Sprintf("workspace-%06d", number)
	now := time.Now().UTC()
	var head storage.Head
	commit := func(action storagev1.AuditAction, change *storage.Change) error {
		event := audit.NewEvent(actor, action, now, workspaceID)
		change.Event = event
		change.Link(workspaceID, head)
		if _, err := store.Commit(context.Background(), change); err != nil {
			return err
		}
		encoded, err := storage.Encode(event) // with the changes that the commit listed
		if err != nil {
			return err
		}
		head = head.After(encoded)
		return nil
	}
	err := commit(storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, &storage.Change{
		Kind:         storagev1.FeedKind_FEED_KIND_MEMBER,
		PutWorkspace: &storagev1.WorkspaceRecord{WorkspaceId: workspaceID, Incarnation: "w", CreateTime: timestamppb.New(now)},
		PutMembers: []*storagev1.MemberRecord{{
			WorkspaceId: workspaceID, MemberId: "ann", Incarnation: "m", WorkspaceIncarnation: "w", Role: "manager",
			State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE, CreateTime: timestamppb.New(now), UpdateTime: timestamppb.New(now),
		}},
	})
	var tokens []string
	for made := 0; made < count && err == nil; made += 30 {
		change := &storage.Change{Kind: storagev1.FeedKind_FEED_KIND_KEY}
		for range min(30, count-made) {
			mutex.Lock()
			id, _ := token.NewID(random)
			issued, _ := token.New("scribe", id, random)
			mutex.Unlock()
			hash, _ := issued.Hash(token.SchemeVerifier)
			record := &storagev1.KeyRecord{
				KeyId: id, WorkspaceId: workspaceID, MemberId: "ann", WorkspaceIncarnation: "w", MemberIncarnation: "m",
				Sequence: head.Sequence + 1, ChangeSequence: head.Sequence + 1, Name: "a key of a usual length",
				Scopes: []string{"folders:read", "signatures:read", "signatures:write"}, CreateTime: timestamppb.New(now.Add(-age)),
				Secrets: []*storagev1.SecretRecord{{
					Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], CreateTime: timestamppb.New(now.Add(-age)), ExpireTime: timestamppb.New(now.AddDate(1, 0, 0)),
				}},
			}
			if age > 0 {
				record.RevokeTime = timestamppb.New(now.Add(-age))
			}
			change.AbsentKeyIDs = append(change.AbsentKeyIDs, id)
			change.PutKeys = append(change.PutKeys, record)
			tokens = append(tokens, issued.Reveal())
		}
		err = commit(storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, change)
	}
	return tokens, err
}

// TestFilledStoreServes runs the code of the measurements when nobody measures.
func TestFilledStoreServes(t *testing.T) {
	path := newStore(t)
	tokens := fill(t, path, 1200, 0)
	p := start(t, path)
	defer p.close()
	for _, text := range tokens {
		answer, err := p.validator.Validate(t.Context(), validation.Question{
			Workspaces: access.All(),
			Token:      text, Requirement: decide.Requirement{Scope: "signatures:read"},
		})
		if err != nil || answer.Decision != decide.Allowed {
			t.Fatal(answer.Decision, answer.Reason, err)
		}
	}
	if len(tokens) != 1200 {
		t.Errorf("%d tokens", len(tokens))
	}
}

// newStore returns the path for a new store.
func newStore(tb testing.TB) string { return filepath.Join(tb.TempDir(), "keysvc.db") }
