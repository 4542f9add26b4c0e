package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// catalogue and may repeat the default policy, written from the contract and not from the code.
var catalogue = func() []string {
	var scopes []string
	for _, resource := range []string{"teammates", "emails", "signatures", "smart_fields", "folders", "assets", "marketing_campaigns"} {
		for _, action := range []string{"read", "write", "delete"} {
			scopes = append(scopes, resource+":"+action)
		}
	}
	return append(scopes, "integrations:read", "financial_documents:read")
}()

var roles = []string{"owner", "admin", "manager", "member"}

func may(role, scope string) bool {
	switch role {
	case "owner", "admin":
		return true
	case "manager":
		return !strings.HasPrefix(scope, "financial_documents:")
	}
	return false
}

// TestEveryScopeAndRoleIsDecidedAsWrittenDown asks the running binary about every scope and every
// role, with the scope granted and not granted.
func TestEveryScopeAndRoleIsDecidedAsWrittenDown(t *testing.T) {
	t.Parallel()
	if len(catalogue) != 23 {
		t.Fatalf("%d scopes", len(catalogue))
	}
	s := serve(t, t.TempDir())
	type cell struct {
		role, scope string
		granted     bool
		token       string
	}
	var cells []cell
	for _, role := range roles {
		// A key can be granted only scopes of the role. So the member is an owner while the keys
		// are created, and gets the role afterwards.
		s.putMember(t, "matrix", role, "owner")
		for index, scope := range catalogue {
			others := slices.Delete(slices.Clone(catalogue), index, index+1)
			cells = append(cells,
				cell{role: role, scope: scope, granted: true, token: s.create(t, "matrix", role, scope).GetToken()},
				cell{role: role, scope: scope, token: s.create(t, "matrix", role, others...).GetToken()},
			)
		}
		s.putMember(t, "matrix", role, role)
	}
	if len(cells) != 23*4*2 {
		t.Errorf("%d cells", len(cells))
	}
	count := make(map[string]int)
	for _, cell := range cells {
		want := "ALLOWED"
		switch {
		case !cell.granted:
			want = "PERMISSION_DENIED SCOPE_NOT_GRANTED"
		case !may(cell.role, cell.scope):
			want = "PERMISSION_DENIED SCOPE_BEYOND_ROLE"
		}
		response := s.decide(t, cell.token, cell.scope)
		if got := inWords(response); got != want {
			t.Errorf("%s, %s, granted %t: got %s, want %s", cell.role, cell.scope, cell.granted, got, want)
		}
		if isSet := response.GetPrincipal().GetRole() == cell.role; isSet != (want == "ALLOWED") {
			t.Errorf("%s, %s, granted %t: principal %v", cell.role, cell.scope, cell.granted, response.GetPrincipal())
		}
		count[want]++
	}
	if got := fmt.Sprint(count); got != "map[ALLOWED:68 PERMISSION_DENIED SCOPE_BEYOND_ROLE:24 PERMISSION_DENIED SCOPE_NOT_GRANTED:92]" {
		t.Errorf("outcomes: %s", got)
	}
	// The served policy equals the one written down here.
	policy, err := s.policies.GetPolicy(testContext(t), &keysvcv1.GetPolicyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var served []string
	for _, resource := range policy.GetPolicy().GetResources() {
		for _, action := range resource.GetActions() {
			served = append(served, resource.GetName()+":"+action)
		}
	}
	if !slices.Equal(served, catalogue) || len(policy.GetPolicy().GetRoles()) != len(roles) {
		t.Errorf("the policy has %q and %v", served, policy.GetPolicy().GetRoles())
	}
	s.stop(t)
}

// inWords returns decision and reason without their prefixes.
func inWords(response *keysvcv1.ValidateKeyResponse) string {
	text := strings.TrimPrefix(response.GetDecision().String(), "DECISION_")
	if response.GetReason() != keysvcv1.Reason_REASON_UNSPECIFIED {
		text += " " + strings.TrimPrefix(response.GetReason().String(), "REASON_")
	}
	return text
}
