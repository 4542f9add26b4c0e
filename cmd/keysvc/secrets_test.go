package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// leaks are the texts that no output may contain: tokens and their secret parts.
type leaks [][]byte

// leaksOf returns, for each token, the token, its last 49 characters, and its secret.
func leaksOf(tokens ...string) leaks {
	var texts leaks
	for _, token := range tokens {
		tail := token[len(token)-49:]
		texts = append(texts, []byte(token), []byte(tail), []byte(tail[:43]))
	}
	return texts
}

// in returns the first leak in a text, with 80 bytes around it; "" if the text has no leak.
func (l leaks) in(text []byte) string {
	for _, leak := range l {
		if at := bytes.Index(text, leak); at >= 0 {
			return string(text[max(0, at-80):min(len(text), at+len(leak)+80)])
		}
	}
	return ""
}

// expectNone fails the test if a text has a leak.
func (l leaks) expectNone(t *testing.T, where, text string) {
	t.Helper()
	if found := l.in([]byte(text)); found != "" {
		t.Errorf("%s has a token or a secret: %q", where, found)
	}
}

// inFolder returns the names of the files in a folder that have a leak.
func (l leaks) inFolder(t *testing.T, folder string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if l.in([]byte(entry.Name())) != "" || l.in([]byte(strings.TrimRight(read(t, path), "\x00"))) != "" {
			found = append(found, filepath.Base(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSecretsAreNowhere makes every kind of call, right and wrong, at the debug level. Then it
// searches all files and output of the process, and the output of the commands, for tokens. Only the
// answers that issue a token may contain one.
func TestSecretsAreNowhere(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := serveDev(t, data, "127.0.0.1:0", "--log-level", "debug", "--usage-interval", "1s", "--sweep-interval", "1s")
	demo := strings.TrimSuffix(read(t, filepath.Join(data, "demo-token")), "\n")
	s.putMember(t, "acme", "ann", "owner")
	first := s.create(t, "acme", "ann", "emails:read", "signatures:read")
	keyID := first.GetKey().GetKeyId()
	tokens := []string{demo, first.GetToken()}
	// One context for the hundreds of calls below: they take half a minute on a busy machine.
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	for _, overlap := range []time.Duration{time.Hour, 0} {
		rotated, err := s.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(overlap)})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, rotated.GetToken())
	}
	// The command issues tokens as well, in both formats.
	for _, format := range []string{"table", "json"} {
		got := command(t, "", "key", "create", "--addr", s.address, "--workspace", "acme", "--member", "ann", "--name", "n", "--scope", "emails:read", "-o", format)
		token := strings.TrimSpace(got.stdout)
		if format == "json" {
			var answer struct{ Token string }
			if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil {
				t.Fatal(err)
			}
			token = answer.Token
		}
		if got.status != 0 || len(token) != 78 {
			t.Fatalf("%s: exit status %d\n%s", format, got.status, got.stderr)
		}
		leaksOf(token).expectNone(t, "what key create says beside the token", got.stderr)
		tokens = append(tokens, token)
	}
	all := append(leaksOf(tokens...), s.importSecrets(ctx, t)...)

	// Right uses, and wrong ones.
	for _, token := range tokens {
		for _, request := range []*keysvcv1.ValidateKeyRequest{
			{Token: token, RequiredScope: "emails:read", WithDetails: true, IncludeGrant: true},
			{Token: token, RequiredScope: "emails:delete"},
			{Token: token, IdentityOnly: true, WorkspaceId: "other"},
			{Token: token},
			{Token: "Bearer " + token, IdentityOnly: true},
			{Token: token[:len(token)-1], IdentityOnly: true},
			{Token: token, RequiredScope: token},
			{Token: token, IdentityOnly: true, WorkspaceId: token},
			{Token: token, IdentityOnly: true, ClientAddress: token},
			{Token: token, IdentityOnly: true, MinRevision: 1, Epoch: token},
		} {
			response, err := s.validation.ValidateKey(ctx, request)
			all.expectNone(t, "a decision", response.String()+errorText(err))
			batch, err := s.validation.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{request}})
			all.expectNone(t, "a batch", batch.String()+errorText(err))
		}
		pasted := new(token)
		for _, err := range []error{
			second(s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: token, MemberId: token, Name: token, Scopes: []string{token}})),
			second(s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: token, Scopes: []string{"emails:read"}})),
			second(s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}, Labels: map[string]string{"k": token}})),
			second(s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}, RequestId: pasted})),
			second(s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}, ActorMemberId: pasted})),
			second(s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{KeyId: token})),
			second(s.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{MemberId: pasted, PageToken: token})),
			second(s.keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{WorkspaceId: "acme", KeyId: keyID, Name: token}, Etag: pasted})),
			second(s.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: token, RequestId: pasted})),
			second(s.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID, ActorMemberId: pasted})),
			second(s.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: "x" + token[:len(token)-1]})),
			second(s.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: token, MemberId: token, Role: token, State: 1})),
			second(s.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: token, Role: "owner", State: 1})),
			second(s.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: token, SourceVersion: new(int64(1))})),
			second(s.policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: &keysvcv1.Policy{TokenPrefix: token}, ReplacesDigest: token})),
			second(s.policies.GetPolicy(metadata.AppendToOutgoingContext(ctx, "x-request-id", token, "authorization", "Bearer "+token, "user-agent", token), &keysvcv1.GetPolicyRequest{})),
			second(s.policies.GetPolicy(metadata.AppendToOutgoingContext(ctx, "x-request-id", token[:60]), &keysvcv1.GetPolicyRequest{})),
		} {
			all.expectNone(t, "an error", errorText(err))
		}
		// The error of gRPC names an unknown method to its caller. The log must not.
		for _, method := range []string{"/keysvc.v1.KeyService/" + token, "/" + token + "/CreateKey"} {
			if err := s.conn.Invoke(ctx, method, &keysvcv1.GetKeyRequest{}, &keysvcv1.GetKeyResponse{}); err == nil {
				t.Error("there is no such method")
			}
		}
		// Commands that people get wrong.
		for _, arguments := range [][]string{
			{"validate", token},
			{"validate", "--scope", token},
			{"validate", "--scope", "emails:read", "--token", token},
			{token},
			{"key", token},
			{"key", "get", token, "--addr", s.address},
			{"key", "get", token[12:], "--addr", s.address},
			{"key", "revoke", token, "--workspace", "acme", "--addr", s.address},
			{"key", "create", "--workspace", token, "--member", token, "--name", token, "--scope", token, "--addr", s.address},
			{"key", "list", "--page-token", token, "--addr", s.address},
			{"member", "put", token, "--workspace", "acme", "--role", "owner", "--addr", s.address},
			{"serve", "--data", token},
			{"policy", "check", token},
			{"check", token},
		} {
			got := command(t, token, arguments...)
			if got.status == 0 && arguments[0] != "validate" {
				t.Errorf("keysvc %s… succeeded", arguments[0])
			}
			all.expectNone(t, "keysvc "+arguments[0], got.stdout+got.stderr)
		}
		for _, input := range []string{token, " " + token, "Bearer " + token, token + token} {
			got := command(t, input, "validate", "--scope", "emails:read", "--details", "--addr", s.address)
			all.expectNone(t, "keysvc validate", got.stdout+got.stderr)
		}
		got := execute(t, append(clean(), "KEYSVC_TOKEN="+token), "", "", binary, "validate", "--scope", token, "--addr", s.address)
		all.expectNone(t, "keysvc validate", got.stdout+got.stderr)
	}
	if _, err := s.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: tokens[3]}); err != nil {
		t.Error(err)
	}
	// The files while the server runs, and after it has stopped.
	if found := all.inFolder(t, data); !slices.Equal(found, []string{"demo-token"}) {
		t.Errorf("while it is served, these have a token or a secret: %q; want the demo token's file alone", found)
	}
	s.stop(t)
	all.expectNone(t, "standard output", s.stdout.String())
	all.expectNone(t, "the log", s.stderr.String())
	if log := s.stderr.String(); !strings.Contains(log, "ValidateKey") || !strings.Contains(log, "RevokeToken") {
		t.Errorf("the log is not the whole one:\n%.2000s", log)
	}
	if found := all.inFolder(t, data); !slices.Equal(found, []string{"demo-token"}) {
		t.Errorf("these have a token or a secret: %q; want the demo token's file alone", found)
	}
	if checked := command(t, "", "check", s.file); checked.status != 0 || all.in([]byte(checked.stdout+checked.stderr)) != "" {
		t.Errorf("check: exit status %d\n%s%s", checked.status, checked.stdout, checked.stderr)
	}

	// The search works: each kind of leak is found where it was planted.
	for index, leak := range leaksOf(tokens[1]) {
		planted := t.TempDir()
		text := append(append([]byte("\x00\xff"), leak...), 0)
		if err := os.WriteFile(filepath.Join(planted, "keysvc.db"), append([]byte(read(t, s.file)), text...), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(all.inFolder(t, planted)) != 1 || all.in(append([]byte(s.stderr.String()), text...)) == "" {
			t.Errorf("kind %d of leak is not found", index)
		}
	}
}

// second returns the error of a call.
func second[T proto.Message](_ T, err error) error { return err }

// errorText returns the text of an error with its details.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	encoded, _ := proto.Marshal(status.Convert(err).Proto())
	return err.Error() + string(encoded)
}

// importSecrets imports a token of another system in every way, right and wrong, presents it, and returns the
// texts that no output may contain: the token, and its hash in all its forms.
func (s *serving) importSecrets(ctx context.Context, t *testing.T) leaks {
	t.Helper()
	const token = "legacy-live-9fQ2mXc7Lr0TzB4w8sJkVnYpHd3GgUe6Aa1Ww5Zz0Rr2Tt4Yy"
	hash := sha256.Sum256([]byte(token))
	inHex := hex.EncodeToString(hash[:])
	all := append(leaksOf(token), hash[:], []byte(inHex), []byte(strings.ToUpper(inHex)), []byte(base64.StdEncoding.EncodeToString(hash[:])))
	imported := func(workspaceID, memberID, scope string) *keysvcv1.ImportKeysRequest {
		return &keysvcv1.ImportKeysRequest{WorkspaceId: workspaceID, Keys: []*keysvcv1.KeyImport{
			{TokenSha256: hash[:], MemberId: memberID, Name: "old", Scopes: []string{scope}},
		}}
	}
	s.putMember(t, "acme", "bob", "owner")
	s.putMember(t, "other", "ann", "owner")
	for _, request := range []*keysvcv1.ImportKeysRequest{
		imported("acme", "ann", "emails:sing"), imported("acme", "nobody", "emails:read"), imported("acme", "ann", "emails:read"),
		imported("acme", "ann", "emails:read"), imported("acme", "bob", "emails:read"), imported("other", "ann", "emails:read"),
	} {
		response, err := s.keys.ImportKeys(ctx, request)
		all.expectNone(t, "an import", response.String()+errorText(err))
	}
	for _, request := range []*keysvcv1.ValidateKeyRequest{
		{Token: token, RequiredScope: "emails:read", WithDetails: true, IncludeGrant: true},
		{TokenDigest: hash[:], RequiredScope: "emails:delete"},
		{TokenDigest: hash[1:], IdentityOnly: true},
		{Token: token + "x", IdentityOnly: true},
	} {
		response, err := s.validation.ValidateKey(ctx, request)
		all.expectNone(t, "a decision", response.String()+errorText(err))
	}
	file := filepath.Join(t.TempDir(), "keys.csv")
	for _, lines := range []string{
		"acme,ann," + inHex + ",old,emails:read", "acme,ann," + inHex + ",old,emails:sing", "acme,bob," + inHex + ",old,emails:read",
		"acme,ann," + token + ",old,emails:read", "acme,ann," + inHex + ",old", "acme,ann,\"" + inHex, "acme," + inHex + "/," + inHex + ",,",
	} {
		if err := os.WriteFile(file, []byte("workspace,member,hash,name,scopes\n"+lines+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got := command(t, "", "key", "import", file, "--addr", s.address)
		all.expectNone(t, "key import", got.stdout+got.stderr)
	}
	for _, arguments := range [][]string{{"key", "list", "--imported", "-o", "json"}, {"audit", "list", "-o", "jsonl"}, {"validate", "--scope", "emails:read", "--details"}} {
		got := command(t, token, append(arguments, "--addr", s.address)...)
		if got.status != 0 {
			t.Errorf("%q: status %d: %s", arguments, got.status, got.stderr)
		}
		all.expectNone(t, arguments[0], got.stdout+got.stderr)
	}
	if got := command(t, token+"\n", "key", "revoke", "--token-stdin", "--yes", "--addr", s.address); got.status != 0 {
		t.Errorf("key revoke: %s", got.stderr)
	}
	return all
}
