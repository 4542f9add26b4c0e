// Package service holds the handlers of the RPCs. A handler says who calls, calls the
// verb, and turns its error into a status; nothing else.
package service

import (
	"context"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/keys"
)

// RequestIDFunc returns the id under which the call is logged.
type RequestIDFunc func(context.Context) string

// management is what the handlers of the management services share.
type management struct {
	keys      *keys.Manager
	errors    Errors
	requestID RequestIDFunc
}

// actor returns who makes a change. The verb adds the member that the request names.
func (m management) actor(ctx context.Context) audit.Actor {
	return audit.Actor{Caller: callers.FromContext(ctx).Name, RequestID: m.requestID(ctx)}
}

// change runs a verb that changes something.
func change[Request, Response any](
	ctx context.Context, m management, request Request,
	verb func(context.Context, audit.Actor, Request) (Response, error),
) (Response, error) {
	response, err := verb(ctx, m.actor(ctx), request)
	return response, m.errors.Status(ctx, err)
}

// read runs a verb that changes nothing.
func read[Request, Response any](
	ctx context.Context, m management, request Request,
	verb func(context.Context, Request) (Response, error),
) (Response, error) {
	response, err := verb(ctx, request)
	return response, m.errors.Status(ctx, err)
}

// KeyService implements keysvcv1.KeyServiceServer.
type KeyService struct {
	keysvcv1.UnimplementedKeyServiceServer
	management
}

// MemberService implements keysvcv1.MemberServiceServer.
type MemberService struct {
	keysvcv1.UnimplementedMemberServiceServer
	management
}

// PolicyService implements keysvcv1.PolicyServiceServer.
type PolicyService struct {
	keysvcv1.UnimplementedPolicyServiceServer
	management
}

// NewManagement returns the three management services over one Manager. requestID
// returns the id under which a call is logged.
func NewManagement(manager *keys.Manager, errors Errors, requestID RequestIDFunc) (*KeyService, *MemberService, *PolicyService) {
	shared := management{keys: manager, errors: errors, requestID: requestID}
	return &KeyService{management: shared}, &MemberService{management: shared}, &PolicyService{management: shared}
}

// CreateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) CreateKey(ctx context.Context, request *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	request.Name = keys.NormalName(request.GetName())
	return change(ctx, s.management, request, s.keys.CreateKey)
}

// GetKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) GetKey(ctx context.Context, request *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	return read(ctx, s.management, request, s.keys.GetKey)
}

// ListKeys implements keysvcv1.KeyServiceServer.
func (s *KeyService) ListKeys(ctx context.Context, request *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	return read(ctx, s.management, request, s.keys.ListKeys)
}

// RevokeKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) RevokeKey(ctx context.Context, request *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	return change(ctx, s.management, request, s.keys.RevokeKey)
}

// PutMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) PutMember(ctx context.Context, request *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	return change(ctx, s.management, request, s.keys.PutMember)
}

// GetMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) GetMember(ctx context.Context, request *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
	return read(ctx, s.management, request, s.keys.GetMember)
}

// ListMembers implements keysvcv1.MemberServiceServer.
func (s *MemberService) ListMembers(ctx context.Context, request *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
	return read(ctx, s.management, request, s.keys.ListMembers)
}

// GetPolicy implements keysvcv1.PolicyServiceServer.
func (s *PolicyService) GetPolicy(ctx context.Context, request *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
	return read(ctx, s.management, request, s.keys.GetPolicy)
}

// UpdateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) UpdateKey(ctx context.Context, request *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
	if key := request.GetKey(); key != nil {
		key.Name = keys.NormalName(key.GetName())
	}
	return change(ctx, s.management, request, s.keys.UpdateKey)
}

// RotateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) RotateKey(ctx context.Context, request *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
	return change(ctx, s.management, request, s.keys.RotateKey)
}

// FinishRotation implements keysvcv1.KeyServiceServer.
func (s *KeyService) FinishRotation(ctx context.Context, request *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
	return change(ctx, s.management, request, s.keys.FinishRotation)
}

// RevokeToken implements keysvcv1.KeyServiceServer.
func (s *KeyService) RevokeToken(ctx context.Context, request *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
	return change(ctx, s.management, request, s.keys.RevokeToken)
}

// RemoveMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) RemoveMember(ctx context.Context, request *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
	return change(ctx, s.management, request, s.keys.RemoveMember)
}

// RemoveWorkspace implements keysvcv1.MemberServiceServer.
func (s *MemberService) RemoveWorkspace(ctx context.Context, request *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	return change(ctx, s.management, request, s.keys.RemoveWorkspace)
}

// ApplyPolicy implements keysvcv1.PolicyServiceServer.
func (s *PolicyService) ApplyPolicy(ctx context.Context, request *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	return change(ctx, s.management, request, s.keys.ApplyPolicy)
}
