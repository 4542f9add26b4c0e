package cli

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

func (a *app) tokenCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "token",
		Short:   "Make of a token what keysvc is sent in its place",
		Example: `  keysvc token digest <token.txt`,
	},
		a.tokenDigestCommand(),
	)
}

func (a *app) tokenDigestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "digest",
		Short: "Print the digest of a token, as JSON for grpcurl",
		Long: `Print key_id and token_digest of a token as JSON, in the form that grpcurl sends to
ValidateKey and RevokeToken in the token's place. No server is called.

The token is read from standard input; at a terminal the command asks for it. It is
never an argument. One newline at its end is dropped.

To keysvc the digest is as good as the token: a caller that may validate can ask
with it whom the token acts as. To everybody else it is worth nothing.`,
		Example: `  keysvc token digest <token.txt
  keysvc token digest <token.txt | jq '. + {required_scope: "emails:read"}' |
    grpcurl -plaintext -d @ unix:keysvc-data/keysvc.sock \
      keysvc.v1.ValidationService/ValidateKey`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(cmd, "takes no argument; the token comes from standard input, so that it stays out of the shell's history")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &session{app: a, cmd: cmd}
			text, err := s.readToken(cmd.Context(), true)
			if err != nil {
				return err
			}
			problem, malformed := token.Diagnose(text)
			if malformed {
				return errors.New("the text " + problem)
			}
			if problem != "" {
				if err := s.note("note: the text %s. This is the digest of a foreign text, without a key id", problem); err != nil {
					return err
				}
			}
			digest, keyID := digestOf(text)
			encoder := json.NewEncoder(a.Stdout)
			encoder.SetIndent("", "  ")
			return encoder.Encode(struct { // encoding/json writes bytes in base64, as the JSON of protobuf has them
				KeyID  string `json:"key_id"`
				Digest []byte `json:"token_digest"`
			}{keyID, digest})
		},
	}
}

// digestOf returns what is sent in the place of a text: the digest of a token with the id of its
// key, and the hash of any other text with no id.
func digestOf(text string) (digest []byte, keyID string) {
	if parsed, err := token.Parse(text); err == nil {
		sum := parsed.Digest()
		return sum[:], parsed.ID()
	}
	sum := token.ForeignDigest(text)
	return sum[:], ""
}

var errNoDigests = errors.New("the server is older than this command and does not know digests, so it was asked about no token; use the keysvc command of its version, or upgrade the server")

// validateByDigest asks about a text. It sends the digest of the text, and not the text.
func (s *session) validateByDigest(ctx context.Context, text string, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	request.TokenDigest, request.KeyId = digestOf(text)
	response, err := s.validation.ValidateKey(ctx, request)
	if err == nil && !response.GetByDigest() {
		return nil, errNoDigests
	}
	return response, err
}
