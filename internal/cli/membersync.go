package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/roster"
)

const (
	// syncWorkers is how many changes member sync makes at a time. The store commits changes of
	// several workspaces together.
	syncWorkers = 8
	// planProgressInterval is the time between two updates of the progress.
	planProgressInterval = 200 * time.Millisecond
	// maxShownFailures is how many lines that failed are shown.
	maxShownFailures = 20
)

func (a *app) memberSyncCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync FILE",
		Short: "Make the members those of a file, after a look at the plan",
		Long: `Make the members of workspaces those of a file, which is what the product has. The
plan comes first: which members are added (+), changed (~) and removed (-), and
which lines would be refused (!), because their source_version is behind that of
keysvc, or is the same with other content. At a terminal the plan must be confirmed;
elsewhere --yes is needed, unless there is nothing to change.

FILE is CSV with a header, or JSON lines; - is standard input. The columns are
workspace, member, role, state (active, suspended or removed; empty means active)
and source_version (may be empty); state and source_version may be left out.
Mistakes go to standard error with their lines, and then nothing is changed.

The file must have all members of each workspace that it names: a member that it
does not have is removed, and the member's keys never work again. Workspaces that it
does not name stay as they are.

Changes that take something away are made first. A line that fails does not keep the
others from being made; the exit status is then 1. Repeating the command makes what
is left, and does no harm.

With -o json the answer is the plan with what became of it: for each step its action
(remove, change, add; none_outdated and none_same_version for lines that would be
refused), its line, workspace, member, what keysvc had before and what the file has
after, and the error if it failed. 64-bit numbers are strings.`,
		Example: `  keysvc member sync members.csv --dry-run
  keysvc member sync members.csv
  keysvc member sync members.csv --dry-run -o json
  product-export | keysvc member sync - --yes`,
		Args: positional("FILE"),
	}
	yes := yesFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "show the plan and change nothing")
	actor := a.actorFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
	return a.clientCommand(cmd, formatsOfEvents, func(ctx context.Context, s *session, args []string) error {
		wanted, err := a.readRoster(args[0])
		if err != nil {
			return err
		}
		if err := s.checkRoles(ctx, args[0], wanted); err != nil {
			return err
		}
		plan, err := s.planMembers(ctx, wanted)
		if err != nil {
			return err
		}
		nothing := *dryRun || len(plan.steps) == plan.count(planOutdated, planSameVersion)
		switch text := plan.text() + plan.summary() + "\n"; {
		case s.out.format != formatJSON:
			if err := s.out.write([]byte(text)); err != nil {
				return err
			}
		case nothing:
			return s.out.plain(plan.shown(0, nil))
		case !*yes && s.canAsk():
			// The question needs the plan. The answer follows.
			if _, err := io.WriteString(s.Stderr, text); err != nil {
				return err
			}
		}
		if nothing {
			return nil
		}
		if !*yes {
			if err := s.confirm(ctx, "Make these changes? Type yes to confirm:", "yes"); err != nil {
				return err
			}
		}
		return s.applyMembers(ctx, args[0], plan, optional(cmd, "actor", actor))
	})
}

// readRoster reads a file; - is standard input. Its mistakes are written to standard error.
func (a *app) readRoster(name string) ([]roster.Member, error) {
	return readLines(a, name, "members", roster.Read)
}

// readLines reads a file; - is standard input. Its mistakes are written to standard error.
func readLines[Line any](a *app, name, what string, read func(io.Reader) ([]Line, error)) ([]Line, error) {
	in := a.Stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close() //nolint:errcheck // it was only read
		in = file
	}
	lines, err := read(in)
	if mistakes, is := errors.AsType[roster.LineErrors](err); is {
		return nil, a.listLines(name, what, mistakes)
	}
	return lines, err
}

// listLines writes the mistakes of a file to standard error, and returns the error for all of them.
func (a *app) listLines(name, what string, mistakes roster.LineErrors) error {
	var text strings.Builder
	for _, mistake := range mistakes {
		text.WriteString(printable(fmt.Sprintf("%s:%d: %s", name, mistake.Line, mistake.Text)) + "\n")
	}
	if _, err := io.WriteString(a.Stderr, text.String()); err != nil {
		return err
	}
	return fmt.Errorf("%s is not a valid list of %s; nothing was changed", name, what)
}

// checkRoles finds roles that the active policy does not have. The server would refuse them, but only
// after other changes were made.
func (s *session) checkRoles(ctx context.Context, name string, wanted []roster.Member) error {
	active, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	var roles []string
	for _, role := range active.GetPolicy().GetRoles() {
		roles = append(roles, role.GetName())
	}
	slices.Sort(roles)
	var mistakes roster.LineErrors
	for _, member := range wanted {
		if member.State != roster.Removed && !slices.Contains(roles, member.Role) {
			mistakes = append(mistakes, roster.LineError{
				Line: member.Line,
				Text: "role: the policy does not have it, allowed are " + strings.Join(roles, ", "),
			})
		}
	}
	if len(mistakes) == 0 {
		return nil
	}
	return s.listLines(name, "members", mistakes)
}

// planMembers compares what is wanted with what keysvc has, workspace by workspace.
func (s *session) planMembers(ctx context.Context, wanted []roster.Member) (*memberPlan, error) {
	byWorkspace := make(map[string][]roster.Member)
	var workspaces []string
	for _, member := range wanted {
		if byWorkspace[member.WorkspaceID] == nil {
			workspaces = append(workspaces, member.WorkspaceID)
		}
		byWorkspace[member.WorkspaceID] = append(byWorkspace[member.WorkspaceID], member)
	}
	slices.Sort(workspaces)
	progress, plan := s.newPlanProgress("workspaces compared", len(workspaces)), &memberPlan{}
	defer progress.end()
	for _, workspace := range workspaces {
		have, err := s.membersOf(ctx, workspace)
		if err != nil {
			return nil, err
		}
		plan.add(workspace, byWorkspace[workspace], have)
		progress.step()
	}
	plan.sort()
	return plan, nil
}

// membersOf returns all members of a workspace.
func (s *session) membersOf(ctx context.Context, workspace string) ([]*keysvcv1.Member, error) {
	request := &keysvcv1.ListMembersRequest{WorkspaceId: workspace, PageSize: maxPageSize}
	var members []*keysvcv1.Member
	for {
		page, err := s.members.ListMembers(ctx, request)
		if err != nil {
			return nil, err
		}
		members = append(members, page.GetMembers()...)
		if page.GetNextPageToken() == "" {
			return members, nil
		}
		if page.GetNextPageToken() == request.GetPageToken() {
			return nil, errors.New("the server gave the same page token again")
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// applyMembers makes the steps of a plan. One that fails does not stop the others, unless the server
// does not answer.
func (s *session) applyMembers(ctx context.Context, file string, plan *memberPlan, actor *string) error {
	steps := slices.DeleteFunc(slices.Clone(plan.steps), func(step planStep) bool { return step.kind.refused() })
	progress := s.newPlanProgress("changes made", len(steps))
	made, failures, err := s.makeSteps(ctx, steps, actor, progress)
	progress.end()
	slices.SortStableFunc(failures, func(a, b stepFailure) int { return cmp.Compare(a.step.line, b.step.line) })
	for index, failure := range failures {
		text := failure.text(file)
		if index == maxShownFailures {
			text = fmt.Sprintf("and %d more", len(failures)-index)
		}
		if err := s.note("%s", text); err != nil {
			return err
		}
		if index == maxShownFailures {
			break
		}
	}
	if s.out.format == formatJSON {
		if err := s.out.plain(plan.shown(made, failures)); err != nil {
			return err
		}
	}
	left := len(steps) - made
	switch {
	case left == 0 && s.out.format == formatJSON:
		return nil
	case left == 0:
		return s.out.line("Done: %s made.", count(int64(made), "change"))
	}
	text := fmt.Sprintf("%d of %s made; repeat the command for the rest", made, countWere(int64(len(steps)), "change"))
	switch {
	case err == nil:
		return errors.New(text)
	case errors.Is(err, errSyncInterrupted):
		return fmt.Errorf("%w: %s", err, text)
	}
	return advise(err, func(*callError) string { return text })
}

var errSyncInterrupted = errors.New("interrupted")

// makeSteps makes steps, several at a time, and returns how many were made and why others were not.
// Steps of one kind have ended before those of the next kind begin. err is why it stopped early.
func (s *session) makeSteps(ctx context.Context, steps []planStep, actor *string, progress *planProgress) (made int, failures []stepFailure, err error) {
	var mutex sync.Mutex
	stopped := func() bool {
		mutex.Lock()
		defer mutex.Unlock()
		return err != nil
	}
	note := func(step planStep, failed error) {
		mutex.Lock()
		defer mutex.Unlock()
		call, isCall := errors.AsType[*callError](failed)
		switch {
		case failed == nil:
			made++
			progress.step()
		case ctx.Err() != nil:
			err = errSyncInterrupted
		case isCall && (call.status.Code() == codes.Unavailable || call.status.Code() == codes.DeadlineExceeded || call.status.Code() == codes.Unauthenticated):
			err = failed
		default:
			failures = append(failures, stepFailure{step, failed})
		}
	}
	for len(steps) > 0 && !stopped() {
		kind := steps[0].kind
		rest := slices.IndexFunc(steps, func(step planStep) bool { return step.kind != kind })
		if rest < 0 {
			rest = len(steps)
		}
		var working sync.WaitGroup
		queue := make(chan planStep)
		for range min(syncWorkers, rest) {
			working.Go(func() {
				for step := range queue {
					if !stopped() {
						note(step, s.makeStep(ctx, step, actor))
					}
				}
			})
		}
		for _, step := range steps[:rest] {
			queue <- step
		}
		close(queue)
		working.Wait()
		steps = steps[rest:]
	}
	return made, failures, err
}

// stepFailure is a step that failed.
type stepFailure struct {
	step planStep
	err  error
}

// text says which line of a file failed, and why.
func (f stepFailure) text(file string) string {
	if f.step.line > 0 {
		file = fmt.Sprintf("%s:%d", file, f.step.line)
	}
	return fmt.Sprintf("%s: member %s of workspace %s: %s", file, f.step.wanted.MemberID, f.step.wanted.WorkspaceID, f.err)
}

// makeStep makes one step.
func (s *session) makeStep(ctx context.Context, step planStep, actor *string) error {
	if step.kind == planRemove {
		_, err := s.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{
			WorkspaceId: step.wanted.WorkspaceID, MemberId: step.wanted.MemberID, SourceVersion: step.wanted.SourceVersion, ActorMemberId: actor,
		})
		return err
	}
	request := &keysvcv1.PutMemberRequest{
		WorkspaceId: step.wanted.WorkspaceID, MemberId: step.wanted.MemberID, Role: step.wanted.Role,
		State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE, SourceVersion: step.wanted.SourceVersion, ActorMemberId: actor,
	}
	if step.wanted.State == roster.Suspended {
		request.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
	}
	_, err := s.members.PutMember(ctx, request)
	return err
}

// planProgress shows on a terminal how far a command is. Its methods are not called at the same time.
type planProgress struct {
	session *session
	noun    string
	done    int
	of      int
	// shown is when the line was written last; zero before that.
	shown time.Time
}

func (s *session) newPlanProgress(noun string, of int) *planProgress {
	return &planProgress{session: s, noun: noun, of: of}
}

// step notes that one more is done.
func (p *planProgress) step() {
	p.done++
	if now := p.session.Now(); isTerminal(p.session.Stderr) && now.Sub(p.shown) >= planProgressInterval {
		p.shown = now
		_, _ = fmt.Fprintf(p.session.Stderr, "\r\x1b[K%d of %d %s", p.done, p.of, p.noun) // a progress that cannot be shown does no harm
	}
}

// end takes the line away.
func (p *planProgress) end() {
	if !p.shown.IsZero() {
		_, _ = io.WriteString(p.session.Stderr, "\r\x1b[K")
	}
}
