package keyauthtest_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/internal/validatortest"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// backend lets the Validator pass the suite that the real keysvc passes.
type backend struct {
	validator *keyauthtest.Validator
	clock     *servertest.Clock
}

func newBackend(t testing.TB) backend {
	t.Helper()
	b := backend{validator: keyauthtest.New(t), clock: servertest.NewClock(time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC))}
	b.validator.SetClock(b.clock.Now)
	scribe := policy.Default()
	b.validator.SetScopes(scribe.Scopes()...)
	for _, role := range scribe.Roles {
		scopes, _ := scribe.RoleScopes(role.Name)
		b.validator.SetRole(role.Name, scopes...)
	}
	return b
}

func (b backend) Validator() keyauth.Validator { return b.validator }

func (b backend) PutMember(_ testing.TB, workspaceID, memberID, role string) {
	b.validator.PutMember(workspaceID, memberID, role)
}

func (b backend) SuspendMember(_ testing.TB, workspaceID, memberID, _ string) {
	b.validator.SuspendMember(workspaceID, memberID)
}

func (b backend) RemoveMember(_ testing.TB, workspaceID, memberID string) {
	b.validator.RemoveMember(workspaceID, memberID)
}

func (b backend) CreateKey(_ testing.TB, key validatortest.Key) (keyID, token string) {
	made := b.validator.CreateKey(keyauthtest.Key{
		WorkspaceID: key.WorkspaceID, MemberID: key.MemberID, Scopes: key.Scopes, AllowedCIDRs: key.AllowedCIDRs, Lifetime: key.Lifetime,
	})
	return made.KeyID, made.Token
}

func (b backend) RevokeKey(_ testing.TB, _, keyID string) { b.validator.RevokeKey(keyID) }

func (b backend) RotateKey(_ testing.TB, _, keyID string, overlap time.Duration) string {
	return b.validator.RotateKey(keyID, overlap)
}

func (b backend) Advance(d time.Duration) { b.clock.Advance(d) }

func TestValidatorKeepsTheContract(t *testing.T) {
	validatortest.Run(t, func(t *testing.T) validatortest.Backend { return newBackend(t) })
}
