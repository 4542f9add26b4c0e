package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/roster"
)

const (
	// maxImports and maxImportBytes are how many keys one call imports, and about how many bytes they have.
	maxImports     = 32
	maxImportBytes = 128 << 10
)

func (a *app) keyImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take over the tokens of another system, by their hashes",
		Long: `Import keys that another system has issued, by the SHA-256 of each whole token: such
a token then works like one of keysvc, until its key is rotated and the overlap has
ended.

FILE is CSV with a header, or JSON lines; - is standard input. The columns are
workspace, member, hash (hex or base64), name, scopes, expire_time (at most a year
ahead; empty means a year), labels, allowed_cidrs and create_time; the last four may
be left out. Scopes and networks have spaces between them, labels are as team=web.
In JSON they may be lists and an object.

All lines are checked first. Mistakes go to standard error with their lines; then
nothing is imported. A token that is known already is left as it is, even if it was
revoked or rotated away: so repeating the command makes what is left, and no harm.

The hashes are credentials towards keysvc: delete FILE, and the other system's copy,
when all keys are rotated.`,
		Example: `  keysvc key import keys.csv --dry-run
  keysvc key import keys.csv`,
		Args: positional("FILE"),
	}
	dryRun := cmd.Flags().Bool("dry-run", false, "check the file and change nothing")
	actor := a.actorFlag(cmd)
	return a.clientCommand(cmd, nil, func(ctx context.Context, s *session, args []string) error {
		wanted, err := readLines(a, args[0], "keys", roster.ReadKeys)
		if err != nil {
			return err
		}
		run := &keyImport{session: s, file: args[0], actor: optional(cmd, "actor", actor)}
		return run.run(ctx, wanted, *dryRun)
	})
}

// keyImport is one run of key import.
type keyImport struct {
	*session

	file  string
	actor *string
}

// run checks all keys, and then imports those that keysvc does not know.
func (r *keyImport) run(ctx context.Context, wanted []roster.Key, dryRun bool) error {
	unknown, mistakes, err := r.pass(ctx, wanted, true)
	if err != nil {
		return err
	}
	if len(mistakes) > 0 {
		return r.listLines(r.file, "keys", mistakes)
	}
	if err := r.out.line("%d to import, %d known.", len(unknown), len(wanted)-len(unknown)); err != nil {
		return err
	}
	if dryRun || len(unknown) == 0 {
		return nil
	}
	imported, mistakes, err := r.pass(ctx, unknown, false)
	switch {
	case err == nil && len(mistakes) == 0:
		return r.out.line("Done: %s imported.", count(int64(len(imported)), "key"))
	case len(mistakes) > 0:
		_ = r.listLines(r.file, "keys", mistakes)
	}
	text := fmt.Sprintf("%d of %s imported; repeat the command for the rest", len(imported), countWere(int64(len(unknown)), "key"))
	switch {
	case err == nil:
		return errors.New(text)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %s", errSyncInterrupted, text)
	}
	return advise(err, func(*callError) string { return text })
}

// pass calls ImportKeys for all keys, and returns those that were imported, or would be, and what is wrong with
// others, by line. err is why it stopped early.
func (r *keyImport) pass(ctx context.Context, wanted []roster.Key, validateOnly bool) (imported []roster.Key, mistakes roster.LineErrors, err error) {
	what := "keys imported"
	if validateOnly {
		what = "keys checked"
	}
	progress := r.newPlanProgress(what, len(wanted))
	defer progress.end()
	for rest := wanted; len(rest) > 0; {
		some, request := r.next(rest)
		request.ValidateOnly = validateOnly
		response, err := r.keys.ImportKeys(ctx, request)
		if err != nil {
			return imported, mistakes, err
		}
		if len(response.GetResults()) != len(some) {
			return imported, mistakes, errors.New("the server gave another number of results than of keys")
		}
		for index, result := range response.GetResults() {
			switch wrong := result.GetError(); {
			case wrong != nil:
				mistakes = append(mistakes, roster.LineError{Line: some[index].Line, Text: strings.TrimPrefix(wrong.GetMessage(), "invalid request: ")})
			case result.GetImported():
				imported = append(imported, some[index])
			}
			progress.step()
		}
		rest = rest[len(some):]
	}
	return imported, mistakes, nil
}

// next returns the first keys of one workspace that fit into one call, and the call.
func (r *keyImport) next(keys []roster.Key) (some []roster.Key, request *keysvcv1.ImportKeysRequest) {
	request = &keysvcv1.ImportKeysRequest{WorkspaceId: keys[0].WorkspaceID, ActorMemberId: r.actor}
	bytes := 0
	for _, key := range keys {
		if key.WorkspaceID != request.GetWorkspaceId() || len(some) == maxImports {
			break
		}
		message := importOf(key)
		if bytes += proto.Size(message); bytes > maxImportBytes && len(some) > 0 {
			break
		}
		some, request.Keys = append(some, key), append(request.Keys, message)
	}
	return some, request
}

// importOf returns a key of a file as messages have it.
func importOf(key roster.Key) *keysvcv1.KeyImport {
	message := &keysvcv1.KeyImport{
		TokenSha256: key.SHA256[:], MemberId: key.MemberID, Name: key.Name, Scopes: key.Scopes, Labels: key.Labels, AllowedCidrs: key.AllowedCIDRs,
	}
	if key.ExpireTime != nil {
		message.ExpireTime = timestamppb.New(*key.ExpireTime)
	}
	if key.CreateTime != nil {
		message.CreateTime = timestamppb.New(*key.CreateTime)
	}
	return message
}
