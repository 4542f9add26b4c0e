package service

import (
	"context"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
)

// MemberService implements keysvcv1.MemberServiceServer.
type MemberService struct {
	keysvcv1.UnimplementedMemberServiceServer
	management
}

// PutMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) PutMember(ctx context.Context, request *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	return change(ctx, s.management, keysvcv1.MemberService_PutMember_FullMethodName, request, s.verbs.PutMember)
}

// GetMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) GetMember(ctx context.Context, request *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
	return read(ctx, s.management, keysvcv1.MemberService_GetMember_FullMethodName, request, s.verbs.GetMember)
}

// ListMembers implements keysvcv1.MemberServiceServer.
func (s *MemberService) ListMembers(ctx context.Context, request *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
	return read(ctx, s.management, keysvcv1.MemberService_ListMembers_FullMethodName, request, s.verbs.ListMembers)
}

// ListWorkspaces implements keysvcv1.MemberServiceServer.
func (s *MemberService) ListWorkspaces(ctx context.Context, request *keysvcv1.ListWorkspacesRequest) (*keysvcv1.ListWorkspacesResponse, error) {
	return read(ctx, s.management, keysvcv1.MemberService_ListWorkspaces_FullMethodName, request, s.verbs.ListWorkspaces)
}

// RemoveMember implements keysvcv1.MemberServiceServer.
func (s *MemberService) RemoveMember(ctx context.Context, request *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
	return change(ctx, s.management, keysvcv1.MemberService_RemoveMember_FullMethodName, request, s.verbs.RemoveMember)
}

// RemoveWorkspace implements keysvcv1.MemberServiceServer.
func (s *MemberService) RemoveWorkspace(ctx context.Context, request *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	return change(ctx, s.management, keysvcv1.MemberService_RemoveWorkspace_FullMethodName, request, s.verbs.RemoveWorkspace)
}

// PutMember calls keys.Manager.PutMember.
func (v Verbs) PutMember(ctx context.Context, actor audit.Actor, request *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	member, position, err := v.Manager.PutMember(ctx, onBehalf(actor, request.ActorMemberId), keys.MemberSpec{
		WorkspaceID:   request.GetWorkspaceId(),
		MemberID:      request.GetMemberId(),
		Role:          request.GetRole(),
		State:         keys.MemberState(request.GetState()),
		SourceVersion: request.SourceVersion,
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.PutMemberResponse{Member: showMember(member), Revision: position.Revision, Epoch: position.Epoch}, nil
}

// GetMember calls keys.Manager.GetMember.
func (v Verbs) GetMember(ctx context.Context, visible access.Workspaces, request *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
	member, position, err := v.Manager.GetMember(ctx, visible, request.GetWorkspaceId(), request.GetMemberId())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.GetMemberResponse{
		Member: showMember(member), AssignableScopes: member.AssignableScopes, Revision: position.Revision, Epoch: position.Epoch,
	}, nil
}

// ListMembers calls keys.Manager.ListMembers.
func (v Verbs) ListMembers(ctx context.Context, visible access.Workspaces, request *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
	page, err := v.Manager.ListMembers(ctx, visible, keys.MemberQuery{
		WorkspaceID: request.GetWorkspaceId(),
		PageSize:    int(request.GetPageSize()),
		PageToken:   request.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ListMembersResponse{NextPageToken: page.NextPageToken, Revision: page.Revision, Epoch: page.Epoch}
	for _, member := range page.Members {
		response.Members = append(response.Members, showMember(member))
	}
	return response, nil
}

// ListWorkspaces calls keys.Manager.ListWorkspaces.
func (v Verbs) ListWorkspaces(ctx context.Context, visible access.Workspaces, request *keysvcv1.ListWorkspacesRequest) (*keysvcv1.ListWorkspacesResponse, error) {
	query := keys.WorkspaceQuery{PageSize: int(request.GetPageSize()), PageToken: request.GetPageToken()}
	for _, state := range request.GetStates() {
		query.States = append(query.States, keys.WorkspaceState(state))
	}
	page, err := v.Manager.ListWorkspaces(ctx, visible, query)
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ListWorkspacesResponse{NextPageToken: page.NextPageToken, Revision: page.Revision, Epoch: page.Epoch}
	for _, each := range page.Workspaces {
		response.Workspaces = append(response.Workspaces, &keysvcv1.Workspace{
			WorkspaceId: each.ID, State: keysvcv1.WorkspaceState(each.State),
			CreateTime: stampOf(each.CreateTime), RemoveTime: stampOf(each.RemoveTime),
			KeyCount: int32(each.Keys), MemberCount: int32(each.Members), //nolint:gosec // G115: keys and members have numbers of 32 bits
		})
	}
	return response, nil
}

// RemoveMember calls keys.Manager.RemoveMember.
func (v Verbs) RemoveMember(ctx context.Context, actor audit.Actor, request *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
	position, err := v.Manager.RemoveMember(
		ctx, onBehalf(actor, request.ActorMemberId), request.GetWorkspaceId(), request.GetMemberId(), request.SourceVersion)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RemoveMemberResponse{Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RemoveWorkspace calls keys.Manager.RemoveWorkspace.
func (v Verbs) RemoveWorkspace(ctx context.Context, actor audit.Actor, request *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	position, err := v.Manager.RemoveWorkspace(
		ctx, onBehalf(actor, request.ActorMemberId), request.GetWorkspaceId(), request.SourceVersion)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RemoveWorkspaceResponse{Revision: position.Revision, Epoch: position.Epoch}, nil
}

// showMember returns a member as messages have it.
func showMember(member *keys.Member) *keysvcv1.Member {
	return &keysvcv1.Member{
		WorkspaceId:   member.WorkspaceID,
		MemberId:      member.MemberID,
		Role:          member.Role,
		State:         keysvcv1.MemberState(member.State),
		SourceVersion: member.SourceVersion,
		CreateTime:    stampOf(member.CreateTime),
		UpdateTime:    stampOf(member.UpdateTime),
	}
}
