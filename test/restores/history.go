//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// history makes random changes on a server and on the model.
type history struct {
	*model
	random *rand.Rand
	server *server
	digest string // of the active policy
}

var (
	workspaceNames = []string{"acme", "blue", "corp"}
	memberNames    = []string{"ann", "bob", "cid", "dan"}
	roleNames      = []string{"all", "some", "few", "other"}
)

func namesOf(set uint8) []string {
	var names []string
	for bit, name := range scopeNames {
		if set>>bit&1 == 1 {
			names = append(names, name)
		}
	}
	return names
}

// part returns a random subset of a set, which is empty only if the set is.
func (h *history) part(set uint8) uint8 {
	for set != 0 {
		if some := uint8(h.random.Uint32()) & set; some != 0 {
			return some
		}
	}
	return 0
}

// bit returns one random element of a set that is not empty.
func (h *history) bit(set uint8) uint8 {
	for {
		if one := uint8(1) << h.random.IntN(8); one&set != 0 {
			return one
		}
	}
}

// policy applies a policy, with what the model then has.
func (h *history) policy(ctx context.Context, scopes uint8, roles map[string]uint8) error {
	wanted := &keysvcv1.Policy{
		TokenPrefix: "scribe", Retention: durationpb.New(24 * time.Hour),
		Limits: &keysvcv1.PolicyLimits{LiveKeysPerWorkspace: 1000, ScopesPerKey: 100, KeyNameCharacters: 128},
	}
	for _, name := range namesOf(scopes) {
		resource, action, _ := strings.Cut(name, ":")
		if count := len(wanted.Resources); count == 0 || wanted.Resources[count-1].GetName() != resource {
			wanted.Resources = append(wanted.Resources, &keysvcv1.PolicyResource{Name: resource})
		}
		last := wanted.Resources[len(wanted.Resources)-1]
		last.Actions = append(last.Actions, action)
	}
	for _, name := range roleNames {
		wanted.Roles = append(wanted.Roles, &keysvcv1.PolicyRole{Name: name, Scopes: namesOf(roles[name] & scopes)})
	}
	if h.digest == "" {
		before, err := h.server.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			return err
		}
		h.digest = before.GetDigest()
	}
	applied, err := h.server.policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: h.digest})
	if err != nil {
		return err
	}
	h.digest = applied.GetDigest()
	h.scopes = scopes
	for _, name := range roleNames {
		h.roles[name] = roles[name] & scopes
	}
	if h.since {
		h.policies++
	}
	h.changed("policy: catalogue %v, all %v, some %v, few %v, other %v", namesOf(scopes), namesOf(roles["all"]), namesOf(roles["some"]), namesOf(roles["few"]), namesOf(roles["other"]))
	return nil
}

// changePolicy takes a scope from a role or from the catalogue, or gives a role one.
func (h *history) changePolicy(ctx context.Context) error {
	roles := make(map[string]uint8)
	for name, set := range h.roles {
		roles[name] = set
	}
	scopes, name := h.scopes, roleNames[h.random.IntN(len(roleNames))]
	switch choice := h.random.IntN(8); {
	case choice == 0 && len(namesOf(scopes)) > 4:
		scopes &^= h.bit(scopes)
	case choice < 4 && roles[name] != 0:
		roles[name] &^= h.bit(roles[name])
	default:
		roles[name] |= h.bit(scopes)
	}
	return h.policy(ctx, scopes, roles)
}

// put adds a member, or changes one.
func (h *history) put(ctx context.Context, workspace, name, role string, suspended bool) error {
	state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	if suspended {
		state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
	}
	if _, err := h.server.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: workspace, MemberId: name, Role: role, State: state}); err != nil {
		return err
	}
	m := h.members[workspace+"/"+name]
	if m == nil {
		h.lives++
		m = &member{workspace: workspace, name: name, role: role, life: h.lives}
		h.members[m.path()] = m
	}
	if h.since && (suspended || h.roles[m.role]&^h.roles[role] != 0) {
		m.narrowed = true
	}
	if h.since && m.role != role {
		h.moved[m.path()] = true
	}
	m.role, m.suspended = role, suspended
	h.changed("put member %s: role %s, suspended %v", m.path(), role, suspended)
	return nil
}

func (h *history) someMember() *member {
	return h.members[workspaceNames[h.random.IntN(len(workspaceNames))]+"/"+memberNames[h.random.IntN(len(memberNames))]]
}

// changeMember changes a member, or a workspace.
func (h *history) changeMember(ctx context.Context) error {
	role := roleNames[h.random.IntN(len(roleNames))]
	m := h.someMember()
	if m == nil {
		return h.put(ctx, workspaceNames[h.random.IntN(len(workspaceNames))], memberNames[h.random.IntN(len(memberNames))], role, false)
	}
	switch h.random.IntN(8) {
	case 0, 1:
		return h.put(ctx, m.workspace, m.name, m.role, !m.suspended)
	case 2:
		if h.random.IntN(3) > 0 {
			return h.put(ctx, m.workspace, m.name, role, m.suspended)
		}
		if _, err := h.server.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: m.workspace}); err != nil {
			return err
		}
		for path, each := range h.members {
			if each.workspace == m.workspace {
				delete(h.members, path)
			}
		}
		h.changed("remove workspace %s", m.workspace)
		return h.put(ctx, m.workspace, m.name, role, false)
	case 3:
		if _, err := h.server.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: m.workspace, MemberId: m.name}); err != nil {
			return err
		}
		delete(h.members, m.path())
		h.changed("remove member %s", m.path())
		if h.random.IntN(2) == 0 {
			return h.put(ctx, m.workspace, m.name, role, false)
		}
		return nil
	default:
		return h.put(ctx, m.workspace, m.name, role, m.suspended)
	}
}

// issued adds a token to the model.
func (h *history) issued(k *key, text string) *token {
	t := &token{number: len(h.tokens), text: text, key: k}
	h.tokens = append(h.tokens, t)
	k.tokens = append([]*token{t}, k.tokens...)
	return t
}

func (h *history) create(ctx context.Context) error {
	m := h.someMember()
	if m == nil || m.suspended || h.roles[m.role] == 0 {
		return h.changeMember(ctx)
	}
	scopes, rule := h.part(h.roles[m.role]), networks[h.random.IntN(len(networks))]
	if h.random.IntN(2) == 0 {
		scopes, rule = h.roles[m.role], nil
	}
	made, err := h.server.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: m.workspace, MemberId: m.name, Name: fmt.Sprint("key ", len(h.keys)), Scopes: namesOf(scopes), AllowedCidrs: rule,
	})
	if err != nil {
		return err
	}
	k := &key{id: made.GetKey().GetKeyId(), workspace: m.workspace, member: m.name, life: m.life, scopes: scopes, places: inside(rule)}
	h.keys = append(h.keys, k)
	t := h.issued(k, made.GetToken())
	h.changed("create key %s, token %d, of %s: %v %v", k.id, t.number, m.path(), namesOf(scopes), rule)
	return nil
}

func (h *history) update(ctx context.Context, k *key) error {
	wanted, mask := &keysvcv1.Key{WorkspaceId: k.workspace, KeyId: k.id}, ""
	scopes, places := k.scopes, k.places
	owner := h.owner(k)
	switch h.random.IntN(5) {
	case 0, 1:
		rule := networks[h.random.IntN(len(networks))]
		wanted.AllowedCidrs, mask, places = rule, "allowed_cidrs", inside(rule)
		k.readdressed = k.readdressed || h.since
	case 2:
		scopes = h.roles[owner.role]
		if scopes == 0 {
			return nil
		}
		wanted.Scopes, mask = namesOf(scopes), "scopes"
	default:
		scopes = h.part(k.scopes & h.roles[owner.role])
		if scopes == 0 {
			return nil
		}
		wanted.Scopes, mask = namesOf(scopes), "scopes"
	}
	if _, err := h.server.keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{Key: wanted, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{mask}}}); err != nil {
		return err
	}
	if h.since && (k.scopes&^scopes != 0 || k.places&^places != 0) {
		k.narrowed = true
	}
	k.scopes, k.places = scopes, places
	h.changed("update key %s: %v %v", k.id, namesOf(scopes), wanted.GetAllowedCidrs())
	return nil
}

func (h *history) rotate(ctx context.Context, k *key) error {
	overlap := time.Duration(0)
	if len(k.tokens) == 1 {
		overlap = []time.Duration{0, time.Second, time.Hour}[h.random.IntN(3)]
	}
	made, err := h.server.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: k.workspace, KeyId: k.id, Overlap: durationpb.New(overlap)})
	if err != nil {
		return err
	}
	if overlap == 0 {
		h.end(k, 0)
	} else {
		// The server drew the end before it answered.
		k.tokens[0].end = time.Now().Add(overlap)
	}
	t := h.issued(k, made.GetToken())
	h.changed("rotate key %s to token %d, overlap %v", k.id, t.number, overlap)
	return nil
}

// end ends all secrets of a key but the newest ones.
func (*history) end(k *key, but int) {
	for len(k.tokens) > but {
		k.tokens[len(k.tokens)-1].ended = true
		k.tokens = k.tokens[:len(k.tokens)-1]
	}
}

// changeKey changes a key.
func (h *history) changeKey(ctx context.Context) error {
	if len(h.keys) == 0 {
		return h.create(ctx)
	}
	k := h.keys[h.random.IntN(len(h.keys))]
	if !h.live(k) {
		return h.create(ctx)
	}
	switch h.random.IntN(10) {
	case 0:
		return h.revoke(ctx, k)
	case 1, 2, 3:
		return h.rotate(ctx, k)
	case 4, 5:
		if len(k.tokens) < 2 {
			return h.rotate(ctx, k)
		}
		if _, err := h.server.keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: k.workspace, KeyId: k.id}); err != nil {
			return err
		}
		h.end(k, 1)
		h.changed("finish the rotation of key %s", k.id)
		return nil
	default:
		return h.update(ctx, k)
	}
}

func (h *history) revoke(ctx context.Context, k *key) error {
	if h.random.IntN(2) == 0 {
		if _, err := h.server.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: k.workspace, KeyId: k.id}); err != nil {
			return err
		}
	} else if _, err := h.server.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: k.tokens[0].text}); err != nil {
		return err
	}
	k.revoked = true
	k.narrowed = k.narrowed || h.since
	h.changed("revoke key %s", k.id)
	return nil
}

// changes makes changes.
func (h *history) changes(ctx context.Context, count int) error {
	for range count {
		var err error
		creates := 12
		if h.since {
			creates = 6 // what was created after the backup is lost, and of less interest
		}
		switch choice := h.random.IntN(25); {
		case choice == 0:
			err = h.changePolicy(ctx)
		case choice < 4:
			err = h.changeMember(ctx)
		case choice < creates:
			err = h.create(ctx)
		default:
			err = h.changeKey(ctx)
		}
		if err != nil {
			return fmt.Errorf("a change: %w", err)
		}
	}
	return nil
}
