package service

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// CallerService implements keysvcv1.CallerServiceServer.
type CallerService struct {
	keysvcv1.UnimplementedCallerServiceServer
	errors Errors
}

// NewCallers returns the service that tells callers who they are.
func NewCallers(errors Errors) *CallerService { return &CallerService{errors: errors} }

// WhoAmI implements keysvcv1.CallerServiceServer.
func (s *CallerService) WhoAmI(ctx context.Context, _ *keysvcv1.WhoAmIRequest) (*keysvcv1.WhoAmIResponse, error) {
	identity := callers.FromContext(ctx)
	if !identity.May(access.Known) { // not reached as long as the door refuses unknown callers
		return nil, s.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN, "the caller is not known"))
	}
	return showCaller(identity), nil
}

func showCaller(identity *callers.Identity) *keysvcv1.WhoAmIResponse {
	response := &keysvcv1.WhoAmIResponse{
		Name:       identity.Name,
		Source:     string(identity.Source),
		Credential: identity.Credential,
		Rule:       identity.Rule,
	}
	if !identity.NotAfter.IsZero() {
		response.NotAfter = timestamppb.New(identity.NotAfter)
	}
	for _, right := range access.Rights() {
		if workspaces := identity.For(right); !workspaces.IsEmpty() {
			response.Rights = append(response.Rights, &keysvcv1.CallerRight{
				Right: right.String(), AllWorkspaces: workspaces.IsAll(), WorkspaceIds: workspaces.Names(),
			})
		}
	}
	return response
}
