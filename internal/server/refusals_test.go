package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// refusals stops the server and returns what it has recorded, oldest first, without what differs
// from run to run.
func (b *bench) refusals(t *testing.T) []string {
	t.Helper()
	b.stop(t, patience)
	kept, has := storage.As[storage.RefusalStore](b.store)
	if !has {
		t.Fatal("the store keeps no refusals")
	}
	page, err := kept.ListRefusals(t.Context(), storage.Query{Limit: storage.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, refusal := range slices.Backward(page.Refusals) {
		if refusal.GetRequestId() == "" == (refusal.GetMethod() != "" && !strings.Contains(refusal.GetMethod(), "Validation")) || refusal.GetTime() == nil || refusal.GetLastTime() == nil {
			t.Errorf("no request id or time: %v", refusal)
		}
		_, method, _ := strings.Cut(refusal.GetMethod(), "/")
		shown = append(shown, fmt.Sprintf("%s %s by %s for %q: %s/%s/%s %s %s ×%d",
			strings.TrimPrefix(refusal.GetKind().String(), "REFUSAL_KIND_"), method, refusal.GetCaller(), refusal.GetActorMemberId(),
			refusal.GetWorkspaceId(), refusal.GetKeyId(), refusal.GetMemberId(), refusal.GetCode(), refusal.GetReason(), refusal.GetCount()))
	}
	return shown
}

// TestRefusedChangesAreRecorded also shows what is not: malformed calls, refused reads, and text of a
// caller that names nothing.
func TestRefusedChangesAreRecorded(t *testing.T) {
	b := start(t, options{})
	ctx := testContext(t)
	b.putMember(t, "acme", "ann", "member")
	b.putMember(t, "acme", "bob", "owner")
	key := b.create(t, "acme", "bob", "emails:read")
	id := key.GetKey().GetKeyId()
	if _, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: id}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := b.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: id, Overlap: durationOf(0), ActorMemberId: new("ann")})
		expectError(t, err, codes.FailedPrecondition, "KEY_REVOKED")
	}
	_, err := b.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}})
	expectError(t, err, codes.PermissionDenied, "SCOPE_BEYOND_ROLE")
	_, err = b.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "ann", Role: "none", State: 1})
	expectError(t, err, codes.InvalidArgument, "ROLE_UNKNOWN")
	_, err = b.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: "0123456789abcdef"})
	expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
	_, err = b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "nowhere", KeyId: "0123456789abcdef", ActorMemberId: new("nobody")})
	expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
	want := []string{
		"CHANGE RotateKey by local for \"ann\": acme/" + id + "/ FAILED_PRECONDITION KEY_REVOKED ×2",
		"CHANGE CreateKey by local for \"\": acme//ann PERMISSION_DENIED SCOPE_BEYOND_ROLE ×1",
		"CHANGE RevokeKey by local for \"\": // NOT_FOUND KEY_NOT_FOUND ×1",
	}
	if got := b.refusals(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRefusedCallersAreRecorded(t *testing.T) {
	b := startCallers(t, "- {name: limited, loopback: true, rights: [issue, read], workspaces: [acme]}\n")
	ctx := testContext(t)
	for range 3 { // a validation has no request id, and is not logged
		_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: "x", RequiredScope: "emails:read"})
		expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	}
	_, err := b.policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{})
	expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	_, err = b.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "beta", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}})
	expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	want := []string{
		"CALLER ValidateKey by limited for \"\": // PERMISSION_DENIED CALLER_NOT_ALLOWED ×3",
		"CALLER ApplyPolicy by limited for \"\": // PERMISSION_DENIED CALLER_NOT_ALLOWED ×1",
		"CALLER CreateKey by limited for \"\": // PERMISSION_DENIED CALLER_NOT_ALLOWED ×1",
	}
	if got := b.refusals(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestRefusedValidationsAreRecordedAtAnyLogLevel: at debug they are reported as other calls are.
func TestRefusedValidationsAreRecordedAtAnyLogLevel(t *testing.T) {
	for _, level := range []string{"debug", "error"} {
		b := start(t, options{settings: func(settings *config.Settings) {
			if err := settings.LogLevel.UnmarshalText([]byte(level)); err != nil {
				t.Fatal(err)
			}
			settings.Callers = filepath.Join(t.TempDir(), "callers.yaml")
			if err := os.WriteFile(settings.Callers, []byte("version: 1\ncallers:\n"+mayRead), 0o600); err != nil {
				t.Fatal(err)
			}
		}})
		_, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: "x", RequiredScope: "emails:read"})
		expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		if got := b.refusals(t); !slices.Equal(got, []string{"CALLER ValidateKey by reader for \"\": // PERMISSION_DENIED CALLER_NOT_ALLOWED ×1"}) {
			t.Errorf("%s: got %q", level, got)
		}
	}
}

// TestAStoreWithoutRefusalsServes: the optional behaviour may be missing.
func TestAStoreWithoutRefusalsServes(t *testing.T) {
	b := start(t, options{wrap: func(store storage.Store) storage.Store { return struct{ storage.Store }{store} }})
	_, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: "0123456789abcdef"})
	expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
	if got := b.refusals(t); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}
