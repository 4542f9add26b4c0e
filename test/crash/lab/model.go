package main

import (
	"fmt"
	"slices"
)

// model is what keysvc should hold. A change is made in a clone of the model before it.
type model struct {
	members []memberModel
	keys    []keyModel
	// narrow reports whether the active policy takes emails:write from managers.
	narrow bool
	policy bool // reports whether the store has a policy
}

// memberModel is one member.
type memberModel struct {
	workspace, id, role string
	suspended, there    bool
	since               int // grows each time that the member is added
}

// keyModel is one key.
type keyModel struct {
	member, since int // the index of its member, and the member's since at that time
	id            string
	scopes        []string
	elsewhere     bool // the key may be used only from another address
	revoked       bool
	// live are the tokens that are valid, newest first; an empty one was in an answer that was
	// lost. ended are the tokens that a rotation ended.
	live, ended []string
}

// refused is any answer but ALLOWED, an error included.
const refused = "a refusal"

const (
	emails    = "emails:write"
	signature = "signatures:read"
	assets    = "assets:delete"
	financial = "financial_documents:read"
)

// scopes are the scopes that keys can get here.
var scopes = []string{assets, emails, financial, signature}

// The reasons of refusals.
const (
	keyInvalid        = "KEY_INVALID"
	keyRevoked        = "KEY_REVOKED"
	memberInactive    = "MEMBER_INACTIVE"
	addressNotAllowed = "ADDRESS_NOT_ALLOWED"
	scopeNotGranted   = "SCOPE_NOT_GRANTED"
	scopeBeyondRole   = "SCOPE_BEYOND_ROLE"
)

// newModel returns the model of an empty store. It has the members that changes can add.
func newModel(workspaces, members int) *model {
	m := &model{}
	for workspace := range workspaces {
		for member := range members {
			m.members = append(m.members, memberModel{workspace: fmt.Sprintf("w%d", workspace), id: fmt.Sprintf("m%d", member)})
		}
	}
	return m
}

func (m *model) clone() *model {
	clone := *m
	clone.members, clone.keys = slices.Clone(m.members), slices.Clone(m.keys)
	return &clone
}

// may reports whether a role has a scope.
func (m *model) may(role, scope string) bool {
	switch role {
	case "owner", "admin":
		return true
	case "manager":
		return scope != financial && (scope != emails || !m.narrow)
	}
	return false
}

// dead reports whether a key is revoked, or counts as revoked.
func (m *model) dead(key *keyModel) bool {
	member := &m.members[key.member]
	return key.revoked || !member.there || member.since != key.since
}

// decision returns the answer to a token for a scope; refused without a policy, because any
// refusal is right then.
func (m *model) decision(token, scope string) string {
	if !m.policy {
		return refused
	}
	for index := range m.keys {
		key := &m.keys[index]
		if !slices.Contains(key.live, token) {
			continue
		}
		member := &m.members[key.member]
		switch {
		case m.dead(key):
			return keyRevoked
		case member.suspended:
			return memberInactive
		case key.elsewhere:
			return addressNotAllowed
		case !slices.Contains(key.scopes, scope):
			return scopeNotGranted
		case !m.may(member.role, scope):
			return scopeBeyondRole
		}
		return allowed
	}
	return keyInvalid
}

// answers are the decisions on a list of tokens for every scope, in that order.
func (m *model) answers(tokens []string) []string {
	var answers []string
	for _, token := range tokens {
		for _, scope := range scopes {
			answers = append(answers, m.decision(token, scope))
		}
	}
	return answers
}
