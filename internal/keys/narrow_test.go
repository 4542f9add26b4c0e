package keys_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// watchedBackend notes Narrows of each change.
type watchedBackend struct {
	keystest.Bolt
	store *watchedStore
}

func (b *watchedBackend) Open(t testing.TB) storage.Store {
	b.store = &watchedStore{Store: b.Bolt.Open(t)}
	return b.store
}

type watchedStore struct {
	storage.Store
	mutex   sync.Mutex
	changes []bool
}

func (s *watchedStore) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	s.mutex.Lock()
	s.changes = append(s.changes, change.Narrows)
	s.mutex.Unlock()
	return s.Store.Commit(ctx, change)
}

const (
	active    = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	suspended = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
)

// TestNarrowingChangesSaySo makes every kind of change. Change.Narrows must be set if, and only
// if, the change only takes away, because such changes are made while the disk is full.
func TestNarrowingChangesSaySo(t *testing.T) {
	backend := &watchedBackend{Bolt: keystest.NewBolt(t)}
	w := keystest.NewWorld(t, backend, nil)
	ctx := t.Context()
	check := func(what string, want bool, change func() error) {
		t.Helper()
		backend.store.changes = nil
		if err := change(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := backend.store.changes; len(got) == 0 || slices.Contains(got, !want) {
			t.Errorf("%s: changes that narrow: %v, want %v", what, got, want)
		}
	}
	put := func(member, role string, state keysvcv1.MemberState, version int64) func() error {
		return func() error {
			_, err := w.PutMember(ctx, keystest.Actor, &keysvcv1.PutMemberRequest{
				WorkspaceId: "acme", MemberId: member, Role: role, State: state, SourceVersion: &version,
			})
			return err
		}
	}
	check("a new workspace", false, put("ada", "admin", active, 0))
	check("a new member", false, put("bob", "admin", active, 0))
	check("a new member, suspended", false, put("eve", "member", suspended, 0))
	check("another source_version", false, put("ada", "admin", active, 1))
	check("a member suspended", true, put("bob", "admin", suspended, 2))
	check("a suspended member with another source_version", false, put("bob", "admin", suspended, 3))
	check("a role lowered and the member active again", false, put("bob", "manager", active, 4))
	check("a role lowered", true, put("bob", "member", active, 5))
	check("a role raised", false, put("bob", "manager", active, 6))
	check("a role raised and the member suspended", false, put("bob", "admin", suspended, 7))
	check("another role of the same scopes", false, put("bob", "owner", suspended, 8))

	var key *keysvcv1.CreateKeyResponse
	check("a new key", false, func() (err error) {
		key, err = w.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ada", Name: "a key", Scopes: []string{"signatures:read", "emails:read"},
			Labels: map[string]string{"team": "one", "of": "two"},
		})
		return err
	})
	update := func(change *keysvcv1.Key, paths ...string) func() error {
		return func() error {
			change.WorkspaceId, change.KeyId = "acme", key.GetKey().GetKeyId()
			_, err := w.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{Key: change, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
			return err
		}
	}
	check("a name", false, update(&keysvcv1.Key{Name: "another"}, "name"))
	check("a scope less and a name", false, update(&keysvcv1.Key{Name: "a key", Scopes: []string{"signatures:read"}}, "scopes", "name"))
	check("a scope more", false, update(&keysvcv1.Key{Scopes: []string{"signatures:read", "emails:read"}}, "scopes"))
	check("a scope less", true, update(&keysvcv1.Key{Scopes: []string{"signatures:read"}}, "scopes"))
	check("another scope", false, update(&keysvcv1.Key{Scopes: []string{"emails:read"}}, "scopes"))
	check("a label less", true, update(&keysvcv1.Key{Labels: map[string]string{"team": "one"}}, "labels"))
	check("another label", false, update(&keysvcv1.Key{Labels: map[string]string{"team": "two"}}, "labels"))
	cidrs := func(prefixes ...string) func() error {
		return update(&keysvcv1.Key{AllowedCidrs: prefixes}, "allowed_cidrs")
	}
	check("a first CIDR", true, cidrs("10.0.0.0/8", "fd00::/8"))
	check("a CIDR less", true, cidrs("10.0.0.0/8"))
	check("a narrower CIDR", true, cidrs("10.1.0.0/16", "10.2.0.0/16"))
	check("a wider CIDR", false, cidrs("10.1.0.0/16", "10.0.0.0/15"))
	check("another CIDR", false, cidrs("192.168.0.0/16"))
	check("no CIDR", false, cidrs())

	rotate := func(overlap time.Duration) func() error {
		return func() error {
			_, err := w.RotateKey(ctx, keystest.Actor, &keysvcv1.RotateKeyRequest{
				WorkspaceId: "acme", KeyId: key.GetKey().GetKeyId(), Overlap: durationpb.New(overlap),
				RequestId: proto.String(fmt.Sprintf("rotation-%d", time.Now().UnixNano())),
			})
			return err
		}
	}
	check("a rotation", false, rotate(time.Hour))
	check("a finished rotation", true, func() error {
		_, err := w.FinishRotation(ctx, keystest.Actor, &keysvcv1.FinishRotationRequest{WorkspaceId: "acme", KeyId: key.GetKey().GetKeyId()})
		return err
	})
	check("a rotation without overlap", true, rotate(0))
	check("another one", false, rotate(time.Hour))
	check("a rotation without overlap while one overlaps", true, rotate(0))
	check("a revocation", true, func() error {
		_, err := w.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: key.GetKey().GetKeyId()})
		return err
	})
	leaked := w.Create("acme", "ada", "signatures:read")
	check("a revocation by token", true, func() error {
		_, err := w.RevokeToken(ctx, keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: leaked.GetToken()})
		return err
	})
	remove := func(member string, version int64) func() error {
		return func() error {
			_, err := w.RemoveMember(ctx, keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: member, SourceVersion: &version})
			return err
		}
	}
	check("a removal", true, remove("bob", 9))
	check("a removal with another source_version", false, remove("bob", 10))
	check("a removal of nobody", false, remove("zoe", 1))
	check("a member who comes back", false, put("bob", "member", suspended, 11))
	checkPolicies(t, w, check)
	check("a removed workspace", true, func() error {
		_, err := w.RemoveWorkspace(ctx, keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"})
		return err
	})
	w.Clock.Advance(91 * 24 * time.Hour)
	check("a purge", false, func() error {
		_, err := w.Sweep(ctx, audit.Actor{Caller: "test", Workspaces: access.All()})
		return err
	})
}

// checkPolicies applies policies that only allow less, and policies that also allow more.
func checkPolicies(t *testing.T, w *keystest.World, check func(string, bool, func() error)) {
	t.Helper()
	apply := func(edit func(*keysvcv1.Policy)) func() error {
		return func() error {
			now, err := w.GetPolicy(t.Context(), access.All(), &keysvcv1.GetPolicyRequest{})
			if err != nil {
				return err
			}
			edit(now.GetPolicy())
			_, err = w.ApplyPolicy(t.Context(), keystest.Actor, &keysvcv1.ApplyPolicyRequest{Policy: now.GetPolicy(), ReplacesDigest: now.GetDigest()})
			return err
		}
	}
	role := func(policy *keysvcv1.Policy, name string) *keysvcv1.PolicyRole {
		for _, role := range policy.GetRoles() {
			if role.GetName() == name {
				return role
			}
		}
		t.Fatalf("no role %q", name)
		return nil
	}
	check("a role with less", true, apply(func(p *keysvcv1.Policy) { role(p, "manager").Scopes = []string{"teammates:*"} }))
	check("a role with more", false, apply(func(p *keysvcv1.Policy) { role(p, "member").Scopes = []string{"teammates:read"} }))
	check("a role with less and one with more", false, apply(func(p *keysvcv1.Policy) {
		role(p, "member").Scopes, role(p, "manager").Scopes = []string{"teammates:*"}, []string{"teammates:read"}
	}))
	check("a role more", false, apply(func(p *keysvcv1.Policy) {
		p.Roles = append(p.Roles, &keysvcv1.PolicyRole{Name: "auditor", Scopes: []string{"teammates:read"}})
	}))
	check("a role less", true, apply(func(p *keysvcv1.Policy) { p.Roles = p.GetRoles()[:len(p.GetRoles())-1] }))
	check("a lower limit", false, apply(func(p *keysvcv1.Policy) { p.GetLimits().LiveKeysPerWorkspace = 10 }))
	check("an action less", true, apply(func(p *keysvcv1.Policy) {
		resource := p.GetResources()[0]
		resource.Actions = resource.GetActions()[:1]
		for _, role := range p.GetRoles() {
			if role.GetName() != "owner" && role.GetName() != "admin" {
				role.Scopes = nil
			}
		}
	}))
	check("a scope less and a longer retention", false, apply(func(p *keysvcv1.Policy) {
		p.Resources = p.GetResources()[1:]
		p.Retention = durationpb.New(p.GetRetention().AsDuration() + 24*time.Hour)
	}))
	check("other titles", false, apply(func(p *keysvcv1.Policy) {
		p.GetResources()[0].Title, p.GetActions()[0].Description = "Colleagues", ""
	}))
	check("another resource", false, apply(func(p *keysvcv1.Policy) {
		p.Resources = append(p.GetResources(), &keysvcv1.PolicyResource{Name: "invoices", Actions: []string{"read"}})
	}))
	check("the first policy's retention", false, apply(func(p *keysvcv1.Policy) { p.Retention = durationpb.New(90 * 24 * time.Hour) }))
}
