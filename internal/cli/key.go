package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) keyCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "key",
		Short:   "Create, look at, change, rotate and revoke keys",
		Example: `  keysvc key list --workspace acme`,
	},
		a.keyCreateCommand(),
		a.keyGetCommand(),
		a.keyListCommand(),
		a.keyExplainCommand(),
		a.keyUpdateCommand(),
		a.keyRotateCommand(),
		a.keyFinishRotationCommand(),
		a.keyRevokeCommand(),
		a.keyImportCommand(),
		a.keyReleaseCommand(),
	)
}

func (a *app) keyCreateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a key and print its token",
		Long: `Create a key that acts as a member of a workspace, limited to scopes.

The token goes to standard output, alone on one line; the key and a warning go to
standard error. Nobody can show the token again.

` + localHelp + jsonHelp + `
That includes the token.`,
		Example: `  keysvc key create --workspace acme --member ann --name deploy --scope signatures:read >token.txt
  keysvc key create --workspace acme --member ann --name report --scope emails:read,assets:read \
    --expires-in 90d --label team=web --allow-cidr 203.0.113.0/24`,
	}
	request := &keysvcv1.CreateKeyRequest{}
	var (
		scopes, cidrs commaList
		annotations   labels
		expiresIn     span
		expireTime    instant
	)
	flags := cmd.Flags()
	workspace := a.neededWorkspaceFlag(cmd, "the workspace that the key will belong to")
	flags.StringVar(&request.MemberId, "member", "", "the member whom the key will act as")
	flags.StringVar(&request.Name, "name", "", "what people call the key")
	flags.Var(&scopes, "scope", "a scope to grant, as in signatures:read; can be repeated, or several with commas")
	flags.Var(&expiresIn, "expires-in", "how long the key lives, as in 90d or 36h (default: a year, the longest there is)")
	flags.Var(&expireTime, "expire-time", "when the key expires, as in 2027-03-31T12:00:00Z")
	flags.Var(&annotations, "label", "an annotation; can be repeated")
	flags.Var(&cidrs, "allow-cidr", "a network that the key may be used from, as in 203.0.113.0/24; can be repeated (default: anywhere)")
	requestID := flags.String("request-id", "", "makes it safe to repeat the command: a second key with this id is refused")
	local := localFlag(cmd)
	actor := a.actorFlag(cmd)
	required(cmd, "member", "name", "scope")
	cmd.MarkFlagsMutuallyExclusive("expires-in", "expire-time")
	a.complete(cmd, "member", completeMembers)
	a.complete(cmd, "scope", completeScopes)

	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, _ []string) error {
		request.WorkspaceId = *workspace
		request.Scopes = scopes
		request.AllowedCidrs = cidrs
		request.Labels = annotations
		request.ExpireTime = timestamp(expireTime, s.Now(), expiresIn, +1)
		request.RequestId = optional(cmd, "request-id", requestID)
		request.ActorMemberId = optional(cmd, "actor", actor)
		var response tokenResponse
		var err error
		if *local {
			response, err = s.createLocally(ctx, request)
		} else {
			response, err = s.keys.CreateKey(ctx, request)
		}
		if err != nil {
			return advise(err, func(call *callError) string {
				switch {
				case call.has(keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED):
					return "nobody can show a token again: if that answer was lost, give the key another token with keysvc key rotate and --overlap 0"
				case call.maybeDone() && request.RequestId != nil:
					return "repeat it with the same --request-id: there will not be a second key"
				case call.maybeDone():
					return "keysvc key list shows whether the key was created; if so, nobody has its token: revoke it"
				}
				return ""
			})
		}
		lost := fmt.Sprintf("revoke the key: keysvc key revoke %s --workspace %s --yes", response.GetKey().GetKeyId(), request.GetWorkspaceId())
		return s.issued(response, lost, "")
	})
}

// tokenResponse is a response that has a key and its new token.
type tokenResponse interface {
	proto.Message
	GetToken() string
	GetKey() *keysvcv1.Key
}

// issued writes a new token to standard output and then its key to standard error. The token
// comes first, so that a later failure does not lose it. lost is the advice if the token could
// not be written; next is the advice if it could.
func (s *session) issued(response tokenResponse, lost, next string) error {
	err := s.out.answer(response, func() error { return s.out.write([]byte(response.GetToken() + "\n")) })
	if err != nil {
		return fmt.Errorf("%w; the token is lost, so %s", err, lost)
	}
	text := s.out.keyRecord(response.GetKey()) + "\nThe token is shown only once: keep it where secrets are kept. Nobody can show it again.\n"
	if next != "" {
		text += printable(next) + "\n"
	}
	_, err = io.WriteString(s.Stderr, text)
	return err
}

func (a *app) keyGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY_ID",
		Short: "Show one key",
		Long: `Show one key, whatever its state. A token's key id is the 16 characters after ksk1_.

` + jsonHelp + nameHelp,
		Example: `  keysvc key get 9fQ2mXc7Lr0TzB4w --workspace acme`,
		Args:    positional("KEY_ID"),
	}
	workspace := a.workspaceFlag(cmd, "the key's workspace; empty means any")
	a.completeArgument(cmd, completeKeys)
	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: *workspace, KeyId: args[0]})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.keyAnswer(response) })
	})
}

func (a *app) keyUpdateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update KEY_ID",
		Short: "Change the name, scopes, labels or networks of a key",
		Long: `Change a key that is neither revoked nor expired. Fields that no flag names stay as
they are.

Scopes, labels and networks are replaced as a whole: give all of them, not only the
new ones. The last scope cannot be taken away; revoke the key instead.

With --etag the change is refused if the key was changed since it had that etag;
keysvc key get shows it.

` + waitHelp + "\n\n" + jsonHelp + nameHelp,
		Example: `  keysvc key update 9fQ2mXc7Lr0TzB4w --workspace acme --name "nightly deploy"
  keysvc key update 9fQ2mXc7Lr0TzB4w --workspace acme --scope emails:read,assets:read --clear-cidrs
  keysvc key update 9fQ2mXc7Lr0TzB4w --workspace acme --label team=web --label stage=test --etag 2b`,
		Args: positional("KEY_ID"),
	}
	key := &keysvcv1.Key{}
	var (
		scopes, cidrs commaList
		annotations   labels
	)
	flags := cmd.Flags()
	workspace := a.neededWorkspaceFlag(cmd, "the key's workspace")
	flags.StringVar(&key.Name, "name", "", "what people call the key")
	flags.Var(&scopes, "scope", "a scope for the key, in place of those that it has; can be repeated, or several with commas")
	flags.Var(&annotations, "label", "an annotation, in place of those that the key has; can be repeated")
	clearLabels := flags.Bool("clear-labels", false, "take all annotations away")
	flags.Var(&cidrs, "allow-cidr", "a network that the key may be used from, in place of those that it has; can be repeated")
	clearCIDRs := flags.Bool("clear-cidrs", false, "let the key be used from anywhere")
	etag := flags.String("etag", "", "refuse the change if the key has another etag")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("label", "clear-labels")
	cmd.MarkFlagsMutuallyExclusive("allow-cidr", "clear-cidrs")
	a.complete(cmd, "scope", completeScopes)
	a.completeArgument(cmd, completeKeys)

	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		key.WorkspaceId = *workspace
		key.KeyId, key.Scopes, key.Labels, key.AllowedCidrs = args[0], scopes, annotations, cidrs
		mask := &fieldmaskpb.FieldMask{}
		for _, masked := range []struct {
			field string
			given bool
		}{
			{"name", flags.Changed("name")},
			{"scopes", len(scopes) > 0},
			{"labels", len(annotations) > 0 || *clearLabels},
			{"allowed_cidrs", len(cidrs) > 0 || *clearCIDRs},
		} {
			if masked.given {
				mask.Paths = append(mask.Paths, masked.field)
			}
		}
		if len(mask.GetPaths()) == 0 {
			return usageError(cmd, "nothing to change: --name, --scope, --label, --clear-labels, --allow-cidr or --clear-cidrs is needed")
		}
		response, err := s.keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
			Key:           key,
			UpdateMask:    mask,
			Etag:          optional(cmd, "etag", etag),
			ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return err
		}
		return s.changed(ctx, *wait, response, func() error { return s.out.key(response.GetKey()) })
	})
}
