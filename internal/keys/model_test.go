package keys_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/race"
)

// The full campaign is `go test ./internal/keys -run TestRandomOperationsMatchTheModel -operations 100000`.
var (
	operationsFlag = flag.Int("operations", race.Rounds(4000, 600), "random operations of the model test")
	seedFlag       = flag.Uint64("seed", 1, "seed of the model test")
)

func TestRandomOperationsMatchTheModel(t *testing.T) {
	t.Logf("seed %d: %s", *seedFlag, keystest.Run(t, keystest.NewBolt(t), *seedFlag, *operationsFlag))
}

// TestSweepDeletesInBatchesWhatOneChangeCannotHold also has keys with many request ids, each of which
// takes room in the change.
func TestSweepDeletesInBatchesWhatOneChangeCannotHold(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	const count = 120
	for number := range count {
		keyID := w.Create("acme", "ann", "signatures:read").GetKey().GetKeyId()
		rotations := 0
		if number%10 == 0 { // as many request ids as that need several changes
			rotations = 70
		}
		for rotation := range rotations {
			requestID := fmt.Sprintf("rotation-%d-%d", number, rotation)
			w.Must(w.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{
				WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(0), RequestId: &requestID,
			}))
		}
		w.Must(w.RevokeKey(t.Context(), keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID}))
	}
	w.Clock.Advance(91 * 24 * time.Hour)
	swept, err := w.Sweep(t.Context(), keystest.Actor)
	if err != nil || swept.Keys != count {
		t.Fatalf("swept %+v, %v", swept, err)
	}
	left, err := w.ListKeys(t.Context(), access.All(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
	if err != nil || len(left.GetKeys()) != 0 {
		t.Errorf("%d keys are left, %v", len(left.GetKeys()), err)
	}
}
