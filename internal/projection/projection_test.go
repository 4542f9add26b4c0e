package projection_test

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin is about the time of storagetest's changes.
var begin = time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC)

// openStore returns a new store on bbolt.
func openStore(t testing.TB) storage.Store {
	t.Helper()
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "keysvc.db"), boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// loaded returns a projection that was loaded.
func loaded(t testing.TB, store storage.Store) *projection.Projection {
	t.Helper()
	p := projection.New(store, nil)
	if _, err := p.Load(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	return p
}

// follow lets a projection follow until the test ends, or stop was called.
func follow(t testing.TB, p *projection.Projection) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var following sync.WaitGroup
	following.Go(func() {
		if err := p.Follow(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Follow ended: %v", err)
		}
	})
	stop = func() {
		cancel()
		following.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// waitFor waits until the projection shows a revision.
func waitFor(t testing.TB, p *projection.Projection, revision int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.WaitFor(ctx, revision); err != nil {
		t.Fatalf("revision %d is not reached, only %d: %v", revision, p.Revision(), err)
	}
}

// commit commits a change of a workspace.
func commit(t testing.TB, store storage.Store, workspace *storagetest.Workspace, change *storage.Change) int64 {
	t.Helper()
	revision, err := store.Commit(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	workspace.Follow(change)
	return revision
}

// applyPolicy makes the built-in policy the active one, after an edit.
func applyPolicy(t testing.TB, store storage.Store, head *storage.Head, edit func(*policy.Policy)) int64 {
	t.Helper()
	wanted := policy.Default()
	if edit != nil {
		edit(wanted)
	}
	change := storagetest.ApplyPolicy(*head, string(wanted.Document()))
	revision, err := store.Commit(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	*head = storagetest.After(change)
	return revision
}

// fake is a store whose content and failures a test chooses. It lacks the methods that a
// projection never calls.
type fake struct {
	storage.Store

	load  func(visit func(storage.Item) error) (storage.Position, error)
	watch func(ctx context.Context, after storage.Barrier, yield func(*storage.Committed, error) bool)
}

func (f *fake) Epoch() string { return "epoch" }

func (f *fake) Load(_ context.Context, visit func(storage.Item) error) (storage.Position, error) {
	return f.load(visit)
}

func (f *fake) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) { f.watch(ctx, after, yield) }
}

// holding returns a load that visits items.
func holding(revision int64, items ...storage.Item) func(func(storage.Item) error) (storage.Position, error) {
	return func(visit func(storage.Item) error) (storage.Position, error) {
		for _, item := range items {
			if err := visit(item); err != nil {
				return storage.Position{}, err
			}
		}
		return storage.Position{Revision: revision, Time: begin}, nil
	}
}

// idle is a watch without changes.
func idle(ctx context.Context, _ storage.Barrier, yield func(*storage.Committed, error) bool) {
	<-ctx.Done()
	yield(nil, ctx.Err())
}

// scribe is the built-in policy as a record.
func scribe() storage.Item {
	return storage.Item{Policy: &storagev1.PolicyRecord{Document: policy.Default().Document()}}
}

func workspaceItem(id, incarnation string) storage.Item {
	return storage.Item{Workspace: &storagev1.WorkspaceRecord{
		WorkspaceId: id, Incarnation: incarnation, CreateTime: timestamppb.New(begin),
	}}
}

func memberItem(workspaceID, memberID string) storage.Item {
	return storage.Item{Member: &storagev1.MemberRecord{
		WorkspaceId: workspaceID, MemberId: memberID, Incarnation: "first", WorkspaceIncarnation: "first",
		Role: "admin", State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
	}}
}

// keyRecord returns the record of a key that works for a year.
func keyRecord(workspaceID, memberID, keyID string, sequence int64) *storagev1.KeyRecord {
	return &storagev1.KeyRecord{
		KeyId: keyID, WorkspaceId: workspaceID, MemberId: memberID,
		WorkspaceIncarnation: "first", MemberIncarnation: "first", Sequence: sequence,
		Scopes: []string{"emails:read", "signatures:read"},
		Secrets: []*storagev1.SecretRecord{{
			Scheme: 1, Hash: make([]byte, 32), ExpireTime: timestamppb.New(begin.AddDate(1, 0, 0)),
		}},
	}
}

func newToken(t testing.TB, keyID string) token.Token {
	t.Helper()
	made, err := token.New("scribe", keyID, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// secretOf returns the record of a token's secret.
func secretOf(t testing.TB, of token.Token, expires time.Time) *storagev1.SecretRecord {
	t.Helper()
	hash, err := of.Hash(token.SchemeVerifier)
	if err != nil {
		t.Fatal(err)
	}
	return &storagev1.SecretRecord{Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], ExpireTime: timestamppb.New(expires)}
}

// subjectOf returns what decide gets of a key.
func subjectOf(p *projection.Projection, keyID string) decide.Subject {
	found := p.Find(keyID)
	return found.Subject()
}
