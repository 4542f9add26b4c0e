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
	// Digest identifies it.
	Digest string
	// Retired are the scopes that earlier policies had, sorted.
	Retired decide.Scopes
	// Catalogue are its scopes, sorted.
	Catalogue decide.Scopes

	roles map[string]decide.Scopes
}

// Role returns what a role may do, nil if the policy does not have it.
func (p *Policy) Role(name string) decide.Scopes { return p.roles[name] }

// Current is a workspace as deciding sees it, with what a change is checked against.
type Current struct {
	decide.Workspace
	// Created is when the workspace came into being, or came back.
	Created time.Time
	// RemovalSourceVersion is the highest that the product's directory gave to a removal of
	// the workspace, also of one before it came back.
	RemovalSourceVersion int64

	// since is when it last came, went, or came back, in Unix nanoseconds.
	since int64
}

// Since returns when the workspace last came, went, or came back.
func (c *Current) Since() time.Time { return time.Unix(0, c.since).UTC() }

// Member is a member as deciding sees it, with what a change is checked against.
type Member struct {
	decide.Member
	// SourceVersion is the highest that the product's directory gave.
	SourceVersion int64

	// updated is when the record last changed, in Unix nanoseconds.
	updated int64
	damaged error
}

// state is the index as of one revision.
type state struct {
	revision int64
	// loaded is the revision that the state was loaded at.
	loaded int64
	policy *Policy
	// damagedPolicy is set if the policy's record cannot be read; policy is nil then.
	damagedPolicy error
	keys          map[string]*keyEntry
	workspaces    map[string]*workspaceEntry
	// scopes holds each set of scopes once: most keys of a product share a few.
	scopes map[string]decide.Scopes
}

// keyEntry is one key. It is replaced, never changed.
type keyEntry struct {
	key       decide.Key
	sequence  int64
	workspace *workspaceEntry
	// created and revoked are when the key was, in Unix nanoseconds.
	created, revoked int64
	// last is shared by all entries that the key ever has.
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

// workspaceEntry is one workspace; the policy's, with an empty id, has only a head.
type workspaceEntry struct {
	id      string
	current *Current // nil if there is no record; replaced, never changed
	members map[string]*Member
	// keys are ordered by sequence; revoked counts those that were revoked themselves.
	keys    []*keyEntry
	revoked int
	head    storage.Head
	// changed is the revision of the newest change since the load; 0 if there was none.
	changed     int64
	damaged     error
	damagedHead error
}

// isLive says whether a key of the workspace is neither revoked nor expired.
func (w *workspaceEntry) isLive(key *decide.Key, now int64) bool {
	if key.Revoked || now >= key.ExpireTime || key.WorkspaceIncarnation != w.current.Incarnation {
		return false
	}
	member := w.members[key.Member]
	// As above, so with a damaged member: the key might be live.
	return member != nil && (member.damaged != nil || !member.Removed && member.Incarnation == key.MemberIncarnation)
}

// diedBefore says whether a key stopped being live before a time, in Unix
// nanoseconds, and can never be again.
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
	// Of a member that was removed and added again, only the latter's time is known.
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

// apply makes the state that of the change's revision.
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

// add is put as a visitor of Load.
func (s *state) add(item storage.Item) error {
	s.put(item)
	return nil
}

// put puts one record into the state.
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

// addPolicy makes a policy the active one. One that cannot be read leaves none: to go on
// with the one before it could allow what it took away.
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
			// A state that this program does not know is neither, and denies.
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

// keepUses takes over from an older state when keys were last used, which may not be
// stored yet.
func (s *state) keepUses(older *state) {
	for id, entry := range s.keys {
		if before := older.keys[id]; before != nil {
			before.last.Raise(entry.last.Time())
			entry.last = before.last
		}
	}
}

// replace puts entry where before was, if that is its place.
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

// compareKeys orders the keys of a workspace.
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
		// Sweeps delete the oldest first, perhaps very many: do not move all the others.
		workspace.keys[0] = nil
		workspace.keys = workspace.keys[1:]
	case found:
		workspace.keys = slices.Delete(workspace.keys, index, index+1)
	}
	if entry.key.Revoked {
		workspace.revoked--
	}
}

// fill sets a key from its record. What makes no sense is damage.
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
				Scheme: token.Scheme(secret.GetScheme()), //nolint:gosec // checked above
				Sum:    [32]byte(secret.GetHash()),
			},
			End: end(secret),
		}
	}
	key.ExpireTime = nanoseconds(secrets[0].GetExpireTime())
	return nil
}

// end returns when a secret stops matching.
func end(secret *storagev1.SecretRecord) int64 {
	expires := nanoseconds(secret.GetExpireTime())
	if secret.GetOverlapEndTime() != nil {
		return min(expires, nanoseconds(secret.GetOverlapEndTime()))
	}
	return expires
}

func nanoseconds(stamp *timestamppb.Timestamp) int64 { return stamp.AsTime().UnixNano() }

// share returns a set of scopes equal to names that all keys with it share.
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
