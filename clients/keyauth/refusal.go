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
	// do.
	Scope string
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
	case r.Code == codes.PermissionDenied && r.Reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE && r.Scope != "":
		return "the API key may not do this: its member's role does not have the scope " + r.Scope
	case r.Code == codes.PermissionDenied && r.Scope != "":
		return "the API key may not do this: it needs the scope " + r.Scope
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

// GRPCStatus returns the status for the presenter. UNAUTHENTICATED and PERMISSION_DENIED carry
// google.rpc.ErrorInfo with the reason, and with the needed scope in its metadata.
func (r *RefusalError) GRPCStatus() *status.Status {
	answer := status.New(r.Code, r.Error())
	if r.Code != codes.Unauthenticated && r.Code != codes.PermissionDenied {
		return answer
	}
	info := &errdetails.ErrorInfo{Domain: errorDomain, Reason: strings.TrimPrefix(r.Reason.String(), "REASON_")}
	if r.Scope != "" {
		info.Metadata = map[string]string{"scope": r.Scope}
	}
	detailed, err := answer.WithDetails(info)
	if err != nil {
		return answer
	}
	return detailed
}
