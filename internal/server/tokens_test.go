package server_test

import (
	"bytes"
	"hash/crc32"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// secretOf returns the secret of a token.
func secretOf(token string) string { return token[len(token)-49 : len(token)-6] }

// sealed adds the checksum to the rest of a token, written down anew from the contract.
func sealed(text string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum, check := crc32.ChecksumIEEE([]byte(text)), [6]byte{}
	for index := 5; index >= 0; index-- {
		check[index] = digits[sum%62]
		sum /= 62
	}
	return text + string(check[:])
}

// TestRefusedTokensLookAlike: malformed, unknown, wrong and foreign tokens get the same bytes.
func TestRefusedTokensLookAlike(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.key.GetToken()
	if sealed(token[:len(token)-6]) != token {
		t.Fatal("this test seals tokens otherwise than keysvc")
	}
	tokens := badTokens(f)
	// In the bench everything is as it was, so that the revision is the same, too.
	requests := map[string]*keysvcv1.ValidateKeyRequest{
		"another workspace's": {Token: f.other.GetToken(), RequiredScope: "signatures:read", WorkspaceId: "acme"},
		"of a workspace that is not there": {
			Token: f.other.GetToken(), RequiredScope: "signatures:read", WorkspaceId: "nowhere",
		},
	}
	for name, text := range tokens {
		requests[name] = &keysvcv1.ValidateKeyRequest{Token: text, RequiredScope: "signatures:read"}
		requests[name+", workspace given"] = &keysvcv1.ValidateKeyRequest{Token: text, RequiredScope: "signatures:read", WorkspaceId: "acme"}
		requests[name+", identity only"] = &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}
		requests[name+", all asked for"] = &keysvcv1.ValidateKeyRequest{
			Token: text, RequiredScope: "signatures:read", WithDetails: true, IncludeGrant: true, ClientAddress: "192.0.2.1",
		}
	}
	var first []byte
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		response, err := f.validation.ValidateKey(testContext(t), requests[name])
		if err != nil {
			t.Errorf("%s: %v; any text gets a decision", name, err)
			continue
		}
		if response.GetDecision() != keysvcv1.Decision_DECISION_UNAUTHENTICATED || response.GetReason() != keysvcv1.Reason_REASON_KEY_INVALID ||
			response.GetKeyId() != "" || response.GetPrincipal() != nil || response.GetGrant() != nil || response.GetError() != nil {
			t.Errorf("%s: got %v", name, response)
		}
		response.Revision = 0
		encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(response)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = encoded
		}
		if !bytes.Equal(first, encoded) {
			t.Errorf("%s: looks different: %v", name, response)
		}
	}
	// The same in one batch.
	batch := &keysvcv1.BatchValidateKeysRequest{}
	for _, request := range requests {
		batch.Requests = append(batch.Requests, request)
	}
	response, err := f.validation.BatchValidateKeys(testContext(t), batch)
	if err != nil {
		t.Fatal(err)
	}
	for index, item := range response.GetResponses() {
		if item.GetReason() != keysvcv1.Reason_REASON_KEY_INVALID || item.GetKeyId() != "" {
			t.Errorf("item %d: %v", index, item)
		}
	}
	// And the real ones work.
	f.expectAllowed(t, token, "signatures:read")
	f.expectAllowed(t, f.other.GetToken(), "signatures:read")
}
