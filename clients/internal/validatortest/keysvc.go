package validatortest

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Keysvc is a Backend over a real keysvc.
type Keysvc struct {
	// Under is the Validator under test.
	Under keyauth.Validator
	// Keys and Members are clients of the keysvc.
	Keys    keysvcv1.KeyServiceClient
	Members keysvcv1.MemberServiceClient
	// Clock is the clock of the keysvc.
	Clock interface {
		Now() time.Time
		Advance(d time.Duration)
	}
}

// Validator implements Backend.
func (k *Keysvc) Validator() keyauth.Validator { return k.Under }

// PutMember implements Backend.
func (k *Keysvc) PutMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	k.put(t, workspaceID, memberID, role, keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
}

// SuspendMember implements Backend.
func (k *Keysvc) SuspendMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	k.put(t, workspaceID, memberID, role, keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
}

func (k *Keysvc) put(t testing.TB, workspaceID, memberID, role string, state keysvcv1.MemberState) {
	t.Helper()
	if _, err := k.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: state,
	}); err != nil {
		t.Fatal(err)
	}
}

// RemoveMember implements Backend.
func (k *Keysvc) RemoveMember(t testing.TB, workspaceID, memberID string) {
	t.Helper()
	if _, err := k.Members.RemoveMember(t.Context(), &keysvcv1.RemoveMemberRequest{WorkspaceId: workspaceID, MemberId: memberID}); err != nil {
		t.Fatal(err)
	}
}

// CreateKey implements Backend.
func (k *Keysvc) CreateKey(t testing.TB, key Key) (keyID, token string) {
	t.Helper()
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: key.WorkspaceID, MemberId: key.MemberID, Name: "test", Scopes: key.Scopes, AllowedCidrs: key.AllowedCIDRs,
	}
	if key.Lifetime != 0 {
		request.ExpireTime = timestamppb.New(k.Clock.Now().Add(key.Lifetime))
	}
	made, err := k.Keys.CreateKey(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return made.GetKey().GetKeyId(), made.GetToken()
}

// RevokeKey implements Backend.
func (k *Keysvc) RevokeKey(t testing.TB, workspaceID, keyID string) {
	t.Helper()
	if _, err := k.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: keyID}); err != nil {
		t.Fatal(err)
	}
}

// RotateKey implements Backend.
func (k *Keysvc) RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) (token string) {
	t.Helper()
	rotated, err := k.Keys.RotateKey(t.Context(), &keysvcv1.RotateKeyRequest{
		WorkspaceId: workspaceID, KeyId: keyID, Overlap: durationpb.New(overlap),
	})
	if err != nil {
		t.Fatal(err)
	}
	return rotated.GetToken()
}

// Advance implements Backend.
func (k *Keysvc) Advance(d time.Duration) { k.Clock.Advance(d) }
