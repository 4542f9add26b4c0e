package keys_test

import (
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/token"
)

// TestIDOfAnotherWorkspaceCannotBeRegistered: a key is issued locally in acme, revoked, and purged.
// Somebody who may issue keys locally in evil knows its token, id and nonce, and tries to register them there, so
// that acme's old token works again, for evil's data. Nothing makes a key with the id.
func TestIDOfAnotherWorkspaceCannotBeRegistered(t *testing.T) {
	t.Parallel()
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	w.Put("evil", "eve", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	nonce := make([]byte, token.NonceLength)
	_, _ = rand.Read(nonce) // never fails
	id := token.KeyID("acme", [token.NonceLength]byte(nonce))
	drawn, err := token.New("scribe", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := drawn.Digest()
	register := func(workspaceID, memberID string, nonce []byte) (*keysvcv1.Key, error) {
		response, err := w.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: workspaceID, MemberId: memberID, Name: "local", Scopes: []string{"signatures:read"}, TokenDigest: digest[:], KeyIdNonce: nonce,
		})
		return response.GetKey(), err
	}
	if made, err := register("acme", "ann", nonce); err != nil || made.GetKeyId() != id {
		t.Fatalf("%v, %v", made, err)
	}
	w.Want(drawn.Reveal(), "signatures:read", decide.NoReason)

	// try registers the id in evil, in every way that there is.
	try := func(want decide.Reason) {
		t.Helper()
		// 1. A nonce gives another id in another workspace. So does the id, taken for a nonce.
		for _, guess := range [][]byte{nonce, []byte(id)} {
			made, err := register("evil", "eve", guess)
			switch {
			case keystest.ReasonOf(err) == keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID: // evil has that key from the try before
			case err != nil || made.GetKeyId() == id || made.GetWorkspaceId() != "evil":
				t.Errorf("registered in evil: %v, %v", made, err)
			default:
				w.Must(w.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "evil", KeyId: made.GetKeyId()}))
			}
		}
		for _, guess := range [][]byte{nil, nonce[1:], append(slices.Clone(nonce), 0)} {
			if made, err := register("evil", "eve", guess); keystest.ReasonOf(err) != keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID {
				t.Errorf("a nonce of %d bytes: %v, %v", len(guess), made, err)
			}
		}
		// 2. A change does not make a key.
		for name, change := range map[string]func() error{
			"rotate": func() error {
				other, err := token.New("scribe", id, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				digest := other.Digest()
				_, err = w.RotateKey(ctx, keystest.Actor, &keysvcv1.RotateKeyRequest{WorkspaceId: "evil", KeyId: id, Overlap: durationpb.New(0), TokenDigest: digest[:]})
				return err
			},
			"update": func() error {
				_, err := w.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{
					Key: &keysvcv1.Key{WorkspaceId: "evil", KeyId: id, Name: "mine"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
				})
				return err
			},
			"get": func() error {
				_, err := w.GetKey(ctx, access.All(), &keysvcv1.GetKeyRequest{WorkspaceId: "evil", KeyId: id})
				return err
			},
		} {
			if err := change(); keystest.ReasonOf(err) != keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
				t.Errorf("%s: %v", name, err)
			}
		}
		// 3. The token is what it was.
		w.Want(drawn.Reveal(), "signatures:read", want)
	}
	try(decide.NoReason)
	w.Must(w.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: id}))
	try(decide.KeyRevoked)
	w.Clock.Advance(91 * 24 * time.Hour)
	w.Must(w.Sweep(ctx, keystest.Actor))
	if _, err := w.GetKey(ctx, access.All(), &keysvcv1.GetKeyRequest{KeyId: id}); keystest.ReasonOf(err) != keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
		t.Fatalf("it is not purged: %v", err)
	}
	try(decide.KeyInvalid)

	// No field of the request names an id.
	fields := (&keysvcv1.CreateKeyRequest{}).ProtoReflect().Descriptor().Fields()
	for index := range fields.Len() {
		if name := string(fields.Get(index).Name()); name == "key_id" || name == "key" {
			t.Errorf("CreateKeyRequest has a field %s", name)
		}
	}
}
