package keys_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// TestClockNotTrusted takes the trust in the clock away: what lasts or is gone for good
// waits, also a retry is told from a first call, and what takes away goes on.
func TestClockNotTrusted(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	var trusted error
	manager := keys.New(keys.Config{
		Store: w.Store, Projection: w.Projection, Now: w.Clock.Now, ClockTrusted: func() error { return trusted },
	})
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"}, RequestId: proto.String("one"),
	}
	made, err := manager.CreateKey(t.Context(), keystest.Actor, request)
	if err != nil {
		t.Fatal(err)
	}
	dead := w.Create("acme", "ann", "signatures:read")
	w.Must(manager.RevokeKey(t.Context(), keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: dead.GetKey().GetKeyId()}))
	w.Clock.Advance(91 * 24 * time.Hour)

	trusted = errors.New("not trusted")
	if swept, err := manager.Sweep(t.Context(), keystest.Actor); !errors.Is(err, trusted) || swept != (keys.Swept{}) {
		t.Errorf("a sweep: %+v, %v", swept, err)
	}
	if _, _, err := w.Store.GetKey(t.Context(), "acme", dead.GetKey().GetKeyId()); err != nil {
		t.Errorf("the key that was to be kept: %v", err)
	}
	var used *problem.Error
	if _, err := manager.CreateKey(t.Context(), keystest.Actor, request); !errors.As(err, &used) || used.Reason != keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED {
		t.Errorf("the same request again: %v", err)
	}
	request.RequestId = proto.String("two")
	if _, err := manager.CreateKey(t.Context(), keystest.Actor, request); !errors.Is(err, trusted) {
		t.Errorf("creating a key: %v", err)
	}
	rotate := func(overlap time.Duration) error {
		_, err := manager.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{
			WorkspaceId: "acme", KeyId: made.GetKey().GetKeyId(), Overlap: durationpb.New(overlap),
		})
		return err
	}
	if err := rotate(time.Hour); !errors.Is(err, trusted) {
		t.Errorf("rotating a key: %v", err)
	}
	if err := rotate(0); err != nil {
		t.Errorf("rotating a key without an overlap: %v", err)
	}
	w.Must(manager.RevokeKey(t.Context(), keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: made.GetKey().GetKeyId()}))
	trusted = nil
	if swept, err := manager.Sweep(t.Context(), keystest.Actor); err != nil || swept.Keys != 1 {
		t.Errorf("a sweep with a clock that is trusted: %+v, %v", swept, err)
	}
}
