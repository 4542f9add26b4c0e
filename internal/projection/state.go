package projection

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
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
}

// state is the index as of one revision. How keys and members are held is in record.go.
type state struct {
	projection *Projection

	revision int64
	// loaded is the revision of the Load that the state began with.
	loaded int64
	policy *Policy
	// damagedPolicy is set if the policy's record cannot be read; policy is nil then.
	damagedPolicy error
	// settings are those that all processes share; nil if there are none, or if damagedSettings says why
	// they cannot be read.
	settings        *Settings
	damagedSettings error

	// ids has the numbers of the keys; records and words are at these numbers, up to highest. A
	// number without a key has a record without a life.
	ids     *flat.IDs
	records flat.Chunks[record]
	words   flat.Chunks[usage.Word]
	highest uint32
	// guess is the number that the next key of a load probably has.
	guess   uint32
	rares   flat.Arena[rare]
	seconds flat.Arena[second]
	exacts  flat.Arena[exact]
	uses    flat.Arena[secretUses]
	// imports are the tokens that were imported, and byHash finds them; nil as long as there were none.
	imports flat.Arena[imported]
	byHash  *flat.Index

	// members finds the lives by workspace and id of the member.
	lives   flat.Arena[life]
	members *flat.Index
	texts   *flat.Texts
	seed    maphash.Seed

	// limits, scopes, terms and names hold what many records have in common.
	limits *interned[limits]
	terms  *interned[term]
	scopes *interned[decide.Scopes]
	names  *interned[string]

	// workspaces are all workspaces by id, and numbered has them by number.
	workspaces map[string]*workspace
	numbered   []*workspace

	// damagedKeys and so on say why a record cannot be read, by the numbers of keys, lives and workspaces.
	damagedKeys, damagedLives, damagedWorkspaces, damagedHeads map[uint32]error

	// lists has the numbers of the lists of the workspaces. removals counts the removals from them, and
	// walking are the walks over them.
	lists    flat.Lists
	removals uint64
	walking  []*cursor
	census   census

	// replaced is set once another state is shown. walks is how many walks go over the state.
	replaced atomic.Bool
	walks    atomic.Int32
	// view and joined are used again by each put.
	view   storage.KeyView
	joined []byte
	// cleared are the last uses of the key that place has cleared.
	cleared LastUses
}

// workspace is one workspace. The policy's, with an empty id, has only a head.
type workspace struct {
	id     string
	number uint32
	// newest is the number of a term, to be tried first. It may be outdated.
	newest  uint32
	current *Current // nil if there is no record; replaced, never changed
	// members are the current lives, and keys the keys.
	members, keys flat.List
	// revoked counts the keys that were revoked themselves.
	revoked int
	// latest is the number of the life of the key that was added last, which may be freed by now; 0 if
	// there was none.
	latest uint32
	head   storage.Head
	// changed is the revision of the newest change since the Load; 0 if there was none.
	changed int64
}

// newState returns an empty state for what a load is expected to bring.
func newState(p *Projection, expected storage.Expected) *state {
	s := &state{
		projection: p, ids: expected.IDs,
		members: flat.NewIndex(expected.Keys / 8), seed: maphash.MakeSeed(),
		limits: newInterned[limits](), terms: newInterned[term](), scopes: newInterned[decide.Scopes](), names: newInterned[string](),
		workspaces: make(map[string]*workspace), numbered: []*workspace{nil},
		damagedKeys: make(map[uint32]error), damagedLives: make(map[uint32]error),
		damagedWorkspaces: make(map[uint32]error), damagedHeads: make(map[uint32]error),
	}
	s.members.Reserve(expected.Members)
	if s.ids == nil {
		s.ids = flat.NewIDs(expected.Keys)
	}
	s.texts = flat.NewTexts(func(number uint32) *flat.Text {
		if number > s.lives.Highest() {
			return nil
		}
		return &s.lives.At(number).texts
	})
	return s
}

// workspace returns a workspace, and adds it if the state does not have it.
func (s *state) workspace(id string) *workspace {
	entry := s.workspaces[id]
	if entry == nil {
		id = strings.Clone(id)
		entry = &workspace{id: id, number: uint32(len(s.numbered))} //nolint:gosec // G115: fewer than keys
		s.workspaces[id] = entry
		s.numbered = append(s.numbered, entry)
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
		s.removeMember(s.workspace(record.GetWorkspaceId()), record.GetMemberId())
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
	if damaged := storage.NotUnderstood(item); damaged != nil {
		item = storage.Item{Damaged: damaged}
	}
	switch {
	case item.Policy != nil:
		s.policy, s.damagedPolicy = preparePolicy(item.Policy)
	case item.Settings != nil, item.Damaged != nil && item.Damaged.Settings:
		s.settings, s.damagedSettings, _ = settingsOf(item)
	case item.Workspace != nil:
		s.addWorkspace(item.Workspace)
	case item.Member != nil:
		s.addMember(item.Member)
	case item.KeyView != nil:
		s.addKey(item.KeyView)
	case item.Key != nil:
		s.view.Set(item.Key)
		s.addKey(&s.view)
	case item.Head != nil:
		s.workspace(item.Head.WorkspaceID).head = item.Head.Head
	case item.Usage != nil:
		if number := s.find(item.Usage.KeyID); number != 0 {
			s.words.At(number).Raise(item.Usage.Time)
			var secrets [2]storage.SecretUseView
			for index, use := range item.Usage.Secrets {
				secrets[index].Tag = use.Tag
				if !use.Time.IsZero() {
					secrets[index].Time = use.Time.UnixNano()
				}
			}
			s.loadSecretUses(number, secrets)
		}
	case item.Damaged != nil:
		s.addDamaged(item.Damaged)
	}
}

// preparePolicy returns the policy of a record, or why the record cannot be read. Then the projection
// has no active policy: the policy before it may allow what this one took away.
func preparePolicy(record *storagev1.PolicyRecord) (*Policy, error) {
	parsed, err := policy.Parse("stored policy", record.GetDocument())
	if err != nil {
		return nil, &storage.DamagedError{Kind: "policy", Name: "active", Problem: err.Error()}
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
	return prepared, nil
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
	of := s.workspace(record.GetWorkspaceId())
	of.current = current
	s.recountLater(of)
}

func (s *state) addDamaged(damaged *storage.Damaged) {
	switch workspace := damaged.WorkspaceID; {
	case workspace == "" && damaged.KeyID == "" && !damaged.Head:
		s.policy, s.damagedPolicy = nil, damaged.Err
	case damaged.KeyID != "":
		s.addDamagedKey(s.workspace(workspace), damaged.KeyID, damaged.Err)
	case damaged.MemberID != "":
		number := s.setLife(s.workspace(workspace), []byte(damaged.MemberID), nil, nil)
		s.lives.At(number).standing |= lifeDamaged
		s.damagedLives[number] = damaged.Err
		s.recountLater(s.workspace(workspace))
	case damaged.Head:
		s.damagedHeads[s.workspace(workspace).number] = damaged.Err
	default:
		s.damagedWorkspaces[s.workspace(workspace).number] = damaged.Err
	}
}

// nanoseconds returns a time in Unix nanoseconds.
func nanoseconds(stamp *timestamppb.Timestamp) int64 { return stamp.AsTime().UnixNano() }

// name returns the number of an interned name.
func (s *state) name(text []byte) uint32 {
	return s.names.hold(text, func(text string) string { return text })
}
