package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// releaseBatch is how many keys one call releases.
	releaseBatch = 100
	// maxListBytes bounds a list of keys: 4 million of them.
	maxListBytes = 64 << 20
)

func (a *app) keyReleaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release {FILE | --all}",
		Short: "Let keys work again that are held since a restore",
		Long: `Let keys work again that are held since the store was restored from a backup: they
may have been revoked or narrowed after the backup, and nobody knows. The plan comes
first. At a terminal it must be confirmed; elsewhere --yes is needed.

FILE has the ids of the keys, one on a line, as "key list --state held -o name"
prints them; what follows # is a comment, and - is standard input. Take out what
was revoked since the backup. Ids that are not those of held keys are named, and
left out.

--all releases all held keys, of one workspace or member if they are given. Revoke
first what must not come back. Repeating the command releases what is left.`,
		Example: `  keysvc key list --state held --all -o name >held.txt
  keysvc key release held.txt --dry-run
  keysvc key release --all --workspace acme`,
		Args: cobra.ArbitraryArgs, // RunE checks them, because they depend on the flags
	}
	flags := cmd.Flags()
	all := flags.Bool("all", false, "release all held keys")
	workspace := a.workspaceFlag(cmd, "only keys of this workspace; empty means any")
	member := flags.String("member", "", "only keys of this member")
	yes := yesFlag(cmd)
	dryRun := flags.Bool("dry-run", false, "show the plan and change nothing")
	actor := a.actorFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
	a.complete(cmd, "member", completeMembers)
	return a.clientCommand(cmd, nil, func(ctx context.Context, s *session, args []string) error {
		var wanted map[string]bool
		switch {
		case *all && len(args) > 0:
			return usageError(cmd, "--all takes no FILE")
		case !*all:
			if err := positional("FILE")(cmd, args); err != nil {
				return err
			}
			var err error
			if wanted, err = a.readKeyIDs(args[0]); err != nil {
				return err
			}
		}
		request := &keysvcv1.ListKeysRequest{
			WorkspaceId: *workspace, MemberId: optional(cmd, "member", member),
			States: []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_HELD}, PageSize: 1000,
		}
		plan, err := s.planRelease(ctx, request, wanted)
		if err != nil {
			return err
		}
		if err := s.out.write([]byte(plan.text())); err != nil || *dryRun || len(plan.keys) == 0 {
			return err
		}
		if !*yes {
			if err := s.confirm(ctx, fmt.Sprintf("Release %s? Type yes to confirm:", count(int64(len(plan.keys)), "key")), "yes"); err != nil {
				return err
			}
		}
		return s.release(ctx, plan, optional(cmd, "actor", actor))
	})
}

// readKeyIDs reads a list of key ids; - is standard input.
func (a *app) readKeyIDs(path string) (map[string]bool, error) {
	in := a.Stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close() //nolint:errcheck // only read
		in = file
	}
	return parseKeyIDs(in, path)
}

// parseKeyIDs reads a list of key ids. Text that is not one is not repeated, because it may be a token.
func parseKeyIDs(in io.Reader, name string) (map[string]bool, error) {
	ids := make(map[string]bool)
	limited := &io.LimitedReader{R: in, N: maxListBytes + 1}
	lines := bufio.NewScanner(limited)
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		text = strings.TrimSpace(text)
		switch {
		case text == "":
		case !token.ValidID(text):
			return nil, fmt.Errorf("%s:%d: not a key id: 16 characters of [0-9A-Za-z] are required; nothing was changed", name, number)
		default:
			ids[text] = true
		}
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("%s has more than %s; nothing was changed", name, count(maxListBytes, "byte"))
	}
	return ids, lines.Err()
}

// releasePlan is which keys are released.
type releasePlan struct {
	keys []*keysvcv1.Key
	// others are the ids of a list that are not those of held keys, sorted.
	others []string
}

// planRelease lists the held keys that pass the filters of a request and, unless wanted is nil, are in
// a list.
func (s *session) planRelease(ctx context.Context, request *keysvcv1.ListKeysRequest, wanted map[string]bool) (*releasePlan, error) {
	plan := &releasePlan{}
	left := wanted
	for {
		page, err := s.keys.ListKeys(ctx, request)
		if err != nil {
			return nil, err
		}
		for _, key := range page.GetKeys() {
			if wanted == nil || wanted[key.GetKeyId()] {
				plan.keys = append(plan.keys, key)
				delete(left, key.GetKeyId())
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	for id := range left {
		plan.others = append(plan.others, id)
	}
	slices.Sort(plan.others)
	slices.SortStableFunc(plan.keys, func(a, b *keysvcv1.Key) int { return strings.Compare(a.GetWorkspaceId(), b.GetWorkspaceId()) })
	return plan, nil
}

// text returns the plan for people.
func (p *releasePlan) text() string {
	var text strings.Builder
	for index, key := range p.keys {
		if index == maxListedKeys {
			fmt.Fprintf(&text, "… and %d more\n", len(p.keys)-index)
			break
		}
		fmt.Fprintf(&text, "+ %s\n", printable(keyInWords(key)))
	}
	for index, id := range p.others {
		if index == maxListedKeys {
			fmt.Fprintf(&text, "… and %d more\n", len(p.others)-index)
			break
		}
		fmt.Fprintf(&text, "! %s is not the id of a held key\n", id)
	}
	fmt.Fprintf(&text, "%d to release, %d left out\n", len(p.keys), len(p.others))
	return text.String()
}

// maxListedKeys is how many keys a plan shows.
const maxListedKeys = 1000

// release releases the keys of a plan, which are sorted by workspace.
func (s *session) release(ctx context.Context, plan *releasePlan, actor *string) error {
	released := 0
	for rest := plan.keys; len(rest) > 0; {
		request := &keysvcv1.ReleaseKeysRequest{WorkspaceId: rest[0].GetWorkspaceId(), ActorMemberId: actor}
		for _, key := range rest {
			if len(request.GetKeyIds()) == releaseBatch || key.GetWorkspaceId() != request.GetWorkspaceId() {
				break
			}
			request.KeyIds = append(request.KeyIds, key.GetKeyId())
		}
		response, err := s.keys.ReleaseKeys(ctx, request)
		if err != nil {
			return fmt.Errorf("%d of %s released, then: %w", released, countWere(int64(len(plan.keys)), "key"), err)
		}
		released += len(response.GetReleasedKeyIds())
		// If the keys were too large for one change, the last ones are left. A key that was not held any
		// more is not among those that were released, either.
		done := len(request.GetKeyIds())
		if ids := response.GetReleasedKeyIds(); len(ids) > 0 && len(ids) < done {
			done = slices.Index(request.GetKeyIds(), ids[len(ids)-1]) + 1
		}
		rest = rest[max(1, done):]
	}
	return s.out.line("Released %s.", count(int64(released), "key"))
}
