package cli_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/token"
)

func TestTokenDigestPrintsWhatGrpcurlSends(t *testing.T) {
	var printed struct {
		KeyID  string `json:"key_id"`
		Digest string `json:"token_digest"`
	}
	c := command{stdin: strings.NewReader(testToken + "\n"), env: map[string]string{"KEYSVC_TOKEN": "another"}}
	r := c.run(t, "token", "digest")
	if err := json.Unmarshal([]byte(r.stdout), &printed); err != nil || r.status != 0 || r.stderr != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if printed.KeyID != testID || printed.Digest != base64.StdEncoding.EncodeToString(digestOf(testToken)) {
		t.Errorf("%+v", printed)
	}
	c.stdin = strings.NewReader("sk_live_1")
	r = c.run(t, "token", "digest")
	if err := json.Unmarshal([]byte(r.stdout), &printed); err != nil || r.status != 0 || !strings.Contains(r.stderr, "foreign text") {
		t.Fatalf("%+v, %v", r, err)
	}
	if printed.KeyID != "" || printed.Digest != base64.StdEncoding.EncodeToString([]byte(hashOf("sk_live_1"))) {
		t.Errorf("%+v", printed)
	}
	for text, want := range map[string]string{"": "is empty", testToken[1:]: "wrong checksum", testToken + "\n\n": "white space"} {
		c.stdin = strings.NewReader(text)
		if r := c.run(t, "token", "digest"); r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, want) || strings.Contains(r.stderr, testToken[40:]) {
			t.Errorf("%.10q: %+v", text, r)
		}
	}
	for _, argument := range []string{testToken, "x"} {
		c.stdin = strings.NewReader(testToken)
		if r := c.run(t, "token", "digest", argument); r.status != cli.ExitUsage || r.stdout != "" || strings.Contains(r.stderr, testToken[40:]) {
			t.Errorf("with an argument: %+v", r)
		}
	}
}

// TestOldServerIsNoAnswer: a server that does not know digests was asked about no token.
func TestOldServerIsNoAnswer(t *testing.T) {
	var sent []string
	c := command{addr: start(t, &fake{
		old: true,
		validateKey: func(_ context.Context, r *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
			sent = append(sent, r.GetToken())
			return &keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, nil
		},
		revokeToken: func(_ context.Context, r *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
			sent = append(sent, r.GetToken())
			return nil, status.Error(codes.NotFound, "the token matches no live secret")
		},
	})}
	for _, args := range [][]string{{"validate", "--identity-only"}, {"key", "revoke", "--token-stdin", "--yes"}} {
		c.stdin = strings.NewReader(testToken)
		if r := c.run(t, args...); r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "does not know digests") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if fmt.Sprint(sent) != "[ ]" {
		t.Errorf("tokens were sent: %q", sent)
	}
}

// TestLocalKeysAreIssuedHere: the server gets the digest of the token that the command prints.
func TestLocalKeysAreIssuedHere(t *testing.T) {
	var digest []byte
	answered := func(keyID string) *keysvcv1.Key {
		return &keysvcv1.Key{KeyId: keyID, WorkspaceId: "acme", Secrets: []*keysvcv1.KeySecret{{CreateTime: at(0), ExpireTime: at(day), IssuedLocally: true}}}
	}
	fail := error(nil)
	f := &fake{
		getPolicy: func(context.Context, *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
			return &keysvcv1.GetPolicyResponse{Policy: &keysvcv1.Policy{TokenPrefix: "web"}}, nil
		},
		createKey: func(_ context.Context, r *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
			digest = r.GetTokenDigest()
			if len(r.GetKeyIdNonce()) != token.NonceLength || r.GetRequestId() == "" {
				t.Errorf("the request is %v", r)
			}
			return &keysvcv1.CreateKeyResponse{Key: answered(token.KeyID(r.GetWorkspaceId(), [token.NonceLength]byte(r.GetKeyIdNonce())))}, fail
		},
		rotateKey: func(_ context.Context, r *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
			digest = r.GetTokenDigest()
			return &keysvcv1.RotateKeyResponse{Key: answered(r.GetKeyId())}, fail
		},
		revokeKey: func(_ context.Context, r *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
			return &keysvcv1.RevokeKeyResponse{Key: answered(r.GetKeyId())}, nil
		},
	}
	c := command{addr: start(t, f)}
	commands := [][]string{
		{"key", "create", "--workspace", "acme", "--member", "ann", "--name", "n", "--scope", "emails:read", "--local"},
		{"key", "rotate", testID, "--workspace", "acme", "--overlap", "1h", "--local"},
	}
	for _, args := range commands {
		r := c.run(t, args...)
		parsed, err := token.Parse(strings.TrimSuffix(r.stdout, "\n"))
		if err != nil || r.status != 0 || parsed.Prefix() != "web" || string(digestOf(parsed.Reveal())) != string(digest) {
			t.Errorf("%v: %+v, %v", args, r, err)
		}
		if !strings.Contains(r.stderr, parsed.ID()) || !strings.Contains(r.stderr, "issued locally") {
			t.Errorf("%v: %s", args, r.stderr)
		}
	}
	f.old = true
	for _, args := range commands {
		if r := c.run(t, args...); r.status == 0 || r.stdout != "" || !strings.Contains(r.stderr, "does not know digests") {
			t.Errorf("%v of an old server: %+v", args, r)
		}
	}
	f.old, fail = false, status.Error(codes.FailedPrecondition, "the member is suspended")
	if r := c.run(t, commands[0]...); r.status != cli.ExitRefused || !strings.Contains(r.stderr, "the member is suspended") {
		t.Errorf("a refusal: %+v", r)
	}
	fail = status.Error(codes.Unknown, "the disk failed")
	if r := c.run(t, commands[0]...); r.status == 0 || !strings.Contains(r.stderr, "is lost: see keysvc key get ") {
		t.Errorf("a lost answer: %+v", r)
	}
}

func TestListsTellKeysThatWereIssuedLocally(t *testing.T) {
	var got *keysvcv1.ListKeysRequest
	key := &keysvcv1.Key{
		KeyId: testID, WorkspaceId: "acme", MemberId: "ann", Name: "n", State: keysvcv1.KeyState_KEY_STATE_ACTIVE, CreateTime: at(0), ExpireTime: at(100 * day),
		Secrets: []*keysvcv1.KeySecret{{CreateTime: at(0), ExpireTime: at(100 * day), IssuedLocally: true}},
	}
	c := command{addr: start(t, &fake{
		listKeys: func(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
			got = r
			return &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{key}}, nil
		},
		getKey: func(context.Context, *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
			return &keysvcv1.GetKeyResponse{Key: key}, nil
		},
	})}
	for flag, want := range map[string]*bool{"--revoked": nil, "--issued-locally": new(true), "--issued-locally=false": new(false)} {
		if r := c.run(t, "key", "list", flag); r.status != 0 || !strings.Contains(r.stdout, "active, local") || (got.IssuedLocally == nil) != (want == nil) || want != nil && *want != got.GetIssuedLocally() {
			t.Errorf("%s: %+v, %v", flag, r, got)
		}
	}
	if r := c.run(t, "key", "list", "-o", "wide"); !strings.Contains(r.stdout, "active, issued locally") {
		t.Errorf("wide: %s", r.stdout)
	}
	if r := c.run(t, "key", "get", testID); !strings.Contains(r.stdout, "issued locally") {
		t.Errorf("one key: %s", r.stdout)
	}
}
