package keys

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// GetKey reads one key. An empty workspaceID is any workspace, for a caller that sees all of them.
// Errors: KEY_NOT_FOUND and other *problem.Error, and those of the store and the context.
func (m *Manager) GetKey(ctx context.Context, visible access.Workspaces, workspaceID, keyID string) (*Key, Position, error) {
	seen, err := sees(visible, workspaceID)
	if err != nil {
		return nil, Position{}, err
	}
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", workspaceID)
	checkKeyID(&fields, keyID)
	if err := fields.Err(); err != nil {
		return nil, Position{}, err
	}
	if !seen {
		return nil, Position{}, asKeyNotFound(storage.ErrNotFound)
	}
	for {
		// 1. Read the record, and wait until the projection shows the revision of the read.
		record, revision, err := m.store.GetKey(ctx, workspaceID, keyID)
		if err := m.reached(ctx, revision, err); err != nil {
			return nil, Position{}, asKeyNotFound(err)
		}
		if err := m.learnUses(ctx, record); err != nil {
			return nil, Position{}, err
		}
		// 2. Put the answer together from the record and the projection.
		key, err := m.show(record, m.clock(), m.readMember(ctx))
		if err != nil {
			return nil, Position{}, err
		}
		if err := m.showEffect(record, key); err != nil {
			return nil, Position{}, err
		}
		// 3. Look last whether the workspace or the policy changed since the read: then the answer
		// mixes two revisions, and all is read again.
		if m.isStill(record.GetWorkspaceId(), revision) && m.isStill("", revision) {
			return key, m.at(revision), nil
		}
	}
}

// showEffect adds the member's role and the effective scopes to a key. Errors:
// storage.ErrDamaged.
func (m *Manager) showEffect(record *storagev1.KeyRecord, key *Key) error {
	view := m.projection.Workspace(record.GetWorkspaceId())
	owner, err := m.ownerOf(record)
	switch {
	case err != nil:
		return err
	case view.DamagedPolicy != nil:
		return view.DamagedPolicy
	case view.Policy == nil, owner.workspaceIsGone(record), owner.memberIsGone(record):
		return nil
	}
	key.Role = owner.member.Role
	key.EffectiveScopes = view.Policy.Role(key.Role).Intersect(decide.NewScopes(record.GetScopes()...))
	return nil
}

// isStill reports whether a workspace has not changed since a revision. If so, an answer that was
// put together before the call, from a record of that revision and from the projection, is true
// at that revision. Otherwise both have to be read again.
func (m *Manager) isStill(workspaceID string, revision int64) bool {
	return m.projection.Workspace(workspaceID).Changed <= revision
}

// reached returns once the projection shows the revision of a read. States and last-used times
// come from the projection, and the next validation must reflect what the caller is told here.
// err is the error of the read. storage.ErrNotFound is an answer, too, so it is returned after the
// same wait. Any other error is returned at once.
func (m *Manager) reached(ctx context.Context, revision int64, err error) error {
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return cmp.Or(m.projection.WaitFor(ctx, revision), err)
}

// learnUses makes the projection know when keys were last used in any process. An answer needs it: a key
// must not look unused because another process allowed it.
func (m *Manager) learnUses(ctx context.Context, records ...*storagev1.KeyRecord) error {
	if m.uses == nil || len(records) == 0 {
		return nil
	}
	keyIDs := make([]string, len(records))
	for index, record := range records {
		keyIDs[index] = record.GetKeyId()
	}
	uses, err := m.uses.ReadUsage(ctx, keyIDs)
	if err != nil {
		return err
	}
	m.projection.LearnUses(uses)
	return nil
}

const (
	// maxScanned is how many stored keys one page of a filtered list looks at.
	maxScanned = 10_000
	// maxCounted is how many stored keys a total looks at. A workspace with more has no total.
	maxCounted = 10_000
)

// KeyQuery selects the keys that ListKeys returns.
type KeyQuery struct {
	// WorkspaceID is the workspace of the keys; empty means all workspaces.
	WorkspaceID string
	// MemberID, if set, selects keys of one member.
	MemberID *string
	// States, if not empty, selects keys in one of these states.
	States []KeyState
	// Scope, if set, selects keys that were granted the scope.
	Scope *string
	// ExpiringBefore, if set, selects keys that expire before it.
	ExpiringBefore *time.Time
	// UnusedSince, if set, selects keys that were last used before it. A key that was never used
	// counts as last used when it was created.
	UnusedSince *time.Time
	// IssuedLocally, if set, selects keys with, or without, a secret that the caller of keysvc drew.
	IssuedLocally *bool
	// Imported, if set, selects keys with, or without, a secret that was imported.
	Imported *bool
	// NameContains, if not empty, selects keys whose name has it in it, in any case: 1 to 128 characters,
	// in Unicode's normalization form NFC, which NormalName returns.
	NameContains string
	// WithTotal asks for KeyPage.Total. It needs a WorkspaceID.
	WithTotal bool
	// PageSize is the max number of keys on a page: up to MaxPageSize, 0 for DefaultPageSize.
	PageSize int
	// PageToken is NextPageToken of the page before, given with the same filters; empty for the
	// first page.
	PageToken string
}

// KeyPage is one page of a list of keys.
type KeyPage struct {
	// Position is that of the first read of the store for the page.
	Position

	// Keys are newest first.
	Keys []*Key
	// NextPageToken is the PageToken of the next page; empty on the last page.
	NextPageToken string
	// Total is how many keys of the workspace pass the filters, on all pages together. It is nil if
	// nobody asked, and if the workspace has more than 10,000 keys stored: those are not counted.
	Total *int
}

// ListKeys reads a page of keys, newest first. A page ends when its stored keys reach
// storage.MaxPageBytes, so that any client can take it: it is larger by at most one key. A filtered
// page also ends after maxScanned stored keys, so it may be empty although another page follows.
// Errors: *problem.Error, and those of the store and the context.
func (m *Manager) ListKeys(ctx context.Context, visible access.Workspaces, query KeyQuery) (*KeyPage, error) {
	seen, err := sees(visible, query.WorkspaceID)
	if err != nil {
		return nil, err
	}
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", query.WorkspaceID)
	size := pageSize(&fields, query.PageSize)
	filter := checkFilter(&fields, query)
	if query.WithTotal && query.WorkspaceID == "" {
		fields.Add("workspace_id", "is missing; with_total_size needs a workspace")
	}
	if err := fields.Err(); err != nil {
		return nil, err // a page token cannot be compared with bad filters
	}
	digest := pageDigest("keys", query.filters())
	cursor := parsePageToken(&fields, query.PageToken, digest)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	if !seen {
		position, err := m.nothing(ctx)
		page := &KeyPage{Position: position}
		if query.WithTotal {
			page.Total = new(int)
		}
		return page, err
	}
	now := m.clock()
	result := &KeyPage{Position: m.at(0)}
	for scanned, room := 0, storage.MaxPageBytes; ; {
		page, shown, err := m.keysOf(ctx, storage.Query{
			WorkspaceID: query.WorkspaceID, Cursor: cursor, Limit: size - len(result.Keys), MaxBytes: room,
		}, filter, now)
		if err != nil {
			return nil, asPageTokenInvalid(err)
		}
		if result.Revision == 0 {
			result.Revision = page.Revision
		}
		for index, key := range shown {
			if key != nil {
				result.Keys = append(result.Keys, key)
				// A stored key, with hashes and incarnations, is larger than the key that is shown.
				room -= proto.Size(page.Keys[index])
			}
		}
		cursor, scanned = page.Next, scanned+len(page.Keys)
		if cursor == "" || len(result.Keys) == size || scanned >= maxScanned || room < 1 {
			result.NextPageToken = makePageToken(cursor, digest)
			break
		}
	}
	if query.WithTotal {
		if result.Total, err = m.total(ctx, query, filter, now); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// total counts the keys of a workspace that pass the filters. It returns nil if the workspace has more
// than maxCounted keys stored. A key that comes, changes or goes meanwhile may be missing.
func (m *Manager) total(ctx context.Context, query KeyQuery, filter *keyFilter, now time.Time) (*int, error) {
	total, cursor := 0, ""
	for scanned := 0; ; {
		page, shown, err := m.keysOf(ctx, storage.Query{
			WorkspaceID: query.WorkspaceID, Cursor: cursor, Limit: min(MaxPageSize, maxCounted+1-scanned),
		}, filter, now)
		if err != nil {
			return nil, err
		}
		for _, key := range shown {
			if key != nil {
				total++
			}
		}
		cursor, scanned = page.Next, scanned+len(page.Keys)
		switch {
		case scanned > maxCounted:
			return nil, nil //nolint:nilnil // no total is an answer
		case cursor == "":
			return &total, nil
		}
	}
}

// nothing returns the position of an answer that holds at any time: that there is nothing to list in
// a workspace that the caller does not see. Like any other answer, it does not come from before a
// change that was acknowledged before the call.
func (m *Manager) nothing(ctx context.Context) (Position, error) {
	if err := m.projection.Fresh(ctx); err != nil {
		return Position{}, err
	}
	return m.at(m.projection.Revision()), nil
}

// filters returns the query without what may differ from page to page.
func (q KeyQuery) filters() KeyQuery {
	q.PageSize, q.PageToken, q.WithTotal = 0, "", false
	return q
}

// keysOf reads a page of keys and returns them as callers see them, nil for those that do not pass the
// filter. A page of one workspace
// is true at its revision; on a page of all workspaces, each key is as it was at that revision
// or later.
func (m *Manager) keysOf(ctx context.Context, query storage.Query, filter *keyFilter, now time.Time) (storage.KeyPage, []*Key, error) {
	for {
		// The steps and their order are those of GetKey.
		page, err := m.store.ListKeys(ctx, query)
		if err := m.reached(ctx, page.Revision, err); err != nil {
			return page, nil, err
		}
		if err := m.learnUses(ctx, page.Keys...); err != nil {
			return page, nil, err
		}
		shown, work := make([]*Key, 0, len(page.Keys)), giveway.From(ctx)
		for _, record := range page.Keys {
			work.GiveWay()
			if !filter.admitsName(record.GetName()) { // most keys of a search, and the cheapest to tell
				shown = append(shown, nil)
				continue
			}
			key, err := m.show(record, now, m.readMember(ctx))
			if err != nil {
				return page, nil, err
			}
			if !filter.admits(key) {
				key = nil
			}
			shown = append(shown, key)
		}
		if query.WorkspaceID == "" || m.isStill(query.WorkspaceID, page.Revision) {
			return page, shown, nil
		}
	}
}

// keyFilter is the filters of a KeyQuery, checked.
type keyFilter struct {
	memberID, scope string
	nameContains    string // folded
	states          map[KeyState]bool
	expiringBefore  *time.Time
	unusedSince     *time.Time
	issuedLocally   *bool
	imported        *bool
}

func checkFilter(fields *problem.Fields, query KeyQuery) *keyFilter {
	filter := &keyFilter{}
	if query.MemberID != nil {
		filter.memberID = *query.MemberID
		checkID(fields, "member_id", filter.memberID)
	}
	if query.Scope != nil {
		if filter.scope = *query.Scope; !policy.ValidScopeName(filter.scope) {
			fields.Add("scope", "is not a scope; resource:action is required, e.g. signatures:read")
		}
	}
	for _, state := range query.States {
		if state < KeyActive || state > KeyHeld {
			fields.Add("states", "has an unknown state; active, suspended, held, expired and revoked are allowed")
			break
		}
		if filter.states == nil {
			filter.states = make(map[KeyState]bool)
		}
		filter.states[state] = true
	}
	filter.expiringBefore = checkTime(fields, "expiring_before", query.ExpiringBefore)
	filter.issuedLocally, filter.imported = query.IssuedLocally, query.Imported
	filter.unusedSince = checkTime(fields, "unused_since", query.UnusedSince)
	checkNamePart(fields, query.NameContains)
	filter.nameContains = foldName(query.NameContains)
	return filter
}

// admitsName reports whether a name passes the filter of names.
func (f *keyFilter) admitsName(name string) bool {
	return f.nameContains == "" || strings.Contains(foldName(name), f.nameContains)
}

// admits reports whether a key passes every filter but that of names.
func (f *keyFilter) admits(key *Key) bool {
	if f.memberID != "" && key.MemberID != f.memberID {
		return false
	}
	if len(f.states) > 0 && !f.states[key.State] {
		return false
	}
	if f.scope != "" && !slices.Contains(key.Scopes, f.scope) {
		return false
	}
	if f.expiringBefore != nil && !key.ExpireTime.Before(*f.expiringBefore) {
		return false
	}
	if f.imported != nil && *f.imported != slices.ContainsFunc(key.Secrets, func(s KeySecret) bool { return s.Imported }) {
		return false
	}
	if f.issuedLocally != nil && *f.issuedLocally != slices.ContainsFunc(key.Secrets, func(s KeySecret) bool { return s.IssuedLocally }) {
		return false
	}
	return f.unusedSince == nil || lastUse(key).Before(*f.unusedSince)
}

// lastUse returns when a key was last used, or when it was created if it never was.
func lastUse(key *Key) time.Time {
	if key.LastUsedTime.IsZero() {
		return key.CreateTime
	}
	return key.LastUsedTime
}

// GetMember reads one member. Errors: MEMBER_NOT_FOUND and other *problem.Error, and those of
// the store and the context.
func (m *Manager) GetMember(ctx context.Context, visible access.Workspaces, workspaceID, memberID string) (*Member, Position, error) {
	seen, err := sees(visible, workspaceID)
	if err != nil {
		return nil, Position{}, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkID(&fields, "member_id", memberID)
	if err := fields.Err(); err != nil {
		return nil, Position{}, err
	}
	if !seen {
		return nil, Position{}, asMemberNotFound(storage.ErrNotFound)
	}
	for {
		record, revision, err := m.store.GetMember(ctx, workspaceID, memberID)
		if err := m.reached(ctx, revision, err); err != nil {
			return nil, Position{}, asMemberNotFound(err)
		}
		// The workspace is read once, for the answer and for the comparison: then both are of the
		// same revision.
		workspace := m.projection.Workspace(workspaceID)
		if workspace.Changed <= revision {
			member := showMember(record, isIn(workspace.Current, record))
			// Without a policy that can be read nothing can be granted, but the member is there.
			if member.State == MemberActive && workspace.Policy != nil {
				member.AssignableScopes = workspace.Policy.ScopesInOrder(member.Role)
				if !m.isStill("", revision) {
					continue // the policy changed since the read
				}
			}
			return member, m.at(revision), nil
		}
	}
}

// MemberQuery selects the members that ListMembers returns.
type MemberQuery struct {
	// WorkspaceID is the workspace of the members.
	WorkspaceID string
	// PageSize is the max number of members on a page: up to MaxPageSize, 0 for
	// DefaultPageSize.
	PageSize int
	// PageToken is NextPageToken of the page before; empty for the first page.
	PageToken string
}

// MemberPage is one page of a list of members.
type MemberPage struct {
	// Position is that of all members on the page.
	Position

	// Members are by ascending id.
	Members []*Member
	// NextPageToken is the PageToken of the next page; empty on the last page.
	NextPageToken string
}

// ListMembers reads a page of members by ascending id. The size of a page is bounded as that of
// ListKeys. Errors: *problem.Error, and those of the store and the context.
func (m *Manager) ListMembers(ctx context.Context, visible access.Workspaces, query MemberQuery) (*MemberPage, error) {
	seen, err := sees(visible, query.WorkspaceID)
	if err != nil {
		return nil, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", query.WorkspaceID)
	size := pageSize(&fields, query.PageSize)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	digest := pageDigest("members", MemberQuery{WorkspaceID: query.WorkspaceID})
	cursor := parsePageToken(&fields, query.PageToken, digest)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	if !seen {
		position, err := m.nothing(ctx)
		return &MemberPage{Position: position}, err
	}
	for {
		page, err := m.store.ListMembers(ctx, storage.Query{WorkspaceID: query.WorkspaceID, Cursor: cursor, Limit: size})
		if err := m.reached(ctx, page.Revision, err); err != nil {
			return nil, asPageTokenInvalid(err)
		}
		workspace := m.projection.Workspace(query.WorkspaceID)
		if workspace.Changed > page.Revision {
			continue
		}
		result := &MemberPage{Position: m.at(page.Revision), NextPageToken: makePageToken(page.Next, digest)}
		for _, record := range page.Members {
			result.Members = append(result.Members, showMember(record, isIn(workspace.Current, record)))
		}
		return result, nil
	}
}

// GetPolicy reads the active policy. It belongs to no workspace, so visible need not be all of them,
// but a caller without any is refused. Errors: CALLER_NOT_ALLOWED, storage.ErrUnavailable in a store without one, and
// those of the store and the context.
func (m *Manager) GetPolicy(ctx context.Context, visible access.Workspaces) (*projection.Policy, Position, error) {
	if visible.IsEmpty() {
		return nil, Position{}, notAllowed()
	}
	active, revision, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, Position{}, err
	}
	return active, m.at(revision), nil
}
