// Package decide holds two pure functions: Authenticate decides who a token acts as,
// and Authorize what the token may do. The server runs both; a near-cache runs
// Authorize on a grant that it kept.
//
// The package owns its input types and touches nothing else: no clock, no store,
// no lock. The caller looks up all of the input at one revision. The zero value of
// every input type is refused.
package decide

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/token"
)

// Decision is the answer to a request. Only Allowed lets the request pass; the zero
// value does not.
type Decision uint8

// The decisions. Their numbers are those of the API's enum Decision.
const (
	// Unspecified is no answer; treat it as a refusal.
	Unspecified Decision = 0
	// Allowed lets the request pass.
	Allowed Decision = 1
	// Unauthenticated means that the token is not valid.
	Unauthenticated Decision = 2
	// PermissionDenied means that the token is valid and may not do this.
	PermissionDenied Decision = 3
)

// Reason says why a request may not pass.
type Reason uint8

// The reasons. Their numbers are those of the API's enum Reason.
const (
	// NoReason comes with Allowed.
	NoReason Reason = 0
	// KeyInvalid covers everything that an outsider could probe for: malformed,
	// unknown id, wrong or ended secret, another workspace's key.
	KeyInvalid Reason = 1
	// KeyRevoked means that the key was revoked, or that its member or workspace was
	// removed.
	KeyRevoked Reason = 2
	// KeyExpired means that the key's expire time has come.
	KeyExpired Reason = 3
	// MemberInactive means that the key's member is suspended.
	MemberInactive Reason = 4
	// AddressNotAllowed means that the client address is missing or outside the
	// key's prefixes.
	AddressNotAllowed Reason = 5
	// ScopeNotGranted means that the key does not have the scope.
	ScopeNotGranted Reason = 6
	// ScopeBeyondRole means that the key has the scope, but the member's present role
	// does not.
	ScopeBeyondRole Reason = 7
	// KeyHeld means that the key may have been narrowed since the backup that the store was
	// restored from.
	KeyHeld Reason = 8
)

// Decision returns the refusal that belongs to the reason. For NoReason it returns
// Unspecified, which lets nothing pass.
func (r Reason) Decision() Decision {
	switch r {
	case KeyInvalid, KeyRevoked, KeyExpired, KeyHeld, MemberInactive:
		return Unauthenticated
	case AddressNotAllowed, ScopeNotGranted, ScopeBeyondRole:
		return PermissionDenied
	case NoReason:
	}
	return Unspecified
}

// Scopes is a set of scope names, sorted and without duplicates.
type Scopes []string

// NewScopes returns the set of names; it copies them.
func NewScopes(names ...string) Scopes {
	set := slices.Clone(names)
	slices.Sort(set)
	return slices.Compact(set)
}

// Contains reports whether name is in the set.
func (s Scopes) Contains(name string) bool {
	_, found := slices.BinarySearch(s, name)
	return found
}

// Intersect returns the names that are in both sets.
func (s Scopes) Intersect(other Scopes) Scopes {
	var both Scopes
	for _, name := range s {
		if other.Contains(name) {
			both = append(both, name)
		}
	}
	return both
}

// Without returns the names of the set that are not in the other.
func (s Scopes) Without(other Scopes) Scopes {
	var rest Scopes
	for _, name := range s {
		if !other.Contains(name) {
			rest = append(rest, name)
		}
	}
	return rest
}

// Secret is the stored part of one secret of a key.
type Secret struct {
	// Hash of the token that holds the secret, as memory keeps it; the zero ShortHash matches nothing.
	Hash token.ShortHash
	// End is when an older secret stops matching, in Unix nanoseconds: its own
	// expiry or the end of its overlap, whichever comes first. On the newest secret
	// it is the key's expire time.
	End int64
}

// Key is a stored key, as far as deciding needs it.
type Key struct {
	// ID is the key's public identifier.
	ID string
	// Workspace and Member are the ids of the workspace that the key belongs to and of
	// the member that it acts as.
	Workspace, Member string
	// WorkspaceIncarnation and MemberIncarnation are those of the workspace and the
	// member when the key was created.
	WorkspaceIncarnation, MemberIncarnation string
	// Scopes are the scopes that the key was granted.
	Scopes Scopes
	// AllowedPrefixes limit the client address; none means no limit.
	AllowedPrefixes []netip.Prefix
	// Revoked is set if the key was revoked.
	Revoked bool
	// Held is set if the key waits for a person since the store was restored from a backup.
	Held bool
	// ExpireTime is when the newest secret expires, in Unix nanoseconds.
	ExpireTime int64
	// Secrets are the newest secret and, while a rotation overlaps, the one before.
	Secrets [2]Secret
}

// Member is a stored member, as far as deciding needs it.
type Member struct {
	// Incarnation tells this member from a removed one with the same id.
	Incarnation string
	// WorkspaceIncarnation is that of the workspace when the member was added.
	WorkspaceIncarnation string
	// Role is the name of the member's role.
	Role string
	// Active is set if the member is neither suspended nor removed.
	Active bool
	// Removed is set if the member was removed.
	Removed bool
}

// Workspace is a stored workspace, as far as deciding needs it.
type Workspace struct {
	// Incarnation tells this workspace from a removed one with the same id.
	Incarnation string
	// Removed is set if the workspace was removed.
	Removed bool
}

// Subject is everything that is known, at one revision, about the key that a
// token names. What is not known is nil.
type Subject struct {
	// Key is the key with the token's id.
	Key *Key
	// Member is the member that the key acts as.
	Member *Member
	// Workspace is the workspace of the key.
	Workspace *Workspace
	// RoleScopes are the scopes of the member's present role, with all wildcards expanded;
	// nil if the policy does not have the role. It is a pointer like the other fields, so that
	// the compiler sees that a Grant holds what the subject points to and never the subject, which
	// can lie on the stack of a validation.
	RoleScopes *Scopes
}

// roleScopes returns the scopes of the member's present role.
func (s *Subject) roleScopes() Scopes {
	if s.RoleScopes == nil {
		return nil
	}
	return *s.RoleScopes
}

// Principal is who a valid token acts as.
type Principal struct {
	// KeyID, WorkspaceID and MemberID are those of the key. Role is the member's role
	// now.
	KeyID, WorkspaceID, MemberID, Role string
}

// Grant is what Authenticate returns for a valid token, and what a near-cache may keep.
// The zero Grant has expired.
type Grant struct {
	// Principal is who the token acts as.
	Principal Principal
	// Granted are the scopes of the key.
	Granted Scopes
	// Role are the scopes of the member's role. A near-cache knows the effective scopes
	// only, and has them in both fields.
	Role Scopes
	// AllowedPrefixes limit the client address; none means no limit.
	AllowedPrefixes []netip.Prefix
	// HoldsUntil is when the token stops working, in Unix nanoseconds.
	HoldsUntil int64
	// Secret is the hash of the secret that the token has. A near-cache does not know it.
	Secret token.ShortHash
}

// Effective returns the scopes that the token may use: granted to the key and
// within the role.
func (g *Grant) Effective() Scopes { return g.Granted.Intersect(g.Role) }

// Requirement says what a request needs. The zero Requirement is met by no token.
type Requirement struct {
	// Scope is the scope that the request needs.
	Scope string
	// IdentityOnly asks for no scope: any valid token will do.
	IdentityOnly bool
	// AllOf are scopes that the request needs, every one of them.
	AllOf []string
	// AnyOf are scopes of which the request needs at least one.
	AnyOf []string
}

// Kinds returns how many of the fields are set. A requirement with any other number than 1 is met
// by no token.
func (r *Requirement) Kinds() int {
	count := 0
	for _, set := range [...]bool{r.Scope != "", r.IdentityOnly, len(r.AllOf) > 0, len(r.AnyOf) > 0} {
		if set {
			count++
		}
	}
	return count
}

// NeedsNoScope reports whether any valid token meets the requirement.
func (r *Requirement) NeedsNoScope() bool { return r.IdentityOnly && r.Kinds() == 1 }

// Scopes returns the scopes that the requirement names, in its order.
func (r *Requirement) Scopes() []string {
	switch {
	case r.Scope != "":
		return []string{r.Scope}
	case len(r.AllOf) > 0:
		return r.AllOf
	}
	return r.AnyOf
}

// Missing returns the scopes that the requirement names and the grant does not have in effect, in the
// order of the requirement. It is for a grant that was refused with ScopeNotGranted or ScopeBeyondRole.
func (r *Requirement) Missing(grant *Grant) []string {
	var missing []string
	for _, scope := range r.Scopes() {
		if !grant.Granted.Contains(scope) || !grant.Role.Contains(scope) {
			missing = append(missing, scope)
		}
	}
	return missing
}

// decoy is compared in place of a key that does not exist, so that an unknown id takes as
// long as a known one. Its hashes are zero and match nothing.
var decoy Key

// Authenticate decides who a token acts as, or why it acts as nobody. The token itself is presented
// or its digest, and the answer is the same. The order of the
// checks is part of the contract: until a secret has matched and the workspace is the
// expected one, the only reason is KeyInvalid, so that unknown, wrong and foreign
// tokens look alike.
//
// expectedWorkspace is the workspace of the resource that is asked for; empty means
// any. With NoReason the whole grant is set. With KeyInvalid the grant is zero. With any
// other reason, only the KeyID of the grant's principal is set.
func Authenticate(presented token.Presented, subject Subject, expectedWorkspace string, now time.Time) (Grant, Reason) {
	nanoseconds := unixNano(now)
	key := subject.Key
	if key == nil {
		key = &decoy
	}
	// 1. The secret comes first, because an outsider must learn nothing about a key without
	// it.
	newest, older := match(presented, key, nanoseconds)
	if !newest && !older {
		return Grant{}, KeyInvalid
	}
	// 2. An older secret stops matching when its overlap ends.
	holdsUntil, secret := key.ExpireTime, &key.Secrets[0]
	if !newest {
		secret = &key.Secrets[1]
		holdsUntil = min(holdsUntil, secret.End)
	}
	grant, reason := identify(&subject, expectedWorkspace, holdsUntil, nanoseconds)
	if reason == NoReason {
		grant.Secret = secret.Hash
	}
	return grant, reason
}

// identify decides who a token acts as that holds a secret of the subject's key.
func identify(subject *Subject, expectedWorkspace string, holdsUntil, now int64) (Grant, Reason) {
	key := subject.Key
	// 1. The workspace comes first, because one tenant's service must not learn the state of
	// another tenant's key.
	if expectedWorkspace != "" && expectedWorkspace != key.Workspace {
		return Grant{}, KeyInvalid
	}
	// 2. What is final comes before what can be undone: revoked, expired, held, suspended. Held
	// comes before suspended because making the member active again does not help.
	refused := Grant{Principal: Principal{KeyID: key.ID}}
	switch {
	case key.Revoked, subject.lostWorkspace(), subject.lostMember():
		return refused, KeyRevoked
	case now >= key.ExpireTime:
		return refused, KeyExpired
	case key.Held:
		return refused, KeyHeld
	case !subject.Member.Active:
		return refused, MemberInactive
	}
	return Grant{
		Principal: Principal{
			KeyID:       key.ID,
			WorkspaceID: key.Workspace,
			MemberID:    key.Member,
			Role:        subject.Member.Role,
		},
		Granted:         key.Scopes,
		Role:            subject.roleScopes(),
		AllowedPrefixes: key.AllowedPrefixes,
		HoldsUntil:      holdsUntil,
	}, NoReason
}

// lostWorkspace reports whether the key's workspace was removed since the key was created.
func (s *Subject) lostWorkspace() bool {
	return s.Workspace == nil || s.Workspace.Removed || s.Workspace.Incarnation != s.Key.WorkspaceIncarnation
}

// lostMember reports whether the key's member was removed since the key was created.
func (s *Subject) lostMember() bool {
	return s.Member == nil || s.Member.Removed || s.Member.Incarnation != s.Key.MemberIncarnation ||
		s.Member.WorkspaceIncarnation != s.Key.WorkspaceIncarnation
}

// match reports whether what is presented holds the newest secret of the key, and whether it holds the
// older secret and that secret has not ended. It always compares both, so that the time it takes
// does not depend on which one matches. The newest secret matches even when it has expired, so that
// the reason can be KeyExpired.
func match(presented token.Presented, key *Key, now int64) (newest, older bool) {
	first, second := &key.Secrets[0], &key.Secrets[1]
	// One hash is enough for all stored schemes: it does not equal a hash of another scheme.
	// The zero Presented has the zero Hash, which matches nothing.
	hash := presented.Hash()
	newest = hash.Matches(first.Hash)
	older = hash.Matches(second.Hash) && now < second.End
	return newest, older
}

// unixNano returns a moment in Unix nanoseconds. A moment outside of their range, like the
// zero Time, becomes the last one in the range, at which everything has expired.
func unixNano(moment time.Time) int64 {
	if seconds := moment.Unix(); seconds < 0 || seconds >= math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return moment.UnixNano()
}

// Authorize decides whether a grant meets a requirement. It runs again for each request,
// also on a grant that a near-cache kept.
//
// expectedWorkspace is as for Authenticate. address is the address of the presenter; the
// zero Addr if it is not known.
func Authorize(grant *Grant, expectedWorkspace string, requirement Requirement, address netip.Addr, now time.Time) (Decision, Reason) {
	reason := refusal(grant, expectedWorkspace, requirement, address, now)
	if reason != NoReason {
		return reason.Decision(), reason
	}
	return Allowed, NoReason
}

func refusal(grant *Grant, expectedWorkspace string, requirement Requirement, address netip.Addr, now time.Time) Reason {
	if unixNano(now) >= grant.HoldsUntil {
		return KeyExpired
	}
	if expectedWorkspace != "" && expectedWorkspace != grant.Principal.WorkspaceID {
		return KeyInvalid
	}
	if !admits(grant.AllowedPrefixes, address) {
		return AddressNotAllowed
	}
	if requirement.Kinds() != 1 {
		return ScopeNotGranted
	}
	switch {
	case requirement.IdentityOnly:
		return NoReason
	case len(requirement.AllOf) > 0:
		return lacksAll(grant, requirement.AllOf)
	case len(requirement.AnyOf) > 0:
		return lacksAny(grant, requirement.AnyOf)
	}
	return lacks(grant, requirement.Scope)
}

// lacks returns why a grant does not have a scope in effect; NoReason if it has.
func lacks(grant *Grant, scope string) Reason {
	switch {
	case !grant.Granted.Contains(scope):
		return ScopeNotGranted
	case !grant.Role.Contains(scope):
		return ScopeBeyondRole
	}
	return NoReason
}

// lacksAll returns why a grant does not have all scopes in effect. A scope that is not granted to the
// key comes first, because it is checked before the role.
func lacksAll(grant *Grant, scopes []string) Reason {
	reason := NoReason
	for _, scope := range scopes {
		if why := lacks(grant, scope); why == ScopeNotGranted {
			return why
		} else if why != NoReason {
			reason = why
		}
	}
	return reason
}

// lacksAny returns why a grant has none of the scopes in effect.
func lacksAny(grant *Grant, scopes []string) Reason {
	reason := ScopeNotGranted
	for _, scope := range scopes {
		if why := lacks(grant, scope); why == NoReason {
			return why
		} else if why == ScopeBeyondRole {
			reason = why
		}
	}
	return reason
}

// admits reports whether a key with these prefixes may be used from an address.
func admits(prefixes []netip.Prefix, address netip.Addr) bool {
	return len(prefixes) == 0 || within(address, prefixes)
}

// within reports whether address lies in one of the prefixes. An IPv4 address that is
// mapped into IPv6 (::ffff:192.0.2.1, RFC 4291 section 2.5.5.2) counts as the IPv4
// address. The zone of an address is ignored, because rules have none.
func within(address netip.Addr, prefixes []netip.Prefix) bool {
	address = address.Unmap().WithZone("")
	for _, prefix := range prefixes {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}
