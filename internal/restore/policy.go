package restore

import (
	"slices"
	"strconv"
	"strings"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// narrowedPolicy is the policy of a backup on its way through the events since.
type narrowedPolicy struct {
	outcome
	// catalogue, roles and retired are what is left. A role that was removed is not among them.
	catalogue decide.Scopes
	roles     map[string]decide.Scopes
	retired   decide.Scopes
	policy    *policy.Policy
}

// narrowPolicy returns the policy of a backup with everything taken away that the events took away, and
// the scopes that are retired then.
func narrowPolicy(stored *storagev1.PolicyRecord, altered []*alteration) (*policy.Policy, []string, outcome, error) {
	had, err := policy.Parse("the policy of the backup", stored.GetDocument())
	if err != nil {
		return nil, nil, outcome{}, err
	}
	again, err := policy.Parse("the policy of the backup", stored.GetDocument())
	if err != nil {
		return nil, nil, outcome{}, err
	}
	p := &narrowedPolicy{
		catalogue: had.Scopes(), roles: make(map[string]decide.Scopes),
		retired: decide.NewScopes(stored.GetRetiredScopes()...), policy: again,
	}
	for _, role := range had.Roles {
		p.roles[role.Name], _ = had.RoleScopes(role.Name)
	}
	for _, event := range altered {
		if event.action == restarts {
			continue
		}
		p.unclear = p.unclear || event.unclear
		for _, field := range event.fields {
			p.field(field)
		}
	}
	p.finish(had)
	if err := p.policy.Validate(); err != nil {
		return nil, nil, outcome{}, err
	}
	return p.policy, p.retired, p.outcome, nil
}

// field applies one field of an event.
func (p *narrowedPolicy) field(field *storagev1.FieldChange) {
	after := decide.NewScopes(field.GetAfter()...)
	switch name := field.GetField(); {
	case name == "token_prefix", name == "titles":
	case name == "catalogue":
		p.catalogue = p.catalogue.Intersect(after)
		p.retired = decide.NewScopes(append(p.retired, decide.NewScopes(field.GetBefore()...).Without(after)...)...)
		if len(after.Without(decide.NewScopes(field.GetBefore()...))) > 0 {
			p.widen("catalogue")
		}
	case name == "retired_scopes":
		p.retired = decide.NewScopes(append(p.retired, after...)...)
	case strings.HasPrefix(name, "roles.") && strings.HasSuffix(name, ".scopes"):
		role := strings.TrimSuffix(strings.TrimPrefix(name, "roles."), ".scopes")
		if scopes, has := p.roles[role]; has {
			p.roles[role] = scopes.Intersect(after)
		}
		if len(after.Without(decide.NewScopes(field.GetBefore()...))) > 0 {
			p.widen("role " + role)
		}
	case strings.HasPrefix(name, "roles."):
		if role := strings.TrimPrefix(name, "roles."); len(field.GetAfter()) == 0 {
			delete(p.roles, role)
		} else {
			p.widen("role " + role)
		}
	case strings.HasPrefix(name, "limits."), name == "retention_days":
		value, err := strconv.Atoi(strings.Join(field.GetAfter(), ""))
		if err != nil {
			p.unclear = true
			return
		}
		p.limit(name, value)
	default:
		p.unclear = true
	}
}

// limit takes over a limit that is lower.
func (p *narrowedPolicy) limit(name string, value int) {
	limits := map[string]*int{
		"limits.live_keys_per_workspace": &p.policy.Limits.LiveKeysPerWorkspace,
		"limits.scopes_per_key":          &p.policy.Limits.ScopesPerKey,
		"limits.key_name_characters":     &p.policy.Limits.KeyNameCharacters,
	}
	if name == "retention_days" {
		// How long dead records are kept gives nobody access. The longer time loses nothing.
		if p.policy.Retention < time.Duration(value)*policy.Day {
			p.widen(name)
		}
		return
	}
	switch limit := limits[name]; {
	case limit == nil:
		p.unclear = true
	case value < *limit:
		*limit = value
		p.narrow(name)
	case value > *limit:
		p.widen(name)
	}
}

// finish writes what is left into the policy.
func (p *narrowedPolicy) finish(had *policy.Policy) {
	p.retired = p.retired.Without(p.catalogue)
	if len(p.catalogue) == 0 {
		// A policy without a scope cannot be stored: the scopes stay, and no role has one.
		p.unclear = true
		p.catalogue = had.Scopes()
		p.retired = p.retired.Without(p.catalogue)
		for role := range p.roles {
			p.roles[role] = nil
		}
	}
	if len(p.roles) == 0 {
		// The same for the roles.
		p.roles = map[string]decide.Scopes{had.Roles[0].Name: nil}
	}
	if len(p.catalogue) < len(had.Scopes()) {
		p.narrow("scopes")
		var resources []policy.Resource
		for _, resource := range p.policy.Resources {
			resource.Actions = slices.DeleteFunc(slices.Clone(resource.Actions), func(action string) bool {
				return !p.catalogue.Contains(resource.Name + ":" + action)
			})
			if len(resource.Actions) > 0 {
				resources = append(resources, resource)
			}
		}
		p.policy.Resources = resources
		p.policy.Actions = slices.DeleteFunc(p.policy.Actions, func(action policy.Action) bool {
			return !slices.ContainsFunc(resources, func(resource policy.Resource) bool { return slices.Contains(resource.Actions, action.Name) })
		})
	}
	var roles []policy.Role
	for _, role := range p.policy.Roles {
		left, has := p.roles[role.Name]
		if !has {
			p.narrow("role " + role.Name)
			continue
		}
		left = left.Intersect(p.catalogue)
		// The role is written out, unless it is what it was: "*" would stand for other scopes now.
		before, _ := had.RoleScopes(role.Name)
		if !slices.Equal(left, before) {
			role.Scopes = left
		}
		if len(left) < len(before) {
			p.narrow("role " + role.Name)
		}
		roles = append(roles, role)
	}
	p.policy.Roles = roles
}
