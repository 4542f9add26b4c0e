package keystest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// model is a simple and slow implementation of the same rules with plain maps. The product must answer
// as the model does.
type model struct {
	now        time.Time
	workspaces map[string]*modelWorkspace
	keys       map[string]*modelKey
	order      []string // key ids, oldest first
	roles      map[string][]string
	retention  time.Duration
	liveLimit  int
	// lives counts the workspaces and members that were ever added, so that each has a number.
	lives int
	// ends are when members and workspaces were removed, by these numbers.
	ends map[int]time.Time
}

type modelWorkspace struct {
	life    int
	removed bool
	since   time.Time
	removal int64 // source version of the newest removal
	members map[string]*modelMember
}

// isNewer reports whether a push of a member is accepted. A push of the stored version is accepted only
// if it changes nothing.
func (w *modelWorkspace) isNewer(stored *modelMember, version *int64, same bool) bool {
	switch {
	case version == nil:
		return true
	case w != nil && w.removal > 0 && *version <= w.removal:
		return false
	case stored == nil || *version > stored.version:
		return true
	}
	return *version == stored.version && same
}

// newest returns the highest source version of the workspace and its members.
func (w *modelWorkspace) newest() int64 {
	newest := w.removal
	for _, member := range w.members {
		newest = max(newest, member.version)
	}
	return newest
}

type modelMember struct {
	life, workspaceLife int
	role                string
	state               keysvcv1.MemberState
	version             int64
	updated             time.Time
	since               time.Time // of the state
}

type modelKey struct {
	id, workspace, member     string
	memberLife, workspaceLife int
	name                      string
	scopes                    []string
	cidrs                     []string
	created                   time.Time
	revoked                   *time.Time
	reported                  bool
	secrets                   []modelSecret // newest first
	lastUsed                  time.Time
	requests                  []string
}

type modelSecret struct {
	token           string
	created, expire time.Time
	end             time.Time // of its overlap or itself, whichever is first
	lastUsed        time.Time
}

func newModel(now time.Time) *model {
	return &model{now: now, workspaces: map[string]*modelWorkspace{}, keys: map[string]*modelKey{}, ends: map[int]time.Time{}}
}

// member returns a member who is in the workspace now, nil otherwise.
func (m *model) member(workspaceID, memberID string) *modelMember {
	workspace := m.workspaces[workspaceID]
	if workspace == nil || workspace.removed {
		return nil
	}
	member := workspace.members[memberID]
	if member == nil || member.state == keysvcv1.MemberState_MEMBER_STATE_REMOVED || member.workspaceLife != workspace.life {
		return nil
	}
	return member
}

// owner returns the member that a key acts as, nil if the key counts as revoked.
func (m *model) owner(key *modelKey) *modelMember {
	member := m.member(key.workspace, key.member)
	if member == nil || member.life != key.memberLife || m.workspaces[key.workspace].life != key.workspaceLife {
		return nil
	}
	return member
}

func (m *model) state(key *modelKey) keysvcv1.KeyState {
	owner := m.owner(key)
	switch {
	case key.revoked != nil || owner == nil:
		return keysvcv1.KeyState_KEY_STATE_REVOKED
	case !m.now.Before(key.secrets[0].expire):
		return keysvcv1.KeyState_KEY_STATE_EXPIRED
	case owner.state == keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		return keysvcv1.KeyState_KEY_STATE_SUSPENDED
	}
	return keysvcv1.KeyState_KEY_STATE_ACTIVE
}

// stopped returns when and why a key stopped working.
func (m *model) stopped(key *modelKey) (at time.Time, why keysvcv1.StopReason) {
	note := func(when time.Time, reason keysvcv1.StopReason) {
		if why == keysvcv1.StopReason_STOP_REASON_UNSPECIFIED || !when.IsZero() && (at.IsZero() || when.Before(at)) {
			at, why = when, reason
		}
	}
	workspace := m.workspaces[key.workspace]
	member := workspace.members[key.member]
	switch {
	case key.revoked != nil && key.reported:
		note(*key.revoked, keysvcv1.StopReason_STOP_REASON_REPORTED)
	case key.revoked != nil:
		note(*key.revoked, keysvcv1.StopReason_STOP_REASON_REVOKED)
	}
	if workspace.removed || workspace.life != key.workspaceLife {
		note(m.ends[key.workspaceLife], keysvcv1.StopReason_STOP_REASON_WORKSPACE_REMOVED)
	}
	if member == nil || member.state == keysvcv1.MemberState_MEMBER_STATE_REMOVED || member.life != key.memberLife {
		note(m.ends[key.memberLife], keysvcv1.StopReason_STOP_REASON_MEMBER_REMOVED)
	}
	if !m.now.Before(key.secrets[0].expire) {
		note(key.secrets[0].expire, keysvcv1.StopReason_STOP_REASON_EXPIRED)
	}
	if why == keysvcv1.StopReason_STOP_REASON_UNSPECIFIED && member.state == keysvcv1.MemberState_MEMBER_STATE_SUSPENDED {
		note(member.since, keysvcv1.StopReason_STOP_REASON_MEMBER_SUSPENDED)
	}
	return at, why
}

// effect renders the role of a key's member, and what the key may do with it.
func (m *model) effect(key *modelKey) string {
	owner := m.owner(key)
	if owner == nil {
		return fmt.Sprint("", []string{})
	}
	var scopes []string
	for _, scope := range key.scopes {
		if slices.Contains(m.roles[owner.role], scope) {
			scopes = append(scopes, scope)
		}
	}
	return fmt.Sprint(owner.role, scopes)
}

// notLive returns the reason why a key cannot be changed; unspecified if it can.
func (m *model) notLive(key *modelKey) keysvcv1.ErrorReason {
	switch m.state(key) { // in the other states the key is live
	case keysvcv1.KeyState_KEY_STATE_REVOKED:
		return keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED
	case keysvcv1.KeyState_KEY_STATE_EXPIRED:
		return keysvcv1.ErrorReason_ERROR_REASON_KEY_EXPIRED
	}
	return none
}

func (m *model) liveKeys(workspaceID string) int {
	count := 0
	for _, key := range m.keys {
		if key.workspace == workspaceID && m.notLive(key) == none {
			count++
		}
	}
	return count
}

// validate returns the reason that a validation of a token is answered with.
func (m *model) validate(token, scope, workspaceID, address string) keysvcv1.Reason {
	for _, key := range m.keys {
		for index, secret := range key.secrets {
			if secret.token != token || index > 0 && !m.now.Before(secret.end) {
				continue
			}
			if workspaceID != "" && workspaceID != key.workspace {
				return keysvcv1.Reason_REASON_KEY_INVALID
			}
			owner := m.owner(key)
			switch m.state(key) { // the other states go on to the checks below
			case keysvcv1.KeyState_KEY_STATE_REVOKED:
				return keysvcv1.Reason_REASON_KEY_REVOKED
			case keysvcv1.KeyState_KEY_STATE_EXPIRED:
				return keysvcv1.Reason_REASON_KEY_EXPIRED
			case keysvcv1.KeyState_KEY_STATE_SUSPENDED:
				return keysvcv1.Reason_REASON_MEMBER_INACTIVE
			}
			switch {
			case len(key.cidrs) > 0 && !addressIn(address, key.cidrs):
				return keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED
			case !slices.Contains(key.scopes, scope):
				return keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED
			case !slices.Contains(m.roles[owner.role], scope):
				return keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE
			}
			key.lastUsed, key.secrets[index].lastUsed = m.now, m.now
			return keysvcv1.Reason_REASON_UNSPECIFIED
		}
	}
	return keysvcv1.Reason_REASON_KEY_INVALID
}

func addressIn(address string, cidrs []string) bool {
	at, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(cidrs, func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(at.Unmap()) })
}

// requestUsed reports whether a request id was used in a workspace.
func (m *model) requestUsed(workspaceID, requestID string) bool {
	for _, key := range m.keys {
		if key.workspace == workspaceID && slices.Contains(key.requests, requestID) {
			return true
		}
	}
	return false
}

// diedBefore reports whether a key was revoked, expired or lost its member before a time.
func (m *model) diedBefore(key *modelKey, before time.Time) bool {
	if key.revoked != nil && key.revoked.Before(before) || key.secrets[0].expire.Before(before) {
		return true
	}
	workspace := m.workspaces[key.workspace]
	if workspace.removed || workspace.life != key.workspaceLife {
		return workspace.since.Before(before)
	}
	member := workspace.members[key.member]
	if member == nil || member.state != keysvcv1.MemberState_MEMBER_STATE_REMOVED && member.life == key.memberLife {
		return false
	}
	return member.updated.Before(before)
}

// sweep deletes keys and members whose retention has passed.
func (m *model) sweep() {
	before := m.now.Add(-m.retention)
	for _, id := range slices.Sorted(maps.Keys(m.keys)) {
		if m.diedBefore(m.keys[id], before) {
			m.forget(id)
		}
	}
	for workspaceID, workspace := range m.workspaces {
		for memberID, member := range workspace.members {
			gone := member.state == keysvcv1.MemberState_MEMBER_STATE_REMOVED
			outlived := workspace.life > 0 && (workspace.removed || workspace.life != member.workspaceLife) && workspace.since.Before(before)
			if !member.updated.Before(before) || !gone && !outlived {
				continue
			}
			has := false
			for _, key := range m.keys {
				has = has || key.workspace == workspaceID && key.member == memberID
			}
			if !has {
				delete(workspace.members, memberID)
			}
		}
	}
}

func (m *model) forget(id string) {
	delete(m.keys, id)
	m.order = slices.DeleteFunc(m.order, func(each string) bool { return each == id })
}

// list returns the ids that a filtered list gives, newest first.
func (m *model) list(request *keysvcv1.ListKeysRequest) []string {
	var ids []string
	for _, id := range slices.Backward(m.order) {
		key := m.keys[id]
		used := key.lastUsed
		if used.IsZero() {
			used = key.created
		}
		if request.GetWorkspaceId() != "" && request.GetWorkspaceId() != key.workspace ||
			request.MemberId != nil && request.GetMemberId() != key.member ||
			request.Scope != nil && !slices.Contains(key.scopes, request.GetScope()) ||
			len(request.GetStates()) > 0 && !slices.Contains(request.GetStates(), m.state(key)) ||
			request.GetExpiringBefore() != nil && !key.secrets[0].expire.Before(request.GetExpiringBefore().AsTime()) ||
			request.GetUnusedSince() != nil && !used.Before(request.GetUnusedSince().AsTime()) {
			continue
		}
		ids = append(ids, id)
	}
	return ids
}

// describe renders a key as describeReal does.
func (m *model) describe(key *modelKey) string {
	var text strings.Builder
	text.WriteString(key.id + " " + key.workspace + " " + key.member + " " + key.name + " " +
		strings.Join(key.scopes, ",") + " " + strings.Join(key.cidrs, ",") + " " + m.state(key).String() +
		" created " + key.created.Format(time.RFC3339Nano) + " expires " + key.secrets[0].expire.Format(time.RFC3339Nano))
	if key.revoked != nil {
		text.WriteString(" revoked " + key.revoked.Format(time.RFC3339Nano))
	}
	if at, why := m.stopped(key); why != keysvcv1.StopReason_STOP_REASON_UNSPECIFIED {
		text.WriteString(" stopped " + at.Format(time.RFC3339Nano) + " " + why.String())
	}
	if !key.lastUsed.IsZero() {
		text.WriteString(" used " + key.lastUsed.Format(time.RFC3339Nano))
	}
	for index, secret := range key.secrets {
		if index == 0 || m.now.Before(secret.end) {
			text.WriteString(" secret until " + secret.end.Format(time.RFC3339Nano))
			if !secret.lastUsed.IsZero() {
				text.WriteString(" used " + secret.lastUsed.Format(time.RFC3339Nano))
			}
		}
	}
	return text.String()
}

// describeReal renders a key as callers see it.
func describeReal(key *keysvcv1.Key) string {
	var text strings.Builder
	text.WriteString(key.GetKeyId() + " " + key.GetWorkspaceId() + " " + key.GetMemberId() + " " + key.GetName() + " " +
		strings.Join(key.GetScopes(), ",") + " " + strings.Join(key.GetAllowedCidrs(), ",") + " " + key.GetState().String() +
		" created " + key.GetCreateTime().AsTime().Format(time.RFC3339Nano) +
		" expires " + key.GetExpireTime().AsTime().Format(time.RFC3339Nano))
	if key.GetRevokeTime() != nil {
		text.WriteString(" revoked " + key.GetRevokeTime().AsTime().Format(time.RFC3339Nano))
	}
	if why := key.GetStopReason(); why != keysvcv1.StopReason_STOP_REASON_UNSPECIFIED {
		var at time.Time
		if key.GetStopTime() != nil {
			at = key.GetStopTime().AsTime()
		}
		text.WriteString(" stopped " + at.Format(time.RFC3339Nano) + " " + why.String())
	}
	if key.GetCreatedBy().GetCaller() == "" || (key.GetRevokedBy().GetCaller() != "") != (key.GetRevokeTime() != nil) {
		text.WriteString(" created or revoked by nobody")
	}
	if key.GetLastUsedTime() != nil {
		text.WriteString(" used " + key.GetLastUsedTime().AsTime().Format(time.RFC3339Nano))
	}
	for _, secret := range key.GetSecrets() {
		text.WriteString(" secret until " + secret.GetExpireTime().AsTime().Format(time.RFC3339Nano))
		if secret.GetLastUsedTime() != nil {
			text.WriteString(" used " + secret.GetLastUsedTime().AsTime().Format(time.RFC3339Nano))
		}
	}
	return text.String()
}
