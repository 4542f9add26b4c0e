package keyauth

import (
	"slices"
	"strings"
)

// MaxScopes is the largest number of scopes of AllOf and AnyOf, as keysvc takes them.
const MaxScopes = 16

// Requirement is what a request needs. Nothing meets the zero Requirement. Two requirements are equal
// (==) if they have the same kind and the same scopes in the same order.
type Requirement struct {
	kind requirementKind
	// scope is the scope, or the scopes with a space between two. A Requirement is comparable
	// because it has no slice.
	scope string
	// field is the path of WorkspaceField; empty for none.
	field string
}

type requirementKind uint8

const (
	_ requirementKind = iota // the zero value: denied
	requireScope
	requireMalformed // not the form of a scope: denied
	requireIdentity
	requireNothing
	requireAll
	requireAny
)

// Scope requires a valid token with a scope, for example "signatures:read".
func Scope(scope string) Requirement {
	// The form is checked here, once, and not for every request.
	if !validScope(scope) {
		return Requirement{kind: requireMalformed, scope: scope}
	}
	return Requirement{kind: requireScope, scope: scope}
}

// AllOf requires a valid token with every one of the scopes: 1 to MaxScopes, each once. With one scope
// it is Scope. Anything else makes a Requirement that is not valid, and that nothing meets.
func AllOf(scopes ...string) Requirement { return several(requireAll, scopes) }

// AnyOf requires a valid token with at least one of the scopes: 1 to MaxScopes, each once. With one
// scope it is Scope. Anything else makes a Requirement that is not valid, and that nothing meets.
func AnyOf(scopes ...string) Requirement { return several(requireAny, scopes) }

func several(kind requirementKind, scopes []string) Requirement {
	if len(scopes) == 1 {
		return Scope(scopes[0])
	}
	valid := len(scopes) > 0 && len(scopes) <= MaxScopes
	for index, scope := range scopes {
		valid = valid && validScope(scope) && !slices.Contains(scopes[:index], scope)
	}
	if !valid {
		kind = requireMalformed
	}
	return Requirement{kind: kind, scope: strings.Join(scopes, " ")}
}

// WorkspaceField returns the requirement with the path of the request's field that holds the workspace,
// for example "workspace_id", or "note.workspace_id" for a field of a message in the request. It is for
// the tables that protoc-gen-go-keyscope writes. The field must be a string and not repeated; otherwise
// each call fails with codes.Internal. A request in which it is empty is answered with codes.NotFound.
// With an empty path nothing meets the requirement.
func (r Requirement) WorkspaceField(path string) Requirement {
	r.field = path
	if path == "" {
		r.kind = requireMalformed
	}
	return r
}

// IdentityOnly requires a valid token and no scope.
func IdentityOnly() Requirement { return Requirement{kind: requireIdentity} }

// Public requires no token. A token that is sent is ignored.
func Public() Requirement { return Requirement{kind: requireNothing} }

// Scope returns the required scope; empty if the requirement is not one scope.
func (r Requirement) Scope() string {
	if r.kind != requireScope && r.kind != requireMalformed {
		return ""
	}
	return r.scope
}

// Scopes returns the scopes of Scope, AllOf or AnyOf in their order; nil if the requirement has none.
func (r Requirement) Scopes() []string {
	switch r.kind {
	case requireScope:
		return []string{r.scope}
	case requireAll, requireAny:
		return strings.Split(r.scope, " ")
	case requireMalformed, requireIdentity, requireNothing:
	}
	return nil
}

// IsAllOf reports whether every one of Scopes is needed, and there are more than one.
func (r Requirement) IsAllOf() bool { return r.kind == requireAll }

// IsAnyOf reports whether one of Scopes is enough, and there are more than one.
func (r Requirement) IsAnyOf() bool { return r.kind == requireAny }

// IsIdentityOnly reports whether any valid token meets the requirement.
func (r Requirement) IsIdentityOnly() bool { return r.kind == requireIdentity }

// IsPublic reports whether no token is needed.
func (r Requirement) IsPublic() bool { return r.kind == requireNothing }

// IsValid reports whether the requirement can be met: it was made by Scope, AllOf or AnyOf with
// scopes of the form resource:action, by IdentityOnly, or by Public.
func (r Requirement) IsValid() bool { return r.kind != 0 && r.kind != requireMalformed }

// String returns the requirement for people: the scope, "all of" or "any of" with the scopes,
// "identity only", "public" or "nothing said".
func (r Requirement) String() string {
	switch r.kind {
	case requireScope, requireMalformed:
		return r.scope
	case requireAll:
		return "all of " + strings.ReplaceAll(r.scope, " ", ", ")
	case requireAny:
		return "any of " + strings.ReplaceAll(r.scope, " ", ", ")
	case requireIdentity:
		return "identity only"
	case requireNothing:
		return "public"
	}
	return "nothing said"
}

// Table holds what each method needs, by the method's full name in gRPC, for example
// "/scribe.signatures.v1.SignaturesService/GetSignature". Generate it with
// protoc-gen-go-keyscope rather than write it.
type Table map[string]Requirement

// validScope reports whether text has the form resource:action. Both parts consist of a to z, 0
// to 9 and _, and begin with a letter.
func validScope(text string) bool {
	resource, action, found := strings.Cut(text, ":")
	return found && validName(resource) && validName(action)
}

func validName(text string) bool {
	for index, char := range []byte(text) {
		letter := char >= 'a' && char <= 'z'
		if !letter && (index == 0 || char != '_' && (char < '0' || char > '9')) {
			return false
		}
	}
	return text != ""
}
