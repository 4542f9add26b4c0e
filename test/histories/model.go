//go:build linux

package main

import (
	"fmt"
	"slices"
)

// scopes is a set of the campaign's scopes, one bit each.
type scopes uint8

// scopeNames are the names of the scopes. Role owner has all of them.
var scopeNames = []string{"signatures:read", "signatures:write", "assets:read", "financial_documents:read"}

// The scopes of the role manager: the first one always, the next two as the policy's variant says.
const (
	alwaysManaged  scopes = 1
	variantScopes  scopes = 6
	policyVariants        = 4
)

// role is a role of the policy.
type role int8

const (
	owner role = iota
	manager
	plainMember
)

var roleNames = []string{"owner", "manager", "member"}

// has returns the scopes of a role in a variant of the policy.
func (r role) has(policy int) scopes {
	switch r {
	case owner:
		return 1<<len(scopeNames) - 1
	case manager:
		return alwaysManaged | scopes(policy<<1)&variantScopes
	default:
		return 0
	}
}

// memberSet is what is stored of a member.
type memberSet struct {
	Role      role
	Suspended bool
}

// memberState is a member.
type memberState struct {
	memberSet
	version int64
}

// members is how many members each workspace has. The last one is pushed with versions.
const members = 3

// keyStatus is the state of a key, as it is answered.
type keyStatus int8

const (
	otherStatus keyStatus = iota
	active
	suspended
	revoked
)

// keyView is a key as it is answered.
type keyView struct {
	Key, Member int
	Scopes      scopes
	Status      keyStatus
	// By is the operation that revoked the key; -1 if none did.
	By int
	// Secrets is how many secrets the key has.
	Secrets int
}

// keyState is a key of the model.
type keyState struct {
	exists        bool
	member        int
	scopes        scopes
	by            int // the operation that revoked it, or -1
	token, former int // former is -1 if there is no overlap
}

// state is the state of a workspace, with the policy. It is never changed: a step makes another one.
type state struct {
	policy  int
	members [members]memberState
	keys    []keyState
}

func (s *state) equal(other *state) bool {
	return s.policy == other.policy && s.members == other.members && slices.Equal(s.keys, other.keys)
}

// hash returns a number that is the same for equal states.
func (s *state) hash() uint64 {
	sum := uint64(s.policy) + 1469598103934665603
	mix := func(value int) { sum = (sum ^ uint64(value)) * 1099511628211 }
	for _, each := range s.members {
		mix(int(each.Role))
		mix(int(each.version))
		if each.Suspended {
			mix(1)
		}
	}
	for _, each := range s.keys {
		if each.exists {
			mix(each.by)
			mix(each.token)
			mix(each.former)
			mix(int(each.scopes))
		}
	}
	return sum
}

// with returns the state with another key.
func (s *state) with(number int, key keyState) *state {
	next := *s
	next.keys = slices.Clone(s.keys)
	next.keys[number] = key
	return &next
}

// The reasons of refusals.
const (
	reasonKeyNotFound     = "KEY_NOT_FOUND"
	reasonKeyRevoked      = "KEY_REVOKED"
	reasonRequestIDUsed   = "REQUEST_ID_USED"
	reasonSuspended       = "MEMBER_SUSPENDED"
	reasonBeyondRole      = "SCOPE_BEYOND_ROLE"
	reasonRotation        = "ROTATION_IN_PROGRESS"
	reasonVersionOutdated = "SOURCE_VERSION_OUTDATED"
	reasonPolicyChanged   = "POLICY_CHANGED"
)

// step returns the state after a change or a read, and every reason for which the state refuses it. With no reason the state
// must not refuse it.
func (s *state) step(o *operation) (next *state, reasons []string) {
	next = s
	refuse := func(when bool, reason string) {
		if when {
			reasons = append(reasons, reason)
		}
	}
	switch o.Kind {
	case applyPolicy:
		refuse(o.Old != s.policy, reasonPolicyChanged)
		changed := *s
		changed.policy = o.New
		next = &changed
	case putMember:
		stored := s.members[o.Member]
		refuse(o.Version < stored.version || o.Version > 0 && o.Version == stored.version && o.To != stored.memberSet, reasonVersionOutdated)
		changed := *s
		changed.members[o.Member] = memberState{memberSet: o.To, version: o.Version}
		next = &changed
	case createKey:
		if key := s.keys[o.Key]; key.exists {
			// The same request_id and digest. It is known again as long as the key has that secret.
			refuse(o.Token != key.token && o.Token != key.former, reasonRequestIDUsed)
			return s, reasons
		}
		m := s.members[o.Member]
		refuse(m.Suspended, reasonSuspended)
		refuse(o.Scopes&^m.Role.has(s.policy) != 0, reasonBeyondRole)
		next = s.with(o.Key, keyState{exists: true, member: o.Member, scopes: o.Scopes, by: -1, token: o.Token, former: -1})
	case rotateKey, finishRotation, revokeKey, updateKey, getKey:
		return s.stepKey(o)
	}
	if len(reasons) > 0 {
		next = s
	}
	return next, reasons
}

// stepKey is step for what is about a key that must exist.
func (s *state) stepKey(o *operation) (next *state, reasons []string) {
	key := s.keys[o.Key]
	if !key.exists {
		return s, []string{reasonKeyNotFound}
	}
	if o.Kind == getKey {
		return s, nil
	}
	if o.Kind == revokeKey {
		if key.by < 0 {
			key.by = o.ID
		}
		return s.with(o.Key, key), nil
	}
	refuse := func(when bool, reason string) {
		if when {
			reasons = append(reasons, reason)
		}
	}
	refuse(key.by >= 0, reasonKeyRevoked)
	m := s.members[key.member]
	switch o.Kind {
	case rotateKey: // the key of a suspended member is live
		refuse(o.Overlap && key.former >= 0, reasonRotation)
		key.former = -1
		if o.Overlap {
			key.former = key.token
		}
		key.token = o.Token
	case finishRotation:
		key.former = -1
	default: // updateKey
		// What the key has already is no change, whatever the role.
		refuse(o.Scopes != key.scopes && o.Scopes&^m.Role.has(s.policy) != 0, reasonBeyondRole)
		key.scopes = o.Scopes
	}
	if len(reasons) > 0 {
		return s, reasons
	}
	return s.with(o.Key, key), nil
}

// explains reports whether the answer of an operation is that of this state, and returns the state after it.
func (s *state) explains(o *operation) (*state, bool) {
	next, reasons := s.step(o)
	switch o.Outcome {
	case refused:
		return s, slices.Contains(reasons, o.Reason)
	case lost:
		// One that was not made is not in the history.
		return next, len(reasons) == 0
	}
	return next, len(reasons) == 0 && next.answers(o)
}

// answers reports whether this state gives an answer.
func (s *state) answers(o *operation) bool {
	switch o.Kind {
	case applyPolicy:
		return true
	case getPolicy:
		return o.PolicySeen == s.policy
	case putMember, getMember:
		return o.MemberSeen == s.members[o.Member].memberSet
	case listKeys:
		count := 0
		for _, key := range s.keys {
			if key.exists {
				count++
			}
		}
		for _, seen := range o.KeysSeen {
			if !s.shows(seen) {
				return false
			}
		}
		return len(o.KeysSeen) == count
	case getKey:
		key := s.keys[o.Key]
		return len(o.KeysSeen) == 1 && o.KeysSeen[0].Key == o.Key && s.shows(o.KeysSeen[0]) &&
			o.Effective == key.scopes&s.members[key.member].Role.has(s.policy)
	case validateKey, askCache:
		return o.Decision == s.decide(o)
	default:
		return len(o.KeysSeen) == 1 && o.KeysSeen[0].Key == o.Key && s.shows(o.KeysSeen[0])
	}
}

// shows reports whether the state gives a view of a key.
func (s *state) shows(seen keyView) bool {
	if seen.Key < 0 || seen.Key >= len(s.keys) {
		return false
	}
	key := s.keys[seen.Key]
	want := keyView{Key: seen.Key, Member: key.member, Scopes: key.scopes, Status: active, By: key.by, Secrets: 1}
	if key.former >= 0 {
		want.Secrets = 2
	}
	switch {
	case key.by >= 0:
		want.Status = revoked
		want.Secrets = seen.Secrets // nothing is promised of the secrets of a revoked key
	case s.members[key.member].Suspended:
		want.Status = suspended
	}
	return key.exists && want == seen
}

// decision is the answer to a validation.
type decision struct {
	// Reason is why it is refused; empty if it is allowed, and "?" for an answer that is neither.
	Reason string `json:",omitempty"`
	// Key is the key that the answer names, or -1.
	Key int
	// Role is that of the member, if the token is allowed.
	Role role
}

// String describes the decision.
func (d decision) String() string {
	if d.Reason == "" {
		return fmt.Sprintf("ALLOWED, key %d, %s", d.Key, roleNames[d.Role])
	}
	return fmt.Sprintf("%s, key %d", d.Reason, d.Key)
}

// The reasons of decisions.
const (
	decisionInvalid    = "KEY_INVALID"
	decisionRevoked    = "KEY_REVOKED"
	decisionInactive   = "MEMBER_INACTIVE"
	decisionNotGranted = "SCOPE_NOT_GRANTED"
	decisionBeyondRole = "SCOPE_BEYOND_ROLE"
)

// decide returns the answer of this state to a validation.
func (s *state) decide(o *operation) decision {
	key := s.keys[o.Key]
	m := s.members[key.member]
	switch {
	case !key.exists || o.Token != key.token && o.Token != key.former:
		return decision{Reason: decisionInvalid, Key: -1}
	case key.by >= 0:
		return decision{Reason: decisionRevoked, Key: o.Key}
	case m.Suspended:
		return decision{Reason: decisionInactive, Key: o.Key}
	case key.scopes&o.Asked == 0:
		return decision{Reason: decisionNotGranted, Key: o.Key}
	case m.Role.has(s.policy)&o.Asked == 0:
		return decision{Reason: decisionBeyondRole, Key: o.Key}
	default:
		return decision{Key: o.Key, Role: m.Role}
	}
}
