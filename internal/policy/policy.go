// Package policy is the catalogue of resources and actions, and what each role
// may do: its rules, its YAML form and its digest.
//
// A scope is "resource:action". Roles may also use "*" (the whole catalogue)
// and "resource:*" (every action of one resource); keys never can. An action
// implies no other one: write does not include read.
package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The defaults of fields that a YAML document leaves out.
const (
	DefaultTokenPrefix          = "scribe"
	DefaultLiveKeysPerWorkspace = 1000
	DefaultScopesPerKey         = 100
	DefaultKeyNameCharacters    = 128
	DefaultRetention            = 90 * Day
)

// Day is 24 hours, the unit of Policy.Retention.
const Day = 24 * time.Hour

// everything stands for all scopes in a role, and for all actions of a resource.
const everything = "*"

// Policy defines which scopes exist and which of them each role has. A Policy is valid if Parse
// or Default returned it, or if Validate returned nil. For an invalid policy, the methods
// that look things up deny whatever is unclear.
//
// The order of the lists has no meaning, but it is kept, and Digest depends on it.
type Policy struct {
	// TokenPrefix begins the tokens of new keys; see token.ValidPrefix.
	TokenPrefix string
	// Resources is the catalogue: at least one, with at most 1,000 scopes in all.
	Resources []Resource
	// Actions are titles and descriptions of actions, each an action of some resource, each once. An
	// action need not be here.
	Actions []Action
	// Roles has 1 to 100 roles.
	Roles []Role
	// Limits bounds what a workspace and a key may have.
	Limits Limits
	// Retention is how long revoked and expired keys are kept: 1 to 3,650 whole
	// days.
	Retention time.Duration
}

// Resource is a kind of thing that scopes give access to.
type Resource struct {
	// Name is [a-z][a-z0-9_]{0,63}, and unique in the policy.
	Name string
	// Actions has at least one name of the same form, each once.
	Actions []string
	// Title is what people call the resource: at most 64 printable characters. Description says what it
	// is: at most 256. Both decide nothing, and may be empty.
	Title, Description string
}

// Action is how an action is shown to people, on every resource that has it.
type Action struct {
	// Name is the name that Resource.Actions has.
	Name string
	// Title is what people call the action: at most 64 printable characters. Description says what it
	// allows: at most 256. Both decide nothing, and may be empty.
	Title, Description string
}

// Role is a named set of scopes.
type Role struct {
	// Name is [a-z][a-z0-9_-]{0,63}, and unique in the policy.
	Name string
	// Scopes has "*", "resource:*" and "resource:action", as they were written. Each comes
	// once, and is in the catalogue. A role may have no scopes.
	Scopes []string
}

// Limits bounds what a workspace and a key may have.
type Limits struct {
	// LiveKeysPerWorkspace is 1 to 1,000,000; revoked and expired keys do not count.
	LiveKeysPerWorkspace int
	// ScopesPerKey is 1 to 1,000.
	ScopesPerKey int
	// KeyNameCharacters is 1 to 1,024, in Unicode code points.
	KeyNameCharacters int
}

//go:embed scribe.yaml
var scribe []byte

// Default returns Scribe's policy. Each call returns a new copy.
func Default() *Policy {
	p, err := Parse("scribe.yaml", scribe)
	if err != nil {
		panic("policy: the built-in policy is wrong: " + err.Error()) // a test parses it
	}
	return p
}

// Scopes returns every scope of the catalogue, sorted.
func (p *Policy) Scopes() []string {
	var scopes []string
	for _, resource := range p.Resources {
		for _, action := range resource.Actions {
			scopes = append(scopes, scopeName(resource.Name, action))
		}
	}
	slices.Sort(scopes)
	return scopes
}

// HasScope reports whether scope is in the catalogue. It returns false for the forms with
// "*".
func (p *Policy) HasScope(scope string) bool {
	if !ValidScopeName(scope) {
		return false
	}
	name, action, _ := strings.Cut(scope, ":")
	return slices.ContainsFunc(p.Resources, func(resource Resource) bool {
		return resource.Name == name && slices.Contains(resource.Actions, action)
	})
}

// HasRole reports whether the policy has the role.
func (p *Policy) HasRole(role string) bool {
	return slices.ContainsFunc(p.Roles, func(r Role) bool { return r.Name == role })
}

// RoleScopes returns the scopes of a role: those of the catalogue, with "*" and "resource:*"
// replaced by what they stand for, sorted, each once. ok is false if there is no such role.
// Scopes of the role that are not in the catalogue are left out.
func (p *Policy) RoleScopes(role string) (scopes []string, ok bool) {
	index := slices.IndexFunc(p.Roles, func(r Role) bool { return r.Name == role })
	if index < 0 {
		return nil, false
	}
	written := make(map[string]bool, len(p.Roles[index].Scopes))
	for _, scope := range p.Roles[index].Scopes {
		written[scope] = true
	}
	for _, scope := range p.Scopes() {
		resource, _, _ := strings.Cut(scope, ":")
		if written[everything] || written[scopeName(resource, everything)] || written[scope] {
			scopes = append(scopes, scope)
		}
	}
	return slices.Compact(scopes), true
}

// ScopesInOrder returns what RoleScopes does, in the order of the catalogue; nil if there is no such
// role.
func (p *Policy) ScopesInOrder(role string) []string {
	has, _ := p.RoleScopes(role)
	var scopes []string
	for _, resource := range p.Resources {
		for _, action := range resource.Actions {
			if scope := scopeName(resource.Name, action); slices.Contains(has, scope) {
				scopes = append(scopes, scope)
			}
		}
	}
	return scopes
}

// ValidScopeName reports whether text has the form of a scope that a key can have:
// resource:action, both [a-z][a-z0-9_]{0,63}. HasScope reports whether a policy has the scope.
func ValidScopeName(text string) bool {
	resource, action, found := strings.Cut(text, ":")
	return found && validName(resource, "_") && validName(action, "_")
}

// maxNamedScopes is how many scopes an error names: all of Scribe's policy, and few enough for
// a status that gRPC carries.
const maxNamedScopes = 30

// WhereScopesAreListed tells a caller of the server where to see every scope of the active policy.
const WhereScopesAreListed = "GetPolicy (keysvc policy show)"

// UnknownScope describes what is wrong with text that names no scope of a catalogue. It names
// the scopes of the resource that text names, or the first maxNamedScopes of the catalogue if
// the catalogue does not have that resource. If scopes are left out, it gives their number, and
// where, the place that lists the whole catalogue. Text that does not have the form of a scope is
// not repeated, because it may be a token.
func UnknownScope(text string, catalogue []string, where string) string {
	if !ValidScopeName(text) {
		return "is not a scope; resource:action is required, e.g. signatures:read"
	}
	resource, _, _ := strings.Cut(text, ":")
	named := make([]string, 0, len(catalogue))
	for _, known := range catalogue {
		if strings.HasPrefix(known, resource+":") {
			named = append(named, known)
		}
	}
	if len(named) == 0 {
		named = catalogue
	}
	named = named[:min(len(named), maxNamedScopes)]
	described := fmt.Sprintf("%q is not in the policy, which has %s", text, strings.Join(named, ", "))
	if more := len(catalogue) - len(named); more > 0 {
		described += fmt.Sprintf(" and %d more; %s lists all %d", more, where, len(catalogue))
	}
	return described
}

func scopeName(resource, action string) string { return resource + ":" + action }

// validName reports whether text is [a-z][a-z0-9<also>]{0,63}.
func validName(text, also string) bool {
	if text == "" || len(text) > maxNameLength || text[0] < 'a' || text[0] > 'z' {
		return false
	}
	for i := range len(text) {
		c := text[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(also, c) < 0 {
			return false
		}
	}
	return true
}
