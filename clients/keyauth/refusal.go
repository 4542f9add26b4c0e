package keyauth

import (
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// errorDomain is the domain of ErrorInfo.
const errorDomain = "keysvc"

// RefusalError is why a request is refused, as far as the presenter may know.
type RefusalError struct {
	// Code is codes.Unauthenticated (HTTP 401), codes.PermissionDenied (403), codes.Unavailable
	// (503), codes.Internal (500), codes.NotFound (404) if the request names a workspace that cannot
	// exist, or codes.Canceled if the presenter cancelled the request.
	Code codes.Code
	// Reason is REASON_KEY_INVALID with codes.Unauthenticated, the exact reason with
	// codes.PermissionDenied, and REASON_UNSPECIFIED otherwise.
	Reason keysvcv1.Reason
	// Scope is the scope that was needed, with codes.PermissionDenied; empty if no scope would
	// do, and for AllOf and AnyOf.
	Scope string
	// MissingScopes are the scopes that the request needs and the key lacks, with
	// REASON_SCOPE_NOT_GRANTED and REASON_SCOPE_BEYOND_ROLE, in the order of the requirement: of Scope
	// that scope, of AllOf exactly those that are missing. Of AnyOf they are all scopes, and
	// AnyScope is set. Empty for a method that is in no table.
	MissingScopes []string
	// AnyScope is set if one of MissingScopes would do.
	AnyScope bool
	// TokenMissing is set if the request had no authorization, or another scheme. RFC 6750
	// section 3.1 wants both answered without an error code.
	TokenMissing bool
}

// Error returns the message for the presenter. It holds nothing of the token.
func (r *RefusalError) Error() string {
	switch {
	case r.Code == codes.Unauthenticated && r.TokenMissing:
		return "an API key is required: send it as a bearer token in the authorization header"
	case r.Code == codes.Unauthenticated:
		return "the API key is not valid"
	case r.Code == codes.PermissionDenied && r.Reason == keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED:
		return "the API key may not be used from this address"
	case r.Code == codes.PermissionDenied && r.Reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE && r.needed() != "":
		return "the API key may not do this: its member's role does not have " + r.needed()
	case r.Code == codes.PermissionDenied && r.needed() != "":
		return "the API key may not do this: it needs " + r.needed()
	case r.Code == codes.PermissionDenied:
		return "this is not open to API keys"
	case r.Code == codes.Unavailable:
		return "API keys cannot be checked at the moment; try again"
	case r.Code == codes.NotFound:
		return "there is no such workspace"
	case r.Code == codes.Canceled:
		return "the request was cancelled"
	}
	return "internal error"
}

// needed returns the missing scopes in words; empty if no scope would do.
func (r *RefusalError) needed() string {
	switch missing := r.MissingScopes; {
	case len(missing) == 0 && r.Scope == "":
		return ""
	case len(missing) == 0:
		return "the scope " + r.Scope
	case len(missing) == 1:
		return "the scope " + missing[0]
	case r.AnyScope:
		return "one of the scopes " + strings.Join(missing, ", ")
	default:
		return "the scopes " + strings.Join(missing, ", ")
	}
}

// GRPCStatus returns the status for the presenter. UNAUTHENTICATED and PERMISSION_DENIED carry
// google.rpc.ErrorInfo with the reason. Its metadata has Scope as "scope", MissingScopes with a space
// between two as "missing_scopes", and with AnyScope "any_scope" is "true".
func (r *RefusalError) GRPCStatus() *status.Status {
	answer := status.New(r.Code, r.Error())
	if r.Code != codes.Unauthenticated && r.Code != codes.PermissionDenied {
		return answer
	}
	info := &errdetails.ErrorInfo{Domain: errorDomain, Reason: strings.TrimPrefix(r.Reason.String(), "REASON_")}
	if r.Scope != "" || len(r.MissingScopes) > 0 {
		info.Metadata = make(map[string]string)
	}
	if r.Scope != "" {
		info.Metadata["scope"] = r.Scope
	}
	if len(r.MissingScopes) > 0 {
		info.Metadata["missing_scopes"] = strings.Join(r.MissingScopes, " ")
	}
	if r.AnyScope {
		info.Metadata["any_scope"] = "true"
	}
	detailed, err := answer.WithDetails(info)
	if err != nil {
		return answer
	}
	return detailed
}
