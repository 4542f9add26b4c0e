package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

func (a *app) keyRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke {KEY_ID | --token-stdin}",
		Short: "Revoke a key, at once and for good",
		Long: `Revoke a key, at once and for good. Repeating it is no error.
` + confirmHelp + `

Without a workspace, the key may belong to any workspace.

--token-stdin revokes the key of a token that has leaked. The token is read from
standard input; at a terminal the command asks for it, and does not show it. It may
have other text around it, and only its digest is sent. Every token of the key stops
working, both of them during a rotation. A token that has expired or was rotated
away is not found: it is harmless already. An imported token must stand alone.

` + waitHelp + "\n\n" + jsonHelp + nameHelp,
		Example: `  keysvc key revoke 9fQ2mXc7Lr0TzB4w
  keysvc key revoke 9fQ2mXc7Lr0TzB4w --workspace acme --yes
  keysvc key revoke --token-stdin --yes <leaked.txt`,
		Args: cobra.ArbitraryArgs, // RunE checks them, because they depend on the flags
	}
	flags := cmd.Flags()
	workspace := a.workspaceFlag(cmd, "the key's workspace; empty means any")
	tokenStdin := flags.Bool("token-stdin", false, "revoke the key of the token on standard input")
	yes := yesFlag(cmd)
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("workspace", "token-stdin")
	a.completeArgument(cmd, completeKeys)
	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		if *tokenStdin && len(args) > 0 {
			return usageError(cmd, "--token-stdin takes no argument; the token comes from standard input")
		}
		if !*tokenStdin {
			if err := positional("KEY_ID")(cmd, args); err != nil {
				return err
			}
		}
		if !*yes && !s.canAsk() {
			return errNobodyToAsk
		}
		if *tokenStdin {
			return s.revokeToken(ctx, optional(cmd, "actor", actor), *yes, *wait)
		}
		request := &keysvcv1.RevokeKeyRequest{WorkspaceId: *workspace, KeyId: args[0], ActorMemberId: optional(cmd, "actor", actor)}
		if err := s.confirmRevoke(ctx, request, *yes); err != nil {
			return err
		}
		response, err := s.keys.RevokeKey(ctx, request)
		if err != nil {
			return err
		}
		return s.changed(ctx, *wait, response, func() error { return s.out.key(response.GetKey()) })
	})
}

// confirmRevoke looks the key up if the request has no workspace or if there is a question to
// ask, completes the request, and asks unless yes is set.
func (s *session) confirmRevoke(ctx context.Context, request *keysvcv1.RevokeKeyRequest, yes bool) error {
	if yes && request.GetWorkspaceId() != "" {
		return nil
	}
	response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: request.GetWorkspaceId(), KeyId: request.GetKeyId()})
	if err != nil {
		return err
	}
	key := response.GetKey()
	request.WorkspaceId = key.GetWorkspaceId()
	if yes || key.GetState() == keysvcv1.KeyState_KEY_STATE_REVOKED {
		return nil
	}
	return s.confirm(ctx, "Revoke "+keyInWords(key)+" for good? Type yes to confirm:", "yes")
}

// keyInWords describes a key for a question: its owner and its last use.
func keyInWords(key *keysvcv1.Key) string {
	used := "never used"
	if key.GetLastUsedTime() != nil {
		used = "last used " + key.GetLastUsedTime().AsTime().Format(minuteLayout)
	}
	return fmt.Sprintf("key %s (%q of member %s in workspace %s, %s)",
		key.GetKeyId(), key.GetName(), key.GetMemberId(), key.GetWorkspaceId(), used)
}

// revokeToken revokes the key of the token on standard input.
func (s *session) revokeToken(ctx context.Context, actor *string, yes, wait bool) error {
	text, err := s.readToken(ctx, true)
	if err != nil {
		return err
	}
	_, isForeign := token.Foreign(text)
	switch count := countTokens(text); {
	case count == 0 && !isForeign:
		return errors.New("there is no whole token on standard input")
	case count > 1:
		return errors.New("there are several tokens on standard input; revoke one at a time")
	}
	if !yes {
		if err := s.confirm(ctx, "Revoke "+s.ownerInWords(ctx, text)+" for good? Type yes to confirm:", "yes"); err != nil {
			return err
		}
	}
	response, err := keyclient.RevokeToken(ctx, s.keys, text, actor)
	if err != nil {
		return inPlainWords(err)
	}
	return s.changed(ctx, wait, response, func() error {
		return s.out.line("Key %s of workspace %s is revoked: no token of it works any more.", response.GetKeyId(), response.GetWorkspaceId())
	})
}

// countTokens returns how many different tokens a text has.
func countTokens(text string) int {
	seen := map[string]bool{}
	for found := range token.Find(text) {
		seen[found.Reveal()] = true
	}
	return len(seen)
}

// inPlainWords returns the error of a client, which has gRPC's words and the client's name in front, as
// a person reads it. The error of a call stays as it is.
func inPlainWords(err error) error {
	if _, isCall := errors.AsType[*callError](err); isCall {
		return err
	}
	return errors.New(strings.TrimPrefix(status.Convert(err).Message(), "keyclient: "))
}

// ownerInWords describes the key of a token for a question. It does not send the token.
func (s *session) ownerInWords(ctx context.Context, text string) string {
	for found := range token.Find(text) {
		if response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{KeyId: found.ID()}); err == nil {
			return keyInWords(response.GetKey())
		}
		return "key " + found.ID()
	}
	return "the key of this token"
}
