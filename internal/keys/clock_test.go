package keys_test

import (
	"errors"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// TestUntrustedClockRefusesWhatLastsAndPurges: while the clock is not trusted, no key is created,
// rotated with an overlap, or purged. Retries are still recognized, and changes that only take
// something away are made.
func TestUntrustedClockRefusesWhatLastsAndPurges(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	var trusted error
	manager := keys.New(keys.Config{
		Store: w.Store, Projection: w.Projection, Now: w.Clock.Now, ClockTrusted: func() error { return trusted },
	})
	spec := keys.KeySpec{
		WorkspaceID: "acme", MemberID: "ann", Name: "a key", Scopes: []string{"signatures:read"}, RequestID: new("one"),
	}
	made, err := manager.CreateKey(t.Context(), keystest.Actor, spec)
	if err != nil {
		t.Fatal(err)
	}
	dead := w.Create("acme", "ann", "signatures:read")
	if _, _, err := manager.RevokeKey(t.Context(), keystest.Actor, "acme", dead.GetKey().GetKeyId()); err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(91 * 24 * time.Hour)

	trusted = errors.New("not trusted")
	if swept, err := manager.Sweep(t.Context(), keystest.Actor); !errors.Is(err, trusted) || swept != (keys.Swept{}) {
		t.Errorf("a sweep: %+v, %v", swept, err)
	}
	if _, _, err := w.Store.GetKey(t.Context(), "acme", dead.GetKey().GetKeyId()); err != nil {
		t.Errorf("the key that was to be kept: %v", err)
	}
	var used *problem.Error
	if _, err := manager.CreateKey(t.Context(), keystest.Actor, spec); !errors.As(err, &used) || used.Reason != problem.RequestIDUsed {
		t.Errorf("the same request again: %v", err)
	}
	spec.RequestID = new("two")
	if _, err := manager.CreateKey(t.Context(), keystest.Actor, spec); !errors.Is(err, trusted) {
		t.Errorf("creating a key: %v", err)
	}
	rotate := func(overlap time.Duration) error {
		_, err := manager.RotateKey(t.Context(), keystest.Actor, keys.Rotation{
			WorkspaceID: "acme", KeyID: made.Key.ID, Overlap: &overlap,
		})
		return err
	}
	if err := rotate(time.Hour); !errors.Is(err, trusted) {
		t.Errorf("rotating a key: %v", err)
	}
	if err := rotate(0); err != nil {
		t.Errorf("rotating a key without an overlap: %v", err)
	}
	if _, _, err := manager.RevokeKey(t.Context(), keystest.Actor, "acme", made.Key.ID); err != nil {
		t.Fatal(err)
	}
	trusted = nil
	if swept, err := manager.Sweep(t.Context(), keystest.Actor); err != nil || swept.Keys != 1 {
		t.Errorf("a sweep with a clock that is trusted: %+v, %v", swept, err)
	}
}
