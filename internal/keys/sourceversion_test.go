package keys_test

import (
	"fmt"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
)

// A push is "put ROLE", "suspend ROLE", "remove" or "remove workspace", with @VERSION if it
// has one; the answer is "ok", "same" (nothing was committed) or "outdated".
func TestPushesThatAreNotNewerAreRefused(t *testing.T) {
	for name, pushes := range map[string]string{
		"delivered twice":                 "put owner@1 ok, put owner@1 same",
		"reordered":                       "put owner@2 ok, put member@1 outdated",
		"other role, same version":        "put owner@1 ok, put member@1 outdated",
		"other state, same version":       "put owner@1 ok, suspend owner@1 outdated",
		"changed by hand since":           "put owner@1 ok, suspend owner ok, put owner@1 outdated, put owner@2 ok",
		"after its removal":               "put owner@1 ok, remove@2 ok, put owner@1 outdated, put owner@2 outdated, put owner@3 ok",
		"removal delivered twice":         "put owner@1 ok, remove@2 ok, remove@2 same, remove@1 outdated",
		"removal of the same version":     "put owner@1 ok, remove@1 outdated",
		"removal by hand":                 "put owner@1 ok, remove ok, put owner@1 outdated, remove@1 same, put owner@2 ok",
		"removal that overtook":           "remove@2 ok, put owner@1 outdated, put owner@3 ok",
		"workspace removed by hand":       "put owner@1 ok, remove workspace ok, put owner@1 outdated, remove@1 outdated, put owner@2 ok",
		"workspace removed":               "put owner@1 ok, remove workspace@2 ok, put owner@1 outdated, put owner@2 outdated, remove@2 outdated, put owner@3 ok",
		"workspace removed, then another": "put owner@1 ok, remove workspace@5 ok, put ann/owner@5 outdated, put ann/owner@4 outdated, put ann/owner@6 ok, put owner@5 outdated",
		"workspace removed twice":         "put owner@1 ok, remove workspace@2 ok, remove workspace@2 same, remove workspace@1 outdated, remove workspace same, remove workspace@3 ok, put owner@3 outdated",
		"workspace that came back":        "put owner@1 ok, remove workspace@2 ok, put owner@3 ok, remove workspace@2 outdated, remove workspace@3 outdated, remove workspace@4 ok",
		"workspace's removal is behind":   "put owner@4 ok, put ann/owner@1 ok, remove workspace@3 outdated, remove workspace@4 outdated, put owner@4 same",
		"workspace's removal overtook":    "remove workspace@2 ok, put owner@1 outdated, put owner@3 ok",
		"unknown workspace":               "remove workspace same, remove workspace@0 same, put owner@0 ok, put owner@0 same",
		"without a version":               "put owner@9 ok, suspend owner ok, put owner ok, put owner@8 outdated, put owner@9 same, remove ok",
	} {
		t.Run(name, func(t *testing.T) {
			w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
			for push := range strings.SplitSeq(pushes, ", ") {
				words := strings.Fields(push)
				what, want := strings.Join(words[:len(words)-1], " "), words[len(words)-1]
				if got := deliver(t, w, what); got != want {
					t.Fatalf("%s: %s, want %s; all of it: %s", what, got, want, pushes)
				}
			}
		})
	}
}

// TestPushBehindTheWorkspacesRemovalAddsNobody also tries what an outdated push must not allow: a member
// who has left creates a key.
func TestPushBehindTheWorkspacesRemovalAddsNobody(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, step := range []string{"put owner@1", "remove workspace"} {
		if got := deliver(t, w, step); got != "ok" {
			t.Fatalf("%s: %s", step, got)
		}
	}
	deliver(t, w, "put owner@1")
	_, err := w.CreateKey(t.Context(), keystest.Actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "bob", Name: "back", Scopes: []string{"emails:read"},
	})
	if got := keystest.ReasonOf(err); got != keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND {
		t.Errorf("CreateKey: %v, want no such member", err)
	}
}

func TestSourceVersionOutOfRangeIsRefused(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, what := range []string{"put owner", "remove", "remove workspace"} {
		for _, version := range []int64{-1, keys.MaxSourceVersion + 1, 1<<63 - 1} {
			if got := deliver(t, w, fmt.Sprintf("%s@%d", what, version)); !strings.Contains(got, "source_version") || !strings.Contains(got, "0 to 4000000000000000000") {
				t.Errorf("%s@%d: %s", what, version, got)
			}
		}
	}
	if got := deliver(t, w, fmt.Sprintf("put owner@%d", int64(keys.MaxSourceVersion))); got != "ok" {
		t.Error(got)
	}
}

// deliver makes one push to the workspace acme, and returns the outcome. The member is bob if the push
// does not name another.
func deliver(t *testing.T, w *keystest.World, push string) string {
	t.Helper()
	what, number, versioned := strings.Cut(push, "@")
	var version *int64
	if versioned {
		version = new(int64)
		if _, err := fmt.Sscan(number, version); err != nil {
			t.Fatal(err)
		}
	}
	verb, role, _ := strings.Cut(what, " ")
	member := "bob"
	if named, rest, found := strings.Cut(role, "/"); found {
		member, role = named, rest
	}
	_, before, _ := w.Projection.Policy()
	var revision int64
	var err error
	switch {
	case what == "remove workspace":
		var response *keysvcv1.RemoveWorkspaceResponse
		response, err = w.RemoveWorkspace(t.Context(), keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme", SourceVersion: version})
		revision = response.GetRevision()
	case verb == "remove":
		var response *keysvcv1.RemoveMemberResponse
		response, err = w.RemoveMember(t.Context(), keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: member, SourceVersion: version})
		revision = response.GetRevision()
	default:
		state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
		if verb == "suspend" {
			state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		}
		var response *keysvcv1.PutMemberResponse
		response, err = w.PutMember(t.Context(), keystest.Actor, &keysvcv1.PutMemberRequest{
			WorkspaceId: "acme", MemberId: member, Role: role, State: state, SourceVersion: version,
		})
		revision = response.GetRevision()
	}
	switch {
	case keystest.ReasonOf(err) == keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED:
		return "outdated"
	case err != nil:
		return err.Error()
	case revision == before:
		return "same"
	}
	return "ok"
}
