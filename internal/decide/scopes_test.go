package decide_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/decide"
)

// TestSeveralScopesAreDecidedAsOneByOne compares each requirement over three scopes, for each set of
// granted scopes and each role, with the decisions on its scopes one by one.
func TestSeveralScopesAreDecidedAsOneByOne(t *testing.T) {
	all := []string{"a:x", "b:x", "c:x"}
	subsets := func(bits int) (set []string) {
		for index, scope := range all {
			if bits>>index&1 == 1 {
				set = append(set, scope)
			}
		}
		return set
	}
	now := time.Unix(1_000_000, 0)
	for granted := range 8 {
		for role := range 8 {
			grant := &decide.Grant{Granted: subsets(granted), Role: subsets(role), HoldsUntil: math.MaxInt64}
			reason := func(requirement decide.Requirement) decide.Reason {
				_, why := decide.Authorize(grant, "", requirement, netip.Addr{}, now)
				subject := decide.Subject{
					Key:       &decide.Key{Scopes: grant.Granted, ExpireTime: math.MaxInt64},
					Member:    &decide.Member{Active: true},
					Workspace: &decide.Workspace{}, RoleScopes: &grant.Role,
				}
				_, explained, steps := decide.Explain(subject, requirement, netip.Addr{}, now)
				first := decide.NoReason
				for _, step := range steps {
					if step.Outcome == decide.Failed && first == decide.NoReason {
						first = reasonOf[step.Check]
					}
				}
				if explained != why || first != why {
					t.Errorf("%+v of %+v: explained as %d by steps that say %d, decided %d", requirement, grant, explained, first, why)
				}
				return why
			}
			for needed := 1; needed < 8; needed++ {
				scopes := subsets(needed)
				var single []decide.Reason
				var missing []string
				for _, scope := range scopes {
					why := reason(decide.Requirement{Scope: scope})
					if single = append(single, why); why != decide.NoReason {
						missing = append(missing, scope)
					}
				}
				has := func(why decide.Reason) bool { return slices.Contains(single, why) }
				wantAll, wantAny := decide.NoReason, decide.ScopeNotGranted
				if has(decide.ScopeBeyondRole) {
					wantAll, wantAny = decide.ScopeBeyondRole, decide.ScopeBeyondRole
				}
				if has(decide.ScopeNotGranted) {
					wantAll = decide.ScopeNotGranted
				}
				if has(decide.NoReason) {
					wantAny = decide.NoReason
				}
				what := fmt.Sprintf("%v of %v in %v", scopes, grant.Granted, grant.Role)
				every := decide.Requirement{AllOf: scopes}
				if got := reason(every); got != wantAll {
					t.Errorf("all of %s: %d, want %d", what, got, wantAll)
				}
				if got := every.Missing(grant); !slices.Equal(got, missing) {
					t.Errorf("all of %s: missing %v, want %v", what, got, missing)
				}
				if got := reason(decide.Requirement{AnyOf: scopes}); got != wantAny {
					t.Errorf("any of %s: %d, want %d", what, got, wantAny)
				}
			}
		}
	}
}

// TestCombinedRequirementsAreRefused: the caller of Authorize refuses them, and Authorize denies them.
func TestCombinedRequirementsAreRefused(t *testing.T) {
	scopes := []string{"a:x"}
	grant := &decide.Grant{Granted: scopes, Role: scopes, HoldsUntil: math.MaxInt64}
	for bits := range 16 {
		var requirement decide.Requirement
		kinds := 0
		set := func(bit int, do func()) {
			if bits>>bit&1 == 1 {
				kinds++
				do()
			}
		}
		set(0, func() { requirement.Scope = scopes[0] })
		set(1, func() { requirement.IdentityOnly = true })
		set(2, func() { requirement.AllOf = scopes })
		set(3, func() { requirement.AnyOf = scopes })
		decision, _ := decide.Authorize(grant, "", requirement, netip.Addr{}, time.Unix(1_000_000, 0))
		if (decision == decide.Allowed) != (kinds == 1) {
			t.Errorf("%+v: %d", requirement, decision)
		}
	}
}
