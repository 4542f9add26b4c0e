package keys

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// InstallPolicy makes wanted the active policy of a store that has none. It returns
// the policy that is active then, which in a store that has one may be another.
func (m *Manager) InstallPolicy(ctx context.Context, actor audit.Actor, wanted *policy.Policy) (*projection.Policy, error) {
	if err := wanted.Validate(); err != nil {
		return nil, err
	}
	now := m.clock()
	_, err := m.change(ctx, "", func(view *attempt) (*storage.Change, error) {
		if view.Policy != nil || view.DamagedPolicy != nil {
			return nil, nil //nolint:nilnil,nilerr // documented: nil is "nothing to change"; a damaged policy is not replaced
		}
		return policyChange(actor, wanted, nil, now), nil
	})
	if err != nil {
		return nil, err
	}
	active, _, err := m.projection.Policy()
	return active, err
}

// ApplyPolicy replaces the active policy, or says what that would change.
func (m *Manager) ApplyPolicy(ctx context.Context, actor audit.Actor, request *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	var fields problem.Fields
	wanted := readPolicy(&fields, request.GetPolicy())
	if request.GetReplacesDigest() == "" {
		fields.Add("replaces_digest", "is missing; the digest of the policy that this one was derived from is required")
	}
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	var response *keysvcv1.ApplyPolicyResponse
	position, err := m.change(ctx, "", func(view *attempt) (*storage.Change, error) {
		active, err := view.ActivePolicy()
		if err != nil {
			return nil, err
		}
		if request.GetReplacesDigest() != active.Digest {
			return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_POLICY_CHANGED,
				"the active policy has another digest, %s; read it and derive the new one from it", active.Digest)
		}
		if err := checkNotRetired(wanted, active); err != nil {
			return nil, err
		}
		response = m.comparePolicies(active, wanted, now)
		if request.GetValidateOnly() || response.GetDigest() == active.Digest {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		retired := decide.NewScopes(append(slices.Clone(active.Retired), response.GetRemovedScopes()...)...)
		change := policyChange(actor, wanted, retired, now)
		change.Narrows = narrowsPolicy(active, wanted)
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	response.Revision, response.Epoch = position.Revision, position.Epoch
	return response, nil
}

// secretLike finds what is as long as a secret: names in a policy that are too long to
// be of use in an error might be one, pasted into the wrong field.
var secretLike = regexp.MustCompile(`[0-9A-Za-z_]{40,}`)

// readPolicy turns a policy as callers send it into one of ours, and checks it.
func readPolicy(fields *problem.Fields, sent *keysvcv1.Policy) *policy.Policy {
	if sent == nil {
		fields.Add("policy", "is missing; a whole policy is required")
		return nil
	}
	if sent.GetRetention() != nil && sent.GetRetention().CheckValid() != nil {
		fields.Add("policy.retention", "is not a duration; whole days, 1 to 3650, are required")
		return nil
	}
	read := &policy.Policy{
		TokenPrefix: sent.GetTokenPrefix(),
		Retention:   sent.GetRetention().AsDuration(),
		Limits: policy.Limits{
			LiveKeysPerWorkspace: int(sent.GetLimits().GetLiveKeysPerWorkspace()),
			ScopesPerKey:         int(sent.GetLimits().GetScopesPerKey()),
			KeyNameCharacters:    int(sent.GetLimits().GetKeyNameCharacters()),
		},
	}
	for _, resource := range sent.GetResources() {
		read.Resources = append(read.Resources, policy.Resource{Name: resource.GetName(), Actions: resource.GetActions()})
	}
	for _, role := range sent.GetRoles() {
		read.Roles = append(read.Roles, policy.Role{Name: role.GetName(), Scopes: role.GetScopes()})
	}
	var mistakes policy.Errors
	if err := read.Validate(); errors.As(err, &mistakes) {
		nested := fields.Within("policy")
		for _, mistake := range mistakes {
			field := mistake.Field
			if field == "retention_days" { // as the document calls it
				field = "retention"
			}
			nested.Add(field, "%s", secretLike.ReplaceAllLiteralString(mistake.Problem, "[…]"))
		}
	} else if err != nil {
		fields.Add("policy", "is not valid: %v", err)
	}
	return read
}

// checkNotRetired refuses a policy that brings back a scope: it would revive keys that
// were granted it when it meant something else.
func checkNotRetired(wanted *policy.Policy, active *projection.Policy) error {
	if back := active.Retired.Intersect(wanted.Scopes()); len(back) > 0 {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_SCOPE_RETIRED,
			"the policy brings back scopes that were retired, and would revive them on old keys: %s; give them other names",
			strings.Join(back, ", "))
	}
	return nil
}

// comparePolicies says what a policy in place of the active one would change.
func (m *Manager) comparePolicies(active *projection.Policy, wanted *policy.Policy, now time.Time) *keysvcv1.ApplyPolicyResponse {
	before, after := active.Catalogue, decide.Scopes(wanted.Scopes())
	response := &keysvcv1.ApplyPolicyResponse{
		Digest:        wanted.Digest(),
		AddedScopes:   after.Without(before),
		RemovedScopes: before.Without(after),
	}
	names := make(map[string]bool)
	for _, role := range active.Roles {
		names[role.Name] = true
	}
	roles := make(map[string]decide.Scopes)
	for _, role := range wanted.Roles {
		names[role.Name] = true
		roles[role.Name], _ = wanted.RoleScopes(role.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		change := &keysvcv1.RoleChange{
			Role:          name,
			Kind:          keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_CHANGED,
			AddedScopes:   roles[name].Without(active.Role(name)),
			RemovedScopes: active.Role(name).Without(roles[name]),
		}
		switch {
		case !active.HasRole(name):
			change.Kind = keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_ADDED
		case !wanted.HasRole(name):
			change.Kind = keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_REMOVED
		case len(change.GetAddedScopes()) == 0 && len(change.GetRemovedScopes()) == 0:
			continue
		}
		response.RoleChanges = append(response.RoleChanges, change)
	}
	response.NarrowedKeys, response.WidenedKeys = m.projection.Effect(roles, now)
	return response
}

// policyChange returns the change that makes wanted the active policy.
func policyChange(actor audit.Actor, wanted *policy.Policy, retired []string, now time.Time) *storage.Change {
	event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, now, "")
	event.Details = map[string]string{"digest": wanted.Digest()}
	return &storage.Change{
		Event: event,
		Kind:  storagev1.FeedKind_FEED_KIND_POLICY,
		PutPolicy: &storagev1.PolicyRecord{
			Document:      wanted.Document(),
			RetiredScopes: retired,
			ApplyTime:     timestamppb.New(now),
		},
	}
}

// showPolicy returns a policy as callers see it.
func showPolicy(active *policy.Policy) *keysvcv1.Policy {
	shown := &keysvcv1.Policy{
		TokenPrefix: active.TokenPrefix,
		Retention:   durationpb.New(active.Retention),
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: int32(active.Limits.LiveKeysPerWorkspace), //nolint:gosec // at most 1,000,000
			ScopesPerKey:         int32(active.Limits.ScopesPerKey),         //nolint:gosec // at most 1,000
			KeyNameCharacters:    int32(active.Limits.KeyNameCharacters),    //nolint:gosec // at most 1,024
		},
	}
	for _, resource := range active.Resources {
		shown.Resources = append(shown.Resources, &keysvcv1.PolicyResource{Name: resource.Name, Actions: resource.Actions})
	}
	for _, role := range active.Roles {
		shown.Roles = append(shown.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: role.Scopes})
	}
	return shown
}
