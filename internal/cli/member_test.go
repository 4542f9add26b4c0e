package cli_test

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func testMember(id string) *keysvcv1.Member {
	return &keysvcv1.Member{
		WorkspaceId: "acme", MemberId: id, Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		SourceVersion: 4, CreateTime: at(-40 * day), UpdateTime: at(-5 * day),
	}
}

func TestMemberPut(t *testing.T) {
	var got *keysvcv1.PutMemberRequest
	c := command{addr: start(t, &fake{putMember: func(_ context.Context, r *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
		got = r
		return &keysvcv1.PutMemberResponse{Member: testMember(r.GetMemberId()), Revision: 2, Epoch: "e1"}, nil
	}})}
	r := c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager")
	golden(t, "member.txt", r.stdout)
	want := &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "ann", Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE}
	if r.status != 0 || r.stderr != "" || !proto.Equal(got, want) {
		t.Errorf("%+v, request %v", r, got)
	}

	c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--state", "suspended", "--source-version", "0", "--actor", "bob")
	want.State, want.SourceVersion, want.ActorMemberId = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED, proto.Int64(0), new("bob")
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}

	got = nil
	if r := c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--state", "removed"); r.status != 1 || got != nil {
		t.Errorf("%+v, request %v", r, got)
	}
}

func TestMemberGetAndList(t *testing.T) {
	c := command{addr: start(t, &fake{
		getMember: func(_ context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			return &keysvcv1.GetMemberResponse{Member: testMember(r.GetMemberId()), Revision: 2, Epoch: "e1"}, nil
		},
		listMembers: func(_ context.Context, r *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
			if r.GetPageToken() == "" {
				return &keysvcv1.ListMembersResponse{Members: []*keysvcv1.Member{testMember("ann@example.com")}, NextPageToken: "2"}, nil
			}
			suspended := testMember("bob")
			suspended.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
			return &keysvcv1.ListMembersResponse{Members: []*keysvcv1.Member{suspended}}, nil
		},
	})}
	golden(t, "member.txt", c.run(t, "member", "get", "ann", "--workspace", "acme").stdout)
	golden(t, "member.json", c.run(t, "member", "get", "ann", "--workspace", "acme", "-o", "json").stdout)
	r := c.run(t, "member", "list", "--workspace", "acme")
	golden(t, "member_list.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	r = c.run(t, "member", "list", "--workspace", "acme", "--limit", "1")
	if r.stderr != "there may be more members: go on with --page-token 2, or show all with --all\n" {
		t.Errorf("%+v", r)
	}
}
