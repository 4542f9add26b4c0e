package cli_test

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	// secretPart is the part of the token that only one answer may contain.
	secretPart = "Qm4cT9vXz1LrB8sKd0WyHn5uEaGj2oPi7fVtRxM3bZk3jIJKH"
	testID     = "9fQ2mXc7Lr0TzB4w"
	testToken  = "scribe_ksk1_" + testID + "_" + secretPart
)

// now is the time in all tests.
var now = time.Date(2026, 11, 23, 6, 2, 30, 0, time.UTC)

func at(offset time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(offset)) }

const day = 24 * time.Hour

// fake is a server that answers with the functions of a test. It gives answers and errors that a
// test cannot easily get from a real server. The scripts of cmd/keysvc test the answers of a real
// server.
type fake struct {
	keysvcv1.UnimplementedKeyServiceServer
	keysvcv1.UnimplementedMemberServiceServer
	keysvcv1.UnimplementedPolicyServiceServer
	keysvcv1.UnimplementedAuditServiceServer
	keysvcv1.UnimplementedValidationServiceServer
	keysvcv1.UnimplementedSyncServiceServer
	keysvcv1.UnimplementedBackupServiceServer

	backup      func(*keysvcv1.BackupRequest, keysvcv1.BackupService_BackupServer) error
	createKey   func(context.Context, *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error)
	getKey      func(context.Context, *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error)
	listKeys    func(context.Context, *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error)
	listNotices func(context.Context, *keysvcv1.ListNoticesRequest) (*keysvcv1.ListNoticesResponse, error)
	updateKey   func(context.Context, *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error)
	importKeys  func(context.Context, *keysvcv1.ImportKeysRequest) (*keysvcv1.ImportKeysResponse, error)
	rotateKey   func(context.Context, *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error)
	finish      func(context.Context, *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error)
	revokeKey   func(context.Context, *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error)
	old         bool // does not know digests
	revokeToken func(context.Context, *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error)
	putMember   func(context.Context, *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error)
	getMember   func(context.Context, *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error)
	listMembers func(context.Context, *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error)
	remove      func(context.Context, *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error)
	removeAll   func(context.Context, *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error)
	getPolicy   func(context.Context, *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error)
	applyPolicy func(context.Context, *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error)
	listEvents  func(context.Context, *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error)
	validateKey func(context.Context, *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error)
	await       func(context.Context, *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error)
	sync        func(grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error
}

func (f *fake) CreateKey(ctx context.Context, r *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	response, err := f.createKey(ctx, r)
	if response != nil && !f.old {
		response.ByDigest = len(r.GetTokenDigest()) > 0
	}
	return response, err
}

func (f *fake) GetKey(ctx context.Context, r *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	return f.getKey(ctx, r)
}

func (f *fake) ListKeys(ctx context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	return f.listKeys(ctx, r)
}

func (f *fake) ListNotices(ctx context.Context, r *keysvcv1.ListNoticesRequest) (*keysvcv1.ListNoticesResponse, error) {
	if f.listNotices == nil {
		return f.UnimplementedKeyServiceServer.ListNotices(ctx, r)
	}
	return f.listNotices(ctx, r)
}

func (f *fake) RevokeKey(ctx context.Context, r *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	return f.revokeKey(ctx, r)
}

func (f *fake) PutMember(ctx context.Context, r *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	return f.putMember(ctx, r)
}

func (f *fake) GetMember(ctx context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
	return f.getMember(ctx, r)
}

func (f *fake) ListMembers(ctx context.Context, r *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
	return f.listMembers(ctx, r)
}

func (f *fake) GetPolicy(ctx context.Context, r *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
	return f.getPolicy(ctx, r)
}

func (f *fake) ListAuditEvents(ctx context.Context, r *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
	return f.listEvents(ctx, r)
}

func (f *fake) ValidateKey(ctx context.Context, r *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	response, err := f.validateKey(ctx, r)
	if response != nil && !f.old {
		response.ByDigest = len(r.GetTokenDigest()) > 0
	}
	return response, err
}

func (f *fake) UpdateKey(ctx context.Context, r *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
	return f.updateKey(ctx, r)
}

func (f *fake) ImportKeys(ctx context.Context, r *keysvcv1.ImportKeysRequest) (*keysvcv1.ImportKeysResponse, error) {
	return f.importKeys(ctx, r)
}

func (f *fake) RotateKey(ctx context.Context, r *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
	response, err := f.rotateKey(ctx, r)
	if response != nil && !f.old {
		response.ByDigest = len(r.GetTokenDigest()) > 0
	}
	return response, err
}

func (f *fake) FinishRotation(ctx context.Context, r *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
	return f.finish(ctx, r)
}

func (f *fake) RevokeToken(ctx context.Context, r *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
	response, err := f.revokeToken(ctx, r)
	if response != nil && !f.old {
		response.ByDigest = len(r.GetTokenDigest()) > 0
	}
	return response, err
}

func (f *fake) RemoveMember(ctx context.Context, r *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
	return f.remove(ctx, r)
}

func (f *fake) RemoveWorkspace(ctx context.Context, r *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
	return f.removeAll(ctx, r)
}

func (f *fake) ApplyPolicy(ctx context.Context, r *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	return f.applyPolicy(ctx, r)
}

func (f *fake) AwaitRevision(ctx context.Context, r *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
	return f.await(ctx, r)
}

func (f *fake) Sync(stream grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error {
	return f.sync(stream)
}

// start serves f on loopback and returns the address.
func start(t *testing.T, f *fake) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, f, listener)
	return listener.Addr().String()
}

// serveOn serves f on a listener until the test ends.
func serveOn(t *testing.T, f *fake, listener net.Listener) {
	t.Helper()
	serveServices(t, listener, func(server *grpc.Server) {
		keysvcv1.RegisterKeyServiceServer(server, f)
		keysvcv1.RegisterMemberServiceServer(server, f)
		keysvcv1.RegisterPolicyServiceServer(server, f)
		keysvcv1.RegisterAuditServiceServer(server, f)
		keysvcv1.RegisterValidationServiceServer(server, f)
		keysvcv1.RegisterSyncServiceServer(server, f)
		keysvcv1.RegisterBackupServiceServer(server, f)
	})
}

// serveServices serves what register registers on a listener until the test ends.
func serveServices(t *testing.T, listener net.Listener, register func(*grpc.Server)) {
	t.Helper()
	server := grpc.NewServer()
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

// command is the environment of a command line.
type command struct {
	addr  string // KEYSVC_ADDR
	env   map[string]string
	stdin io.Reader
	hooks cli.Hooks
	// clock is the clock; nil means one that stands at now.
	clock func() time.Time
}

// result is the outcome of a command.
type result struct {
	status         int
	stdout, stderr string
}

func (c command) run(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := c.runTo(t.Context(), &stdout, &stderr, args...)
	r := result{status, stdout.String(), stderr.String()}
	if strings.Contains(r.stderr, secretPart) {
		t.Errorf("%v: a token on standard error:\n%s", args, r.stderr)
	}
	return r
}

func (c command) runTo(ctx context.Context, stdout, stderr io.Writer, args ...string) int {
	if c.stdin == nil {
		c.stdin = strings.NewReader("")
	}
	if c.clock == nil {
		c.clock = func() time.Time { return now }
	}
	return cli.Main(ctx, cli.Process{
		Args: args,
		Getenv: func(name string) string {
			if name == "KEYSVC_ADDR" {
				return c.addr
			}
			return c.env[name]
		},
		Stdin:  c.stdin,
		Stdout: stdout,
		Stderr: stderr,
		Now:    c.clock,
	}, c.hooks)
}

func closeIt(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// want checks status and both streams.
func (r result) want(t *testing.T, status int, stdout, stderr string) {
	t.Helper()
	if r.status != status || r.stdout != stdout || r.stderr != stderr {
		t.Errorf("status %d, want %d\nstdout:\n%s\nwant:\n%s\nstderr:\n%s\nwant:\n%s",
			r.status, status, r.stdout, stdout, r.stderr, stderr)
	}
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	goldenAt(t, filepath.Join("testdata", name), text)
}

// goldenAt is golden for tests that work in another folder.
func goldenAt(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, text, want)
	}
}

func TestUsageErrorsNameTheMistakeAndTheHelp(t *testing.T) {
	tests := []struct {
		args   []string
		status int
		stderr string
	}{
		{[]string{"bogus"}, 2, "error: there is no command \"bogus\" (see keysvc --help)\n"},
		{[]string{"kye"}, 2, "error: there is no command \"kye\"; is it key? (see keysvc --help)\n"},
		{[]string{"key", "bogus"}, 2, "error: there is no command \"bogus\" (see keysvc key --help)\n"},
		{[]string{"key", "get"}, 2, "error: needs exactly KEY_ID besides flags, got 0 arguments (see keysvc key get --help)\n"},
		{[]string{"key", "get", ""}, 2, "error: KEY_ID is empty (see keysvc key get --help)\n"},
		{[]string{"key", "list", "x"}, 2, "error: takes flags only, no argument (see keysvc key list --help)\n"},
		{[]string{"key", "list", "--bogus"}, 2, "error: unknown flag: --bogus (see keysvc key list --help)\n"},
		{[]string{"key", "list", "-o", "xml"}, 2, "error: invalid argument \"xml\" for \"-o, --output\" flag: allowed are table, wide, json, yaml or name (see keysvc key list --help)\n"},
		{[]string{"key", "list", "--state", "gone"}, 2, "error: --state: allowed are active, suspended, expired, revoked, held (see keysvc key list --help)\n"},
		{[]string{"key", "list", "--limit", "0"}, 2, "error: --limit must be at least 1 (see keysvc key list --help)\n"},
		{[]string{"key", "list", "--timeout", "0s"}, 2, "error: --timeout must be more than 0 (see keysvc key list --help)\n"},
		{[]string{"key", "revoke"}, 2, "error: needs exactly KEY_ID besides flags, got 0 arguments (see keysvc key revoke --help)\n"},
		{[]string{"key", "revoke", "x"}, 7, "error: nothing was changed: there is no terminal to ask at; give --yes to go on without the question\n"},
		{[]string{"key", "rotate", "x", "--workspace", "acme"}, 2, "error: required flag(s) \"overlap\" not set (see keysvc key rotate --help)\n"},
		{[]string{"key", "list", "--state", "active", "--revoked"}, 2, "error: if any flags in the group [state revoked] are set none of the others can be; [revoked state] were all set (see keysvc key list --help)\n"},
		{[]string{"key", "finish-rotation", "x"}, 2, "error: --workspace or KEYSVC_WORKSPACE is needed (see keysvc key finish-rotation --help)\n"},
		{[]string{"version", "x"}, 2, "error: takes flags only, no argument (see keysvc version --help)\n"},
	}
	for _, test := range tests {
		command{}.run(t, test.args...).want(t, test.status, "", test.stderr)
	}
	if r := (command{}).run(t); r.status != 0 || !strings.Contains(r.stdout, "keysvc serve --dev") || r.stderr != "" {
		t.Errorf("no command: %+v", r)
	}
	for _, args := range [][]string{{"version", "--addr", "unix:///nowhere"}, {"--version"}} {
		if r := (command{}).run(t, args...); r.status != 0 || !strings.HasPrefix(r.stdout, "keysvc ") || strings.Count(r.stdout, "\n") != 1 {
			t.Errorf("%v: %+v", args, r)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := (command{}).run(t, "completion", shell); r.status != 0 || r.stdout == "" || r.stderr != "" {
			t.Errorf("completion %s: status %d, %d bytes, %s", shell, r.status, len(r.stdout), r.stderr)
		}
	}
	if r := (command{}).run(t, "__complete", "key", "list", "--state", ""); !strings.HasPrefix(r.stdout, "active\nsuspended\nexpired\nrevoked\n") {
		t.Errorf("completion of --state: %+v", r)
	}
}

func TestTokenAsArgumentIsRefusedUnread(t *testing.T) {
	for _, args := range [][]string{
		{testToken},
		{"key", "revoke", "validate", testToken},
		{"validate", "--scope", "signatures:read", testToken},
		{"validate", "--scope", "signatures:read", testToken[:40]},
		{"validate", "--scope", testToken},
		{"key", "get", testToken},
		{"key", "revoke", "--workspace=acme", testToken},
		{"key", "list", "--" + testToken},
		{"help", testToken},
		{"__complete", "key", testToken},
	} {
		r := command{}.run(t, args...)
		want := cli.ExitUsage
		if args[0] == "validate" {
			want = cli.ExitFailure
		}
		if r.status != want || r.stdout != "" || !strings.HasPrefix(r.stderr, "error: an argument looks like a token") ||
			strings.Contains(r.stderr, "_ksk1_") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	// Validate does not echo an argument that does not look like a token, either.
	r := command{}.run(t, "validate", "--scope", "signatures:read", secretPart)
	if r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "standard input") {
		t.Errorf("%+v", r)
	}
}
