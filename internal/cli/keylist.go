package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// keyFilters holds the flags of key list that select keys.
type keyFilters struct {
	workspace, member, scope, name  *string
	allWorkspaces, revoked, total   *bool
	issuedLocally, imported         *bool
	states                          commaList
	expiringWithin, unusedFor       span
	expiringBeforeAt, unusedSinceAt instant
}

func (a *app) keyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List live keys, newest first",
		Long: `List live keys, newest first; --revoked lists the rest, which are revoked or
expired. Filters narrow each other. Dates are in UTC.

The table says which keys expire soon, within 30 days; which are rotating, so that
an old token still works beside the new one; and which were never used. A last-used
time lags by up to the server's --usage-interval.

With one of the --expiring and --unused flags expired keys are listed as well: they
may still be in use somewhere.

` + fmt.Sprintf(listHelp, "keys") + "\n\n" + jsonHelp,
		Example: `  keysvc key list --workspace acme
  keysvc key list --revoked -o wide
  keysvc key list --workspace acme --name backup --total
  keysvc key list --expiring-within 30d --state active,suspended
  keysvc key list --expiring-within 30d --unused-for 90d
  keysvc key list --all --unused-for 90d -o name`,
	}
	f := &keyFilters{}
	flags := cmd.Flags()
	f.workspace = a.workspaceFlag(cmd, "the workspace to list; empty means all")
	f.allWorkspaces = flags.BoolP("all-workspaces", "A", false, "list all workspaces, whatever "+workspaceVariable+" says")
	f.member = flags.String("member", "", "only keys of this member")
	f.scope = flags.String("scope", "", "only keys that were granted this scope")
	f.name = flags.String("name", "", "only keys whose name has this text in it, in any case")
	f.total = flags.Bool("total", false, "say on standard error how many keys there are on all pages")
	f.revoked = flags.Bool("revoked", false, "list the keys that are revoked or expired, in place of the live ones")
	f.issuedLocally = flags.Bool("issued-locally", false, "only keys with a secret that a caller of keysvc drew; =false for the others")
	f.imported = flags.Bool("imported", false, "only keys with a token of another system, which are not rotated yet; =false for the others")
	flags.Var(&f.states, "state", "only keys in one of these states: "+strings.Join(keyStates(), ", "))
	flags.Var(&f.expiringWithin, "expiring-within", "only keys that expire before so much time has passed, as in 30d, or have expired")
	flags.Var(&f.expiringBeforeAt, "expiring-before", "the same with a time, as in 2027-03-31T12:00:00Z")
	flags.Var(&f.unusedFor, "unused-for", "only keys that were not used for so long, as in 90d; a key that was never used counts from its creation")
	flags.Var(&f.unusedSinceAt, "unused-since", "the same with a time, as in 2027-03-31T12:00:00Z")
	pages := pagingFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("expiring-within", "expiring-before")
	cmd.MarkFlagsMutuallyExclusive("unused-for", "unused-since")
	cmd.MarkFlagsMutuallyExclusive("state", "revoked")
	cmd.MarkFlagsMutuallyExclusive("workspace", "all-workspaces")
	completions(cmd, "state", keyStates())
	a.complete(cmd, "member", completeMembers)
	a.complete(cmd, "scope", completeScopes)

	return a.clientCommand(cmd, formatsOfLists, func(ctx context.Context, s *session, _ []string) error {
		request, err := f.request(s)
		if err != nil {
			return err
		}
		var total *int32
		list := listing[*keysvcv1.ListKeysResponse]{
			plural:  "keys",
			again:   f.again(request),
			columns: keyColumns(request.GetWorkspaceId() == ""),
			fetch: func(pageSize int32, pageToken string) (*keysvcv1.ListKeysResponse, error) {
				request.PageSize, request.PageToken = pageSize, pageToken
				page, err := s.keys.ListKeys(ctx, request)
				if err == nil && request.GetWithTotalSize() { // the first page tells
					total, request.WithTotalSize = page.TotalSize, false
				}
				return page, err
			},
			rows: func(page *keysvcv1.ListKeysResponse) [][]string {
				var rows [][]string
				for _, key := range page.GetKeys() {
					rows = append(rows, s.out.keyRow(key))
				}
				return rows
			},
			add: func(all, page *keysvcv1.ListKeysResponse) {
				all.Keys = append(all.Keys, page.GetKeys()...)
				all.NextPageToken = page.GetNextPageToken()
			},
		}
		if slices.Equal(request.GetStates(), liveStates) && len(f.states) == 0 {
			list.none = " that are live; --revoked lists those that are revoked or expired"
		}
		if err := list.show(s, pages); err != nil || !*f.total {
			return err
		}
		if total == nil {
			return s.note("the keys were not counted: the workspace has more than 10,000 stored")
		}
		return s.note("%s in all", count(int64(*total), "key"))
	})
}

// request returns the request for these flags.
func (f *keyFilters) request(s *session) (*keysvcv1.ListKeysRequest, error) {
	// Whole seconds, so that the note on how to go on can name them exactly.
	now := s.Now().Truncate(time.Second)
	request := &keysvcv1.ListKeysRequest{
		WorkspaceId:    *f.workspace,
		MemberId:       optional(s.cmd, "member", f.member),
		Scope:          optional(s.cmd, "scope", f.scope),
		IssuedLocally:  optional(s.cmd, "issued-locally", f.issuedLocally),
		Imported:       optional(s.cmd, "imported", f.imported),
		NameContains:   *f.name,
		WithTotalSize:  *f.total,
		ExpiringBefore: timestamp(f.expiringBeforeAt, now, f.expiringWithin, +1),
		UnusedSince:    timestamp(f.unusedSinceAt, now, f.unusedFor, -1),
	}
	if *f.allWorkspaces {
		request.WorkspaceId = ""
	}
	if *f.total && request.GetWorkspaceId() == "" {
		return nil, usageError(s.cmd, "--total counts the keys of one workspace: --workspace is needed")
	}
	for _, word := range f.states {
		state, known := keysvcv1.KeyState_value[keyStatePrefix+strings.ToUpper(word)]
		if !known || state == 0 {
			return nil, usageError(s.cmd, "--state: allowed are %s", strings.Join(keyStates(), ", "))
		}
		request.States = append(request.States, keysvcv1.KeyState(state))
	}
	switch {
	case len(f.states) > 0:
	case *f.revoked:
		request.States = deadStates
	case request.GetExpiringBefore() != nil || request.GetUnusedSince() != nil:
		request.States = append(slices.Clone(liveStates), keysvcv1.KeyState_KEY_STATE_EXPIRED)
	default:
		request.States = liveStates
	}
	return request, nil
}

// again returns which flags to replace when the list goes on with a page token. A page token is
// valid for the same filters only, and a filter relative to now changes with time.
func (f *keyFilters) again(request *keysvcv1.ListKeysRequest) string {
	var again string
	if f.expiringWithin != 0 {
		again += " and --expiring-before " + request.GetExpiringBefore().AsTime().Format(time.RFC3339) + " in place of --expiring-within"
	}
	if f.unusedFor != 0 {
		again += " and --unused-since " + request.GetUnusedSince().AsTime().Format(time.RFC3339) + " in place of --unused-for"
	}
	return again
}
