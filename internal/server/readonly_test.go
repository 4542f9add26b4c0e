package server_test

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
)

func TestReadOnlyServerValidatesAndChangesNothing(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read")
	token, keyID := created.GetToken(), created.GetKey().GetKeyId()
	revoked := b.create(t, "acme", "ann", "emails:read")
	if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: revoked.GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	before := b.dump(t)

	b.server.SetReadOnly(true)
	ctx := testContext(t)
	for name, change := range map[string]func() error{
		"create": func() error {
			_, err := b.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}})
			return err
		},
		"revoke": func() error {
			_, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID})
			return err
		},
		"revoke again": func() error {
			_, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: revoked.GetKey().GetKeyId()})
			return err
		},
		"report": func() error {
			_, err := b.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: token})
			return err
		},
		"put": func() error {
			_, err := b.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "bob", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
			return err
		},
		"remove": func() error {
			_, err := b.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"})
			return err
		},
	} {
		if code, reason := reasonOf(change()); code != codes.Unavailable || reason != "READ_ONLY" {
			t.Errorf("%s: %v, %s", name, code, reason)
		}
	}
	b.expectAllowed(t, token, "emails:read")
	b.expectRefused(t, revoked.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
	if err := b.server.FlushUses(ctx); err == nil {
		t.Error("last-used times were written")
	}
	if after := b.dump(t); !slices.Equal(before, after) {
		t.Errorf("the store was changed:\n%q\n%q", before, after)
	}
	if !hasProblem(b.status(t), "read-only") {
		t.Error("the status does not say so")
	}

	b.server.SetReadOnly(false)
	if hasProblem(b.status(t), "read-only") {
		t.Error("the status still says so")
	}
	if err := b.server.FlushUses(ctx); err != nil {
		t.Errorf("the times that were postponed: %v", err)
	}
	if _, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID}); err != nil {
		t.Error(err)
	}
	b.expectRefused(t, token, "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
}

func hasProblem(status *keysvcv1.GetStatusResponse, id string) bool {
	return slices.ContainsFunc(status.GetProblems(), func(problem *keysvcv1.StatusProblem) bool { return problem.GetProblemId() == id })
}

func TestServerMayBeginReadOnly(t *testing.T) {
	t.Parallel()
	first := start(t, options{})
	first.putMember(t, "acme", "ann", "owner")
	token := first.create(t, "acme", "ann", "emails:read").GetToken()
	first.stop(t, patience)
	if err := first.store.Close(); err != nil {
		t.Fatal(err)
	}
	second := start(t, options{file: first.file, clock: first.clock, settings: func(s *config.Settings) { s.ReadOnly = true }})
	second.expectAllowed(t, token, "emails:read")
	_, err := second.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "bob", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
	if _, reason := reasonOf(err); reason != "READ_ONLY" || !hasProblem(second.status(t), "read-only") {
		t.Errorf("it answers %v", err)
	}
}

// slowCommits is a store whose commits wait.
type slowCommits struct {
	storage.Store
	began, release chan struct{}
}

// Commit implements storage.Committer.
func (s *slowCommits) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if change.PutWorkspace != nil {
		close(s.began)
		<-s.release
	}
	return s.Store.Commit(ctx, change)
}

// TestReadOnlyWaitsForChangesThatHaveBegun: whoever copies the store once the server says that it is read-only
// has every change that was answered.
func TestReadOnlyWaitsForChangesThatHaveBegun(t *testing.T) {
	t.Parallel()
	slow := &slowCommits{began: make(chan struct{}), release: make(chan struct{})}
	b := start(t, options{wrap: func(inner storage.Store) storage.Store {
		slow.Store = inner
		return slow
	}})
	changed, readOnly := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := b.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
		changed <- err
	}()
	<-slow.began
	go func() {
		b.server.SetReadOnly(true)
		close(readOnly)
	}()
	if hasProblem(b.status(t), "read-only") {
		t.Error("it is read-only while a change is being made")
	}
	close(slow.release)
	<-readOnly
	if err := <-changed; err != nil {
		t.Error(err)
	}
	if !hasProblem(b.status(t), "read-only") {
		t.Error("it does not say that it is read-only")
	}
}
