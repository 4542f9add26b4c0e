package keyscreen

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// viewer is the member that a visit is made for.
type viewer struct {
	workspace, member, role string
	// all is whether the role sees all keys of the workspace.
	all bool
	// assignable are the scopes that the member can grant.
	assignable []string
	// outdated is whether keysvc is too old to tell them.
	outdated bool
	// policy is the active one.
	policy *keysvcv1.Policy
}

// enter sets the viewer of a visit. It answers and returns false if the viewer may not see the screen.
func (v *visit) enter() bool {
	workspace, member, err := v.config.Session(v.r)
	switch {
	case errors.Is(err, ErrSignedOut):
		v.problem(http.StatusUnauthorized, "problem.signed_out")
		return false
	case err != nil:
		v.config.Log.ErrorContext(v.r.Context(), "keyscreen: Config.Session failed", "error", err)
		v.problem(http.StatusServiceUnavailable, "problem.unavailable")
		return false
	case workspace == "" || member == "":
		// An empty workspace would mean all of them to keysvc.
		v.config.Log.ErrorContext(v.r.Context(), "keyscreen: Config.Session returned an empty workspace or member")
		v.problem(http.StatusServiceUnavailable, "problem.unavailable")
		return false
	}
	v.viewer.workspace, v.viewer.member = workspace, member
	known, err := v.members.GetMember(v.r.Context(), &keysvcv1.GetMemberRequest{WorkspaceId: workspace, MemberId: member})
	switch {
	case status.Code(err) == codes.NotFound || known.GetMember().GetState() == keysvcv1.MemberState_MEMBER_STATE_REMOVED:
		v.problem(http.StatusForbidden, "problem.member_unknown")
		return false
	case err != nil:
		v.failed("GetMember", err)
		return false
	case known.GetMember().GetState() != keysvcv1.MemberState_MEMBER_STATE_ACTIVE:
		v.problem(http.StatusForbidden, "problem.member_suspended")
		return false
	}
	active, err := v.policies.GetPolicy(v.r.Context(), &keysvcv1.GetPolicyRequest{})
	if err != nil {
		v.failed("GetPolicy", err)
		return false
	}
	v.viewer.policy = active.GetPolicy()
	v.viewer.role = known.GetMember().GetRole()
	v.viewer.all = slices.Contains(v.config.AllKeysRoles, v.viewer.role)
	v.viewer.assignable = known.GetAssignableScopes()
	v.viewer.outdated = len(v.viewer.assignable) == 0 && v.roleHasScopes()
	return true
}

// roleHasScopes reports whether the policy gives the viewer's role a scope.
func (v *visit) roleHasScopes() bool {
	return slices.ContainsFunc(v.viewer.policy.GetRoles(), func(role *keysvcv1.PolicyRole) bool {
		return role.GetName() == v.viewer.role && len(role.GetScopes()) > 0
	})
}

// own reports whether a key acts as the viewer.
func (v *visit) own(key *keysvcv1.Key) bool { return key.GetMemberId() == v.viewer.member }

// key returns a key that the viewer may see. Whatever else the id names, the answer is the same 404.
func (v *visit) key(id string) (*keysvcv1.Key, bool) {
	if !keyID(id) {
		v.problem(http.StatusNotFound, "problem.key_unknown")
		return nil, false
	}
	response, err := v.keys.GetKey(v.r.Context(), &keysvcv1.GetKeyRequest{WorkspaceId: v.viewer.workspace, KeyId: id})
	key := response.GetKey()
	switch {
	case err != nil && status.Code(err) != codes.NotFound:
		v.failed("GetKey", err)
		return nil, false
	case err != nil || key.GetWorkspaceId() != v.viewer.workspace || !v.viewer.all && !v.own(key):
		v.problem(http.StatusNotFound, "problem.key_unknown")
		return nil, false
	}
	return key, true
}

// keyID reports whether a text has the form of a key's id.
func keyID(text string) bool {
	const allowed = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	return len(text) == 16 && strings.Trim(text, allowed) == ""
}

// names returns what people call members.
func (v *visit) names(members []string) map[string]string {
	slices.Sort(members)
	members = slices.Compact(members)
	if v.config.MemberNames == nil || len(members) == 0 {
		return nil
	}
	return v.config.MemberNames(v.r, v.viewer.workspace, members)
}
