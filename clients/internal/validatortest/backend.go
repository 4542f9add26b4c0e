// Package validatortest says what every keyauth.Validator must do, as tests: the client of
// a real keysvc, the one in memory, and whatever is put in front of them.
package validatortest

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// Backend is a keysvc, or what stands in for one, with the Validator under test. Its policy
// has at least the roles of Roles, and their scopes are at least its catalogue. It has no
// members and no keys at first.
//
// A method that changes something returns once the Validator answers from after the
// change. What goes wrong ends the test.
type Backend interface {
	// Validator is what is tested: the same one each time.
	Validator() keyauth.Validator

	// PutMember adds an active member, or makes one active and gives it the role.
	PutMember(t testing.TB, workspaceID, memberID, role string)
	// SuspendMember suspends a member, who keeps the role: it is the one that the member has.
	SuspendMember(t testing.TB, workspaceID, memberID, role string)
	// RemoveMember removes a member.
	RemoveMember(t testing.TB, workspaceID, memberID string)

	// CreateKey creates a key of an active member.
	CreateKey(t testing.TB, key Key) (keyID, token string)
	// RotateKey gives a key a new secret, and returns the new token. The old one goes on for
	// as long as overlap; not at all if that is 0.
	RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) (token string)
	// RevokeKey revokes a key.
	RevokeKey(t testing.TB, workspaceID, keyID string)

	// Advance moves the backend's clock forward; it does not move otherwise.
	Advance(d time.Duration)
}

// Counter is a Backend that knows how often its Validator sent a token anywhere. One that
// answers in the same process need not be a Counter.
type Counter interface {
	Backend
	// Calls is how many tokens left the process so far.
	Calls() int
}

// Key is a key to be created.
type Key struct {
	// WorkspaceID and MemberID are whom it belongs to and acts as.
	WorkspaceID, MemberID string
	// Scopes are the granted ones; at least one.
	Scopes []string
	// AllowedCIDRs limit the client address; none means no limit.
	AllowedCIDRs []string
	// Lifetime is how long it lives, at most a year; 0 means a year.
	Lifetime time.Duration
}

// Roles are what the suite expects of a Backend's policy, by the names of roles. No role
// may do more than is said here, as far as these scopes go. All scopes that are named here
// are in the catalogue, and UnknownScope is not.
var Roles = map[string][]string{
	"owner":   {"signatures:read", "signatures:write", "financial_documents:read"},
	"manager": {"signatures:read", "signatures:write"},
	"member":  {},
}

// UnknownScope is well formed and in no catalogue.
const UnknownScope = "submarines:sink"
