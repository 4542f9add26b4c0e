package keys

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// GetKey reads one key.
func (m *Manager) GetKey(ctx context.Context, request *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", request.GetWorkspaceId())
	checkKeyID(&fields, request.GetKeyId())
	if err := fields.Err(); err != nil {
		return nil, err
	}
	for {
		record, revision, err := m.store.GetKey(ctx, request.GetWorkspaceId(), request.GetKeyId())
		if err := m.reached(ctx, revision, err); err != nil {
			return nil, asKeyNotFound(err)
		}
		key, err := m.show(record, m.clock())
		if err != nil {
			return nil, err
		}
		if m.isStill(record.GetWorkspaceId(), revision) {
			return &keysvcv1.GetKeyResponse{Key: key, Revision: revision, Epoch: m.projection.Epoch()}, nil
		}
	}
}

// isStill reports whether a workspace is as it was at a revision. What was put together
// from a record of that revision and from the projection, before this is asked, is then
// true at that revision; if not, it has to be read anew.
func (m *Manager) isStill(workspaceID string, revision int64) bool {
	return m.projection.Workspace(workspaceID).Changed <= revision
}

// reached returns once the projection shows what was read from the store at a revision:
// states and last uses come from the projection, and what one was told here, the next
// validation reflects. err is the read's; it comes back once the projection has come so far.
func (m *Manager) reached(ctx context.Context, revision int64, err error) error {
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return cmp.Or(m.projection.WaitFor(ctx, revision), err)
}

// maxScanned is how many stored keys one page of a filtered list looks at.
const maxScanned = 10_000

// ListKeys reads a page of keys, newest first. It ends before it is larger than
// storage.MaxPageBytes, so that any client can take it, or with the first key.
func (m *Manager) ListKeys(ctx context.Context, request *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", request.GetWorkspaceId())
	size := pageSize(&fields, request.GetPageSize())
	filter := checkFilter(&fields, request)
	if err := fields.Err(); err != nil {
		return nil, err // of a page token with bad filters there is nothing to say
	}
	digest := pageDigest(listFilters(request))
	cursor := parsePageToken(&fields, request.GetPageToken(), digest)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	now := m.clock()
	response := &keysvcv1.ListKeysResponse{Epoch: m.projection.Epoch()}
	for scanned, room := 0, storage.MaxPageBytes; ; {
		page, shown, err := m.keysOf(ctx, storage.Query{
			WorkspaceID: request.GetWorkspaceId(), Cursor: cursor, Limit: size - len(response.GetKeys()), MaxBytes: room,
		}, now)
		if err != nil {
			return nil, asPageTokenInvalid(err)
		}
		if response.Revision == 0 {
			response.Revision = page.Revision
		}
		for _, key := range shown {
			if filter.admits(key) {
				response.Keys = append(response.Keys, key)
				room -= proto.Size(key)
			}
		}
		cursor, scanned = page.Next, scanned+len(page.Keys)
		if cursor == "" || len(response.GetKeys()) == size || scanned >= maxScanned || room < 1 {
			response.NextPageToken = makePageToken(cursor, digest)
			return response, nil
		}
	}
}

// keysOf reads a page of keys and returns them as callers see them. A page of one workspace
// is true at its revision; on a page of all of them, each key is as it was at that revision
// or later.
func (m *Manager) keysOf(ctx context.Context, query storage.Query, now time.Time) (storage.KeyPage, []*keysvcv1.Key, error) {
	for {
		page, err := m.store.ListKeys(ctx, query)
		if err := m.reached(ctx, page.Revision, err); err != nil {
			return page, nil, err
		}
		shown := make([]*keysvcv1.Key, 0, len(page.Keys))
		for _, record := range page.Keys {
			key, err := m.show(record, now)
			if err != nil {
				return page, nil, err
			}
			shown = append(shown, key)
		}
		if query.WorkspaceID == "" || m.isStill(query.WorkspaceID, page.Revision) {
			return page, shown, nil
		}
	}
}

// keyFilter narrows a list of keys.
type keyFilter struct {
	memberID, scope string
	states          map[keysvcv1.KeyState]bool
	expiringBefore  *time.Time
	unusedSince     *time.Time
}

func checkFilter(fields *problem.Fields, request *keysvcv1.ListKeysRequest) *keyFilter {
	filter := &keyFilter{memberID: request.GetMemberId(), scope: request.GetScope()}
	if request.MemberId != nil {
		checkID(fields, "member_id", filter.memberID)
	}
	if request.Scope != nil && !policy.ValidScopeName(filter.scope) {
		fields.Add("scope", "is not a scope; resource:action is required, e.g. signatures:read")
	}
	for _, state := range request.GetStates() {
		if _, known := keysvcv1.KeyState_name[int32(state)]; !known || state == keysvcv1.KeyState_KEY_STATE_UNSPECIFIED {
			fields.Add("states", "has an unknown state; active, suspended, expired and revoked are allowed")
			break
		}
		if filter.states == nil {
			filter.states = make(map[keysvcv1.KeyState]bool)
		}
		filter.states[state] = true
	}
	filter.expiringBefore = checkTime(fields, "expiring_before", request.GetExpiringBefore())
	filter.unusedSince = checkTime(fields, "unused_since", request.GetUnusedSince())
	return filter
}

// admits says whether a key passes every filter.
func (f *keyFilter) admits(key *keysvcv1.Key) bool {
	if f.memberID != "" && key.GetMemberId() != f.memberID {
		return false
	}
	if len(f.states) > 0 && !f.states[key.GetState()] {
		return false
	}
	if f.scope != "" && !slices.Contains(key.GetScopes(), f.scope) {
		return false
	}
	if f.expiringBefore != nil && !key.GetExpireTime().AsTime().Before(*f.expiringBefore) {
		return false
	}
	return f.unusedSince == nil || lastUse(key).Before(*f.unusedSince)
}

// lastUse returns when a key was last used; one that never was counts from its
// creation.
func lastUse(key *keysvcv1.Key) time.Time {
	if key.GetLastUsedTime() != nil {
		return key.GetLastUsedTime().AsTime()
	}
	return key.GetCreateTime().AsTime()
}

// checkTime checks a time that may be left out.
func checkTime(fields *problem.Fields, field string, stamp *timestamppb.Timestamp) *time.Time {
	if stamp == nil {
		return nil
	}
	if !stamp.IsValid() {
		fields.Add(field, "is not a time between the years 1 and 9999")
		return nil
	}
	at := stamp.AsTime()
	return &at
}

// listFilters returns the request without what may differ from page to page.
func listFilters(request *keysvcv1.ListKeysRequest) proto.Message {
	filters := proto.CloneOf(request)
	filters.PageSize, filters.PageToken = 0, ""
	return filters
}

// GetMember reads one member.
func (m *Manager) GetMember(ctx context.Context, request *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkID(&fields, "member_id", request.GetMemberId())
	if err := fields.Err(); err != nil {
		return nil, err
	}
	for {
		record, revision, err := m.store.GetMember(ctx, request.GetWorkspaceId(), request.GetMemberId())
		if err := m.reached(ctx, revision, err); err != nil {
			return nil, asMemberNotFound(err)
		}
		workspace := m.projection.Workspace(request.GetWorkspaceId())
		if workspace.Changed <= revision {
			return &keysvcv1.GetMemberResponse{
				Member: showMember(record, workspace.Current), Revision: revision, Epoch: m.projection.Epoch(),
			}, nil
		}
	}
}

// ListMembers reads a page of members by ascending id, bounded as that of ListKeys.
func (m *Manager) ListMembers(ctx context.Context, request *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	size := pageSize(&fields, request.GetPageSize())
	if err := fields.Err(); err != nil {
		return nil, err
	}
	digest := pageDigest(&keysvcv1.ListMembersRequest{WorkspaceId: request.GetWorkspaceId()})
	cursor := parsePageToken(&fields, request.GetPageToken(), digest)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	for {
		page, err := m.store.ListMembers(ctx, storage.Query{WorkspaceID: request.GetWorkspaceId(), Cursor: cursor, Limit: size})
		if err := m.reached(ctx, page.Revision, err); err != nil {
			return nil, asPageTokenInvalid(err)
		}
		workspace := m.projection.Workspace(request.GetWorkspaceId())
		if workspace.Changed > page.Revision {
			continue
		}
		response := &keysvcv1.ListMembersResponse{
			NextPageToken: makePageToken(page.Next, digest),
			Revision:      page.Revision,
			Epoch:         m.projection.Epoch(),
		}
		for _, record := range page.Members {
			response.Members = append(response.Members, showMember(record, workspace.Current))
		}
		return response, nil
	}
}

// GetPolicy reads the active policy.
func (m *Manager) GetPolicy(ctx context.Context, _ *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
	active, revision, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.GetPolicyResponse{
		Policy:        showPolicy(active.Policy),
		Digest:        active.Digest,
		RetiredScopes: active.Retired,
		Revision:      revision,
		Epoch:         m.projection.Epoch(),
	}, nil
}
