package keystest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// truth is the content of a store at one revision. It is derived only from the messages whose changes
// were committed, in their order, and gives the right answer to each message at that revision.
type truth struct {
	digest     string
	roles      map[string][]string
	limit      int
	workspaces map[string]*trueWorkspace
	keys       map[string]*trueKey
	order      []string // key ids, oldest first
	// tokens map each token to the key that it was issued for.
	tokens map[string]string
	// requests map workspace and request id to the key that the request id was used for.
	requests map[[2]string]string
	// lives counts the workspaces and members that were ever added, so that each has a number.
	lives int
}

type trueWorkspace struct {
	life    int
	removed bool
	members map[string]trueMember
}

type trueMember struct {
	life, workspaceLife int
	role                string
	state               keysvcv1.MemberState
	version             int64
}

type trueKey struct {
	id, workspace, member     string
	memberLife, workspaceLife int
	name                      string
	scopes                    []string
	revoked                   bool
	// secrets are the tokens of the live secrets, newest first. A unique text stands for a token
	// that no caller was told.
	secrets []string
}

// verdict is the right answer to a message at a revision.
type verdict struct {
	// reason is that of a refusal; unspecified for success.
	reason keysvcv1.ErrorReason
	// keyID is set with REQUEST_ID_USED.
	keyID string
	// changes is set if the message changes something.
	changes bool
	// answer is the answer in words.
	answer string
}

func refused(reason keysvcv1.ErrorReason) verdict { return verdict{reason: reason} }

func newTruth(active *policy.Policy) *truth {
	s := &truth{
		workspaces: make(map[string]*trueWorkspace),
		keys:       make(map[string]*trueKey),
		tokens:     make(map[string]string),
		requests:   make(map[[2]string]string),
	}
	s.use(active)
	return s
}

func (s *truth) use(active *policy.Policy) {
	s.digest, s.limit, s.roles = active.Digest(), active.Limits.LiveKeysPerWorkspace, make(map[string][]string)
	for _, role := range active.Roles {
		s.roles[role.Name], _ = active.RoleScopes(role.Name)
	}
}

// member returns a member of the workspace, and reports whether the member is in the workspace now.
func (s *truth) member(workspaceID, memberID string) (trueMember, bool) {
	workspace := s.workspaces[workspaceID]
	if workspace == nil || workspace.removed {
		return trueMember{}, false
	}
	member, found := workspace.members[memberID]
	here := found && member.workspaceLife == workspace.life && member.state != keysvcv1.MemberState_MEMBER_STATE_REMOVED
	return member, here
}

// owner returns the member that a key acts as, and reports whether that member is still there. If
// not, the key counts as revoked.
func (s *truth) owner(key *trueKey) (trueMember, bool) {
	member, here := s.member(key.workspace, key.member)
	return member, here && member.life == key.memberLife && s.workspaces[key.workspace].life == key.workspaceLife
}

func (s *truth) state(key *trueKey) keysvcv1.KeyState {
	owner, here := s.owner(key)
	switch {
	case key.revoked || !here:
		return keysvcv1.KeyState_KEY_STATE_REVOKED
	case owner.state == keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		return keysvcv1.KeyState_KEY_STATE_SUSPENDED
	}
	return keysvcv1.KeyState_KEY_STATE_ACTIVE
}

func (s *truth) within(role string, scopes []string) bool {
	return !slices.ContainsFunc(scopes, func(scope string) bool { return !slices.Contains(s.roles[role], scope) })
}

func (s *truth) key(workspaceID, keyID string) *trueKey {
	if key := s.keys[keyID]; key != nil && (workspaceID == "" || workspaceID == key.workspace) {
		return key
	}
	return nil
}

// judge returns the right answer to a message at the current revision. at is the time when the message
// was sent.
func (s *truth) judge(request any, at time.Time) verdict {
	switch request := request.(type) {
	case *keysvcv1.PutMemberRequest:
		return s.judgePutMember(request)
	case *keysvcv1.RemoveMemberRequest:
		return s.judgeRemoveMember(request)
	case *keysvcv1.RemoveWorkspaceRequest:
		workspace := s.workspaces[request.GetWorkspaceId()]
		return verdict{changes: workspace != nil && workspace.life > 0 && !workspace.removed}
	case *keysvcv1.CreateKeyRequest:
		return s.judgeCreate(request, at)
	case *keysvcv1.RotateKeyRequest:
		return s.judgeRotate(request, at)
	case *keysvcv1.UpdateKeyRequest:
		return s.judgeUpdate(request)
	case *keysvcv1.FinishRotationRequest:
		return s.judgeKey(request, func(key *trueKey) verdict {
			if s.state(key) == keysvcv1.KeyState_KEY_STATE_REVOKED {
				return refused(keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED)
			}
			return verdict{changes: len(key.secrets) > 1}
		})
	case *keysvcv1.RevokeKeyRequest:
		return s.judgeKey(request, func(key *trueKey) verdict { return verdict{changes: !key.revoked} })
	case *keysvcv1.RevokeTokenRequest:
		key := s.keys[s.tokens[request.GetToken()]]
		if key == nil || !slices.Contains(key.secrets, request.GetToken()) {
			return refused(keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND)
		}
		return verdict{changes: !key.revoked, answer: key.workspace + " " + key.id}
	case *keysvcv1.ApplyPolicyRequest:
		return s.judgePolicy(request)
	default:
		return s.judgeRead(request)
	}
}

// keyName is a message that names a key.
type keyName interface {
	GetWorkspaceId() string
	GetKeyId() string
}

func (s *truth) judgeKey(named keyName, judge func(*trueKey) verdict) verdict {
	key := s.key(named.GetWorkspaceId(), named.GetKeyId())
	if key == nil {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND)
	}
	return judge(key)
}

func (s *truth) judgePutMember(request *keysvcv1.PutMemberRequest) verdict {
	var stored trueMember
	var known bool
	if workspace := s.workspaces[request.GetWorkspaceId()]; workspace != nil {
		stored, known = workspace.members[request.GetMemberId()]
	}
	if request.SourceVersion != nil && request.GetSourceVersion() < stored.version {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED)
	}
	_, here := s.member(request.GetWorkspaceId(), request.GetMemberId())
	same := here && stored.role == request.GetRole() && stored.state == request.GetState()
	if !same && request.SourceVersion != nil && known && request.GetSourceVersion() == stored.version {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED)
	}
	return verdict{changes: !same || request.SourceVersion != nil && request.GetSourceVersion() != stored.version}
}

func (s *truth) judgeRemoveMember(request *keysvcv1.RemoveMemberRequest) verdict {
	var stored trueMember
	var known bool
	if workspace := s.workspaces[request.GetWorkspaceId()]; workspace != nil {
		stored, known = workspace.members[request.GetMemberId()]
	}
	if request.SourceVersion != nil && request.GetSourceVersion() < stored.version {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED)
	}
	if !known {
		return verdict{changes: request.GetSourceVersion() > 0}
	}
	if stored.state != keysvcv1.MemberState_MEMBER_STATE_REMOVED && request.SourceVersion != nil && request.GetSourceVersion() == stored.version {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED)
	}
	return verdict{changes: stored.state != keysvcv1.MemberState_MEMBER_STATE_REMOVED ||
		request.SourceVersion != nil && request.GetSourceVersion() > stored.version}
}

func (s *truth) judgeCreate(request *keysvcv1.CreateKeyRequest, at time.Time) verdict {
	if keyID := s.requests[[2]string{request.GetWorkspaceId(), request.GetRequestId()}]; keyID != "" {
		return verdict{reason: keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED, keyID: keyID}
	}
	if request.GetExpireTime() != nil && !request.GetExpireTime().AsTime().After(at) {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID)
	}
	member, here := s.member(request.GetWorkspaceId(), request.GetMemberId())
	live := 0
	for _, key := range s.keys {
		if key.workspace == request.GetWorkspaceId() && s.state(key) != keysvcv1.KeyState_KEY_STATE_REVOKED {
			live++
		}
	}
	switch {
	case !here:
		return refused(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
	case member.state == keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		return refused(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED)
	case !s.within(member.role, request.GetScopes()):
		return refused(keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE)
	case live >= s.limit && request.GetWorkspaceId() != brief: // there, some have expired
		return refused(keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED)
	}
	return verdict{changes: true}
}

func (s *truth) judgeRotate(request *keysvcv1.RotateKeyRequest, at time.Time) verdict {
	if keyID := s.requests[[2]string{request.GetWorkspaceId(), request.GetRequestId()}]; keyID != "" {
		return verdict{reason: keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED, keyID: keyID}
	}
	if request.GetExpireTime() != nil && !request.GetExpireTime().AsTime().After(at) {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID)
	}
	return s.judgeKey(request, func(key *trueKey) verdict {
		switch {
		case s.state(key) == keysvcv1.KeyState_KEY_STATE_REVOKED:
			return refused(keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED)
		case request.GetOverlap().AsDuration() > 0 && len(key.secrets) > 1:
			return refused(keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS)
		}
		return verdict{changes: true}
	})
}

func (s *truth) judgeUpdate(request *keysvcv1.UpdateKeyRequest) verdict {
	return s.judgeKey(request.GetKey(), func(key *trueKey) verdict {
		masked := request.GetUpdateMask().GetPaths()
		rename := slices.Contains(masked, "name") && key.name != request.GetKey().GetName()
		rescope := slices.Contains(masked, "scopes")
		changes := rename || rescope && !slices.Equal(key.scopes, request.GetKey().GetScopes())
		if s.state(key) == keysvcv1.KeyState_KEY_STATE_REVOKED {
			return refused(keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED)
		}
		owner, _ := s.owner(key)
		if changes && rescope && !s.within(owner.role, request.GetKey().GetScopes()) {
			return refused(keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE)
		}
		return verdict{changes: changes}
	})
}

func (s *truth) judgePolicy(request *keysvcv1.ApplyPolicyRequest) verdict {
	if request.GetReplacesDigest() != s.digest {
		return refused(keysvcv1.ErrorReason_ERROR_REASON_POLICY_CHANGED)
	}
	wanted := policyOf(request.GetPolicy())
	return verdict{
		changes: !request.GetValidateOnly() && wanted.Digest() != s.digest,
		answer:  wanted.Digest(),
	}
}

func (s *truth) judgeRead(request any) verdict {
	switch request := request.(type) {
	case *keysvcv1.GetKeyRequest:
		return s.judgeKey(request, func(key *trueKey) verdict { return verdict{answer: s.describe(key, true)} })
	case *keysvcv1.ListKeysRequest:
		var lines []string
		for _, id := range slices.Backward(s.order) {
			if key := s.keys[id]; key.workspace == request.GetWorkspaceId() {
				lines = append(lines, s.describe(key, true))
			}
		}
		return verdict{answer: strings.Join(lines, "\n")}
	case *keysvcv1.GetMemberRequest:
		workspace := s.workspaces[request.GetWorkspaceId()]
		if workspace == nil {
			return refused(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
		}
		stored, known := workspace.members[request.GetMemberId()]
		if !known {
			return refused(keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
		}
		state := keysvcv1.MemberState_MEMBER_STATE_REMOVED
		if member, here := s.member(request.GetWorkspaceId(), request.GetMemberId()); here {
			state = member.state
		}
		return verdict{answer: describeMember(request.GetMemberId(), stored.role, state, stored.version)}
	case *keysvcv1.GetPolicyRequest:
		return verdict{answer: s.digest}
	case *question:
		return verdict{answer: s.validate(request).String()}
	}
	panic(fmt.Sprintf("no verdict on a %T", request))
}

// validate returns the reason that a validation is answered with.
func (s *truth) validate(asked *question) keysvcv1.Reason {
	key := s.keys[s.tokens[asked.token]]
	if key == nil || !slices.Contains(key.secrets, asked.token) ||
		asked.workspaceID != "" && asked.workspaceID != key.workspace {
		return keysvcv1.Reason_REASON_KEY_INVALID
	}
	owner, _ := s.owner(key)
	switch state := s.state(key); {
	case state == keysvcv1.KeyState_KEY_STATE_REVOKED:
		return keysvcv1.Reason_REASON_KEY_REVOKED
	case state == keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		return keysvcv1.Reason_REASON_MEMBER_INACTIVE
	case !slices.Contains(key.scopes, asked.scope):
		return keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED
	case !slices.Contains(s.roles[owner.role], asked.scope):
		return keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE
	}
	return keysvcv1.Reason_REASON_UNSPECIFIED // ALLOWED
}

// describe renders a key. Without withState it leaves out the state, which also depends on the member
// and the workspace.
func (s *truth) describe(key *trueKey, withState bool) string {
	state := keysvcv1.KeyState_KEY_STATE_UNSPECIFIED
	if withState {
		state = s.state(key)
	}
	return describeKey(key.id, key.workspace, key.member, key.name, key.scopes, len(key.secrets), state)
}

// describeShown renders a key that was answered, as describe does.
func describeShown(key *keysvcv1.Key, withState bool) string {
	state := keysvcv1.KeyState_KEY_STATE_UNSPECIFIED
	if withState {
		state = key.GetState()
	}
	return describeKey(key.GetKeyId(), key.GetWorkspaceId(), key.GetMemberId(), key.GetName(), key.GetScopes(), len(key.GetSecrets()), state)
}

func describeKey(id, workspaceID, memberID, name string, scopes []string, secrets int, state keysvcv1.KeyState) string {
	return fmt.Sprintf("%s of %s/%s, %q, %s, %d secrets, %s", id, workspaceID, memberID, name, strings.Join(scopes, ","), secrets,
		strings.TrimPrefix(state.String(), "KEY_STATE_"))
}

// describeShownMember renders a member that was answered, as describeMember does.
func describeShownMember(member *keysvcv1.Member) string {
	return describeMember(member.GetMemberId(), member.GetRole(), member.GetState(), member.GetSourceVersion())
}

func describeMember(memberID, role string, state keysvcv1.MemberState, version int64) string {
	return fmt.Sprint(memberID, " ", role, " ", state, " ", version)
}

// apply makes the change of a message for which judge has set changes. keyID and token are those
// that were issued. It returns the answer in words.
func (s *truth) apply(request any, keyID, token string) string {
	switch request := request.(type) {
	case *keysvcv1.PutMemberRequest:
		return s.putMember(request)
	case *keysvcv1.RemoveMemberRequest:
		workspace := s.workspace(request.GetWorkspaceId())
		member := workspace.members[request.GetMemberId()]
		member.state = keysvcv1.MemberState_MEMBER_STATE_REMOVED
		member.version = max(member.version, request.GetSourceVersion())
		workspace.members[request.GetMemberId()] = member
	case *keysvcv1.RemoveWorkspaceRequest:
		s.workspaces[request.GetWorkspaceId()].removed = true
	case *keysvcv1.CreateKeyRequest:
		return s.create(request, keyID, token)
	case *keysvcv1.RotateKeyRequest:
		key := s.keys[request.GetKeyId()]
		kept := key.secrets[:1]
		if request.GetOverlap().AsDuration() == 0 {
			kept = nil
		}
		key.secrets = append([]string{token}, kept...)
		s.tokens[token] = key.id
		s.remember(request.GetWorkspaceId(), request.RequestId, key.id)
		return s.describe(key, false)
	case *keysvcv1.UpdateKeyRequest:
		key := s.keys[request.GetKey().GetKeyId()]
		for _, path := range request.GetUpdateMask().GetPaths() {
			switch path {
			case "name":
				key.name = request.GetKey().GetName()
			case "scopes":
				key.scopes = request.GetKey().GetScopes()
			}
		}
		return s.describe(key, false)
	case *keysvcv1.FinishRotationRequest:
		key := s.keys[request.GetKeyId()]
		key.secrets = key.secrets[:1]
		return s.describe(key, false)
	case *keysvcv1.RevokeKeyRequest:
		s.keys[request.GetKeyId()].revoked = true
		return s.describe(s.keys[request.GetKeyId()], false)
	case *keysvcv1.RevokeTokenRequest:
		key := s.keys[s.tokens[request.GetToken()]]
		key.revoked = true
		return key.workspace + " " + key.id
	case *keysvcv1.ApplyPolicyRequest:
		s.use(policyOf(request.GetPolicy()))
		return s.digest
	default:
		panic(fmt.Sprintf("a %T changes nothing", request))
	}
	return ""
}

func (s *truth) workspace(id string) *trueWorkspace {
	workspace := s.workspaces[id]
	if workspace == nil {
		workspace = &trueWorkspace{removed: true, members: make(map[string]trueMember)}
		s.workspaces[id] = workspace
	}
	return workspace
}

func (s *truth) putMember(request *keysvcv1.PutMemberRequest) string {
	workspace := s.workspace(request.GetWorkspaceId())
	if workspace.removed {
		s.lives++
		workspace.life, workspace.removed = s.lives, false
	}
	member, here := s.member(request.GetWorkspaceId(), request.GetMemberId())
	if !here {
		s.lives++
		member = trueMember{life: s.lives, workspaceLife: workspace.life, version: workspace.members[request.GetMemberId()].version}
	}
	member.role, member.state = request.GetRole(), request.GetState()
	member.version = max(member.version, request.GetSourceVersion())
	workspace.members[request.GetMemberId()] = member
	return describeMember(request.GetMemberId(), member.role, member.state, member.version)
}

func (s *truth) create(request *keysvcv1.CreateKeyRequest, keyID, token string) string {
	member, _ := s.member(request.GetWorkspaceId(), request.GetMemberId())
	key := &trueKey{
		id: keyID, workspace: request.GetWorkspaceId(), member: request.GetMemberId(),
		memberLife: member.life, workspaceLife: member.workspaceLife,
		name: request.GetName(), scopes: request.GetScopes(), secrets: []string{token},
	}
	s.keys[keyID] = key
	s.order = append(s.order, keyID)
	s.tokens[token] = keyID
	s.remember(request.GetWorkspaceId(), request.RequestId, keyID)
	return s.describe(key, false)
}

func (s *truth) remember(workspaceID string, requestID *string, keyID string) {
	if requestID != nil {
		s.requests[[2]string{workspaceID, *requestID}] = keyID
	}
}

// policyOf returns the policy in a message.
func policyOf(sent *keysvcv1.Policy) *policy.Policy {
	wanted := policy.Default()
	wanted.Limits.LiveKeysPerWorkspace = int(sent.GetLimits().GetLiveKeysPerWorkspace())
	wanted.Roles = nil
	for _, role := range sent.GetRoles() {
		wanted.Roles = append(wanted.Roles, policy.Role{Name: role.GetName(), Scopes: role.GetScopes()})
	}
	return wanted
}

// sortedKeys returns the keys of a map in order.
func sortedKeys[V any](of map[string]V) []string { return slices.Sorted(maps.Keys(of)) }
