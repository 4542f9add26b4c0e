package keys_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// explained is a world of random changes, and the newest token of each key.
type explained struct {
	*keystest.World
	t      *testing.T
	random *rand.Rand
	tokens map[string]string // by key id
	ids    []string
	homes  map[string]string // workspaces, by key id
}

func (e *explained) pick(from ...string) string { return from[e.random.IntN(len(from))] }

// change makes a random change. Most are refused now and then, because of an earlier change.
func (e *explained) change() {
	ctx, workspace, member := e.t.Context(), e.pick("acme", "other"), e.pick("ann", "bob")
	if len(e.ids) == 0 || e.random.IntN(6) == 0 {
		request := &keysvcv1.CreateKeyRequest{
			WorkspaceId: workspace, MemberId: member, Name: "a key", Scopes: []string{e.pick("emails:read", "assets:read", "financial_documents:read")},
			ExpireTime: timestamppb.New(e.Clock.Now().Add(time.Duration(1+e.random.IntN(24)) * time.Hour)),
		}
		if e.random.IntN(3) == 0 {
			request.AllowedCidrs = []string{e.pick("192.0.2.0/24", "2001:db8::/32")}
		}
		if created, err := e.CreateKey(ctx, keystest.Actor, request); err == nil {
			id := created.GetKey().GetKeyId()
			e.ids, e.homes[id], e.tokens[id] = append(e.ids, id), workspace, created.GetToken()
		}
		return
	}
	id := e.ids[e.random.IntN(len(e.ids))]
	home := e.homes[id]
	switch e.random.IntN(12) {
	case 0:
		_, _ = e.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: home, KeyId: id})
	case 1:
		rotated, err := e.RotateKey(ctx, keystest.Actor, &keysvcv1.RotateKeyRequest{
			WorkspaceId: home, KeyId: id, Overlap: durationpb.New(time.Duration(e.random.IntN(3)) * time.Hour),
		})
		if err == nil {
			e.tokens[id] = rotated.GetToken()
		}
	case 2:
		_, _ = e.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{
			Key:        &keysvcv1.Key{WorkspaceId: home, KeyId: id, Scopes: []string{e.pick("emails:read", "assets:read")}, AllowedCidrs: []string{e.pick("192.0.2.0/24", "0.0.0.0/0")}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{e.pick("scopes", "allowed_cidrs")}},
		})
	case 3:
		if e.random.IntN(3) == 0 {
			_, _ = e.RemoveMember(ctx, keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: workspace, MemberId: member})
		}
	case 4:
		if e.random.IntN(8) == 0 {
			_, _ = e.RemoveWorkspace(ctx, keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: workspace})
		}
	case 5:
		e.Clock.Advance(time.Duration(e.random.IntN(int(6 * time.Hour))))
	default:
		state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
		if e.random.IntN(4) == 0 {
			state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		}
		_, _ = e.PutMember(ctx, keystest.Actor, &keysvcv1.PutMemberRequest{
			WorkspaceId: workspace, MemberId: member, Role: e.pick("owner", "owner", "manager", "member"), State: state,
		})
	}
}

// compare fails unless an explanation of a key gives the answer of a validation of its newest token.
func (e *explained) compare(id string) decide.Reason {
	e.t.Helper()
	query := keys.ExplainQuery{
		KeyID: id, WorkspaceID: e.pick("", e.homes[id]),
		Requirement: decide.Requirement{Scope: e.pick("emails:read", "assets:read", "financial_documents:read", "emails:paint", "")},
	}
	query.Requirement.IdentityOnly = query.Requirement.Scope == ""
	if text := e.pick("", "192.0.2.7", "198.51.100.1", "2001:db8::7", "::ffff:192.0.2.7"); text != "" {
		query.Address = netip.MustParseAddr(text)
	}
	answer, wrong := e.Validator.Validate(e.t.Context(), validation.Question{
		Token: e.tokens[id], Workspaces: access.All(), WorkspaceID: query.WorkspaceID, Requirement: query.Requirement, Address: query.Address,
	})
	explanation, err := e.Manager.ExplainKey(e.t.Context(), access.All(), query)
	if (err != nil || wrong != nil) && keystest.ReasonOf(err) == keystest.ReasonOf(wrong) {
		return decide.NoReason
	}
	if err != nil || wrong != nil {
		e.t.Fatalf("%+v: explained: %v; validated: %v", query, err, wrong)
	}
	if explanation.Decision != answer.Decision || explanation.Reason != answer.Reason || explanation.Key.ID != id {
		e.t.Errorf("%+v: explained %d, %d; validated %d, %d", query, explanation.Decision, explanation.Reason, answer.Decision, answer.Reason)
	}
	if (len(explanation.Remedies) == 0) != (answer.Decision == decide.Allowed) {
		e.t.Errorf("%+v: %d, %d with the remedies %q", query, answer.Decision, answer.Reason, explanation.Remedies)
	}
	for _, finding := range explanation.Findings {
		if !strings.HasSuffix(finding.Description, ".") {
			e.t.Errorf("%+v is not a sentence", finding)
		}
	}
	if answer.Decision == decide.Allowed {
		if role := answer.Grant.Principal.Role; explanation.Role != role || explanation.MemberState != keys.MemberActive {
			e.t.Errorf("role %q of a member in state %d, want %q", explanation.Role, explanation.MemberState, role)
		}
		if effective := answer.Grant.Effective(); !slices.Equal(explanation.EffectiveScopes, effective) {
			e.t.Errorf("effective scopes %q, want %q", explanation.EffectiveScopes, effective)
		}
	}
	return answer.Reason
}

// TestAnExplanationAgreesWithValidation makes random changes, and asks about random keys, scopes and
// addresses in both ways.
func TestAnExplanationAgreesWithValidation(t *testing.T) {
	seen := make(map[decide.Reason]int)
	for seed := range uint64(race.Rounds(10, 4)) {
		e := &explained{
			World: keystest.NewWorld(t, keystest.NewBolt(t), nil), t: t, random: rand.New(rand.NewPCG(seed, 13)),
			tokens: make(map[string]string), homes: make(map[string]string),
		}
		for _, workspace := range []string{"acme", "other"} {
			for _, member := range []string{"ann", "bob"} {
				e.Put(workspace, member, "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
			}
		}
		for range 50 {
			e.change()
			for range min(len(e.ids), 6) {
				seen[e.compare(e.ids[e.random.IntN(len(e.ids))])]++
			}
		}
		if t.Failed() {
			t.Fatalf("with the seed %d", seed)
		}
	}
	for reason := decide.NoReason; reason <= decide.ScopeBeyondRole; reason++ {
		if seen[reason] == 0 && reason != decide.KeyInvalid {
			t.Errorf("reason %d did not occur: %v", reason, seen)
		}
	}
}

// TestAnExplanationNamesWhatChangedLast: the newest changes of the key, its member and the policy come
// with an explanation, and nothing about other keys and members.
func TestAnExplanationNamesWhatChangedLast(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	w.Put("acme", "bob", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	id := w.Create("acme", "ann", "emails:read").GetKey().GetKeyId()
	w.Create("acme", "ann", "emails:read")
	w.Create("acme", "bob", "emails:read")
	w.Put("acme", "ann", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	w.Put("acme", "bob", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	want := []string{"MEMBER_PUT ann", "KEY_CREATED ann", "MEMBER_PUT ann", "POLICY_APPLIED "}
	for _, visible := range []access.Workspaces{access.All(), access.Only("acme")} {
		if !visible.IsAll() {
			want = want[:3]
		}
		response, err := w.ExplainKey(ctx, visible, &keysvcv1.ExplainKeyRequest{WorkspaceId: "acme", KeyId: id, RequiredScope: "emails:read"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, event := range response.GetChanges() {
			got = append(got, fmt.Sprintf("%s %s", event.GetAction().String()[len("AUDIT_ACTION_"):], event.GetMemberId()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("for %s: %q, want %q", visible, got, want)
		}
		if response.GetReason() != keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE || response.GetRole() != "member" || len(response.GetEffectiveScopes()) > 0 ||
			!slices.Equal(response.GetRemedies(), []string{"Give the member a role that has the scope with PutMember: owner, admin, manager; or change the role with ApplyPolicy."}) {
			t.Errorf("%v", response)
		}
	}
	// More changes than an explanation has.
	for index := range 12 {
		w.Put("acme", "ann", []string{"owner", "member"}[index%2], keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	}
	response, err := w.ExplainKey(ctx, access.All(), &keysvcv1.ExplainKeyRequest{KeyId: id, IdentityOnly: true})
	if err != nil || len(response.GetChanges()) != 10 || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Errorf("%v, %v", response, err)
	}
}

// TestAnExplanationIsOfVisibleKeysOnly: a key of another workspace and an unknown key look alike.
func TestAnExplanationIsOfVisibleKeysOnly(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	id := w.Create("acme", "ann", "emails:read").GetKey().GetKeyId()
	ask := func(visible access.Workspaces, workspaceID, keyID string) problem.Reason {
		_, err := w.ExplainKey(t.Context(), visible, &keysvcv1.ExplainKeyRequest{WorkspaceId: workspaceID, KeyId: keyID, IdentityOnly: true})
		return keystest.ReasonOf(err)
	}
	for name, test := range map[string]struct {
		visible        access.Workspaces
		workspace, key string
		want           problem.Reason
	}{
		"seen":             {access.Only("acme"), "acme", id, 0},
		"any":              {access.All(), "", id, 0},
		"no workspace":     {access.Only("acme"), "", id, problem.FieldInvalid},
		"another's":        {access.Only("other"), "other", id, problem.KeyNotFound},
		"not seen":         {access.Only("other"), "acme", id, problem.KeyNotFound},
		"not seen, absent": {access.Only("other"), "acme", strings.Repeat("0", 16), problem.KeyNotFound},
		"absent":           {access.All(), "", strings.Repeat("0", 16), problem.KeyNotFound},
		"no right":         {access.Workspaces{}, "acme", id, problem.CallerNotAllowed},
	} {
		if got := ask(test.visible, test.workspace, test.key); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}
