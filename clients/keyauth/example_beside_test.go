package keyauth_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// legacy is the Validator of the keys that the product had before keysvc.
type legacy struct {
	// find returns the workspace, member and scopes of a key.
	find func(ctx context.Context, key string) (workspace, member string, scopes []string, found bool, err error)
}

func (l legacy) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	workspace, member, scopes, found, err := l.find(ctx, question.Token)
	switch {
	case err != nil:
		return keyauth.Answer{}, err // a gRPC status: 503 for codes.Unavailable, otherwise 500
	case !found, question.WorkspaceID != "" && question.WorkspaceID != workspace:
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, nil
	}
	principal := keyauth.Principal{WorkspaceID: workspace, MemberID: member, Scopes: scopes}
	if refusal := keyauth.Lacks(principal, question.Requirement); refusal != nil {
		return keyauth.Answer{ //nolint:nilerr // a refusal is an answer
			Decision: keysvcv1.Decision_DECISION_PERMISSION_DENIED, Reason: refusal.Reason, MissingScopes: refusal.MissingScopes,
		}, nil
	}
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &principal}, nil
}

// Older keys that begin with "sk_live_" go on working beside those of keysvc.
func ExampleChain() {
	keysvc, err := keyclient.New("127.0.0.1:7480", keyclient.Config{AllowPlaintext: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	older := legacy{find: func(context.Context, string) (string, string, []string, bool, error) {
		return "acme", "ann", []string{"signatures:read"}, true, nil // in a product: its table of keys
	}}
	chain, err := keyauth.Chain(keysvc, keyauth.Link{
		Name:       "older key",
		Recognizes: func(token string) bool { return strings.HasPrefix(token, "sk_live_") },
		Validator:  older,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	guard, err := keyauth.NewGuard(chain, keyauth.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	// In a service: the interceptors of the guard, or keyauthhttp.Require.
	ctx, err := guard.Admit(context.Background(), keyauth.Request{
		Name: "read", Requirement: keyauth.Scope("signatures:read"), Authorization: []string{"Bearer sk_live_1"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	principal, _ := keyauth.PrincipalFrom(ctx)
	fmt.Println(principal.MemberID, principal.Credential)
	// Output:
	// ann older key
}
