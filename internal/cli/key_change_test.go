package cli_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/token"
)

// rotatingKey returns a key in rotation.
func rotatingKey() *keysvcv1.Key {
	key := testKey()
	key.ExpireTime = at(365 * day)
	// The clock of the server is a little ahead.
	key.Secrets = []*keysvcv1.KeySecret{
		{CreateTime: at(20 * time.Millisecond), ExpireTime: at(365 * day)},
		{CreateTime: at(-30 * day), ExpireTime: at(7*day + 20*time.Millisecond), LastUsedTime: at(-3 * time.Hour)},
	}
	return key
}

func TestKeyUpdateNamesWhatItChanges(t *testing.T) {
	var got *keysvcv1.UpdateKeyRequest
	c := command{addr: start(t, &fake{updateKey: func(_ context.Context, r *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
		got = r
		return &keysvcv1.UpdateKeyResponse{Key: testKey(), Revision: 9, Epoch: "e1"}, nil
	}})}
	least := []string{"key", "update", testID, "--workspace", "acme"}
	tests := []struct {
		args []string
		want *keysvcv1.UpdateKeyRequest
	}{
		{
			[]string{"--name", "new", "--scope", "a:b,c:d", "--scope", "e:f", "--label", "k=v,w", "--label", "e=", "--allow-cidr", "10.0.0.0/8", "--etag", "7", "--actor", "bob"},
			&keysvcv1.UpdateKeyRequest{
				Key: &keysvcv1.Key{
					Name: "new", Scopes: []string{"a:b", "c:d", "e:f"}, Labels: map[string]string{"k": "v,w", "e": ""}, AllowedCidrs: []string{"10.0.0.0/8"},
				},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "scopes", "labels", "allowed_cidrs"}},
				Etag:       new("7"), ActorMemberId: new("bob"),
			},
		},
		{[]string{"--clear-labels"}, &keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}}},
		{[]string{"--clear-cidrs"}, &keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"allowed_cidrs"}}}},
		// An empty name is sent: the server refuses it.
		{[]string{"--name", ""}, &keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}}}},
		{[]string{"--clear-labels", "--etag", ""}, &keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}, Etag: new("")}},
	}
	for _, test := range tests {
		test.want.Key.WorkspaceId, test.want.Key.KeyId = "acme", testID
		got = nil
		r := c.run(t, append(least, test.args...)...)
		golden(t, "key_get.txt", r.stdout)
		if r.status != 0 || r.stderr != "" || !proto.Equal(got, test.want) {
			t.Errorf("%v: %+v, request %v, want %v", test.args, r, got, test.want)
		}
	}
	for _, args := range [][]string{
		{},
		{"--etag", "7"},
		{"--clear-labels=false"},
		{"--clear-cidrs", "--allow-cidr", "10.0.0.0/8"},
		{"--clear-labels", "--label", "a=b"},
		{"--scope", ""},
		{"--label", "a"},
		{"more"},
	} {
		got = nil
		if r := c.run(t, append(least, args...)...); r.status != 2 || r.stdout != "" || got != nil {
			t.Errorf("%v: %+v, request %v", args, r, got)
		}
	}
}

func TestKeyRotateSendsItsFlagsAndPrintsTheTokenAlone(t *testing.T) {
	var got *keysvcv1.RotateKeyRequest
	key := rotatingKey()
	c := command{addr: start(t, &fake{
		rotateKey: func(_ context.Context, r *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
			got = r
			return &keysvcv1.RotateKeyResponse{Key: key, Token: testToken, Revision: 9, Epoch: "e1"}, nil
		},
		finish: func(_ context.Context, r *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
			if !proto.Equal(r, &keysvcv1.FinishRotationRequest{WorkspaceId: "acme", KeyId: testID, ActorMemberId: new("bob")}) {
				t.Errorf("request %v", r)
			}
			return &keysvcv1.FinishRotationResponse{Key: testKey(), Revision: 10, Epoch: "e1"}, nil
		},
		getKey: func(context.Context, *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
			return &keysvcv1.GetKeyResponse{Key: key}, nil
		},
	})}
	least := []string{"key", "rotate", testID, "--workspace", "acme"}
	r := c.run(t, append(least, "--overlap", "7d", "--expires-in", "365d", "--request-id", "r1", "--actor", "bob")...)
	if r.status != 0 || r.stdout != testToken+"\n" {
		t.Errorf("status %d, stdout %q, want the token alone", r.status, r.stdout)
	}
	golden(t, "key_rotate.stderr", r.stderr)
	want := &keysvcv1.RotateKeyRequest{
		WorkspaceId: "acme", KeyId: testID, Overlap: durationpb.New(7 * day), ExpireTime: at(365 * day),
		RequestId: new("r1"), ActorMemberId: new("bob"),
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}
	golden(t, "key_get_rotating.txt", c.run(t, "key", "get", testID).stdout)

	key = testKey()
	r = c.run(t, append(least, "--overlap", "0", "--yes", "-o", "json")...)
	if r.status != 0 || !strings.Contains(r.stdout, testToken) || !strings.HasSuffix(r.stderr, "\nAll other tokens of the key have ended.\n") {
		t.Errorf("%+v", r)
	}
	// The field is present: the server refuses a request without it.
	if want := (&keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: testID, Overlap: &durationpb.Duration{}}); !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}

	for _, args := range [][]string{
		{},
		{"--overlap", ""},
		{"--overlap", "-1h"},
		{"--overlap", "0", "--expires-in", "1d", "--expire-time", "2027-03-31T12:00:00Z"},
		{"--overlap", "0", "more"},
	} {
		got = nil
		if r := c.run(t, append(least, args...)...); r.status != 2 || r.stdout != "" || got != nil {
			t.Errorf("%v: %+v, request %v", args, r, got)
		}
	}

	var stderr bytes.Buffer
	code := c.runTo(t.Context(), brokenWriter{}, &stderr, append(least, "--overlap", "1h")...)
	lost := "error: write the answer: no space left on device; the token is lost, so rotate once more: keysvc key rotate " + testID + " --workspace acme --overlap 0\n"
	if code != 1 || stderr.String() != lost {
		t.Errorf("status %d\n%s\nwant\n%s", code, stderr.String(), lost)
	}

	key = rotatingKey()
	r = c.run(t, "key", "finish-rotation", testID, "--workspace", "acme", "--actor", "bob")
	golden(t, "key_get.txt", r.stdout)
	const old = "The old token, which ends now: last used 2026-11-23 03:02 UTC, 3 hours ago.\n"
	if r.status != 0 || r.stderr != old {
		t.Errorf("%+v, want %q", r, old)
	}
}

// TestLostAnswerComesWithAdvice sees that a person is told what to do when a token may have been
// issued and nobody got it.
func TestLostAnswerComesWithAdvice(t *testing.T) {
	answer := failure(t, codes.Unknown, "the store failed", &errdetails.ErrorInfo{Reason: "OUTCOME_UNKNOWN", Domain: "keysvc"})
	c := command{addr: start(t, &fake{
		rotateKey: func(context.Context, *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
			return nil, answer
		},
		createKey: func(context.Context, *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
			return nil, answer
		},
	})}
	rotate := []string{"key", "rotate", testID, "--workspace", "acme", "--overlap", "1h"}
	create := []string{"key", "create", "--workspace", "acme", "--member", "ann", "--name", "deploy", "--scope", "a:b"}
	withID := func(args []string) []string { return append(args[:len(args):len(args)], "--request-id", "r1") }
	want := func(args []string, lines ...string) {
		t.Helper()
		status := cli.ExitFailure
		switch code, _, _ := strings.Cut(lines[0], " "); code {
		case "ALREADY_EXISTS", "FAILED_PRECONDITION":
			status = cli.ExitRefused
		case "UNAVAILABLE":
			status = cli.ExitUnreachable
		}
		c.run(t, args...).want(t, status, "", "error: "+strings.Join(lines, "\n  ")+"\n")
	}
	const unknown = "UNKNOWN (OUTCOME_UNKNOWN): the store failed"
	want(rotate, unknown, "keysvc key get "+testID+" --workspace acme shows whether there is a new token; if so, nobody has it: rotate once more with --overlap 0, which ends the old token, too")
	want(withID(rotate), unknown, "repeat it with the same --request-id: if that is refused as used, the rotation was made; then rotate once more with --overlap 0, which ends the old token, too")
	want(create, unknown, "keysvc key list shows whether the key was created; if so, nobody has its token: revoke it")
	want(withID(create), unknown, "repeat it with the same --request-id: there will not be a second key")

	answer = failure(t, codes.AlreadyExists, "used", &errdetails.ErrorInfo{Reason: "REQUEST_ID_USED", Domain: "keysvc", Metadata: map[string]string{"key_id": testID}})
	want(withID(rotate), "ALREADY_EXISTS (REQUEST_ID_USED): used", "key_id: "+testID, "nobody can show a token again: if that answer was lost, rotate once more with --overlap 0, which ends the old token, too, and another --request-id")
	want(withID(create), "ALREADY_EXISTS (REQUEST_ID_USED): used", "key_id: "+testID, "nobody can show a token again: if that answer was lost, give the key another token with keysvc key rotate and --overlap 0")

	answer = failure(t, codes.FailedPrecondition, "two secrets", &errdetails.ErrorInfo{Reason: "ROTATION_IN_PROGRESS", Domain: "keysvc"})
	want(rotate, "FAILED_PRECONDITION (ROTATION_IN_PROGRESS): two secrets", "keysvc key get "+testID+" --workspace acme shows until when; keysvc key finish-rotation ends the old token now")

	// A change that was certainly not made needs no advice.
	answer = failure(t, codes.Unavailable, "not ready", &errdetails.ErrorInfo{Reason: "STORE_UNAVAILABLE", Domain: "keysvc"})
	want(rotate, "UNAVAILABLE (STORE_UNAVAILABLE): not ready")
	answer = failure(t, codes.FailedPrecondition, "gone", &errdetails.ErrorInfo{Reason: "KEY_REVOKED", Domain: "keysvc"})
	want(rotate, "FAILED_PRECONDITION (KEY_REVOKED): gone")
}

func TestRevokeByTokenReadsStandardInput(t *testing.T) {
	other, err := token.New("scribe", testID, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var got *keysvcv1.RevokeTokenRequest
	f := &fake{revokeToken: func(_ context.Context, r *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
		got = r
		return &keysvcv1.RevokeTokenResponse{WorkspaceId: "acme", KeyId: testID, Revision: 9, Epoch: "e1"}, nil
	}}
	addr := start(t, f)
	// This command must not read KEYSVC_TOKEN.
	c := command{addr: addr, env: map[string]string{"KEYSVC_TOKEN": "another"}}
	for _, text := range []string{testToken, testToken + "\n", "  " + testToken + "\r\n\n", "KEY=" + testToken + ";" + testToken} {
		c.stdin = strings.NewReader(text)
		c.run(t, "key", "revoke", "--token-stdin", "--yes").want(t, 0, "Key "+testID+" of workspace acme is revoked: no token of it works any more.\n", "")
		if !proto.Equal(got, &keysvcv1.RevokeTokenRequest{TokenDigest: digestOf(testToken), KeyId: testID}) {
			t.Error("another request")
		}
	}
	c.stdin = strings.NewReader(testToken)
	c.run(t, "key", "revoke", "--token-stdin", "--yes", "--actor", "bob", "-o", "json").want(t, 0,
		"{\n  \"workspace_id\": \"acme\",\n  \"key_id\": \""+testID+"\",\n  \"revision\": \"9\",\n  \"epoch\": \"e1\",\n  \"by_digest\": true\n}\n", "")
	if got.GetActorMemberId() != "bob" {
		t.Error("no actor")
	}

	for _, args := range [][]string{
		{},
		{"--token-stdin", "--workspace", "acme"},
		{"--token-stdin", testID},
		{"--token-stdin", secretPart},
		{"--token-stdin=false"},
	} {
		got = nil
		c.stdin = strings.NewReader(testToken)
		if r := c.run(t, append([]string{"key", "revoke"}, args...)...); r.status != 2 || r.stdout != "" || got != nil {
			t.Errorf("%v: %+v", args, r)
		}
	}
	for _, text := range []string{"", "\n", " \t\n", "\xff", testToken[1:], testToken + " " + other.Reveal()} {
		c.stdin = strings.NewReader(text)
		if r := c.run(t, "key", "revoke", "--token-stdin", "--yes"); r.status != 1 || r.stdout != "" || got != nil {
			t.Errorf("%q: %+v", text, r)
		}
	}

	f.revokeToken = func(_ context.Context, r *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
		info := &errdetails.ErrorInfo{Reason: "KEY_NOT_FOUND", Domain: "keysvc", Metadata: map[string]string{"by_digest": fmt.Sprint(len(r.GetTokenDigest()) > 0)}}
		return nil, failure(t, codes.NotFound, "the token matches no live secret", info)
	}
	c.stdin = strings.NewReader(testToken)
	c.run(t, "key", "revoke", "--token-stdin", "--yes").want(t, 6, "", "error: NOT_FOUND (KEY_NOT_FOUND): the token matches no live secret\n")
}

// TestKeyListShowsEveryStateInWords has a key for every state that the table shows.
func TestKeyListShowsEveryStateInWords(t *testing.T) {
	var keys []*keysvcv1.Key
	add := func(name string, change func(*keysvcv1.Key)) {
		key := testKey()
		key.KeyId, key.Name = strings.Repeat(string(rune('A'+len(keys))), 16), name
		key.Scopes, key.ExpireTime = []string{"emails:read"}, at(300*day)
		change(key)
		keys = append(keys, key)
	}
	const (
		suspended = keysvcv1.KeyState_KEY_STATE_SUSPENDED
		expired   = keysvcv1.KeyState_KEY_STATE_EXPIRED
		revoked   = keysvcv1.KeyState_KEY_STATE_REVOKED
	)
	secrets := rotatingKey().GetSecrets()
	add("plain", func(*keysvcv1.Key) {})
	add("just used", func(key *keysvcv1.Key) { key.LastUsedTime = at(time.Second) })
	add("never used", func(key *keysvcv1.Key) { key.LastUsedTime = nil })
	add("not quite soon", func(key *keysvcv1.Key) { key.ExpireTime = at(30 * day) })
	add("soon", func(key *keysvcv1.Key) { key.ExpireTime = at(30*day - time.Second) })
	add("at once", func(key *keysvcv1.Key) { key.ExpireTime = at(20 * time.Second) })
	add("rotating", func(key *keysvcv1.Key) { key.Secrets = secrets })
	add("rotating a day", func(key *keysvcv1.Key) {
		key.Secrets = []*keysvcv1.KeySecret{secrets[0], {CreateTime: at(-day), ExpireTime: at(day)}}
	})
	add("rotating and soon", func(key *keysvcv1.Key) { key.Secrets, key.ExpireTime = secrets, at(5*day) })
	add("suspended, rotating", func(key *keysvcv1.Key) { key.State, key.Secrets = suspended, secrets })
	add("suspended, soon", func(key *keysvcv1.Key) { key.State, key.ExpireTime = suspended, at(5*day) })
	add("expired", func(key *keysvcv1.Key) { key.State, key.ExpireTime = expired, at(-3*day) })
	add("expired, was rotating", func(key *keysvcv1.Key) { key.State, key.Secrets, key.ExpireTime = expired, secrets, at(-time.Second) })
	add("revoked", func(key *keysvcv1.Key) { key.State, key.RevokeTime, key.ExpireTime = revoked, at(-day), at(5*day) })
	add("revoked, was rotating", func(key *keysvcv1.Key) { key.State, key.Secrets = revoked, secrets })
	f := &fake{listKeys: func(context.Context, *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		return &keysvcv1.ListKeysResponse{Keys: keys}, nil
	}}
	f.getKey = func(_ context.Context, r *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
		for _, key := range keys {
			if key.GetKeyId() == r.GetKeyId() {
				return &keysvcv1.GetKeyResponse{Key: key}, nil
			}
		}
		return nil, status.Error(codes.NotFound, "none")
	}
	c := command{addr: start(t, f)}
	golden(t, "key_list_words.txt", c.run(t, "key", "list").stdout)
	golden(t, "key_list_words_wide.txt", c.run(t, "key", "list", "-o", "wide").stdout)
	var all strings.Builder
	for _, key := range keys {
		all.WriteString(c.run(t, "key", "get", key.GetKeyId()).stdout + "\n")
	}
	golden(t, "key_get_words.txt", all.String())
}
