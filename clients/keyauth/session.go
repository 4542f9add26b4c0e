package keyauth

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// authenticated decides on a request that may have another credential than a token. found is false if it has
// none, so that the token decides. Otherwise one of principal and refusal is set.
func (g *Guard) authenticated(ctx context.Context, request *Request) (principal *Principal, refusal *RefusalError, found bool) {
	if request.Authenticate == nil || !request.Requirement.IsValid() {
		return nil, nil, false
	}
	who, found, err := asked(ctx, request.Authenticate)
	var given *RefusalError
	switch {
	case errors.As(err, &given):
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "the authenticator refused it", "answered", given.Code.String())
		return nil, given, true
	case err != nil:
		return nil, g.failed(ctx, request.Name, request.Requirement.String(), noToken, err), true
	case !found:
		return nil, nil, false
	case len(request.Authorization) > 0:
		// Nobody knows as whom the request acts.
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "it has an authorization and another credential", "credential", who.Credential)
		return nil, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, true
	case who.Credential == "" || who.WorkspaceID == "" || who.MemberID == "":
		err = status.Error(codes.Internal, "the authenticator returned a principal without a Credential, WorkspaceID or MemberID")
		return nil, g.failed(ctx, request.Name, request.Requirement.String(), noToken, err), true
	case request.Requirement.field != "" && request.WorkspaceID == "", request.WorkspaceID != "" && !validID(request.WorkspaceID):
		return nil, &RefusalError{Code: codes.NotFound}, true
	case request.WorkspaceID != "" && request.WorkspaceID != who.WorkspaceID:
		// As a key of another workspace is answered.
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", "its workspace is not the principal's", "credential", who.Credential)
		return nil, &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, true
	}
	if refusal := Lacks(who, request.Requirement); refusal != nil {
		g.log.InfoContext(ctx, "request refused", "method", request.Name, "reason", refusal.Reason.String(),
			"credential", who.Credential, "scope", request.Requirement.String())
		return nil, refusal, true
	}
	return &who, nil, true
}

// noToken stands for the token in errors of requests that have none.
const noToken = "\x00"

// asked calls an authenticator, and turns a panic into an error. The authenticator does not see the token.
func asked(ctx context.Context, ask func(context.Context) (Principal, bool, error)) (principal Principal, found bool, err error) {
	defer func() {
		if value := recover(); value != nil {
			principal, found, err = Principal{}, false, newPanicError(value)
		}
	}()
	return ask(admit(ctx, nil))
}
