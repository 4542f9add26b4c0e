package cli_test

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
)

func testMember(id string) *keysvcv1.Member {
	return &keysvcv1.Member{
		WorkspaceId: "acme", MemberId: id, Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		SourceVersion: 4, CreateTime: at(-40 * day), UpdateTime: at(-5 * day),
	}
}

func TestMemberPutKeepsWhatNoFlagNames(t *testing.T) {
	var got *keysvcv1.PutMemberRequest
	c := command{addr: start(t, &fake{
		putMember: func(_ context.Context, r *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
			got = r
			return &keysvcv1.PutMemberResponse{Member: testMember(r.GetMemberId()), Revision: 2, Epoch: "e1"}, nil
		},
		getMember: func(_ context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			member := testMember(r.GetMemberId())
			switch r.GetMemberId() {
			case "new":
				return nil, failure(t, codes.NotFound, "none", &errdetails.ErrorInfo{Reason: "MEMBER_NOT_FOUND", Domain: "keysvc"})
			case "gone":
				member.State = keysvcv1.MemberState_MEMBER_STATE_REMOVED
			case "sue":
				member.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
			case "odd":
				return nil, failure(t, codes.DataLoss, "damaged", &errdetails.ErrorInfo{Reason: "RECORD_DAMAGED", Domain: "keysvc"})
			}
			return &keysvcv1.GetMemberResponse{Member: member, Revision: 2, Epoch: "e1"}, nil
		},
	})}
	r := c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager")
	golden(t, "member.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}

	// A role or state that no flag gives stays as it is.
	for _, test := range []struct {
		member      string
		flags       []string
		role, state string
	}{
		{"ann", []string{"--role", "owner"}, "owner", "ACTIVE"},
		{"ann", []string{"--state", "suspended"}, "manager", "SUSPENDED"},
		{"sue", []string{"--role", "owner"}, "owner", "SUSPENDED"},
		{"sue", []string{"--role", "owner", "--source-version", "9"}, "owner", "SUSPENDED"},
		{"sue", []string{"--state", "active"}, "manager", "ACTIVE"},
		{"sue", []string{"--role", "owner", "--state", "active"}, "owner", "ACTIVE"},
		{"gone", []string{"--role", "owner"}, "owner", "ACTIVE"},
		{"new", []string{"--role", "owner"}, "owner", "ACTIVE"},
		{"new", []string{"--role", "owner", "--state", "suspended"}, "owner", "SUSPENDED"},
	} {
		got = nil
		r := c.run(t, slices.Concat([]string{"member", "put", test.member, "--workspace", "acme"}, test.flags)...)
		if r.status != 0 || got.GetRole() != test.role || got.GetState().String() != "MEMBER_STATE_"+test.state {
			t.Errorf("%s %v: %+v, request %v, want %s, %s", test.member, test.flags, r, got, test.role, test.state)
		}
	}

	c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--state", "suspended", "--source-version", "0", "--actor", "bob")
	want := &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_SUSPENDED,
		SourceVersion: proto.Int64(0), ActorMemberId: new("bob"),
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}

	got = nil
	for _, args := range [][]string{
		{"ann", "--role", "manager", "--state", "removed"},
		{"ann", "--role", "manager", "--state", ""},
		{"ann"},
		{"new", "--state", "active"},
		{"gone", "--state", "active"},
		{"odd", "--role", "owner"},
	} {
		status := cli.ExitUsage
		if args[0] == "odd" {
			status = cli.ExitFailure
		}
		if r := c.run(t, append([]string{"member", "put", "--workspace", "acme"}, args...)...); r.status != status || got != nil {
			t.Errorf("%v: %+v, request %v", args, r, got)
		}
	}
}

func TestMembersAreShownAndListed(t *testing.T) {
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

func TestMemberRemoveTellsWhatWasThereBefore(t *testing.T) {
	var got *keysvcv1.RemoveMemberRequest
	state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	var missing error
	f := &fake{
		getMember: func(_ context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			member := testMember(r.GetMemberId())
			member.State = state
			return &keysvcv1.GetMemberResponse{Member: member}, missing
		},
		remove: func(_ context.Context, r *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
			got = r
			return &keysvcv1.RemoveMemberResponse{Revision: 7, Epoch: "e1"}, nil
		},
	}
	c := command{addr: start(t, f)}
	const done = "ann is not a member of workspace acme any more: none of the keys of ann works.\n"
	args := []string{"member", "remove", "ann", "--workspace", "acme", "--yes"}
	if r := c.run(t, args[:5]...); r.status != cli.ExitRefused || got != nil {
		t.Errorf("without a question: %+v", r)
	}
	c.run(t, args...).want(t, 0, done, "")
	if want := (&keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}); !proto.Equal(got, want) {
		t.Errorf("request %v", got)
	}
	c.run(t, append(args, "--source-version", "0", "--actor", "bob", "-o", "json")...).want(t, 0, "{\n  \"revision\": \"7\",\n  \"epoch\": \"e1\"\n}\n", "")
	want := &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann", SourceVersion: proto.Int64(0), ActorMemberId: new("bob")}
	if !proto.Equal(got, want) {
		t.Errorf("request %v", got)
	}
	state = keysvcv1.MemberState_MEMBER_STATE_REMOVED
	c.run(t, args...).want(t, 0, done, "note: ann was removed from workspace acme before\n")
	// A directory may push a removal before the member, so the command sends it.
	got, missing = nil, failure(t, codes.NotFound, "none", &errdetails.ErrorInfo{Reason: "MEMBER_NOT_FOUND", Domain: "keysvc"})
	c.run(t, args...).want(t, 0, done, "note: there was no member ann in workspace acme\n")
	if got == nil {
		t.Error("nothing was sent")
	}
	got, missing = nil, failure(t, codes.Unavailable, "not ready", &errdetails.ErrorInfo{Reason: "STORE_UNAVAILABLE", Domain: "keysvc"})
	c.run(t, args...).want(t, 8, "", "error: UNAVAILABLE (STORE_UNAVAILABLE): not ready\n")
	if got != nil {
		t.Error("removed in spite of an error")
	}
}
