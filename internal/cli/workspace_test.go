package cli_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// emptyingWorkspace returns a server with one workspace of two members. removed counts the calls of
// RemoveWorkspace.
func emptyingWorkspace(t *testing.T, removed *int) *fake {
	t.Helper()
	return &fake{
		listMembers: func(context.Context, *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
			gone := testMember("old")
			gone.State = keysvcv1.MemberState_MEMBER_STATE_REMOVED
			return &keysvcv1.ListMembersResponse{Members: []*keysvcv1.Member{testMember("ann"), testMember("bob"), gone}}, nil
		},
		listKeys: func(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
			if r.GetWorkspaceId() != "acme" || len(r.GetStates()) != 2 {
				t.Errorf("request %v", r)
			}
			return &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{testKey()}, NextPageToken: "more"}, nil
		},
		removeAll: func(_ context.Context, r *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
			if r.GetWorkspaceId() != "acme" {
				t.Errorf("request %v", r)
			}
			*removed++
			return &keysvcv1.RemoveWorkspaceResponse{Revision: 9, Epoch: "e1"}, nil
		},
	}
}

func TestWorkspaceRemoveNeedsYesWithoutATerminal(t *testing.T) {
	removed := 0
	f := emptyingWorkspace(t, &removed)
	c := command{addr: start(t, f)}
	// The content of a pipe is no answer.
	c.stdin = strings.NewReader("acme\nyes\n")
	c.run(t, "workspace", "remove", "acme").want(t, 7, "",
		"error: nothing was changed: there is no terminal to ask at; give --yes to go on without the question\n")
	if removed != 0 {
		t.Error("removed without a question")
	}
	c.run(t, "workspace", "remove", "acme", "--yes").want(t, 0, "Workspace acme is removed: none of its keys works any more.\n", "")
	c.run(t, "workspace", "remove", "acme", "--yes", "-o", "json").want(t, 0, "{\n  \"revision\": \"9\",\n  \"epoch\": \"e1\"\n}\n", "")
	if removed != 2 {
		t.Errorf("%d calls", removed)
	}
	var got *keysvcv1.RemoveWorkspaceRequest
	f.removeAll = func(_ context.Context, r *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
		got = r
		return &keysvcv1.RemoveWorkspaceResponse{}, nil
	}
	c.run(t, "workspace", "remove", "acme", "--yes", "--actor", "bob", "--source-version", "0")
	if want := (&keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme", SourceVersion: new(int64(0)), ActorMemberId: new("bob")}); !proto.Equal(got, want) {
		t.Errorf("request %v", got)
	}
	for _, args := range [][]string{{}, {""}, {"a", "b", "--yes"}} {
		if r := c.run(t, append([]string{"workspace", "remove"}, args...)...); r.status != 2 || r.stdout != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
