package cli_test

import (
	"context"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
)

// What members look like, and which role and state member put keeps, is tested by the scripts of
// cmd/keysvc.

func testMember(id string) *keysvcv1.Member {
	return &keysvcv1.Member{
		WorkspaceId: "acme", MemberId: id, Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		SourceVersion: 4, CreateTime: at(-40 * day), UpdateTime: at(-5 * day),
	}
}

// TestMemberCommandsSendTheirFlags: a source version of 0 is sent, and so is the actor, whom no
// answer shows.
func TestMemberCommandsSendTheirFlags(t *testing.T) {
	var put *keysvcv1.PutMemberRequest
	var removed *keysvcv1.RemoveMemberRequest
	c := command{addr: start(t, &fake{
		putMember: func(_ context.Context, r *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
			put = r
			return &keysvcv1.PutMemberResponse{Member: testMember("ann"), Revision: 2, Epoch: "e1"}, nil
		},
		getMember: func(_ context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			return &keysvcv1.GetMemberResponse{
				Member: testMember(r.GetMemberId()), AssignableScopes: []string{"signatures:read", "emails:read"}, Revision: 2, Epoch: "e1",
			}, nil
		},
		remove: func(_ context.Context, r *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
			removed = r
			return &keysvcv1.RemoveMemberResponse{Revision: 7, Epoch: "e1"}, nil
		},
	})}
	r := c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--state", "suspended", "--source-version", "0", "--actor", "bob")
	golden(t, "member.txt", r.stdout)
	golden(t, "member.json", c.run(t, "member", "get", "ann", "--workspace", "acme", "-o", "json").stdout)
	golden(t, "member_get.txt", c.run(t, "member", "get", "ann", "--workspace", "acme").stdout)
	if want := (&keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_SUSPENDED,
		SourceVersion: proto.Int64(0), ActorMemberId: new("bob"),
	}); !proto.Equal(put, want) {
		t.Errorf("request %v, want %v", put, want)
	}
	args := []string{"member", "remove", "ann", "--workspace", "acme", "--yes"}
	c.run(t, args...).want(t, 0, "ann is not a member of workspace acme any more: none of the keys of ann works.\n", "")
	if want := (&keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}); !proto.Equal(removed, want) {
		t.Errorf("request %v", removed)
	}
	c.run(t, append(args, "--source-version", "0", "--actor", "bob", "-o", "json")...).want(t, 0, "{\n  \"revision\": \"7\",\n  \"epoch\": \"e1\"\n}\n", "")
	want := &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann", SourceVersion: proto.Int64(0), ActorMemberId: new("bob")}
	if !proto.Equal(removed, want) {
		t.Errorf("request %v", removed)
	}
}

// TestMemberCommandsChangeNothingAfterAFailedRead: the member must be read before the change.
func TestMemberCommandsChangeNothingAfterAFailedRead(t *testing.T) {
	var failed error
	// A call that the fake has no function for would panic.
	c := command{addr: start(t, &fake{getMember: func(context.Context, *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
		return nil, failed
	}})}
	failed = failure(t, codes.DataLoss, "damaged", &errdetails.ErrorInfo{Reason: "RECORD_DAMAGED", Domain: "keysvc"})
	c.run(t, "member", "put", "odd", "--workspace", "acme", "--role", "owner").want(t, cli.ExitFailure, "", "error: DATA_LOSS (RECORD_DAMAGED): damaged\n")
	failed = failure(t, codes.Unavailable, "not ready", &errdetails.ErrorInfo{Reason: "STORE_UNAVAILABLE", Domain: "keysvc"})
	c.run(t, "member", "remove", "ann", "--workspace", "acme", "--yes").want(t, cli.ExitUnreachable, "", "error: UNAVAILABLE (STORE_UNAVAILABLE): not ready\n")
}
