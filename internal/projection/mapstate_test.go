package projection

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// This file is the projection as it was before the table of record.go: maps of structs, which are
// replaced and never changed. The differential test compares the table with it.

// mapLast is when a key was last used, as usage.Word promises it.
type mapLast struct{ created, at time.Time }

// raise moves the time forward, in whole microseconds, and never before the creation.
func (l *mapLast) raise(at time.Time) {
	at = at.Truncate(time.Microsecond)
	if at.Before(l.created) {
		at = l.created
	}
	if at.After(l.at) {
		l.at = at
	}
}

// Member is a member as decide sees it, and what a change of it is checked against.
type mapMember struct {
	decide.Member
	// SourceVersion is the highest source version of the member.
	SourceVersion int64

	// updated is when the record last changed, in Unix nanoseconds.
	updated int64
	damaged error
}

// mapState is the index as of one revision.
type mapState struct {
	revision int64
	// loaded is the revision of the Load that the mapState began with.
	loaded int64
	policy *Policy
	// damagedPolicy is set if the policy's record cannot be read; policy is nil then.
	damagedPolicy error
	keys          map[string]*mapKey
	workspaces    map[string]*mapWorkspace
	// scopes holds each set of scopes once, because most keys of a product share a few sets.
	scopes map[string]decide.Scopes
}

// mapKey is one key. An entry is replaced, never changed.
type mapKey struct {
	key       decide.Key
	sequence  int64
	workspace *mapWorkspace
	// created and revoked are when the key was created and revoked, in Unix nanoseconds.
	created, revoked int64
	// last is shared by all entries of one key.
	last    *mapLast
	damaged error
}

// problem returns the first damage that an answer about the key depends on.
func (e *mapKey) problem() error {
	if e.damaged != nil {
		return e.damaged
	}
	if e.workspace.damaged != nil {
		return e.workspace.damaged
	}
	if member := e.workspace.members[e.key.Member]; member != nil {
		return member.damaged
	}
	return nil
}

// mapWorkspace is one workspace. The policy's, with an empty id, has only a head.
type mapWorkspace struct {
	id      string
	current *Current // nil if there is no record; replaced, never changed
	members map[string]*mapMember
	// keys are ordered by sequence. revoked counts the keys that were revoked themselves.
	keys    []*mapKey
	revoked int
	head    storage.Head
	// changed is the revision of the newest change since the Load; 0 if there was none.
	changed     int64
	damaged     error
	damagedHead error
}

// isLive reports whether a key of the workspace is neither revoked nor expired.
func (w *mapWorkspace) isLive(key *decide.Key, now int64) bool {
	if key.Revoked || now >= key.ExpireTime || key.WorkspaceIncarnation != w.current.Incarnation {
		return false
	}
	member := w.members[key.Member]
	// A key of a damaged member counts as live, because it may be.
	return member != nil && (member.damaged != nil || !member.Removed && member.Incarnation == key.MemberIncarnation)
}

// diedBefore reports whether a key stopped being live before a time, in Unix nanoseconds, and
// can never be live again.
func (w *mapWorkspace) diedBefore(entry *mapKey, before int64) bool {
	key := &entry.key
	if key.Revoked && entry.revoked < before || key.ExpireTime < before {
		return true
	}
	if w.current == nil || w.current.Removed || w.current.Incarnation != key.WorkspaceIncarnation {
		return w.current != nil && w.current.since < before
	}
	member := w.members[key.Member]
	if member == nil || member.damaged != nil {
		return false
	}
	// If the member was removed and added again, only the time of the addition is known.
	return (member.Removed || member.Incarnation != key.MemberIncarnation) && member.updated < before
}

func newMapState() *mapState {
	return &mapState{
		keys:       make(map[string]*mapKey),
		workspaces: make(map[string]*mapWorkspace),
		scopes:     make(map[string]decide.Scopes),
	}
}

func (s *mapState) workspace(id string) *mapWorkspace {
	entry := s.workspaces[id]
	if entry == nil {
		id = strings.Clone(id)
		entry = &mapWorkspace{id: id, members: make(map[string]*mapMember)}
		s.workspaces[id] = entry
	}
	return entry
}

// apply moves the mapState to the revision of a change.
func (s *mapState) apply(change *storage.Committed) {
	for _, item := range change.Put {
		s.put(item)
	}
	for _, record := range change.DeletedKeys {
		s.removeKey(record.GetKeyId())
	}
	for _, record := range change.DeletedMembers {
		delete(s.workspace(record.GetWorkspaceId()).members, record.GetMemberId())
	}
	changed := s.workspace(change.Head.WorkspaceID)
	changed.head, changed.changed = change.Head.Head, change.Revision
	s.revision = change.Revision
}

// put stores one record in the mapState.
func (s *mapState) put(item storage.Item) {
	switch {
	case item.Policy != nil:
		s.policy, s.damagedPolicy = preparePolicy(item.Policy)
	case item.Settings != nil, item.Damaged != nil && item.Damaged.Settings: // no question of this test is about them
	case item.Workspace != nil:
		s.addWorkspace(item.Workspace)
	case item.Member != nil:
		s.addMember(item.Member)
	case item.Key != nil:
		s.addKey(item.Key)
	case item.Head != nil:
		s.workspace(item.Head.WorkspaceID).head = item.Head.Head
	case item.Usage != nil:
		if entry := s.keys[item.Usage.KeyID]; entry != nil {
			entry.last.raise(item.Usage.Time)
		}
	case item.Damaged != nil:
		s.addDamaged(item.Damaged)
	}
}

func (s *mapState) addWorkspace(record *storagev1.WorkspaceRecord) {
	current := &Current{
		Workspace: decide.Workspace{Incarnation: record.GetIncarnation(), Removed: record.GetRemoveTime() != nil},
		Created:   record.GetCreateTime().AsTime(),
		since:     nanoseconds(record.GetCreateTime()),

		RemovalSourceVersion: record.GetRemovalSourceVersion(),
		Ended:                record.GetEnded(),
	}
	if current.Removed {
		current.since = nanoseconds(record.GetRemoveTime())
	}
	s.workspace(record.GetWorkspaceId()).current = current
}

func (s *mapState) addMember(record *storagev1.MemberRecord) {
	s.workspace(record.GetWorkspaceId()).members[record.GetMemberId()] = &mapMember{
		Member: decide.Member{
			Incarnation:          record.GetIncarnation(),
			WorkspaceIncarnation: record.GetWorkspaceIncarnation(),
			Role:                 record.GetRole(),
			// A mapState that this program does not know is neither of the two, and denies.
			Active:  record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
			Removed: record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
		},
		SourceVersion: record.GetSourceVersion(),
		updated:       nanoseconds(record.GetUpdateTime()),
	}
}

func (s *mapState) addKey(record *storagev1.KeyRecord) {
	entry := &mapKey{
		sequence: record.GetSequence(), workspace: s.workspace(record.GetWorkspaceId()), created: nanoseconds(record.GetCreateTime()),
	}
	entry.damaged = s.fill(&entry.key, record, entry.workspace)
	if record.GetRevokeTime() != nil {
		entry.revoked = nanoseconds(record.GetRevokeTime())
	}
	s.insert(entry)
	if entry.last.at.IsZero() {
		entry.last.created = time.Unix(0, entry.created).UTC().Add(time.Microsecond - 1).Truncate(time.Microsecond)
	}
}

// insert adds or replaces a key.
func (s *mapState) insert(entry *mapKey) {
	workspace := entry.workspace
	if before := s.keys[entry.key.ID]; before != nil {
		entry.last = before.last
		if s.replace(before, entry) {
			return
		}
		s.removeKey(entry.key.ID)
	} else {
		entry.last = &mapLast{}
	}
	s.keys[entry.key.ID] = entry
	index, _ := slices.BinarySearchFunc(workspace.keys, entry, compareMapKeys)
	workspace.keys = slices.Insert(workspace.keys, index, entry)
	if entry.key.Revoked {
		workspace.revoked++
	}
}

// keepUses takes over the last uses from an older mapState, because they may not be stored yet.
func (s *mapState) keepUses(older *mapState) {
	for id, entry := range s.keys {
		if before := older.keys[id]; before != nil {
			if !entry.last.at.IsZero() {
				before.last.raise(entry.last.at)
			}
			entry.last = before.last
		}
	}
}

// replace puts entry in the place of before, if the order of the keys allows it, and reports
// whether it has done so.
func (s *mapState) replace(before, entry *mapKey) bool {
	workspace := entry.workspace
	index, found := slices.BinarySearchFunc(workspace.keys, entry, compareMapKeys)
	if before.workspace != workspace || !found || workspace.keys[index] != before {
		return false
	}
	s.keys[entry.key.ID], workspace.keys[index] = entry, entry
	workspace.revoked += mapCount(entry.key.Revoked) - mapCount(before.key.Revoked)
	return true
}

func mapCount(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// compareMapKeys orders the keys of a workspace by sequence.
func compareMapKeys(a, b *mapKey) int {
	return cmp.Or(cmp.Compare(a.sequence, b.sequence), cmp.Compare(a.key.ID, b.key.ID))
}

func (s *mapState) removeKey(keyID string) {
	entry := s.keys[keyID]
	if entry == nil {
		return
	}
	delete(s.keys, keyID)
	workspace := entry.workspace
	switch index, found := slices.BinarySearchFunc(workspace.keys, entry, compareMapKeys); {
	case found && index == 0:
		// Sweeps delete the oldest keys first, and may delete many: the others are not moved.
		workspace.keys[0] = nil
		workspace.keys = workspace.keys[1:]
	case found:
		workspace.keys = slices.Delete(workspace.keys, index, index+1)
	}
	if entry.key.Revoked {
		workspace.revoked--
	}
}

// fill sets a key from its record. A malformed record is a DamagedError.
func (s *mapState) fill(key *decide.Key, record *storagev1.KeyRecord, workspace *mapWorkspace) error {
	key.ID = record.GetKeyId()
	key.Workspace = workspace.id
	key.Member = record.GetMemberId()
	key.WorkspaceIncarnation = record.GetWorkspaceIncarnation()
	key.MemberIncarnation = record.GetMemberIncarnation()
	// Share the strings that most keys have in common with their workspace and member.
	if workspace.current != nil && workspace.current.Incarnation == key.WorkspaceIncarnation {
		key.WorkspaceIncarnation = workspace.current.Incarnation
	}
	if member := workspace.members[key.Member]; member != nil && member.Incarnation == key.MemberIncarnation {
		key.MemberIncarnation = member.Incarnation
	}
	key.Scopes = s.share(record.GetScopes())
	key.Revoked = record.GetRevokeTime() != nil
	key.Held = record.GetHoldTime() != nil
	damaged := func(problem string) error {
		return &storage.DamagedError{Kind: "key", Name: key.ID, Problem: problem}
	}
	for _, cidr := range record.GetAllowedCidrs() {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return damaged("an allowed CIDR is malformed")
		}
		key.AllowedPrefixes = append(key.AllowedPrefixes, prefix)
	}
	secrets := record.GetSecrets()
	if len(secrets) < 1 || len(secrets) > len(key.Secrets) {
		return damaged("it has neither one secret nor two")
	}
	for index, secret := range secrets {
		if len(secret.GetHash()) != 32 || secret.GetScheme() > 255 || secret.GetExpireTime() == nil {
			return damaged("a secret is malformed")
		}
		key.Secrets[index] = decide.Secret{
			Hash: token.Hash{
				Scheme: token.Scheme(secret.GetScheme()),
				Sum:    [32]byte(secret.GetHash()),
			}.Short(),
			End: mapEnd(secret),
		}
	}
	key.ExpireTime = nanoseconds(secrets[0].GetExpireTime())
	return nil
}

// end returns when a secret stops matching, in Unix nanoseconds.
func mapEnd(secret *storagev1.SecretRecord) int64 {
	expires := nanoseconds(secret.GetExpireTime())
	if secret.GetOverlapEndTime() != nil {
		return min(expires, nanoseconds(secret.GetOverlapEndTime()))
	}
	return expires
}

// share returns the set of scopes with these names, which all keys with equal scopes share.
func (s *mapState) share(names []string) decide.Scopes {
	joined := strings.Join(names, " ")
	set, found := s.scopes[joined]
	if !found {
		set = decide.NewScopes(names...)
		s.scopes[joined] = set
	}
	return set
}

func (s *mapState) addDamaged(damaged *storage.Damaged) {
	switch workspace := damaged.WorkspaceID; {
	case workspace == "" && damaged.KeyID == "" && !damaged.Head:
		s.policy, s.damagedPolicy = nil, damaged.Err
	case damaged.KeyID != "":
		entry := &mapKey{workspace: s.workspace(workspace), damaged: damaged.Err}
		entry.key.ID = damaged.KeyID
		s.insert(entry)
	case damaged.MemberID != "":
		s.workspace(workspace).members[damaged.MemberID] = &mapMember{damaged: damaged.Err}
	case damaged.Head:
		s.workspace(workspace).damagedHead = damaged.Err
	default:
		s.workspace(workspace).damaged = damaged.Err
	}
}

// HasRoom reports whether a workspace has fewer than limit live keys at now. A live key is
// neither revoked nor expired, and does not count as revoked with its member or workspace. A
// change that relies on the result must expect the workspace's head as read before the call.
func (s *mapState) HasRoom(workspaceID string, now time.Time, limit int) bool {
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return limit > 0
	}
	// Most workspaces are so far from their limit that nothing has to be counted.
	return len(entry.keys)-entry.revoked < limit || s.live(entry, now, limit) < limit
}

// LiveKeys counts the live keys of a workspace at now, as HasRoom defines them. It stops counting
// at enough.
func (s *mapState) LiveKeys(workspaceID string, now time.Time, enough int) int {
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return 0
	}
	return s.live(entry, now, enough)
}

// live counts live keys, up to enough. mutex is held for reading, and released between strides.
func (s *mapState) live(workspace *mapWorkspace, now time.Time, enough int) int {
	nanoseconds, count := now.UnixNano(), 0
	for _, entry := range workspace.keys {
		if count >= enough {
			break
		}
		if workspace.current == nil || workspace.current.Removed {
			return 0
		}
		// A damaged key counts: it may be live, and refusing a new key is the safer mistake.
		if entry.damaged != nil || workspace.isLive(&entry.key, nanoseconds) {
			count++
		}
	}
	return count
}

// Workspaces returns the ids of all workspaces that were ever changed.
func (s *mapState) Workspaces() []string {
	ids := make([]string, 0, len(s.workspaces))
	for id := range maps.All(s.workspaces) {
		if id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Dead returns at most limit records of a workspace that died before a time, the oldest keys
// first. It returns members only if no key is left to delete. A change that relies on the result
// must expect the workspace's head as read before the call.
func (s *mapState) Dead(workspaceID string, before time.Time, limit int) Dead {
	var dead Dead
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return dead
	}
	nanoseconds := before.UnixNano()
	for _, key := range entry.keys {
		if len(dead.KeyIDs) == limit {
			return dead
		}
		if key.damaged == nil && entry.diedBefore(key, nanoseconds) {
			dead.KeyIDs = append(dead.KeyIDs, key.key.ID)
		}
	}
	if len(dead.KeyIDs) == 0 {
		dead.MemberIDs = s.deadMembers(entry, nanoseconds, limit)
	}
	return dead
}

// deadMembers returns members that were removed before a time, in Unix nanoseconds, by
// themselves or with their workspace, and have no keys. mutex is held for reading, and released
// between strides.
func (s *mapState) deadMembers(workspace *mapWorkspace, before int64, limit int) []string {
	var owners map[string]bool
	var dead []string
	for id, member := range maps.All(workspace.members) {
		if len(dead) == limit {
			break
		}
		if member.damaged != nil || !workspace.isGone(member, before) {
			continue
		}
		if owners == nil {
			owners = make(map[string]bool)
			for _, entry := range workspace.keys {
				owners[entry.key.Member] = true
			}
		}
		if !owners[id] {
			dead = append(dead, id)
		}
	}
	slices.Sort(dead)
	return dead
}

// isGone reports whether a member was removed before a time, in Unix nanoseconds.
func (w *mapWorkspace) isGone(member *mapMember, before int64) bool {
	if member.Removed && member.updated < before {
		return true
	}
	return w.current != nil && (w.current.Removed || w.current.Incarnation != member.WorkspaceIncarnation) &&
		w.current.since < before && member.updated < before
}

// mapFound is what the projection knows about one key id, as of one revision.
type mapFound struct {
	// Subject is what decide needs; empty if there is no such key.
	Subject decide.Subject
	// Policy is the active policy; nil if the store has none, or if it is damaged.
	Policy *Policy
	// Revision is the revision that all of this is as of.
	Revision int64
	// Last is when the key was last used; nil if there is no such key.
	Last *mapLast
	// Created is when the key was created, in Unix nanoseconds; 0 if there is no such key.
	Created int64
	// Damaged is set if a record that the answer depends on cannot be read. Nothing may be
	// decided then. WorkspaceID is the workspace of the key in question; empty if that is not known,
	// or if Damaged is nil.
	Damaged     error
	WorkspaceID string
}

// Find returns what is known about a key id. It reads memory alone, even for an id that does
// not exist, and does not allocate.
func (s *mapState) Find(keyID string) mapFound {
	found := mapFound{Policy: s.policy, Revision: s.revision, Damaged: s.damagedPolicy}
	if found.Damaged != nil {
		return found
	}
	entry := s.keys[keyID]
	if entry == nil {
		return found
	}
	if found.Damaged = entry.problem(); found.Damaged != nil {
		found.WorkspaceID = entry.workspace.id
		return found
	}
	found.Subject.Key, found.Last, found.Created = &entry.key, entry.last, entry.created
	if entry.workspace.current != nil {
		found.Subject.Workspace = &entry.workspace.current.Workspace
	}
	if member := entry.workspace.members[entry.key.Member]; member != nil {
		found.Subject.Member = &member.Member
		if s.policy != nil {
			if scopes := s.policy.roles[member.Role]; scopes != nil {
				found.Subject.RoleScopes = &scopes
			}
		}
	}
	return found
}

// Workspace returns what is known about a workspace. The empty id is the policy's.
func (s *mapState) Workspace(workspaceID string) Workspace {
	result := Workspace{Policy: s.policy, DamagedPolicy: s.damagedPolicy, Revision: s.revision}
	if entry := s.workspaces[""]; entry != nil {
		result.PolicyHead = entry.head
	}
	if entry := s.workspaces[workspaceID]; entry != nil {
		result.Head, result.Current = entry.head, entry.current
		result.Changed = max(entry.changed, s.loaded)
		result.Damaged = errors.Join(entry.damaged, entry.damagedHead)
	}
	return result
}

// Member returns a member; nil if there is no record. The error is a storage.DamagedError if
// the record cannot be read.
func (s *mapState) Member(workspaceID, memberID string) (*mapMember, error) {
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return nil, nil
	}
	member := entry.members[memberID]
	if member == nil {
		return nil, nil
	}
	return member, member.damaged
}

// NewestSourceVersion returns the highest source version of a workspace's members, removed
// members included; 0 for a workspace without members.
func (s *mapState) NewestSourceVersion(workspaceID string) int64 {
	var newest int64
	if entry := s.workspaces[workspaceID]; entry != nil {
		for _, member := range maps.All(entry.members) {
			newest = max(newest, member.SourceVersion)
		}
	}
	return newest
}

// LastUsed returns when a key was last used; zero if it never was.
func (s *mapState) LastUsed(keyID string) time.Time {
	if entry := s.keys[keyID]; entry != nil {
		return entry.last.at
	}
	return time.Time{}
}

// Effect counts the live keys whose effective scopes would shrink, and those whose effective
// scopes would grow, if the roles had these scopes instead of the active policy's. A key can
// count as both. A key that changes during the count counts as it was before or after.
func (s *mapState) Effect(roles map[string]decide.Scopes, now time.Time) (narrowed, widened int64) {
	effects := effects{after: roles, known: make(map[combination]effect)}
	if s.policy != nil {
		effects.before = s.policy.roles
	}
	nanoseconds := now.UnixNano()
	for _, entry := range maps.All(s.keys) {
		workspace := entry.workspace
		if entry.problem() != nil || workspace.current == nil || workspace.current.Removed ||
			!workspace.isLive(&entry.key, nanoseconds) {
			continue
		}
		found := effects.of(entry.key.Scopes, workspace.members[entry.key.Member].Role)
		if found.narrows {
			narrowed++
		}
		if found.widens {
			widened++
		}
	}
	return narrowed, widened
}
