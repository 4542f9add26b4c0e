package keys_test

import (
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// TestRevokeTokenFindsTheTokenInCopiedText: RevokeToken revokes the key of a token with
// something around it, although a validation does not accept the same text.
func TestRevokeTokenFindsTheTokenInCopiedText(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	if got := deliver(t, w, "put owner"); got != "ok" {
		t.Fatal(got)
	}
	create := func() (keyID, token string) {
		t.Helper()
		created, err := w.CreateKey(t.Context(), keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "bob", Name: "leaked", Scopes: []string{"emails:read"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return created.GetKey().GetKeyId(), created.GetToken()
	}
	decision := func(text string) decide.Decision {
		t.Helper()
		answer, err := w.Validator.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: decide.Requirement{IdentityOnly: true}})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Decision
	}
	for name, stuck := range map[string][2]string{
		"nothing":    {"", ""},
		"line break": {"", "\n"},
		"CRLF":       {"", "\r\n"},
		"quotes":     {`"`, `"`},
		"scheme":     {"Bearer ", ""},
		"variable":   {"TOKEN_", ""},
		"escaped":    {"token%3D", "%0A"},
		"letters":    {"x", "x"},
	} {
		keyID, token := create()
		text := stuck[0] + token + stuck[1]
		if text != token && decision(text) != decide.Unauthenticated {
			t.Errorf("%s: the token is valid with %q around it", name, stuck)
		}
		if decision(token) != decide.Allowed {
			t.Fatalf("%s: a new token is not allowed", name)
		}
		response, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: text})
		if err != nil || response.GetKeyId() != keyID || response.GetWorkspaceId() != "acme" {
			t.Errorf("%s: %v, %v", name, response, err)
		}
		if decision(token) != decide.Unauthenticated {
			t.Errorf("%s: the token is valid after it was revoked", name)
		}
	}

	_, first := create()
	_, second := create()
	_, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: first + "\n" + second})
	if err == nil || keystest.ReasonOf(err) == keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
		t.Errorf("two tokens at once: %v", err)
	}
	if decision(first) != decide.Allowed || decision(second) != decide.Allowed {
		t.Error("a refused call revoked something")
	}
	if _, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: first + "\n" + first}); err != nil {
		t.Errorf("the same token twice: %v", err)
	}
	_, err = w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: second[:len(second)-1]})
	if got := keystest.ReasonOf(err); got != keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
		t.Errorf("a cut token: %v", err)
	}
}
