package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) keyRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate KEY_ID",
		Short: "Give a key a new token and print it",
		Long: `Give a key a new token. The key keeps its id and everything else. The old token
works for --overlap longer, so that it can be replaced wherever it is used. Then end
the old token with "keysvc key finish-rotation", or let it end by itself.

--overlap 0 ends all other tokens of the key at once.
` + confirmHelp + `
--overlap 0 is allowed for any live key. Any other overlap is refused if the key is
in rotation already.

The token goes to standard output, alone on one line; the key and a warning go to
standard error. Nobody can show the token again.

If the answer was lost, nobody has the new token. "keysvc key get" shows whether it
was issued. So does repeating the command with the same --request-id: it is refused
if the token was issued. To recover, rotate once more with --overlap 0, which ends
the old token and the lost one. If the old token is still needed, rotate after the
end of the overlap instead.

` + localHelp + waitHelp + "\n\n" + jsonHelp + `
That includes the token.`,
		Example: `  keysvc key rotate 9fQ2mXc7Lr0TzB4w --workspace acme --overlap 24h >token.txt
  keysvc key rotate 9fQ2mXc7Lr0TzB4w --workspace acme --overlap 7d --expires-in 90d --request-id rotation-7
  keysvc key rotate 9fQ2mXc7Lr0TzB4w --workspace acme --overlap 0 --yes >token.txt`,
		Args: positional("KEY_ID"),
	}
	request := &keysvcv1.RotateKeyRequest{}
	var (
		overlap    overlapValue
		expiresIn  span
		expireTime instant
	)
	flags := cmd.Flags()
	workspace := a.neededWorkspaceFlag(cmd, "the key's workspace")
	flags.Var(&overlap, "overlap", "how long the old token still works, as in 24h or 7d, up to 30d; 0 ends all other tokens at once")
	flags.Var(&expiresIn, "expires-in", "how long the new token lives, as in 90d or 36h (default: as long as the old one was given)")
	flags.Var(&expireTime, "expire-time", "when the new token expires, as in 2027-03-31T12:00:00Z")
	requestID := flags.String("request-id", "", "makes it safe to repeat the command: a second rotation with this id is refused")
	local := localFlag(cmd)
	yes := yesFlag(cmd)
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	required(cmd, "overlap")
	cmd.MarkFlagsMutuallyExclusive("expires-in", "expire-time")
	a.completeArgument(cmd, completeKeys)

	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		request.WorkspaceId, request.KeyId = *workspace, args[0]
		request.Overlap = durationpb.New(time.Duration(overlap))
		request.ExpireTime = timestamp(expireTime, s.Now(), expiresIn, +1)
		request.RequestId = optional(cmd, "request-id", requestID)
		request.ActorMemberId = optional(cmd, "actor", actor)
		where := fmt.Sprintf("%s --workspace %s", request.GetKeyId(), request.GetWorkspaceId())
		if overlap == 0 && !*yes {
			if err := s.confirmEndOfTokens(ctx, request); err != nil {
				return err
			}
		}
		var response revisedToken
		var err error
		if *local {
			response, err = s.rotateLocally(ctx, request)
		} else {
			response, err = s.keys.RotateKey(ctx, request)
		}
		if err != nil {
			return advise(err, func(call *callError) string { return rotationAdvice(call, request, where) })
		}
		next := "All other tokens of the key have ended."
		if end := rotationEnd(response.GetKey()); end != nil {
			next = fmt.Sprintf("The old token works until %s. Once it is replaced everywhere: keysvc key finish-rotation %s", s.out.deadline(end, ""), where)
		}
		if err := s.issued(response, "rotate once more: keysvc key rotate "+where+" --overlap 0", next); err != nil {
			return err
		}
		return s.await(ctx, *wait, response)
	})
}

// confirmEndOfTokens asks before a rotation that ends the tokens in use.
func (s *session) confirmEndOfTokens(ctx context.Context, request *keysvcv1.RotateKeyRequest) error {
	if !s.canAsk() {
		return errNobodyToAsk
	}
	response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: request.GetWorkspaceId(), KeyId: request.GetKeyId()})
	if err != nil {
		return err
	}
	return s.confirm(ctx, "End all tokens of "+keyInWords(response.GetKey())+" at once, for a new one? Type yes to confirm:", "yes")
}

// rotationAdvice returns what to do after a rotation that failed or whose outcome is unknown.
func rotationAdvice(call *callError, request *keysvcv1.RotateKeyRequest, where string) string {
	const again = "rotate once more with --overlap 0, which ends the old token, too"
	switch {
	case call.has(keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED):
		return "nobody can show a token again: if that answer was lost, " + again + ", and another --request-id"
	case call.has(keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS):
		return "keysvc key get " + where + " shows until when; keysvc key finish-rotation ends the old token now"
	case call.maybeDone() && request.RequestId != nil:
		return "repeat it with the same --request-id: if that is refused as used, the rotation was made; then " + again
	case call.maybeDone():
		return "keysvc key get " + where + " shows whether there is a new token; if so, nobody has it: " + again
	}
	return ""
}

func (a *app) keyFinishRotationCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "finish-rotation KEY_ID",
		Short: "End a key's old token now",
		Long: `End the overlap of a rotation now: only the newest token of the key works. If
there is no overlap, nothing changes. "keysvc key get" shows when the old token was
last used; this command says it as well, if the caller may read keys.

` + waitHelp + "\n\n" + jsonHelp + nameHelp,
		Example: `  keysvc key finish-rotation 9fQ2mXc7Lr0TzB4w --workspace acme`,
		Args:    positional("KEY_ID"),
	}
	workspace := a.neededWorkspaceFlag(cmd, "the key's workspace")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	a.completeArgument(cmd, completeKeys)
	return a.clientCommand(cmd, formatsOfThings, func(ctx context.Context, s *session, args []string) error {
		old := s.oldTokenInWords(ctx, *workspace, args[0])
		response, err := s.keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{
			WorkspaceId:   *workspace,
			KeyId:         args[0],
			ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return err
		}
		if old != "" {
			if err := s.note("%s", old); err != nil {
				return err
			}
		}
		return s.changed(ctx, *wait, response, func() error { return s.out.key(response.GetKey()) })
	})
}

// oldTokenInWords says when the old token of a key in rotation was last used; "" for any other key, and if the
// caller may not read the key.
func (s *session) oldTokenInWords(ctx context.Context, workspaceID, keyID string) string {
	response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: workspaceID, KeyId: keyID})
	if err != nil || rotationEnd(response.GetKey()) == nil {
		return ""
	}
	return "The old token, which ends now: " + s.out.usedInWords(response.GetKey().GetSecrets()[1]) + "."
}
