package keyauthtest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

func ExampleNew() {
	var t testing.TB // a test's own
	validator := keyauthtest.New(&silent{t})
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}})
	question := keyauth.Question{Token: key.Token, Requirement: keyauth.Scope("signatures:read")}
	answer, err := validator.Validate(context.Background(), question)
	fmt.Println(answer.Decision, err)
	validator.RevokeKey(key.KeyID)
	answer, err = validator.Validate(context.Background(), question)
	fmt.Println(answer.Decision, answer.Reason, err)
	// Output:
	// DECISION_ALLOWED <nil>
	// DECISION_UNAUTHENTICATED REASON_KEY_REVOKED <nil>
}

func ExampleContext() {
	ctx := keyauthtest.Context(context.Background(), keyauth.Principal{WorkspaceID: "acme"})
	principal, ok := keyauth.PrincipalFrom(ctx)
	fmt.Println(principal.WorkspaceID, principal.MemberID, ok)
	// Output: acme test-member true
}

// silent stands in for a test, because an example has none.
type silent struct{ testing.TB }

func (*silent) Helper() {}
