package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// completionTimeout bounds the wait of a person who pressed Tab.
const completionTimeout = time.Second

// completer asks the server what a flag or an argument may be. An error means that nothing is
// suggested. Each suggestion is a word, or a word, a tab and a description.
type completer func(ctx context.Context, s *session) ([]cobra.Completion, error)

// complete completes a flag.
func (a *app) complete(cmd *cobra.Command, flag string, from completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, a.completion(from)); err != nil {
		panic(err) // there is no such flag, or it has a completion already
	}
}

// completeArgument completes the one argument of a command.
func (a *app) completeArgument(cmd *cobra.Command, from completer) {
	ask := a.completion(from)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return ask(cmd, args, typed)
	}
}

// completion asks the server. Without an answer it suggests nothing and writes no error: an error
// would appear in the middle of the line that the person types.
func (a *app) completion(from completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if a.fillWorkspace(cmd) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, conn, err := a.connect(cmd, completionTimeout)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer conn.Close() //nolint:errcheck // nobody is there to be told
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		words, err := from(ctx, s)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		before := typed[:strings.LastIndex(typed, ",")+1] // the elements of a list that were typed already
		var fitting []cobra.Completion
		for _, word := range words {
			if word = before + word; strings.HasPrefix(word, typed) {
				fitting = append(fitting, word)
			}
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
}

// suggestion is a word with a description. Both come from the server, so control characters are
// escaped.
func suggestion(word, description string) cobra.Completion {
	return printable(word) + "\t" + printable(description)
}

// workspaceOf returns the workspace that --workspace or KEYSVC_WORKSPACE names; "" for none.
func (s *session) workspaceOf() string {
	if flag := s.cmd.Flag(workspaceFlagName); flag != nil {
		return flag.Value.String()
	}
	return ""
}

// completeWorkspaces suggests the first workspaces by id that were not removed.
func completeWorkspaces(ctx context.Context, s *session) ([]cobra.Completion, error) {
	response, err := s.members.ListWorkspaces(ctx, &keysvcv1.ListWorkspacesRequest{
		States: []keysvcv1.WorkspaceState{keysvcv1.WorkspaceState_WORKSPACE_STATE_ACTIVE}, PageSize: maxPageSize,
	})
	if err != nil {
		return nil, err
	}
	var workspaces []cobra.Completion
	for _, workspace := range response.GetWorkspaces() {
		workspaces = append(workspaces, printable(workspace.GetWorkspaceId()))
	}
	return workspaces, nil
}

// completeMembers suggests the members of the workspace.
func completeMembers(ctx context.Context, s *session) ([]cobra.Completion, error) {
	response, err := s.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: s.workspaceOf(), PageSize: maxPageSize})
	if err != nil {
		return nil, err
	}
	var members []cobra.Completion
	for _, member := range response.GetMembers() {
		if member.GetState() != keysvcv1.MemberState_MEMBER_STATE_REMOVED {
			members = append(members, suggestion(member.GetMemberId(), member.GetRole()))
		}
	}
	return members, nil
}

// completeKeys suggests the live keys of the workspace, or of all if none is named.
func completeKeys(ctx context.Context, s *session) ([]cobra.Completion, error) {
	response, err := s.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: s.workspaceOf(), States: liveStates, PageSize: maxPageSize})
	if err != nil {
		return nil, err
	}
	var keys []cobra.Completion
	for _, key := range response.GetKeys() {
		keys = append(keys, suggestion(key.GetKeyId(), key.GetName()+", of "+key.GetMemberId()+" in "+key.GetWorkspaceId()))
	}
	return keys, nil
}

// completeScopes suggests the scopes of the active policy.
func completeScopes(ctx context.Context, s *session) ([]cobra.Completion, error) {
	response, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return nil, err
	}
	var scopes []cobra.Completion
	for _, resource := range response.GetPolicy().GetResources() {
		for _, action := range resource.GetActions() {
			scopes = append(scopes, printable(resource.GetName()+":"+action))
		}
	}
	return scopes, nil
}

// completeRoles suggests the roles of the active policy.
func completeRoles(ctx context.Context, s *session) ([]cobra.Completion, error) {
	response, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return nil, err
	}
	var roles []cobra.Completion
	for _, role := range response.GetPolicy().GetRoles() {
		roles = append(roles, printable(role.GetName()))
	}
	return roles, nil
}
