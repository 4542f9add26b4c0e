package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) workspaceCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "workspace",
		Short: "List and remove workspaces",
		Long: `List and remove workspaces. A workspace is created with its first member; see keysvc
member put.`,
		Example: `  keysvc workspace list`,
	},
		a.workspaceListCommand(),
		a.workspaceRemoveCommand(),
	)
}

func (a *app) workspaceListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List workspaces, with how many keys and members they have",
		Long: `List workspaces, by their ids, with how many keys and members they have. Keys that
were revoked or have expired, and members that were removed, count until they are
purged. A caller that may read some workspaces sees these only. Dates are in UTC.

` + fmt.Sprintf(listHelp, "workspaces") + "\n\n" + jsonHelp,
		Example: `  keysvc workspace list
  keysvc workspace list --state active --all -o name`,
	}
	type word string
	const active, removed word = "active", "removed"
	var state word
	choice(cmd, &state, "state", "", "only workspaces in this state", active, removed)
	pages := pagingFlags(cmd)
	return a.clientCommand(cmd, formatsOfLists, func(ctx context.Context, s *session, _ []string) error {
		request := &keysvcv1.ListWorkspacesRequest{}
		switch state {
		case active:
			request.States = []keysvcv1.WorkspaceState{keysvcv1.WorkspaceState_WORKSPACE_STATE_ACTIVE}
		case removed:
			request.States = []keysvcv1.WorkspaceState{keysvcv1.WorkspaceState_WORKSPACE_STATE_REMOVED}
		}
		return listing[*keysvcv1.ListWorkspacesResponse]{
			plural: "workspaces",
			columns: []column{
				{title: "WORKSPACE", cutTo: 16},
				{title: "STATE", minWidth: len("removed")},
				{title: "KEYS"},
				{title: "MEMBERS"},
				{title: "CREATED"},
				{title: "REMOVED"},
			},
			fetch: func(pageSize int32, pageToken string) (*keysvcv1.ListWorkspacesResponse, error) {
				request.PageSize, request.PageToken = pageSize, pageToken
				return s.members.ListWorkspaces(ctx, request)
			},
			rows: func(page *keysvcv1.ListWorkspacesResponse) [][]string {
				var rows [][]string
				for _, each := range page.GetWorkspaces() {
					rows = append(rows, []string{
						each.GetWorkspaceId(), enumWord(each.GetState(), "WORKSPACE_STATE_"), fmt.Sprint(each.GetKeyCount()),
						fmt.Sprint(each.GetMemberCount()), day(each.GetCreateTime(), "-"), day(each.GetRemoveTime(), "-"),
					})
				}
				return rows
			},
			add: func(all, page *keysvcv1.ListWorkspacesResponse) {
				all.Workspaces = append(all.Workspaces, page.GetWorkspaces()...)
				all.NextPageToken = page.GetNextPageToken()
			},
		}.show(s, pages)
	})
}

func (a *app) workspaceRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove WORKSPACE_ID",
		Short: "Remove a workspace with all its members and keys, for good",
		Long: `Remove a workspace with all its members. Every key of it stops working at once and
for good, also when a workspace with the same id is added later. It cannot be
undone. Repeating it is no error.

At a terminal the id of the workspace must be typed once more; elsewhere --yes is
needed.

` + waitHelp + "\n\n" + jsonHelp,
		Example: `  keysvc workspace remove acme
  keysvc workspace remove acme --yes --actor bob`,
		Args: positional("WORKSPACE_ID"),
	}
	yes := yesFlag(cmd)
	version := cmd.Flags().Int64("source-version", 0, "the directory's version of the removal; one that is not newer than what is known is refused")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	a.completeArgument(cmd, completeWorkspaces)
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		workspace := args[0]
		if !*yes {
			if !s.canAsk() {
				return errNobodyToAsk
			}
			holds, err := s.workspaceHolds(ctx, workspace)
			if err != nil {
				return err
			}
			if err := s.note("workspace %s has %s", workspace, holds); err != nil {
				return err
			}
			if err := s.confirm(ctx, "Type its id to remove it for good:", workspace); err != nil {
				return err
			}
		}
		response, err := s.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{
			WorkspaceId:   workspace,
			SourceVersion: optional(cmd, "source-version", version),
			ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return err
		}
		return s.changed(ctx, *wait, response, func() error {
			return s.out.line("Workspace %s is removed: none of its keys works any more.", workspace)
		})
	})
}

// workspaceHolds returns in words how many members and live keys a workspace has. It reads at most
// one page of each.
func (s *session) workspaceHolds(ctx context.Context, workspace string) (string, error) {
	members, err := s.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: workspace, PageSize: maxPageSize})
	if err != nil {
		return "", err
	}
	var present int64
	for _, member := range members.GetMembers() {
		if member.GetState() != keysvcv1.MemberState_MEMBER_STATE_REMOVED {
			present++
		}
	}
	if present == 0 && members.GetNextPageToken() == "" {
		return "no members: there may be no such workspace, or it was removed before", nil
	}
	keys, err := s.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: workspace, States: liveStates, PageSize: maxPageSize})
	if err != nil {
		return "", err
	}
	text := count(present, "member") + " and "
	if members.GetNextPageToken() != "" {
		text = "at least " + text
	}
	if keys.GetNextPageToken() != "" {
		text += "at least "
	}
	return text + count(int64(len(keys.GetKeys())), "live key"), nil
}
