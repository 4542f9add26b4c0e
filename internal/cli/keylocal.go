package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// localHelp describes the flag --local.
const localHelp = `With --local this command draws the secret, and the server gets only the digest of
the token. It needs the right issue_local. If an answer is lost, the command repeats
the call.

`

// localFlag adds the flag --local.
func localFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("local", false, "draw the secret here, so that the server never sees the token")
}

// revisedToken is a response that has a key, its new token and a revision.
type revisedToken interface {
	tokenResponse
	GetRevision() int64
	GetEpoch() string
}

// createLocally creates a key whose secret is drawn here. The response has the token, which the
// server's has not.
func (s *session) createLocally(ctx context.Context, request *keysvcv1.CreateKeyRequest) (tokenResponse, error) {
	made, err := keyclient.Issuer{Keys: s.keys, Policies: s.policies}.Create(ctx, request)
	if err != nil {
		return nil, lostLocally(err, request.GetWorkspaceId())
	}
	return &keysvcv1.CreateKeyResponse{Key: made.Key, Token: made.Reveal(), Revision: made.Revision, Epoch: made.Epoch, ByDigest: true}, nil
}

// rotateLocally rotates a key as createLocally creates one.
func (s *session) rotateLocally(ctx context.Context, request *keysvcv1.RotateKeyRequest) (revisedToken, error) {
	made, err := keyclient.Issuer{Keys: s.keys, Policies: s.policies}.Rotate(ctx, request)
	if err != nil {
		return nil, lostLocally(err, request.GetWorkspaceId())
	}
	return &keysvcv1.RotateKeyResponse{Key: made.Key, Token: made.Reveal(), Revision: made.Revision, Epoch: made.Epoch, ByDigest: true}, nil
}

// lostLocally adds to an error which key may have been issued.
func lostLocally(err error, workspaceID string) error {
	if lost, isLost := errors.AsType[*keyclient.LostAnswerError](err); isLost {
		if call, isCall := errors.AsType[*callError](err); isCall {
			call.advice = append(call.advice, fmt.Sprintf("the token of key %s is lost: see keysvc key get %[1]s --workspace %s, and revoke the key or rotate it", lost.KeyID, workspaceID))
		}
		return err
	}
	return inPlainWords(err)
}
