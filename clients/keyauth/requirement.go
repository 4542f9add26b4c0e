package keyauth

import "strings"

// Requirement is what a request needs. Nothing meets the zero Requirement.
type Requirement struct {
	kind  requirementKind
	scope string
}

type requirementKind uint8

const (
	_ requirementKind = iota // the zero value: denied
	requireScope
	requireMalformed // not the form of a scope: denied
	requireIdentity
	requireNothing
)

// Scope requires a valid token with a scope, for example "signatures:read".
func Scope(scope string) Requirement {
	// The form is checked here, once, and not for every request.
	if !validScope(scope) {
		return Requirement{kind: requireMalformed, scope: scope}
	}
	return Requirement{kind: requireScope, scope: scope}
}

// IdentityOnly requires a valid token and no scope.
func IdentityOnly() Requirement { return Requirement{kind: requireIdentity} }

// Public requires no token. A token that is sent is ignored.
func Public() Requirement { return Requirement{kind: requireNothing} }

// Scope returns the required scope; empty if the requirement is not a scope.
func (r Requirement) Scope() string { return r.scope }

// IsIdentityOnly reports whether any valid token meets the requirement.
func (r Requirement) IsIdentityOnly() bool { return r.kind == requireIdentity }

// IsPublic reports whether no token is needed.
func (r Requirement) IsPublic() bool { return r.kind == requireNothing }

// IsValid reports whether the requirement can be met: it was made by Scope with a scope of the
// form resource:action, by IdentityOnly, or by Public.
func (r Requirement) IsValid() bool {
	return r.kind == requireScope || r.kind == requireIdentity || r.kind == requireNothing
}

// String returns the requirement for people: the scope, "identity only", "public" or
// "nothing said".
func (r Requirement) String() string {
	switch r.kind {
	case requireScope, requireMalformed:
		return r.scope
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
