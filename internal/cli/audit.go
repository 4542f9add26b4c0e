package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server"
)

func (a *app) auditCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "audit",
		Short:   "Look at who did what, and at what was refused",
		Example: `  keysvc audit list --key 9fQ2mXc7Lr0TzB4w`,
	},
		a.auditListCommand(),
		a.auditShowCommand(),
		a.auditVerifyCommand(),
	)
}

// auditReader makes cmd a command that lists audit events: those of a server or, with --file, those
// of a store's file.
func (a *app) auditReader(cmd *cobra.Command, formats []outputFormat, run func(ctx context.Context, s *session, list server.ListAuditEvents, args []string) error) *cobra.Command {
	file := cmd.Flags().String("file", "", "read a store's file, which no server may have open, in place of asking a server")
	cmd = a.clientCommand(cmd, formats, func(ctx context.Context, s *session, args []string) error {
		return run(ctx, s, func(ctx context.Context, request *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
			return s.audit.ListAuditEvents(ctx, request)
		}, args)
	})
	ask := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *file == "" {
			return ask(cmd, args)
		}
		if a.hooks.AuditFile == nil {
			return errNoHook
		}
		s := &session{app: a, cmd: cmd, out: &printer{
			out: a.Stdout, width: terminalWidth(a.Stdout), now: a.Now, format: outputFormat(cmd.Flag("output").Value.String()),
		}}
		return a.onFile(cmd, *file, func(ctx context.Context) error {
			return a.hooks.AuditFile(ctx, *file, func(list server.ListAuditEvents) error { return run(ctx, s, list, args) })
		})
	}
	return cmd
}

// auditFilters holds the flags of audit list that select events.
type auditFilters struct {
	workspace, key, member, caller *string
	allWorkspaces, refused         *bool
	since, until                   moment
}

func (a *app) auditListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List audit events, newest first",
		Long: `List audit events, newest first: who changed what, when, and on whose behalf.
Filters narrow each other. Times are in UTC. keysvc audit show shows one event in
full.

CALLER is the service that made the call, which has proved its identity. FOR is the
member on whose behalf it said that it acted: a claim that keysvc has not checked.

With --refused the list is of calls and connections that were refused: the newest
10,000 at most. Equal ones are one event with a count.

With --follow the newest events come oldest first (50, or all since --since), and
after them new ones as they come, until Ctrl-C.

With -o jsonl, and with --follow -o json, each event is one line of JSON.

With --file the events are read from a store's file that no server has open. Nothing
is changed.

` + fmt.Sprintf(listHelp, "events") + "\n\n" + jsonHelp,
		Example: `  keysvc audit list --workspace acme --since 24h
  keysvc audit list --key 9fQ2mXc7Lr0TzB4w
  keysvc audit list --refused --caller web
  keysvc audit list --follow -o jsonl | jq -r .action
  keysvc audit list --file keysvc-data/keysvc.db --all -o json`,
	}
	f := &auditFilters{}
	flags := cmd.Flags()
	f.workspace = a.workspaceFlag(cmd, "the workspace to list; empty means all, and the policy")
	f.allWorkspaces = flags.BoolP("all-workspaces", "A", false, "list all workspaces and the policy, whatever "+workspaceVariable+" says")
	f.key = flags.String("key", "", "only events of this key")
	f.member = flags.String("member", "", "only events of this member and of its keys")
	f.caller = flags.String("caller", "", "only events of this caller of keysvc, as CALLER shows it")
	flags.Var(&f.since, "since", "only events from then on, as in 24h, 7d or 2027-03-31T12:00:00Z")
	flags.Var(&f.until, "until", "only events before then, as in 24h, 7d or 2027-03-31T12:00:00Z")
	f.refused = flags.Bool("refused", false, "list what was refused, in place of what was changed")
	follow := flags.Bool("follow", false, "go on with new events as they come, until Ctrl-C")
	every := flags.Duration("interval", time.Second, "how often to ask for new events, with --follow")
	pages := pagingFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("workspace", "all-workspaces")
	a.complete(cmd, "key", completeKeys)
	a.complete(cmd, "member", completeMembers)
	cmd = a.auditReader(cmd, formatsOfAudit, func(ctx context.Context, s *session, list server.ListAuditEvents, _ []string) error {
		request := f.request(s)
		if !*follow {
			return s.auditListing(ctx, list, request, f.again(request)).show(s, pages)
		}
		switch {
		case s.out.format == formatYAML:
			return usageError(cmd, "--follow writes a table or, with -o jsonl, a line for each event")
		case *every <= 0:
			return usageError(cmd, "--interval must be more than 0")
		case pages.limit < 1:
			return usageError(cmd, "--limit must be at least 1")
		}
		err := s.follow(ctx, list, request, pages, *every)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // Ctrl-C is how it ends
		}
		return err
	})
	for _, other := range []string{"file", "until", "page-token"} {
		cmd.MarkFlagsMutuallyExclusive("follow", other)
	}
	return cmd
}

// request returns the request for these flags.
func (f *auditFilters) request(s *session) *keysvcv1.ListAuditEventsRequest {
	now := s.Now()
	request := &keysvcv1.ListAuditEventsRequest{
		WorkspaceId: *f.workspace, KeyId: *f.key, MemberId: *f.member, Caller: *f.caller,
		Since: f.since.before(now), Until: f.until.before(now), Refused: *f.refused,
	}
	if *f.allWorkspaces {
		request.WorkspaceId = ""
	}
	return request
}

// again returns which flags to replace when the list goes on with a page token; see
// keyFilters.again.
func (f *auditFilters) again(request *keysvcv1.ListAuditEventsRequest) string {
	var again string
	if f.since.ago != 0 {
		again += " and --since " + request.GetSince().AsTime().Format(time.RFC3339)
	}
	if f.until.ago != 0 {
		again += " and --until " + request.GetUntil().AsTime().Format(time.RFC3339)
	}
	return again
}

// auditListing returns the list for a request.
func (s *session) auditListing(ctx context.Context, list server.ListAuditEvents, request *keysvcv1.ListAuditEventsRequest, again string) listing[*keysvcv1.ListAuditEventsResponse] {
	return listing[*keysvcv1.ListAuditEventsResponse]{
		plural:  "events",
		again:   again,
		columns: auditColumns(request.GetWorkspaceId() == "", request.GetRefused()),
		fetch: func(pageSize int32, pageToken string) (*keysvcv1.ListAuditEventsResponse, error) {
			request.PageSize, request.PageToken = pageSize, pageToken
			return list(ctx, request)
		},
		rows: func(page *keysvcv1.ListAuditEventsResponse) [][]string {
			var rows [][]string
			for _, event := range page.GetEvents() {
				rows = append(rows, auditRow(event))
			}
			return rows
		},
		add: func(all, page *keysvcv1.ListAuditEventsResponse) {
			all.Events = append(all.Events, page.GetEvents()...)
			all.NextPageToken = page.GetNextPageToken()
		},
	}
}

// errOtherHistory is returned by follow if the server's store is another one now.
var errOtherHistory = errors.New("the server has another store now, or one that was put back: run the command again")

// follow shows the newest events, oldest first, and then new ones, until the context ends or a
// call fails.
func (s *session) follow(ctx context.Context, list server.ListAuditEvents, request *keysvcv1.ListAuditEventsRequest, pages *paging, every time.Duration) error {
	lines := newTable(auditColumns(request.GetWorkspaceId() == "", request.GetRefused()), s.out.format == formatWide, s.out.width)
	limit := pages.limit
	if pages.all || request.GetSince() != nil && !pages.limited() {
		limit = math.MaxInt // a time was asked for, and all that is since then
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for epoch := ""; ; limit = math.MaxInt {
		events, first, err := newestEvents(ctx, list, request, limit)
		if err != nil {
			return err
		}
		if epoch != "" && first.GetEpoch() != epoch {
			return errOtherHistory
		}
		slices.Reverse(events)
		if err := s.followed(events, lines); err != nil {
			return err
		}
		epoch, request.AfterRevision = first.GetEpoch(), max(request.GetAfterRevision(), first.GetRevision())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// newestEvents reads the newest events, at most limit, and returns the first page as well.
func newestEvents(ctx context.Context, list server.ListAuditEvents, request *keysvcv1.ListAuditEventsRequest, limit int) (events []*keysvcv1.AuditEvent, first *keysvcv1.ListAuditEventsResponse, err error) {
	request.PageToken = ""
	for {
		request.PageSize = int32(min(limit-len(events), maxPageSize)) //nolint:gosec // at most 1,000
		page, err := list(ctx, request)
		if err != nil {
			return nil, nil, err
		}
		if first == nil {
			first = page
		}
		events = append(events, page.GetEvents()...)
		next := page.GetNextPageToken()
		switch {
		case next == "" || len(events) >= limit:
			return events, first, nil
		case next == request.GetPageToken():
			return nil, nil, errors.New("the server gave the same page token again")
		}
		request.PageToken = next
	}
}

// followed shows events of follow.
func (s *session) followed(events []*keysvcv1.AuditEvent, lines *table) error {
	asLines := s.out.format == formatJSON || s.out.format == formatLines
	for _, event := range events {
		if asLines {
			if err := s.out.jsonLine(event); err != nil {
				return err
			}
			continue
		}
		lines.add(auditRow(event)...)
	}
	if asLines {
		return nil
	}
	return s.out.write([]byte(lines.take()))
}

func (a *app) auditShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show REVISION",
		Short: "Show one audit event in full, before and after",
		Long: `Show one audit event in full: who did it, and every field that was changed, before
and after. keysvc audit list and keysvc watch show revisions.

With --refused, REVISION is the number of a refusal. With --file the event is read
from a store's file that no server has open.

` + jsonHelp,
		Example: `  keysvc audit show 4711
  keysvc audit show 4711 --file keysvc-data/keysvc.db -o json`,
		Args: positional("REVISION"),
	}
	flags := cmd.Flags()
	workspace := a.workspaceFlag(cmd, "the event's workspace; empty means any, and the policy")
	refused := flags.Bool("refused", false, "show what was refused, in place of what was changed")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return a.auditReader(cmd, formatsOfAnswers, func(ctx context.Context, s *session, list server.ListAuditEvents, args []string) error {
		revision, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || revision < 1 || revision == math.MaxInt64 {
			return usageError(cmd, "REVISION is not a number above 0")
		}
		response, err := list(ctx, &keysvcv1.ListAuditEventsRequest{
			WorkspaceId: *workspace, AfterRevision: revision - 1, BeforeRevision: revision + 1, Refused: *refused, PageSize: 1,
		})
		if err != nil {
			return err
		}
		if len(response.GetEvents()) == 0 {
			return &absence{fmt.Sprintf("there is no event of revision %d%s; it may be older than events are kept", revision, inWorkspace(*workspace))}
		}
		event := response.GetEvents()[0]
		return s.out.answer(event, func() error { return s.out.auditEvent(event) })
	})
}

func inWorkspace(id string) string {
	if id == "" {
		return ""
	}
	return " in workspace " + id
}

// moment is the value of a flag for a time: in RFC 3339, or as a duration before now.
type moment struct {
	at  instant
	ago span
}

func (m *moment) String() string {
	if m.ago != 0 {
		return m.ago.String()
	}
	return m.at.String()
}

// Type names the value in the help text.
func (*moment) Type() string { return "time" }

// Set reads the time or the duration.
func (m *moment) Set(text string) error {
	if m.ago.Set(text) == nil {
		m.at = instant{}
		return nil
	}
	m.ago = 0
	if m.at.Set(text) != nil {
		return errors.New("allowed are durations such as 24h and 7d, and times such as 2027-03-31T12:00:00Z")
	}
	return nil
}

// before returns the time; nil if the flag is not set.
func (m *moment) before(now time.Time) *timestamppb.Timestamp {
	// Whole seconds, so that the note on how to go on can name them exactly.
	return timestamp(m.at, now.Truncate(time.Second), m.ago, -1)
}
