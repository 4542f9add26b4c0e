package projection

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// Policy is the active policy, prepared for look-ups.
type Policy struct {
	// Policy is the policy itself.
	*policy.Policy
	// Digest identifies the policy.
	Digest string
	// Retired are the scopes that only earlier policies had, sorted.
	Retired decide.Scopes
	// Catalogue are the policy's scopes, sorted.
	Catalogue decide.Scopes

	roles map[string]decide.Scopes
}

// Role returns the scopes of a role; nil if the policy does not have the role.
func (p *Policy) Role(name string) decide.Scopes { return p.roles[name] }

// Current is a workspace as decide sees it, and what a change of it is checked against.
type Current struct {
	decide.Workspace
	// Created is when the workspace was added, or added again after a removal.
	Created time.Time
	// RemovalSourceVersion is the highest source version of a removal of the workspace, earlier
	// removals included.
	RemovalSourceVersion int64
	// Ended are the earlier incarnations; nil if there were none. It must not be changed.
	Ended []*storagev1.EndedIncarnation

	// since is when the workspace was last added or removed, in Unix nanoseconds.
	since int64
}

// Since returns when the workspace was last added or removed.
func (c *Current) Since() time.Time { return time.Unix(0, c.since).UTC() }

// Member is a member as decide sees it, and what a change of it is checked against.
type Member struct {
	decide.Member
	// SourceVersion is the highest source version of the member.
	SourceVersion int64

	// updated is when the record last changed, in Unix nanoseconds.
	updated int64
	damaged error
}

// state is the index as of one revision.
type state struct {
	revision int64
	// loaded is the revision of the Load that the state began with.
	loaded int64
	policy *Policy
	// damagedPolicy is set if the policy's record cannot be read; policy is nil then.
	damagedPolicy error
	keys          map[string]*keyEntry
	workspaces    map[string]*workspaceEntry
	// scopes holds each set of scopes once, because most keys of a product share a few sets.
	scopes map[string]decide.Scopes
}

// keyEntry is one key. An entry is replaced, never changed.
type keyEntry struct {
	key       decide.Key
	sequence  int64
	workspace *workspaceEntry
	// created and revoked are when the key was created and revoked, in Unix nanoseconds.
	created, revoked int64
	// last is shared by all entries of one key.
	last    *usage.Last
	damaged error
}

// problem returns the first damage that an answer about the key depends on.
func (e *keyEntry) problem() error {
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

// workspaceEntry is one workspace. The policy's, with an empty id, has only a head.
type workspaceEntry struct {
	id      string
	current *Current // nil if there is no record; replaced, never changed
	members map[string]*Member
	// keys are ordered by sequence. revoked counts the keys that were revoked themselves.
	keys    []*keyEntry
	revoked int
	head    storage.Head
	// changed is the revision of the newest change since the Load; 0 if there was none.
	changed     int64
	damaged     error
	damagedHead error
}

// isLive reports whether a key of the workspace is neither revoked nor expired.
func (w *workspaceEntry) isLive(key *decide.Key, now int64) bool {
	if key.Revoked || now >= key.ExpireTime || key.WorkspaceIncarnation != w.current.Incarnation {
		return false
	}
	member := w.members[key.Member]
	// A key of a damaged member counts as live, because it may be.
	return member != nil && (member.damaged != nil || !member.Removed && member.Incarnation == key.MemberIncarnation)
}

// diedBefore reports whether a key stopped being live before a time, in Unix nanoseconds, and
// can never be live again.
func (w *workspaceEntry) diedBefore(entry *keyEntry, before int64) bool {
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

func newState() *state {
	return &state{
		keys:       make(map[string]*keyEntry),
		workspaces: make(map[string]*workspaceEntry),
		scopes:     make(map[string]decide.Scopes),
	}
}

func (s *state) workspace(id string) *workspaceEntry {
	entry := s.workspaces[id]
	if entry == nil {
		id = strings.Clone(id)
		entry = &workspaceEntry{id: id, members: make(map[string]*Member)}
		s.workspaces[id] = entry
	}
	return entry
}

// apply moves the state to the revision of a change.
func (s *state) apply(change *storage.Committed) {
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

// add is put, as a visitor of Load.
func (s *state) add(item storage.Item) error {
	s.put(item)
	return nil
}

// put stores one record in the state.
func (s *state) put(item storage.Item) {
	switch {
	case item.Policy != nil:
		s.addPolicy(item.Policy)
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
			entry.last.Raise(item.Usage.Time)
		}
	case item.Damaged != nil:
		s.addDamaged(item.Damaged)
	}
}

// addPolicy makes a policy the active one. If the record cannot be read, the projection has no
// active policy: the policy before it may allow what this one took away.
func (s *state) addPolicy(record *storagev1.PolicyRecord) {
	parsed, err := policy.Parse("stored policy", record.GetDocument())
	if err != nil {
		s.policy, s.damagedPolicy = nil, &storage.DamagedError{Kind: "policy", Name: "active", Problem: err.Error()}
		return
	}
	prepared := &Policy{
		Policy:    parsed,
		Digest:    parsed.Digest(),
		Retired:   decide.NewScopes(record.GetRetiredScopes()...),
		Catalogue: parsed.Scopes(),
		roles:     make(map[string]decide.Scopes, len(parsed.Roles)),
	}
	for _, role := range parsed.Roles {
		prepared.roles[role.Name], _ = parsed.RoleScopes(role.Name)
	}
	s.policy, s.damagedPolicy = prepared, nil
}

func (s *state) addWorkspace(record *storagev1.WorkspaceRecord) {
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

func (s *state) addMember(record *storagev1.MemberRecord) {
	s.workspace(record.GetWorkspaceId()).members[record.GetMemberId()] = &Member{
		Member: decide.Member{
			Incarnation:          record.GetIncarnation(),
			WorkspaceIncarnation: record.GetWorkspaceIncarnation(),
			Role:                 record.GetRole(),
			// A state that this program does not know is neither of the two, and denies.
			Active:  record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
			Removed: record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
		},
		SourceVersion: record.GetSourceVersion(),
		updated:       nanoseconds(record.GetUpdateTime()),
	}
}

func (s *state) addKey(record *storagev1.KeyRecord) {
	entry := &keyEntry{
		sequence: record.GetSequence(), workspace: s.workspace(record.GetWorkspaceId()), created: nanoseconds(record.GetCreateTime()),
	}
	entry.damaged = s.fill(&entry.key, record, entry.workspace)
	if record.GetRevokeTime() != nil {
		entry.revoked = nanoseconds(record.GetRevokeTime())
	}
	s.insert(entry)
}

// insert adds or replaces a key.
func (s *state) insert(entry *keyEntry) {
	workspace := entry.workspace
	if before := s.keys[entry.key.ID]; before != nil {
		entry.last = before.last
		if s.replace(before, entry) {
			return
		}
		s.removeKey(entry.key.ID)
	} else {
		entry.last = usage.NewLast(entry.key.ID)
	}
	s.keys[entry.key.ID] = entry
	index, _ := slices.BinarySearchFunc(workspace.keys, entry, compareKeys)
	workspace.keys = slices.Insert(workspace.keys, index, entry)
	if entry.key.Revoked {
		workspace.revoked++
	}
}

// keepUses takes over the last uses from an older state, because they may not be stored yet.
func (s *state) keepUses(older *state) {
	for id, entry := range s.keys {
		if before := older.keys[id]; before != nil {
			before.last.Raise(entry.last.Time())
			entry.last = before.last
		}
	}
}

// replace puts entry in the place of before, if the order of the keys allows it, and reports
// whether it has done so.
func (s *state) replace(before, entry *keyEntry) bool {
	workspace := entry.workspace
	index, found := slices.BinarySearchFunc(workspace.keys, entry, compareKeys)
	if before.workspace != workspace || !found || workspace.keys[index] != before {
		return false
	}
	s.keys[entry.key.ID], workspace.keys[index] = entry, entry
	workspace.revoked += count(entry.key.Revoked) - count(before.key.Revoked)
	return true
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// compareKeys orders the keys of a workspace by sequence.
func compareKeys(a, b *keyEntry) int {
	return cmp.Or(cmp.Compare(a.sequence, b.sequence), cmp.Compare(a.key.ID, b.key.ID))
}

func (s *state) removeKey(keyID string) {
	entry := s.keys[keyID]
	if entry == nil {
		return
	}
	delete(s.keys, keyID)
	workspace := entry.workspace
	switch index, found := slices.BinarySearchFunc(workspace.keys, entry, compareKeys); {
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
func (s *state) fill(key *decide.Key, record *storagev1.KeyRecord, workspace *workspaceEntry) error {
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
				Scheme: token.Scheme(secret.GetScheme()), //nolint:gosec // G115: checked above
				Sum:    [32]byte(secret.GetHash()),
			},
			End: end(secret),
		}
	}
	key.ExpireTime = nanoseconds(secrets[0].GetExpireTime())
	return nil
}

// end returns when a secret stops matching, in Unix nanoseconds.
func end(secret *storagev1.SecretRecord) int64 {
	expires := nanoseconds(secret.GetExpireTime())
	if secret.GetOverlapEndTime() != nil {
		return min(expires, nanoseconds(secret.GetOverlapEndTime()))
	}
	return expires
}

func nanoseconds(stamp *timestamppb.Timestamp) int64 { return stamp.AsTime().UnixNano() }

// share returns the set of scopes with these names, which all keys with equal scopes share.
func (s *state) share(names []string) decide.Scopes {
	joined := strings.Join(names, " ")
	set, found := s.scopes[joined]
	if !found {
		set = decide.NewScopes(names...)
		s.scopes[joined] = set
	}
	return set
}

func (s *state) addDamaged(damaged *storage.Damaged) {
	switch workspace := damaged.WorkspaceID; {
	case workspace == "" && damaged.KeyID == "" && !damaged.Head:
		s.policy, s.damagedPolicy = nil, damaged.Err
	case damaged.KeyID != "":
		entry := &keyEntry{workspace: s.workspace(workspace), damaged: damaged.Err}
		entry.key.ID = damaged.KeyID
		s.insert(entry)
	case damaged.MemberID != "":
		s.workspace(workspace).members[damaged.MemberID] = &Member{damaged: damaged.Err}
	case damaged.Head:
		s.workspace(workspace).damagedHead = damaged.Err
	default:
		s.workspace(workspace).damaged = damaged.Err
	}
}
