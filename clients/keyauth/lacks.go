package keyauth

import (
	"slices"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Lacks returns the refusal of a principal that does not meet a further requirement, exactly as a Guard would; nil
// if it does. It compares with Principal.Scopes, so it needs Config.Details or Request.Details: a key's principal
// without details lacks every scope. It is for handlers that learn only from the request what it needs, and for
// sessions. A nil result must be compared before it becomes an error: if refusal := Lacks(…); refusal != nil {…}.
func Lacks(principal Principal, requirement Requirement) *RefusalError {
	if requirement.IsPublic() || requirement.IsIdentityOnly() {
		return nil
	}
	needed := requirement.Scopes() // nil for a requirement that nothing meets
	missing := slices.DeleteFunc(slices.Clone(needed), func(scope string) bool { return slices.Contains(principal.Scopes, scope) })
	switch {
	case len(needed) > 0 && len(missing) == 0, requirement.IsAnyOf() && len(missing) < len(needed):
		return nil
	case !requirement.IsValid():
		return &RefusalError{Code: codes.PermissionDenied, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED}
	}
	return &RefusalError{
		Code: codes.PermissionDenied, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED,
		Scope: requirement.Scope(), MissingScopes: missing, AnyScope: requirement.IsAnyOf(),
	}
}
