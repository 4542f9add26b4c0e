package decide

import (
	"net/netip"
	"slices"
	"time"
)

// Check is a step of a decision on a token that holds a secret of a key.
type Check uint8

// The checks, in their order. Their numbers are those of the API's enum KeyCheckKind.
const (
	// NotRevoked checks that the key was not revoked.
	NotRevoked Check = 1
	// WorkspaceExists checks that the workspace was not removed since the key was created.
	WorkspaceExists Check = 2
	// MemberExists checks that the member was not removed since the key was created.
	MemberExists Check = 3
	// NotExpired checks that the key's expire time has not come.
	NotExpired Check = 4
	// MemberActive checks that the member is not suspended.
	MemberActive Check = 5
	// AddressAllowed checks the client address.
	AddressAllowed Check = 6
	// ScopeGranted checks that the key has the scope.
	ScopeGranted Check = 7
	// ScopeWithinRole checks that the member's present role has the scope.
	ScopeWithinRole Check = 8
	// NotHeld checks that the key is not held since a restore. It stands between NotExpired and
	// MemberActive, and only on a key that is held.
	NotHeld Check = 9
)

// Outcome is what came of a check. The zero value is not an outcome.
type Outcome uint8

// The outcomes. Their numbers are those of the API's enum KeyCheckOutcome.
const (
	// Passed lets the request pass.
	Passed Outcome = 1
	// Failed refuses the request.
	Failed Outcome = 2
	// NotApplicable means that there is nothing to check.
	NotApplicable Outcome = 3
)

// Step is a check and what came of it.
type Step struct {
	// Check is what was checked.
	Check Check
	// Outcome is what came of it.
	Outcome Outcome
}

// Explain decides on a token that holds the newest secret of the subject's key, as Authenticate
// and then Authorize do, and returns all steps in their order. The first step that failed belongs
// to the reason; those after it tell what else would refuse.
// Without a key the reason is KeyInvalid, and there are no steps.
func Explain(subject Subject, requirement Requirement, address netip.Addr, now time.Time) (Decision, Reason, []Step) {
	if subject.Key == nil {
		return Unauthenticated, KeyInvalid, nil
	}
	steps := subject.steps(requirement, address, unixNano(now))
	grant, reason := identify(&subject, "", subject.Key.ExpireTime, unixNano(now))
	if reason != NoReason {
		return reason.Decision(), reason, steps
	}
	decision, reason := Authorize(&grant, "", requirement, address, now)
	return decision, reason, steps
}

// steps returns what came of each check by itself.
func (s *Subject) steps(requirement Requirement, address netip.Addr, now int64) []Step {
	steps := []Step{
		{NotRevoked, passedIf(!s.Key.Revoked)},
		{WorkspaceExists, passedIf(!s.lostWorkspace())},
		{MemberExists, passedIf(!s.lostMember())},
		{NotExpired, passedIf(now < s.Key.ExpireTime)},
		{MemberActive, NotApplicable},
		{AddressAllowed, passedIf(admits(s.Key.AllowedPrefixes, address))},
		{ScopeGranted, NotApplicable},
		{ScopeWithinRole, NotApplicable},
	}
	hasMember := !s.lostWorkspace() && !s.lostMember()
	if hasMember {
		steps[4].Outcome = passedIf(s.Member.Active)
	}
	if !requirement.NeedsNoScope() {
		granted, within := s.scopeSteps(&requirement)
		steps[6].Outcome = passedIf(granted)
		if hasMember {
			steps[7].Outcome = passedIf(within)
		}
	}
	if s.Key.Held { // otherwise nobody has to read of a restore
		steps = slices.Insert(steps, 4, Step{NotHeld, Failed})
	}
	return steps
}

// scopeSteps reports whether what the requirement names was granted to the key, and whether the role has
// it. Of AnyOf, the role must have a scope that was granted, if one was.
func (s *Subject) scopeSteps(requirement *Requirement) (granted, within bool) {
	if requirement.Kinds() != 1 {
		return false, false
	}
	needed, role := NewScopes(requirement.Scopes()...), s.roleScopes()
	has := needed.Intersect(s.Key.Scopes)
	if len(requirement.AnyOf) == 0 {
		return len(has) == len(needed), len(needed.Without(role)) == 0
	}
	if len(has) == 0 {
		return false, len(needed.Intersect(role)) > 0
	}
	return true, len(has.Intersect(role)) > 0
}

func passedIf(passed bool) Outcome {
	if passed {
		return Passed
	}
	return Failed
}
