package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) memberCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "member",
		Short: "Add, change, look at and remove the members of workspaces",
		Long: `Add, change, look at and remove the members of workspaces. A product's own directory
does this over the API; these commands are for trying out and for repairs. "member
sync" compares all members with those of the product, and repairs what differs.`,
		Example: `  keysvc member list --workspace acme`,
	},
		a.memberPutCommand(),
		a.memberGetCommand(),
		a.memberListCommand(),
		a.memberRemoveCommand(),
		a.memberSyncCommand(),
	)
}

func (a *app) memberPutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "put MEMBER_ID",
		Short: "Add a member, or change its role and state",
		Long: `Add a member, or change its role and state. A workspace is created with its first
member. A change applies to the next validation of every key of the member. What no
flag names stays as it is: a suspended member stays suspended until --state active.
A new member needs --role, and is active.

` + waitHelp + "\n\n" + jsonHelp + nameHelp,
		Example: `  keysvc member put ann --workspace acme --role manager
  keysvc member put ann --workspace acme --state suspended`,
		Args: positional("MEMBER_ID"),
	}
	type word string
	const active, suspended word = "active", "suspended"
	var state word
	flags := cmd.Flags()
	workspace := a.neededWorkspaceFlag(cmd, "the workspace")
	role := flags.String("role", "", "the member's role, by its name in the policy (default: as it is)")
	choice(cmd, &state, "state", "", "whether the member's keys work (default: as it is)", active, suspended)
	version := flags.Int64("source-version", 0, "the directory's version of the member; one that is not newer than what is known is refused")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	a.complete(cmd, "role", completeRoles)
	a.completeArgument(cmd, completeMembers)
	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		request := &keysvcv1.PutMemberRequest{
			WorkspaceId:   *workspace,
			MemberId:      args[0],
			Role:          *role,
			SourceVersion: optional(cmd, "source-version", version),
			ActorMemberId: optional(cmd, "actor", actor),
		}
		switch state {
		case active:
			request.State = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
		case suspended:
			request.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		}
		if err := s.keepTheRest(ctx, cmd, request); err != nil {
			return err
		}
		response, err := s.members.PutMember(ctx, request)
		if err != nil {
			return err
		}
		return s.changed(ctx, *wait, response, func() error { return s.out.member(response.GetMember()) })
	})
}

// keepTheRest fills in the role or the state that no flag gives: from the member as it is now,
// or active for a new member.
func (s *session) keepTheRest(ctx context.Context, cmd *cobra.Command, request *keysvcv1.PutMemberRequest) error {
	roleGiven, stateGiven := cmd.Flags().Changed("role"), cmd.Flags().Changed("state")
	switch {
	case roleGiven && stateGiven:
		return nil
	case !roleGiven && !stateGiven:
		return usageError(cmd, "nothing to change: --role or --state is needed")
	}
	response, err := s.members.GetMember(ctx, &keysvcv1.GetMemberRequest{
		WorkspaceId: request.GetWorkspaceId(), MemberId: request.GetMemberId(),
	})
	call, isCall := errors.AsType[*callError](err)
	absent := isCall && call.has(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
	if err != nil && !absent {
		return err
	}
	member := response.GetMember()
	absent = absent || member.GetState() == keysvcv1.MemberState_MEMBER_STATE_REMOVED
	switch {
	case absent && !roleGiven:
		return usageError(cmd, "--role is needed: %s is not a member of workspace %s yet", request.GetMemberId(), request.GetWorkspaceId())
	case absent:
		request.State = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	case roleGiven:
		request.State = member.GetState()
	default:
		request.Role = member.GetRole()
	}
	return nil
}

func (a *app) memberGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get MEMBER_ID",
		Short:   "Show one member",
		Long:    "Show one member, and the scopes that a key of the member can be granted now.\n\n" + jsonHelp + nameHelp,
		Example: `  keysvc member get ann --workspace acme`,
		Args:    positional("MEMBER_ID"),
	}
	workspace := a.neededWorkspaceFlag(cmd, "the workspace")
	a.completeArgument(cmd, completeMembers)
	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		response, err := s.members.GetMember(ctx, &keysvcv1.GetMemberRequest{WorkspaceId: *workspace, MemberId: args[0]})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error {
			assignable := "none"
			if scopes := response.GetAssignableScopes(); len(scopes) > 0 {
				assignable = strings.Join(scopes, " ")
			}
			return s.out.member(response.GetMember(), field{"Can grant", assignable})
		})
	})
}

func (a *app) memberListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the members of a workspace",
		Long: `List the members of a workspace, by their ids. Dates are in UTC.

` + fmt.Sprintf(listHelp, "members") + "\n\n" + jsonHelp,
		Example: `  keysvc member list --workspace acme`,
	}
	workspace := a.neededWorkspaceFlag(cmd, "the workspace")
	pages := pagingFlags(cmd)
	return a.clientCommand(cmd, formatsOfLists, func(ctx context.Context, s *session, _ []string) error {
		return listing[*keysvcv1.ListMembersResponse]{
			plural: "members",
			columns: []column{
				{title: "MEMBER", cutTo: 16},
				{title: "ROLE", cutTo: 8},
				{title: "STATE", minWidth: stateWidth},
				{title: "CREATED"},
				{title: "CHANGED"},
				{title: "SOURCE VERSION", in: wideOnly},
			},
			fetch: func(pageSize int32, pageToken string) (*keysvcv1.ListMembersResponse, error) {
				return s.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{
					WorkspaceId: *workspace, PageSize: pageSize, PageToken: pageToken,
				})
			},
			rows: func(page *keysvcv1.ListMembersResponse) [][]string {
				var rows [][]string
				for _, member := range page.GetMembers() {
					rows = append(rows, []string{
						member.GetMemberId(), member.GetRole(), enumWord(member.GetState(), memberStatePrefix),
						day(member.GetCreateTime(), "-"), day(member.GetUpdateTime(), "-"), fmt.Sprint(member.GetSourceVersion()),
					})
				}
				return rows
			},
			add: func(all, page *keysvcv1.ListMembersResponse) {
				all.Members = append(all.Members, page.GetMembers()...)
				all.NextPageToken = page.GetNextPageToken()
			},
		}.show(s, pages)
	})
}

func (a *app) memberRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove MEMBER_ID",
		Short: "Remove a member, whose keys never work again",
		Long: `Remove a member. Every key of the member stops working at once and for good, also
when a member with the same id is added later. Repeating it is no error.
` + confirmHelp + `

To stop the keys for a while, suspend the member: keysvc member put.

` + waitHelp + "\n\n" + jsonHelp,
		Example: `  keysvc member remove ann --workspace acme
  keysvc member remove ann --workspace acme --source-version 17 --actor bob --yes`,
		Args: positional("MEMBER_ID"),
	}
	flags := cmd.Flags()
	workspace := a.neededWorkspaceFlag(cmd, "the workspace")
	yes := yesFlag(cmd)
	version := flags.Int64("source-version", 0, "the directory's version of the removal; one that is not newer than what is known is refused")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	a.completeArgument(cmd, completeMembers)
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		if !*yes && !s.canAsk() {
			return errNobodyToAsk
		}
		member := args[0]
		// The removal of an absent member succeeds, so a mistyped id would look like success.
		before, err := s.members.GetMember(ctx, &keysvcv1.GetMemberRequest{WorkspaceId: *workspace, MemberId: member})
		call, isCall := errors.AsType[*callError](err)
		absent := isCall && call.has(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
		if err != nil && !absent {
			return err
		}
		removed := before.GetMember().GetState() == keysvcv1.MemberState_MEMBER_STATE_REMOVED
		if !*yes {
			if err := s.confirmMemberRemove(ctx, *workspace, member, absent || removed); err != nil {
				return err
			}
		}
		response, err := s.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{
			WorkspaceId:   *workspace,
			MemberId:      member,
			SourceVersion: optional(cmd, "source-version", version),
			ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return err
		}
		err = s.out.answer(response, func() error {
			return s.out.line("%s is not a member of workspace %s any more: none of the keys of %[1]s works.", member, *workspace)
		})
		switch {
		case err != nil:
		case absent:
			err = s.note("note: there was no member %s in workspace %s", member, *workspace)
		case removed:
			err = s.note("note: %s was removed from workspace %s before", member, *workspace)
		}
		if err != nil {
			return err
		}
		return s.await(ctx, *wait, response)
	})
}

// confirmMemberRemove asks before a member is removed and says how many live keys that ends. It
// reads at most one page of keys.
func (s *session) confirmMemberRemove(ctx context.Context, workspace, member string, absent bool) error {
	if absent {
		return s.confirm(ctx, fmt.Sprintf("There is no member %s in workspace %s. Record the removal all the same? Type yes to confirm:", member, workspace), "yes")
	}
	keys, err := s.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: workspace, MemberId: &member, States: liveStates, PageSize: maxPageSize})
	if err != nil {
		return err
	}
	ends := count(int64(len(keys.GetKeys())), "live key")
	if keys.GetNextPageToken() != "" {
		ends = "at least " + ends
	}
	return s.confirm(ctx, fmt.Sprintf("Remove member %s of workspace %s and end %s for good? Type yes to confirm:", member, workspace, ends), "yes")
}

const memberStatePrefix = "MEMBER_STATE_"

// member writes a member, and more fields after it.
func (p *printer) member(member *keysvcv1.Member, more ...field) error {
	return p.write([]byte(record(append([]field{
		{"Member", member.GetMemberId()},
		{"Workspace", member.GetWorkspaceId()},
		{"Role", member.GetRole()},
		{"State", enumWord(member.GetState(), memberStatePrefix)},
		{"Source version", fmt.Sprint(member.GetSourceVersion())},
		{"Created", p.minute(member.GetCreateTime(), "")},
		{"Changed", p.minute(member.GetUpdateTime(), "")},
	}, more...)...)))
}
