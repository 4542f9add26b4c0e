package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
)

// attempt is one change that is tried.
type attempt struct {
	what string
	// call makes the change. complete adds to the model what only the answer contains.
	call func(ctx context.Context, p *product) (complete func(*model), err error)
	// effect is what the change does.
	effect func(*model)
	// creates reports whether the change only creates a key.
	creates bool
}

// changer chooses changes.
type changer struct {
	random *rand.Rand
	names  int
	// bulk is how many bytes of labels each key gets.
	bulk int
	// noPolicy leaves the policy alone.
	noPolicy bool
}

// changes are all kinds of changes, with their frequencies.
var changes = []struct {
	weight int
	choose func(*changer, *model) *attempt
}{
	{30, (*changer).create},
	{10, (*changer).revoke},
	{4, (*changer).revokeToken},
	{8, (*changer).updateScopes},
	{6, (*changer).updateAddresses},
	{12, (*changer).rotate},
	{6, (*changer).finishRotation},
	{15, (*changer).putMember},
	{3, (*changer).removeMember},
	{2, (*changer).removeWorkspace},
	{4, (*changer).applyPolicy},
}

// next chooses a change that has an effect.
func (c *changer) next(m *model) *attempt {
	total := 0
	for _, kind := range changes {
		total += kind.weight
	}
	for {
		number := c.random.IntN(total)
		for _, kind := range changes {
			if number -= kind.weight; number < 0 {
				if chosen := kind.choose(c, m); chosen != nil {
					return chosen
				}
				break
			}
		}
	}
}

// pick returns the index of a random element that fits, -1 if none does.
func pick[T any](random *rand.Rand, list []T, fits func(*T) bool) int {
	if len(list) == 0 {
		return -1
	}
	first := random.IntN(len(list))
	for offset := range list {
		if index := (first + offset) % len(list); fits(&list[index]) {
			return index
		}
	}
	return -1
}

func (c *changer) create(m *model) *attempt {
	member := pick(c.random, m.members, func(member *memberModel) bool {
		return member.there && !member.suspended && member.role != "member"
	})
	if member < 0 {
		return nil
	}
	c.names++
	of := m.members[member]
	key := keyModel{member: member, since: of.since, live: []string{""}, scopes: c.someScopes(m, of.role)}
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: of.workspace, MemberId: of.id, Name: fmt.Sprintf("key %d", c.names), Scopes: key.scopes,
		RequestId: new(fmt.Sprintf("request-%d", c.names)), Labels: c.labels(),
	}
	return &attempt{
		what:    fmt.Sprintf("create a key of %s %s with %q", of.workspace, of.id, key.scopes),
		creates: true,
		effect:  func(m *model) { m.keys = append(m.keys, key) },
		call: func(ctx context.Context, p *product) (func(*model), error) {
			response, err := p.CreateKey(ctx, actor, request)
			return func(m *model) {
				created := &m.keys[len(m.keys)-1]
				created.id, created.live = response.GetKey().GetKeyId(), []string{response.GetToken()}
			}, err
		},
	}
}

// labels returns labels of the wanted size.
func (c *changer) labels() map[string]string {
	labels := make(map[string]string)
	for left := c.bulk; left > 0; left -= 250 {
		labels[fmt.Sprintf("label-%d", left)] = fmt.Sprintf("%0*d", min(left, 250), c.names)
	}
	return labels
}

// someScopes returns scopes of a role, sorted, at least one.
func (c *changer) someScopes(m *model, role string) []string {
	var some []string
	for _, scope := range scopes {
		if m.may(role, scope) && c.random.IntN(2) == 0 {
			some = append(some, scope)
		}
	}
	if len(some) == 0 {
		some = []string{signature}
	}
	return some
}

// key returns an attempt that changes one key that fits, nil if no key does. Keys whose id was
// in a lost answer do not fit.
func (c *changer) key(m *model, what string, fits func(*keyModel) bool, effect func(*keyModel),
	call func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error),
) *attempt {
	index := pick(c.random, m.keys, func(key *keyModel) bool { return key.id != "" && fits(key) })
	if index < 0 {
		return nil
	}
	key := &m.keys[index]
	return &attempt{
		what:   what + " key " + key.id,
		effect: func(m *model) { effect(&m.keys[index]) },
		call: func(ctx context.Context, p *product) (func(*model), error) {
			complete, err := call(ctx, p, m.members[key.member].workspace, key)
			if complete == nil || err != nil {
				return nil, err
			}
			return func(m *model) { complete(&m.keys[index]) }, nil
		},
	}
}

func (c *changer) revoke(m *model) *attempt {
	return c.key(m, "revoke", func(key *keyModel) bool { return !key.revoked },
		func(key *keyModel) { key.revoked = true },
		func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := p.RevokeKey(ctx, actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: key.id})
			return nil, err
		})
}

func (c *changer) revokeToken(m *model) *attempt {
	return c.key(m, "revoke the token of", func(key *keyModel) bool { return !key.revoked && key.live[0] != "" },
		func(key *keyModel) { key.revoked = true },
		func(ctx context.Context, p *product, _ string, key *keyModel) (func(*keyModel), error) {
			_, err := p.RevokeToken(ctx, actor, &keysvcv1.RevokeTokenRequest{Token: key.live[0]})
			return nil, err
		})
}

func (c *changer) updateScopes(m *model) *attempt {
	var wanted []string
	return c.key(m, "set the scopes of",
		func(key *keyModel) bool {
			role := m.members[key.member].role
			if m.dead(key) || role == "member" {
				return false
			}
			wanted = c.someScopes(m, role)
			return !slices.Equal(wanted, key.scopes)
		},
		func(key *keyModel) { key.scopes = wanted },
		func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := p.UpdateKey(ctx, actor, &keysvcv1.UpdateKeyRequest{
				Key:        &keysvcv1.Key{WorkspaceId: workspaceID, KeyId: key.id, Scopes: wanted},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"scopes"}},
			})
			return nil, err
		})
}

func (c *changer) updateAddresses(m *model) *attempt {
	return c.key(m, "set the addresses of", func(key *keyModel) bool { return !m.dead(key) },
		func(key *keyModel) { key.elsewhere = !key.elsewhere },
		func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error) {
			request := &keysvcv1.UpdateKeyRequest{
				Key:        &keysvcv1.Key{WorkspaceId: workspaceID, KeyId: key.id},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"allowed_cidrs"}},
			}
			if !key.elsewhere {
				request.Key.AllowedCidrs = []string{"192.0.2.0/24"}
			}
			_, err := p.UpdateKey(ctx, actor, request)
			return nil, err
		})
}

func (c *changer) rotate(m *model) *attempt {
	c.names++
	requestID := fmt.Sprintf("request-%d", c.names)
	overlap := time.Duration(c.random.IntN(2)) * 24 * time.Hour
	return c.key(m, fmt.Sprintf("rotate with overlap %s", overlap),
		func(key *keyModel) bool { return !m.dead(key) && (overlap == 0 || len(key.live) == 1) },
		func(key *keyModel) {
			key.live = slices.Clone(key.live)
			if overlap == 0 {
				key.ended, key.live = slices.Concat(key.ended, key.live), nil
			}
			key.live = append([]string{""}, key.live...)
		},
		func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error) {
			response, err := p.RotateKey(ctx, actor, &keysvcv1.RotateKeyRequest{
				WorkspaceId: workspaceID, KeyId: key.id, Overlap: durationpb.New(overlap), RequestId: &requestID,
			})
			return func(key *keyModel) { key.live[0] = response.GetToken() }, err
		})
}

func (c *changer) finishRotation(m *model) *attempt {
	return c.key(m, "finish the rotation of", func(key *keyModel) bool { return !m.dead(key) && len(key.live) == 2 },
		func(key *keyModel) {
			key.ended, key.live = append(slices.Clone(key.ended), key.live[1]), slices.Clone(key.live[:1])
		},
		func(ctx context.Context, p *product, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := p.FinishRotation(ctx, actor, &keysvcv1.FinishRotationRequest{WorkspaceId: workspaceID, KeyId: key.id})
			return nil, err
		})
}

// roles are those that members are given; most can have keys.
var roles = []string{"owner", "admin", "manager", "manager", "manager", "member"}

// putMember adds a member, or changes role or state of one.
func (c *changer) putMember(m *model) *attempt {
	index := c.random.IntN(len(m.members))
	before := m.members[index]
	member := before
	member.role = roles[c.random.IntN(len(roles))]
	member.suspended = c.random.IntN(4) == 0
	if !member.there {
		member.there = true
		member.since++
	}
	if member == before {
		return nil
	}
	state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	if member.suspended {
		state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
	}
	return &attempt{
		what:   fmt.Sprintf("put member %s %s as %s, suspended %t", member.workspace, member.id, member.role, member.suspended),
		effect: func(m *model) { m.members[index] = member },
		call: func(ctx context.Context, p *product) (func(*model), error) {
			_, err := p.PutMember(ctx, actor, &keysvcv1.PutMemberRequest{
				WorkspaceId: member.workspace, MemberId: member.id, Role: member.role, State: state,
			})
			return nil, err
		},
	}
}

func (c *changer) removeMember(m *model) *attempt {
	index := pick(c.random, m.members, func(member *memberModel) bool { return member.there })
	if index < 0 {
		return nil
	}
	member := m.members[index]
	return &attempt{
		what:   fmt.Sprintf("remove member %s %s", member.workspace, member.id),
		effect: func(m *model) { m.members[index].there = false },
		call: func(ctx context.Context, p *product) (func(*model), error) {
			_, err := p.RemoveMember(ctx, actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: member.workspace, MemberId: member.id})
			return nil, err
		},
	}
}

func (c *changer) removeWorkspace(m *model) *attempt {
	index := pick(c.random, m.members, func(member *memberModel) bool { return member.there })
	if index < 0 {
		return nil
	}
	workspaceID := m.members[index].workspace
	return &attempt{
		what: "remove workspace " + workspaceID,
		effect: func(m *model) {
			for index := range m.members {
				if m.members[index].workspace == workspaceID {
					m.members[index].there = false
				}
			}
		},
		call: func(ctx context.Context, p *product) (func(*model), error) {
			_, err := p.RemoveWorkspace(ctx, actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: workspaceID})
			return nil, err
		},
	}
}

// applyPolicy takes a scope from a role, or gives it back.
func (c *changer) applyPolicy(m *model) *attempt {
	if !m.policy || c.noPolicy {
		return nil
	}
	return &attempt{
		what:   fmt.Sprintf("apply a policy, narrow %t", !m.narrow),
		effect: func(m *model) { m.narrow = !m.narrow },
		call: func(ctx context.Context, p *product) (func(*model), error) {
			now, err := p.GetPolicy(ctx, access.All(), &keysvcv1.GetPolicyRequest{})
			if err != nil {
				return nil, err
			}
			wanted := now.GetPolicy()
			for _, role := range wanted.GetRoles() {
				if role.GetName() != "manager" {
					continue
				}
				role.Scopes = []string{"assets:*", "emails:read", "emails:delete", "folders:*", "integrations:read", "marketing_campaigns:*", "signatures:*", "smart_fields:*", "teammates:*"}
				if m.narrow {
					role.Scopes = append(role.Scopes, emails)
				}
			}
			_, err = p.ApplyPolicy(ctx, actor, &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: now.GetDigest()})
			return nil, err
		},
	}
}

// install is the change that gives an empty store its policy.
func install() *attempt {
	return &attempt{
		what:   "install the policy",
		effect: func(m *model) { m.policy = true },
		call:   func(_ context.Context, p *product) (func(*model), error) { return nil, p.install() },
	}
}

// putAnother makes a change that always has an effect.
func putAnother(p *product) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.install(); err != nil {
		return err
	}
	_, err := p.PutMember(ctx, actor, &keysvcv1.PutMemberRequest{
		WorkspaceId: "afterwards", MemberId: "somebody", Role: "admin", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	return err
}
