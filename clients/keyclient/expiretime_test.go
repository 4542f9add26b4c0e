package keyclient_test

import (
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// TestNearCacheKnowsTheEndOfAToken, from the first answer on; also after a rotation, for both tokens.
func TestNearCacheKnowsTheEndOfAToken(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	client := newClient(t, keysvc.Address, keyclient.Config{})
	fresh(t, client)
	rotated, err := keysvc.Keys.RotateKey(t.Context(), &keysvcv1.RotateKeyRequest{
		WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(patience * 60),
	})
	if err != nil {
		t.Fatal(err)
	}
	for number, text := range []string{rotated.GetToken(), token} {
		want := rotated.GetKey().GetSecrets()[number].GetExpireTime().AsTime()
		for range 3 {
			answer, err := client.Validate(t.Context(), keyauth.Question{Token: text, Requirement: keyauth.Scope("signatures:read")})
			if err != nil || !answer.ExpireTime.Equal(want) {
				t.Errorf("token %d ends at %s, %v; want %s", number, answer.ExpireTime, err, want)
			}
		}
	}
	if hits := client.NearCache().Hits; hits < 2 {
		t.Errorf("%d hits", hits)
	}
	plain := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true})
	answer, err := plain.Validate(t.Context(), keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")})
	if err != nil || !answer.ExpireTime.IsZero() {
		t.Errorf("without a near-cache: %+v, %v", answer, err)
	}
}
