package server_test

import (
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestNamesAreStoredInNFC: an é is stored as one character, even if it was sent as two.
func TestNamesAreStoredInNFC(t *testing.T) {
	t.Parallel()
	const sent, stored = "cle\u0301", "cl\u00e9"
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: sent, Scopes: []string{"emails:read"},
	})
	if err != nil || created.GetKey().GetName() != stored {
		t.Fatalf("CreateKey: %q, %v", created.GetKey().GetName(), err)
	}
	updated, err := b.keys.UpdateKey(testContext(t), &keysvcv1.UpdateKeyRequest{
		Key:        &keysvcv1.Key{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId(), Name: sent + " 2"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	if err != nil || updated.GetKey().GetName() != stored+" 2" {
		t.Fatalf("UpdateKey: %q, %v", updated.GetKey().GetName(), err)
	}
}
