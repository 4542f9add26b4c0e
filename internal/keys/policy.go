package keys

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// InstallPolicy makes wanted the active policy of a store that has none, and returns the policy that
// is active then. In a store that has a policy it changes nothing. Errors: those of wanted.Validate,
// of the store and of the context.
func (m *Manager) InstallPolicy(ctx context.Context, actor audit.Actor, wanted *policy.Policy) (*projection.Policy, error) {
	if err := wanted.Validate(); err != nil {
		return nil, err
	}
	if m.readOnly() {
		if active, _, err := m.projection.Policy(); active != nil || err != nil {
			return active, err
		}
	}
	now := m.clock()
	_, err := m.change(ctx, actor, "", func(view *attempt) (*storage.Change, error) {
		if view.Policy != nil || view.DamagedPolicy != nil {
			view.unclaimed = true
			return nil, nil //nolint:nilerr // nothing to change: a damaged policy is not replaced
		}
		return policyChange(actor, nil, wanted, nil, now), nil
	})
	if err != nil {
		return nil, err
	}
	active, _, err := m.projection.Policy()
	return active, err
}

// PolicyReplacement is a policy that ApplyPolicy puts in place of the active one.
type PolicyReplacement struct {
	// Policy is the whole new policy. Required.
	Policy *policy.Policy
	// ReplacesDigest is the digest of the policy that the new one was derived from. If another
	// policy is active, the replacement is refused with POLICY_CHANGED. Required.
	ReplacesDigest string
	// ValidateOnly makes no change. The PolicyDifference then tells what would change.
	ValidateOnly bool
}

// PolicyDifference is what a PolicyReplacement changes, or would change.
type PolicyDifference struct {
	Position

	// Digest is that of the new policy.
	Digest string
	// AddedScopes and RemovedScopes are those of the catalogue, sorted.
	AddedScopes, RemovedScopes []string
	// Roles are the roles that change, by name.
	Roles []RoleDifference
	// NarrowedKeys and WidenedKeys are how many live keys lose or gain a scope; a key that loses
	// one and gains another counts for both.
	NarrowedKeys, WidenedKeys int64
}

// RoleDifference is what a PolicyReplacement changes about one role.
type RoleDifference struct {
	// Role is the name.
	Role string
	// Kind is what happens to the role.
	Kind RoleChange
	// AddedScopes and RemovedScopes are those of the role, sorted.
	AddedScopes, RemovedScopes []string
}

// RoleChange is what happens to a role. The numbers are those of keysvc.v1.RoleChangeKind.
type RoleChange int32

// What may happen to a role.
const (
	// RoleChangeUnspecified is not used.
	RoleChangeUnspecified RoleChange = iota
	// RoleAdded roles are new.
	RoleAdded
	// RoleChanged roles have other scopes.
	RoleChanged
	// RoleRemoved roles are no longer there.
	RoleRemoved
)

// ApplyPolicy replaces the active policy, or only returns what would change. The policy concerns all
// workspaces, so an actor that is limited to some of them is refused. Errors: *problem.Error
// if the policy is refused, and those of the store and the context.
func (m *Manager) ApplyPolicy(ctx context.Context, actor audit.Actor, replacement PolicyReplacement) (*PolicyDifference, error) {
	if err := mayChangeAll(actor); err != nil {
		return nil, err
	}
	var fields problem.Fields
	wanted := replacement.Policy
	checkPolicy(&fields, wanted)
	if replacement.ReplacesDigest == "" {
		fields.Add("replaces_digest", "is missing; the digest of the policy that this one was derived from is required")
	}
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	now := m.clock()
	var difference *PolicyDifference
	position, err := m.change(ctx, actor, "", func(view *attempt) (*storage.Change, error) {
		active, err := view.ActivePolicy()
		if err != nil {
			return nil, err
		}
		if replacement.ReplacesDigest != active.Digest {
			return nil, problem.New(problem.PolicyChanged,
				"the active policy has another digest, %s; read it and derive the new one from it", active.Digest)
		}
		if err := checkNotRetired(wanted, active); err != nil {
			return nil, err
		}
		difference = m.comparePolicies(ctx, active, wanted, now)
		view.unclaimed = replacement.ValidateOnly
		if replacement.ValidateOnly || difference.Digest == active.Digest {
			return nil, nil // nothing to change
		}
		retired := decide.NewScopes(append(slices.Clone(active.Retired), difference.RemovedScopes...)...)
		change := policyChange(actor, active, wanted, retired, now)
		change.Narrows = narrowsPolicy(active, wanted)
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	difference.Position = position
	return difference, nil
}

// secretLike finds text that is as long as a secret. A name in a policy that is so long might be a
// secret that somebody pasted into the wrong field, so an error does not repeat it.
var secretLike = regexp.MustCompile(`[0-9A-Za-z_]{40,}`)

// checkPolicy checks a policy that a caller sent.
func checkPolicy(fields *problem.Fields, wanted *policy.Policy) {
	if wanted == nil {
		fields.Add("policy", "is missing; a whole policy is required")
		return
	}
	if wanted.Retention == NotADuration {
		fields.Add("policy.retention", "is not a duration; whole days, 1 to 3650, are required")
		return
	}
	var mistakes policy.Errors
	if err := wanted.Validate(); errors.As(err, &mistakes) {
		nested := fields.Within("policy")
		for _, mistake := range mistakes {
			field := mistake.Field
			if field == "retention_days" { // the name in the document; the API has another
				field = "retention"
			}
			nested.Add(field, "%s", secretLike.ReplaceAllLiteralString(mistake.Problem, "[…]"))
		}
	} else if err != nil {
		fields.Add("policy", "is not valid: %v", err)
	}
}

// checkNotRetired refuses a policy that brings back a scope that was removed earlier. Old keys would
// have the scope again, although it meant something else when they were granted it.
func checkNotRetired(wanted *policy.Policy, active *projection.Policy) error {
	if back := active.Retired.Intersect(wanted.Scopes()); len(back) > 0 {
		return problem.New(problem.ScopeRetired,
			"the policy brings back scopes that were retired, and would revive them on old keys: %s; give them other names",
			strings.Join(back, ", "))
	}
	return nil
}

// comparePolicies returns what changes if wanted replaces the active policy.
func (m *Manager) comparePolicies(ctx context.Context, active *projection.Policy, wanted *policy.Policy, now time.Time) *PolicyDifference {
	before, after := active.Catalogue, decide.Scopes(wanted.Scopes())
	difference := &PolicyDifference{
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
		change := RoleDifference{
			Role:          name,
			Kind:          RoleChanged,
			AddedScopes:   roles[name].Without(active.Role(name)),
			RemovedScopes: active.Role(name).Without(roles[name]),
		}
		switch {
		case !active.HasRole(name):
			change.Kind = RoleAdded
		case !wanted.HasRole(name):
			change.Kind = RoleRemoved
		case len(change.AddedScopes) == 0 && len(change.RemovedScopes) == 0:
			continue
		}
		difference.Roles = append(difference.Roles, change)
	}
	difference.NarrowedKeys, difference.WidenedKeys = m.projection.Effect(ctx, roles, now)
	return difference
}

// policyChange returns the change that makes wanted the active policy. active is the policy before,
// nil if there was none.
func policyChange(actor audit.Actor, active *projection.Policy, wanted *policy.Policy, retired []string, now time.Time) *storage.Change {
	event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, now, "")
	event.Details = map[string]string{"digest": wanted.Digest()}
	if active != nil {
		event.Fields = audit.PolicyFields(active.Policy, wanted, active.Retired, retired)
	} else {
		event.Fields = audit.PolicyFields(nil, wanted, nil, retired)
	}
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
