// Package validatortest is the contract of keyauth.Validator as a test suite. The client of a
// real keysvc and the Validator in memory both pass it, and so must every Validator in front of
// them.
package validatortest

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Backend is a keysvc, or a stand-in for one, with the Validator under test. Its policy has at
// least the roles of Roles and their scopes. It has no members and no keys at first.
//
// A method that changes something returns once the Validator's answers reflect the change. A
// failure ends the test.
type Backend interface {
	// Validator returns the Validator under test, the same one each time.
	Validator() keyauth.Validator

	// PutMember adds an active member, or makes a member active with the role.
	PutMember(t testing.TB, workspaceID, memberID, role string)
	// SuspendMember suspends a member. role is the role that the member has and keeps.
	SuspendMember(t testing.TB, workspaceID, memberID, role string)
	// RemoveMember removes a member.
	RemoveMember(t testing.TB, workspaceID, memberID string)

	// CreateKey creates a key of an active member.
	CreateKey(t testing.TB, key Key) (keyID, token string)
	// RotateKey gives a key a new secret, and returns the new token. The old token works until
	// the end of the overlap; if overlap is 0, it no longer works.
	RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) (token string)
	// RevokeKey revokes a key.
	RevokeKey(t testing.TB, workspaceID, keyID string)

	// Advance moves the backend's clock forward; it does not move otherwise.
	Advance(d time.Duration)
}

// Counter is a Backend that counts how often its Validator sent a token out of the process. The
// Backend of a Validator that answers within the process need not be a Counter.
type Counter interface {
	Backend
	// Calls returns how many tokens have left the process.
	Calls() int
}

// Key is a key to be created.
type Key struct {
	// WorkspaceID and MemberID are the owner's.
	WorkspaceID, MemberID string
	// Scopes are the granted scopes; at least one.
	Scopes []string
	// AllowedCIDRs limit the client address; none means no limit.
	AllowedCIDRs []string
	// Lifetime is how long the key lives, at most a year; 0 means a year.
	Lifetime time.Duration
}

// Roles are the roles that the suite expects of a Backend's policy, with their scopes. A role may
// have more scopes, except those that only other roles have here. The catalogue has all scopes of
// this map, and does not have UnknownScope.
var Roles = map[string][]string{
	"owner":   {"signatures:read", "signatures:write", "financial_documents:read"},
	"manager": {"signatures:read", "signatures:write"},
	"member":  {},
}

// UnknownScope is well formed and in no catalogue.
const UnknownScope = "submarines:sink"
