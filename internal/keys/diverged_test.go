package keys_test

import (
	"context"
	"errors"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// committing is a store whose Commit a test replaces.
type committing struct {
	storage.Store

	commit func(ctx context.Context, change *storage.Change) (int64, error)
}

// Commit implements storage.Store.
func (c *committing) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	return c.commit(ctx, change)
}

// maxAttempts is the number of commits after which a test takes a call to retry for ever.
const maxAttempts = 100

// TestConflictThatTheViewReflectsIsDamage: the store refuses every change with a conflict
// whose revision the projection showed before the change was made. No newer state will ever
// explain the conflict, so the call ends, without a deadline as well: a sweep has none.
func TestConflictThatTheViewReflectsIsDamage(t *testing.T) {
	for name, behind := range map[string]func(shown int64) int64{
		"the newest revision":  func(shown int64) int64 { return shown },
		"an earlier revision":  func(shown int64) int64 { return shown - 1 },
		"no head in the store": func(int64) int64 { return 0 },
	} {
		for verb, call := range map[string]func(context.Context, *keys.Manager) error{
			"PutMember": func(ctx context.Context, manager *keys.Manager) error {
				_, _, err := manager.PutMember(ctx, keystest.Actor, keys.MemberSpec{
					WorkspaceID: "acme", MemberID: "bob", Role: "manager", State: keys.MemberActive,
				})
				return err
			},
			"Sweep": func(ctx context.Context, manager *keys.Manager) error {
				_, err := manager.Sweep(ctx, keystest.Actor)
				return err
			},
		} {
			t.Run(verb+", "+name, func(t *testing.T) {
				w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
				w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
				w.Must(w.RemoveWorkspace(t.Context(), keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"}))
				w.Clock.Advance(91 * 24 * time.Hour)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				attempts := 0
				store := &committing{Store: w.Store, commit: func(context.Context, *storage.Change) (int64, error) {
					if attempts++; attempts == maxAttempts {
						cancel()
					}
					return 0, &storage.ConflictError{Revision: behind(w.Projection.Revision())}
				}}
				manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
				if err := call(ctx, manager); !errors.Is(err, storage.ErrDamaged) || attempts != 1 {
					t.Errorf("%v after %d attempts, want ErrDamaged after 1", err, attempts)
				}
			})
		}
	}
}

// TestConflictThatTheViewReflectsByNowIsTriedAgain: another change of the workspace is
// committed, and published, between the check of a change and its commit. Now the projection
// shows the conflict's revision, but it did not when the change was checked.
func TestConflictThatTheViewReflectsByNowIsTriedAgain(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	attempts := 0
	store := &committing{Store: w.Store, commit: func(ctx context.Context, change *storage.Change) (int64, error) {
		if attempts++; attempts <= 3 {
			w.Create("acme", "ann", testedScope)
		}
		return w.Store.Commit(ctx, change)
	}}
	manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
	_, _, err := manager.PutMember(t.Context(), keystest.Actor, keys.MemberSpec{
		WorkspaceID: "acme", MemberID: "bob", Role: "manager", State: keys.MemberActive,
	})
	if err != nil || attempts != 4 {
		t.Errorf("%v after %d attempts, want success after 4", err, attempts)
	}
}
