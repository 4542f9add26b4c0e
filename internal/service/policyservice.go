package service

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// PolicyService implements keysvcv1.PolicyServiceServer.
type PolicyService struct {
	keysvcv1.UnimplementedPolicyServiceServer
	management
}

// GetPolicy implements keysvcv1.PolicyServiceServer.
func (s *PolicyService) GetPolicy(ctx context.Context, request *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
	return read(ctx, s.management, keysvcv1.PolicyService_GetPolicy_FullMethodName, request, s.verbs.GetPolicy)
}

// ApplyPolicy implements keysvcv1.PolicyServiceServer.
func (s *PolicyService) ApplyPolicy(ctx context.Context, request *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	return change(ctx, s.management, keysvcv1.PolicyService_ApplyPolicy_FullMethodName, request, s.verbs.ApplyPolicy)
}

// GetPolicy calls keys.Manager.GetPolicy.
func (v Verbs) GetPolicy(ctx context.Context, visible access.Workspaces, _ *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
	active, position, err := v.Manager.GetPolicy(ctx, visible)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.GetPolicyResponse{
		Policy:        showPolicy(active.Policy),
		Digest:        active.Digest,
		RetiredScopes: active.Retired,
		Revision:      position.Revision,
		Epoch:         position.Epoch,
	}, nil
}

// ApplyPolicy calls keys.Manager.ApplyPolicy.
func (v Verbs) ApplyPolicy(ctx context.Context, actor audit.Actor, request *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	difference, err := v.Manager.ApplyPolicy(ctx, onBehalf(actor, request.ActorMemberId), keys.PolicyReplacement{
		Policy:         policyOf(request.GetPolicy()),
		ReplacesDigest: request.GetReplacesDigest(),
		ValidateOnly:   request.GetValidateOnly(),
	})
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ApplyPolicyResponse{
		Digest:        difference.Digest,
		AddedScopes:   difference.AddedScopes,
		RemovedScopes: difference.RemovedScopes,
		NarrowedKeys:  difference.NarrowedKeys,
		WidenedKeys:   difference.WidenedKeys,
		Revision:      difference.Revision,
		Epoch:         difference.Epoch,
	}
	for _, role := range difference.Roles {
		response.RoleChanges = append(response.RoleChanges, &keysvcv1.RoleChange{
			Role:          role.Role,
			Kind:          keysvcv1.RoleChangeKind(role.Kind),
			AddedScopes:   role.AddedScopes,
			RemovedScopes: role.RemovedScopes,
		})
	}
	return response, nil
}

// policyOf returns the policy in a message; nil for nil. It checks nothing.
func policyOf(sent *keysvcv1.Policy) *policy.Policy {
	if sent == nil {
		return nil
	}
	read := &policy.Policy{
		TokenPrefix: sent.GetTokenPrefix(),
		Limits: policy.Limits{
			LiveKeysPerWorkspace: int(sent.GetLimits().GetLiveKeysPerWorkspace()),
			ScopesPerKey:         int(sent.GetLimits().GetScopesPerKey()),
			KeyNameCharacters:    int(sent.GetLimits().GetKeyNameCharacters()),
		},
	}
	if retention := durationOf(sent.GetRetention()); retention != nil {
		read.Retention = *retention
	}
	for _, resource := range sent.GetResources() {
		read.Resources = append(read.Resources, policy.Resource{
			Name: resource.GetName(), Actions: resource.GetActions(), Title: resource.GetTitle(), Description: resource.GetDescription(),
		})
	}
	for _, action := range sent.GetActions() {
		read.Actions = append(read.Actions, policy.Action{Name: action.GetName(), Title: action.GetTitle(), Description: action.GetDescription()})
	}
	for _, role := range sent.GetRoles() {
		read.Roles = append(read.Roles, policy.Role{Name: role.GetName(), Scopes: role.GetScopes()})
	}
	return read
}

// showPolicy returns a policy as messages have it.
func showPolicy(active *policy.Policy) *keysvcv1.Policy {
	shown := &keysvcv1.Policy{
		TokenPrefix: active.TokenPrefix,
		Retention:   durationpb.New(active.Retention),
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: int32(active.Limits.LiveKeysPerWorkspace), //nolint:gosec // 1,000,000 and less
			ScopesPerKey:         int32(active.Limits.ScopesPerKey),         //nolint:gosec // 1,000 and less
			KeyNameCharacters:    int32(active.Limits.KeyNameCharacters),    //nolint:gosec // 1,024 and less
		},
	}
	for _, resource := range active.Resources {
		shown.Resources = append(shown.Resources, &keysvcv1.PolicyResource{
			Name: resource.Name, Actions: resource.Actions, Title: resource.Title, Description: resource.Description,
		})
	}
	for _, action := range active.Actions {
		shown.Actions = append(shown.Actions, &keysvcv1.PolicyAction{Name: action.Name, Title: action.Title, Description: action.Description})
	}
	for _, role := range active.Roles {
		shown.Roles = append(shown.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: role.Scopes})
	}
	return shown
}
