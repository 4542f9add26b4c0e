package keyclient

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// issueAttempts is how often a key is asked for whose answer may be lost.
	issueAttempts = 4
	// issueTimeout bounds one attempt if the context has no deadline.
	issueTimeout = 10 * time.Second
)

// IssuedKey is a key whose secret was drawn here. Its token is not in what keysvc answers, stores
// or has ever seen. An IssuedKey is printed without it; only Reveal returns it.
type IssuedKey struct {
	// Key is the key as keysvc answered.
	Key *keysvcv1.Key
	// Revision and Epoch are those of the change.
	Revision int64
	Epoch    string

	token token.Token
}

// Reveal returns the token, to be given to its owner. It cannot be recovered later.
func (k *IssuedKey) Reveal() string { return k.token.Reveal() }

// Issuer issues keys locally: it draws their secrets itself, and sends keysvc the digests of their
// tokens. So keysvc never sees a token. The caller needs the right issue_local.
//
// The zero Random is crypto/rand.Reader. A broken source makes secrets that can be guessed; keysvc
// cannot know that, and marks the keys as issued locally.
type Issuer struct {
	// Keys and Policies are clients of one keysvc. Policies may be nil if Prefix is set.
	Keys     keysvcv1.KeyServiceClient
	Policies keysvcv1.PolicyServiceClient
	// Prefix is that of the tokens. Default: the prefix of the active policy, which is asked for.
	Prefix string
	// Random is a cryptographic source, for tests.
	Random io.Reader
}

// IssueLocally is Issuer.Create with this Client.
func (c *Client) IssueLocally(ctx context.Context, request *keysvcv1.CreateKeyRequest) (*IssuedKey, error) {
	return Issuer{Keys: c.Keys, Policies: c.Policies}.Create(ctx, request)
}

// RotateLocally is Issuer.Rotate with this Client.
func (c *Client) RotateLocally(ctx context.Context, request *keysvcv1.RotateKeyRequest) (*IssuedKey, error) {
	return Issuer{Keys: c.Keys, Policies: c.Policies}.Rotate(ctx, request)
}

// Create creates a key. It sets token_digest and key_id_nonce in a copy of the request, and
// request_id if the request has no id.
//
// If an answer is lost, Create asks again, with the same request_id and digest, which creates no
// second key. If the context ends, or no attempt brings an answer, the error is a *LostAnswerError: a
// key may then exist whose token nobody has. Revoke it.
//
// If keysvc does not know digests, the key that it has created is revoked, and the error has
// codes.Unavailable.
func (i Issuer) Create(ctx context.Context, request *keysvcv1.CreateKeyRequest) (*IssuedKey, error) {
	// 1. Draw everything before the first call: the id of the key follows from the nonce, and the
	// digest from the id.
	prefix, err := i.prefix(ctx)
	if err != nil {
		return nil, err
	}
	var nonce [token.NonceLength]byte
	if _, err := io.ReadFull(i.random(), nonce[:]); err != nil {
		return nil, fmt.Errorf("keyclient: nonce: %w", err)
	}
	drawn, err := token.New(prefix, token.KeyID(request.GetWorkspaceId(), nonce), i.random())
	if err != nil {
		return nil, fmt.Errorf("keyclient: %w", err)
	}
	// 2. Ask, and ask again if the answer is lost.
	asked, digest := proto.CloneOf(request), drawn.Digest()
	asked.TokenDigest, asked.KeyIdNonce = digest[:], nonce[:]
	if asked.RequestId, err = i.requestID(asked.RequestId); err != nil {
		return nil, err
	}
	response, err := again(ctx, drawn.ID(), func(ctx context.Context) (*keysvcv1.CreateKeyResponse, error) { return i.Keys.CreateKey(ctx, asked) })
	if err != nil {
		return nil, err
	}
	// 3. A server that does not know digests has drawn a secret of its own, and made another key.
	if !response.GetByDigest() {
		return nil, i.undo(ctx, response.GetKey())
	}
	if response.GetKey().GetKeyId() != drawn.ID() {
		return nil, status.Errorf(codes.Internal, "keyclient: keysvc created key %s, where the nonce gives %s", response.GetKey().GetKeyId(), drawn.ID())
	}
	return &IssuedKey{Key: response.GetKey(), Revision: response.GetRevision(), Epoch: response.GetEpoch(), token: drawn}, nil
}

// Rotate gives a key a new secret. It is to RotateKey what Create is to CreateKey, with one difference:
// if keysvc does not know digests, the key is not revoked, because it may be in use. keysvc has then
// given it a token of its own, which Rotate drops. With an overlap, the token of before works until
// the overlap ends; without one, the key has no token any more. So upgrade keysvc first.
func (i Issuer) Rotate(ctx context.Context, request *keysvcv1.RotateKeyRequest) (*IssuedKey, error) {
	prefix, err := i.prefix(ctx)
	if err != nil {
		return nil, err
	}
	drawn, err := token.New(prefix, request.GetKeyId(), i.random())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "keyclient: %v", err)
	}
	asked, digest := proto.CloneOf(request), drawn.Digest()
	asked.TokenDigest = digest[:]
	if asked.RequestId, err = i.requestID(asked.RequestId); err != nil {
		return nil, err
	}
	response, err := again(ctx, drawn.ID(), func(ctx context.Context) (*keysvcv1.RotateKeyResponse, error) { return i.Keys.RotateKey(ctx, asked) })
	if err != nil {
		return nil, err
	}
	if !response.GetByDigest() {
		return nil, status.Errorf(codes.Unavailable,
			"keyclient: keysvc is older than this client and does not know digests: it gave key %s a token of its own, which is dropped; upgrade keysvc, and rotate the key again", drawn.ID())
	}
	return &IssuedKey{Key: response.GetKey(), Revision: response.GetRevision(), Epoch: response.GetEpoch(), token: drawn}, nil
}

// undo revokes the key that a server without digests has created, and returns the error.
func (i Issuer) undo(ctx context.Context, made *keysvcv1.Key) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTimeout)
	defer cancel()
	const old = "keyclient: keysvc is older than this client and does not know digests; upgrade keysvc first"
	_, err := i.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: made.GetWorkspaceId(), KeyId: made.GetKeyId()})
	if err != nil {
		return status.Errorf(codes.Unavailable, "%s, and revoke key %s, which it made: %s", old, made.GetKeyId(), status.Convert(err).Message())
	}
	return status.Errorf(codes.Unavailable, "%s (key %s, which it made, is revoked)", old, made.GetKeyId())
}

// again makes a call until it is answered, issueAttempts times at most. keyID is the key that it is about.
func again[Response any](ctx context.Context, keyID string, call func(context.Context) (Response, error)) (Response, error) {
	waits := backoff.New(50*time.Millisecond, time.Second)
	lost := false
	for attempt := 1; ; attempt++ {
		// Half of the time that is left is for this attempt, so that there is time for another one.
		timeout := issueTimeout
		if deadline, has := ctx.Deadline(); has {
			timeout = max(time.Until(deadline)/2, time.Millisecond)
		}
		bounded, cancel := context.WithTimeout(ctx, timeout)
		response, err := call(bounded)
		cancel()
		if err == nil {
			return response, nil
		}
		switch status.Code(err) {
		case codes.Unknown, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
			lost = true
		case codes.Aborted: // another change came first, and nothing was changed
		default:
			attempt = issueAttempts
		}
		switch {
		case attempt < issueAttempts && waits.Wait(ctx):
		case lost: // a refusal of this attempt does not say what became of the lost one
			return response, &LostAnswerError{KeyID: keyID, Err: cmp.Or(ctx.Err(), err)}
		default:
			return response, err
		}
	}
}

// LostAnswerError is the error of a key that was issued locally if no attempt has brought an answer.
// The key may have been created, or rotated, and nobody has its new token.
type LostAnswerError struct {
	// KeyID is the key.
	KeyID string
	// Err is the last error of a call, or that of the context.
	Err error
}

// Error names the key.
func (e *LostAnswerError) Error() string {
	return fmt.Sprintf("keyclient: it is not known whether key %s was issued, and its new token is lost: %v", e.KeyID, e.Err)
}

// Unwrap returns Err, so that status.Code returns the code of the last call.
func (e *LostAnswerError) Unwrap() error { return e.Err }

// prefix returns the prefix of the tokens.
func (i Issuer) prefix(ctx context.Context) (string, error) {
	if i.Prefix != "" {
		return i.Prefix, nil
	}
	if i.Policies == nil {
		return "", errors.New("keyclient: Issuer: neither Prefix nor Policies is set")
	}
	response, err := i.Policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return "", err
	}
	return response.GetPolicy().GetTokenPrefix(), nil
}

func (i Issuer) random() io.Reader {
	if i.Random != nil {
		return i.Random
	}
	return rand.Reader
}

// requestID returns the id of the request; a new one for nil.
func (i Issuer) requestID(given *string) (*string, error) {
	if given != nil {
		return given, nil
	}
	drawn, err := token.NewID(i.random())
	return &drawn, err
}

// RevokeToken revokes the key of a token that was found where it should not be. text may have other
// text around the token. The token is found here, and only its digest is sent. A text in one piece without
// "_ksk1_" may be an imported token of another system; white space around it is ignored. Text with several
// tokens is refused with codes.InvalidArgument, and any other text without a token is codes.NotFound, both
// without a call. actor is the member on whose behalf the caller acts; nil for none.
//
// The error is codes.NotFound if no live secret matches, and codes.Unavailable if keysvc does not know
// digests.
func (c *Client) RevokeToken(ctx context.Context, text string, actor *string) (*keysvcv1.RevokeTokenResponse, error) {
	return RevokeToken(ctx, c.Keys, text, actor)
}

// RevokeToken is Client.RevokeToken with a client of keysvc's KeyService.
func RevokeToken(ctx context.Context, keys keysvcv1.KeyServiceClient, text string, actor *string) (*keysvcv1.RevokeTokenResponse, error) {
	reported, several := token.FindOnly(text)
	if several {
		return nil, status.Error(codes.InvalidArgument, "keyclient: the text has several tokens; one at a time is allowed")
	}
	digest := reported.Digest()
	if reported.IsZero() {
		foreign, is := token.Foreign(text)
		if !is {
			return nil, status.Error(codes.NotFound, "keyclient: the text has no token")
		}
		digest = token.ForeignDigest(foreign)
	}
	response, err := keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{TokenDigest: digest[:], KeyId: reported.ID(), ActorMemberId: actor})
	switch {
	case err == nil && !response.GetByDigest(), status.Code(err) == codes.NotFound && !lookedFor(err):
		return nil, status.Error(codes.Unavailable, tooOld+"; the key is not revoked")
	case err != nil:
		return nil, err
	}
	return response, nil
}

// lookedFor reports whether the KEY_NOT_FOUND of RevokeToken comes from a server that has looked for
// the digest.
func lookedFor(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is && info.GetMetadata()["by_digest"] == "true" {
			return true
		}
	}
	return false
}
