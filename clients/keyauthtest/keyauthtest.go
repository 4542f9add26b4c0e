// Package keyauthtest lets a service test how it handles keys, without a keysvc. Its Validator
// holds the members and keys of the test in memory, and decides with keysvc's own code.
//
//	validator := keyauthtest.New(t)
//	token := validator.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}}).Token
//	guard, err := keyauth.NewGuard(validator, keyauth.Config{Tables: …})
package keyauthtest

import (
	"context"
	"crypto/rand"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/token"
)

// The defaults of a key's workspace, member and role.
const (
	DefaultWorkspace = "test-workspace"
	DefaultMember    = "test-member"
	DefaultRole      = "test-role"
)

// everything is the scope of a role that may do whatever its keys were granted.
const everything = "*"

// Key describes a key to create. The zero Key has no scopes: it only identifies its member.
type Key struct {
	// WorkspaceID and MemberID are the owner's. Default: DefaultWorkspace and DefaultMember. A
	// member that does not exist is added, with DefaultRole.
	WorkspaceID, MemberID string
	// Name is what people call the key. It shows in the details of the principal. Default: none.
	Name string
	// Scopes are the scopes that the key is granted.
	Scopes []string
	// AllowedCIDRs limit the client address. Default: any address.
	AllowedCIDRs []string
	// Lifetime is how long the key lives. Default: a calendar year.
	Lifetime time.Duration
}

// Created is a key that was created.
type Created struct {
	// KeyID is the key's public identifier.
	KeyID string
	// Token is the text that a presenter sends after "Bearer ".
	Token string
	// Principal is the identity that the token acts as.
	Principal keyauth.Principal
}

// Validator is a keyauth.Validator and keyauth.Watcher for tests. Its methods may be called
// from many goroutines.
type Validator struct {
	t testing.TB

	mutex sync.Mutex
	now   func() time.Time
	keys  map[string]*decide.Key
	// lifetimes are the lifetimes of the keys' secrets; 0 is a calendar year.
	lifetimes map[string]time.Duration
	// names are the names of the keys that have one.
	names   map[string]string
	members map[memberID]*decide.Member
	roles   map[string]decide.Scopes
	scopes  decide.Scopes
	// workspaces are those of SetWorkspaces; nil means all.
	workspaces map[string]bool
	failure    error
	asked      []Asked
	// changed is closed and replaced whenever a field above changes.
	changed chan struct{}
}

type memberID struct{ workspace, member string }

// Asked is a question that was asked, without its token.
type Asked struct {
	// Requirement, WorkspaceID and ClientAddress are the question's.
	Requirement   keyauth.Requirement
	WorkspaceID   string
	ClientAddress netip.Addr
	// Decision and Reason are the answer's; unspecified if the answer was an error.
	Decision keysvcv1.Decision
	Reason   keysvcv1.Reason
}

var _ keyauth.Watcher = (*Validator)(nil)

// New returns a Validator that knows DefaultRole, which may do whatever a key was granted.
// Every scope exists until SetScopes is called.
func New(t testing.TB) *Validator {
	t.Helper()
	return &Validator{
		t:         t,
		now:       time.Now,
		keys:      make(map[string]*decide.Key),
		lifetimes: make(map[string]time.Duration),
		names:     make(map[string]string),
		members:   make(map[memberID]*decide.Member),
		roles:     map[string]decide.Scopes{DefaultRole: {everything}},
		changed:   make(chan struct{}),
	}
}

// Context returns a context with the principal, for calling a handler without an interceptor.
// Empty fields get the defaults.
func Context(ctx context.Context, principal keyauth.Principal) context.Context {
	if principal.WorkspaceID == "" {
		principal.WorkspaceID = DefaultWorkspace
	}
	if principal.MemberID == "" {
		principal.MemberID = DefaultMember
	}
	if principal.Role == "" {
		principal.Role = DefaultRole
	}
	if principal.KeyID == "" {
		principal.KeyID = "testKey000000000"
	}
	return keyauth.WithPrincipal(ctx, principal)
}

// change runs do under mutex, and wakes the watchers.
func (v *Validator) change(do func()) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	do()
	v.wake()
}

// SetClock sets the clock of the Validator. Call Recheck after the clock has moved.
func (v *Validator) SetClock(now func() time.Time) { v.change(func() { v.now = now }) }

// Recheck makes watchers decide again. They do not notice by themselves that the clock has moved.
func (v *Validator) Recheck() { v.change(func() {}) }

// SetScopes makes these the only scopes that exist. A question for another scope is then an
// error, as it is with keysvc.
func (v *Validator) SetScopes(scopes ...string) {
	v.change(func() { v.scopes = decide.NewScopes(scopes...) })
}

// SetWorkspaces makes the Validator answer as keysvc does a service that may validate in these
// workspaces only: a question that names none of them is an error, which a Guard answers with
// codes.Internal. Without ids, the service may validate in all workspaces, which is the default.
func (v *Validator) SetWorkspaces(ids ...string) {
	v.change(func() {
		v.workspaces = nil
		if len(ids) > 0 {
			v.workspaces = make(map[string]bool, len(ids))
		}
		for _, id := range ids {
			v.workspaces[id] = true
		}
	})
}

// SetRole sets the scopes of a role; "*" stands for whatever a key was granted.
func (v *Validator) SetRole(role string, scopes ...string) {
	v.change(func() { v.roles[role] = decide.NewScopes(scopes...) })
}

// PutMember adds a member with a role, changes the role, or ends a suspension.
func (v *Validator) PutMember(workspaceID, member, role string) {
	v.change(func() { v.put(memberID{workspaceID, member}, role, true) })
}

// SuspendMember suspends a member: their keys are refused until PutMember.
func (v *Validator) SuspendMember(workspaceID, member string) {
	v.t.Helper()
	v.change(func() {
		id := memberID{workspaceID, member}
		if v.members[id] == nil {
			v.t.Fatalf("keyauthtest: there is no member %s in %s", member, workspaceID)
		}
		v.put(id, v.members[id].Role, false)
	})
}

// RemoveMember removes a member. The member's keys never work again, even if the member is
// added again.
func (v *Validator) RemoveMember(workspaceID, member string) {
	v.change(func() {
		if known := v.members[memberID{workspaceID, member}]; known != nil {
			removed := *known
			removed.Removed, removed.Active = true, false
			v.members[memberID{workspaceID, member}] = &removed
		}
	})
}

// put replaces a member. A member that was removed gets a new incarnation.
func (v *Validator) put(id memberID, role string, active bool) {
	incarnation := v.newID()
	if known := v.members[id]; known != nil && !known.Removed {
		incarnation = known.Incarnation
	}
	v.members[id] = &decide.Member{Incarnation: incarnation, Role: role, Active: active}
}

// CreateKey creates a key.
func (v *Validator) CreateKey(key Key) Created {
	v.t.Helper()
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if key.WorkspaceID == "" {
		key.WorkspaceID = DefaultWorkspace
	}
	if key.MemberID == "" {
		key.MemberID = DefaultMember
	}
	owner := memberID{key.WorkspaceID, key.MemberID}
	if v.members[owner] == nil || v.members[owner].Removed {
		v.put(owner, DefaultRole, true)
	}
	made := &decide.Key{
		ID:                v.newID(),
		Workspace:         key.WorkspaceID,
		Member:            key.MemberID,
		MemberIncarnation: v.members[owner].Incarnation,
		Scopes:            decide.NewScopes(key.Scopes...),
		ExpireTime:        v.end(key.Lifetime),
	}
	for _, cidr := range key.AllowedCIDRs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			v.t.Fatalf("keyauthtest: AllowedCIDRs: %v", err)
		}
		made.AllowedPrefixes = append(made.AllowedPrefixes, prefix)
	}
	if key.Name != "" {
		v.names[made.ID] = key.Name
	}
	secret, plaintext := v.newSecret(made.ID, made.ExpireTime)
	made.Secrets[0] = secret
	v.keys[made.ID], v.lifetimes[made.ID] = made, key.Lifetime
	v.wake()
	return Created{KeyID: made.ID, Token: plaintext, Principal: keyauth.Principal{
		KeyID: made.ID, WorkspaceID: made.Workspace, MemberID: made.Member, Role: v.members[owner].Role,
	}}
}

// RevokeKey revokes a key for good.
func (v *Validator) RevokeKey(keyID string) {
	v.t.Helper()
	v.changeKey(keyID, func(key *decide.Key) { key.Revoked = true })
}

// end returns when a secret that is issued now ends, in Unix nanoseconds. mutex is held.
func (v *Validator) end(lifetime time.Duration) int64 {
	if lifetime == 0 {
		return v.now().AddDate(1, 0, 0).UnixNano()
	}
	return v.now().Add(lifetime).UnixNano()
}

// RotateKey gives a key a new secret with the same lifetime as before, and returns the new
// token. The old token works until the end of the overlap.
func (v *Validator) RotateKey(keyID string, overlap time.Duration) (newToken string) {
	v.t.Helper()
	v.changeKey(keyID, func(key *decide.Key) {
		old := key.Secrets[0]
		old.End = min(old.End, v.now().Add(overlap).UnixNano())
		key.Secrets[1] = old
		key.ExpireTime = v.end(v.lifetimes[keyID])
		key.Secrets[0], newToken = v.newSecret(keyID, key.ExpireTime)
	})
	return newToken
}

// changeKey replaces a key, because a decision in progress may be reading the old one.
func (v *Validator) changeKey(keyID string, change func(key *decide.Key)) {
	v.t.Helper()
	v.change(func() {
		known := v.keys[keyID]
		if known == nil {
			v.t.Fatalf("keyauthtest: there is no key %s", keyID)
		}
		changed := *known
		change(&changed)
		v.keys[keyID] = &changed
	})
}

// Fail makes Validate and Watch return an error, such as status.Error(codes.Unavailable, "")
// for a keysvc that is down. After Fail(nil) they answer again.
func (v *Validator) Fail(err error) { v.change(func() { v.failure = err }) }

// Asked returns the questions that were asked so far, in order, without their tokens.
func (v *Validator) Asked() []Asked {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	return slices.Clone(v.asked)
}

// Validate implements keyauth.Validator.
func (v *Validator) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if err := ctx.Err(); err != nil {
		return keyauth.Answer{}, err
	}
	v.mutex.Lock()
	defer v.mutex.Unlock()
	answer, err := v.decide(question)
	v.asked = append(v.asked, Asked{
		Requirement: question.Requirement, WorkspaceID: question.WorkspaceID, ClientAddress: question.ClientAddress,
		Decision: answer.Decision, Reason: answer.Reason,
	})
	return answer, err
}

// Watch implements keyauth.Watcher.
func (v *Validator) Watch(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	for {
		v.mutex.Lock()
		answer, err := v.decide(question)
		changed := v.changed
		v.mutex.Unlock()
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			return answer, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return keyauth.Answer{}, ctx.Err()
		}
	}
}

// decide answers a question as keysvc does.
func (v *Validator) decide(question keyauth.Question) (keyauth.Answer, error) {
	if v.failure != nil {
		return keyauth.Answer{}, v.failure
	}
	requirement := question.Requirement
	if !requirement.IsValid() || requirement.IsPublic() {
		return keyauth.Answer{}, status.Errorf(codes.Internal, "keyauthtest: %q is nothing to ask for", requirement)
	}
	for _, scope := range requirement.Scopes() {
		if v.scopes != nil && !v.scopes.Contains(scope) {
			return keyauth.Answer{}, status.Errorf(codes.InvalidArgument, "keyauthtest: there is no scope %s; there are %v", scope, v.scopes)
		}
	}
	needed := decide.Requirement{Scope: requirement.Scope(), IdentityOnly: requirement.IsIdentityOnly()}
	switch {
	case requirement.IsAllOf():
		needed.AllOf = requirement.Scopes()
	case requirement.IsAnyOf():
		needed.AnyOf = requirement.Scopes()
	}
	switch {
	case v.workspaces == nil || v.workspaces[question.WorkspaceID]:
	case question.WorkspaceID == "":
		return keyauth.Answer{}, status.Error(codes.InvalidArgument, "keyauthtest: the question names no workspace, and SetWorkspaces limits the service to some")
	default:
		return keyauth.Answer{}, status.Errorf(codes.PermissionDenied, "keyauthtest: SetWorkspaces does not allow the service to validate in %q", question.WorkspaceID)
	}
	presented := token.Present(question.Token)
	var subject decide.Subject
	if key := v.keys[presented.KeyID()]; key != nil {
		subject = decide.Subject{Key: key, Member: v.members[memberID{key.Workspace, key.Member}], Workspace: &decide.Workspace{}}
		if subject.Member != nil {
			scopes := v.roles[subject.Member.Role]
			if scopes.Contains(everything) {
				scopes = key.Scopes
			}
			subject.RoleScopes = &scopes
		}
	}
	now := v.now()
	grant, reason := decide.Authenticate(presented, subject, question.WorkspaceID, now)
	decision := reason.Decision()
	if reason == decide.NoReason {
		decision, reason = decide.Authorize(&grant, question.WorkspaceID, needed, question.ClientAddress, now)
	}
	answer := keyauth.Answer{
		Decision: keysvcv1.Decision(decision), Reason: keysvcv1.Reason(reason), KeyID: grant.Principal.KeyID,
	}
	if decision == decide.Allowed {
		answer.Principal = &keyauth.Principal{
			KeyID: grant.Principal.KeyID, WorkspaceID: grant.Principal.WorkspaceID,
			MemberID: grant.Principal.MemberID, Role: grant.Principal.Role,
		}
		answer.ExpireTime = time.Unix(0, grant.HoldsUntil).UTC()
		if question.WithDetails {
			answer.Principal.Scopes, answer.Principal.ExpireTime = grant.Effective(), answer.ExpireTime
			answer.Principal.KeyName = v.names[grant.Principal.KeyID]
		}
	}
	if reason == decide.ScopeNotGranted || reason == decide.ScopeBeyondRole {
		answer.MissingScopes = needed.Missing(&grant)
	}
	return answer, nil
}

// Keys returns the ids of all keys, sorted.
func (v *Validator) Keys() []string {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	return slices.Sorted(maps.Keys(v.keys))
}

// wake wakes the watchers. mutex is held.
func (v *Validator) wake() {
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *Validator) newID() string {
	id, err := token.NewID(rand.Reader)
	if err != nil {
		v.t.Fatalf("keyauthtest: %v", err)
	}
	return id
}

func (v *Validator) newSecret(keyID string, end int64) (secret decide.Secret, plaintext string) {
	made, err := token.New("test", keyID, rand.Reader)
	if err != nil {
		v.t.Fatalf("keyauthtest: %v", err)
	}
	hash, err := made.Hash(token.SchemeVerifier)
	if err != nil {
		v.t.Fatalf("keyauthtest: %v", err)
	}
	return decide.Secret{Hash: hash.Short(), End: end}, made.Reveal()
}
