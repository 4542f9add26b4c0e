package server_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

const (
	allowed   = keysvcv1.Decision_DECISION_ALLOWED
	active    = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	suspended = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
)

func TestKeyIsValidFromCreationToRevocation(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "Ünïcode 😀 key",
		Scopes:       []string{"signatures:read", "emails:write"},
		Labels:       map[string]string{"team/web": "ä b", "empty": ""},
		AllowedCidrs: []string{"192.0.2.0/24", "2001:DB8::/32", "192.0.2.0/24"},
	}
	created, err := b.keys.CreateKey(testContext(t), request)
	if err != nil {
		t.Fatal(err)
	}
	key := created.GetKey()
	if key.GetState() != keysvcv1.KeyState_KEY_STATE_ACTIVE || key.GetName() != request.GetName() ||
		!slices.Equal(key.GetScopes(), []string{"emails:write", "signatures:read"}) ||
		!slices.Equal(key.GetAllowedCidrs(), []string{"192.0.2.0/24", "2001:db8::/32"}) ||
		key.GetLabels()["team/web"] != "ä b" || len(key.GetLabels()) != 2 || len(key.GetSecrets()) != 1 || key.GetEtag() == "" ||
		key.GetLastUsedTime() != nil || key.GetRevokeTime() != nil {
		t.Errorf("created %v", key)
	}
	if want := key.GetCreateTime().AsTime().AddDate(1, 0, 0); !key.GetExpireTime().AsTime().Equal(want) {
		t.Errorf("expires at %s, want a year after %s", key.GetExpireTime().AsTime(), key.GetCreateTime().AsTime())
	}
	if !strings.HasPrefix(created.GetToken(), "scribe_ksk1_"+key.GetKeyId()+"_") {
		t.Error("the token does not begin with prefix, format and key id")
	}
	for _, workspaceID := range []string{"acme", ""} {
		got, err := b.keys.GetKey(testContext(t), &keysvcv1.GetKeyRequest{WorkspaceId: workspaceID, KeyId: key.GetKeyId()})
		if err != nil || !proto.Equal(got.GetKey(), key) || got.GetRevision() != created.GetRevision() || got.GetEpoch() != created.GetEpoch() {
			t.Errorf("got %v, %v in %q; want %v", got, err, workspaceID, created)
		}
	}

	for address, want := range map[string]keysvcv1.Reason{
		"192.0.2.77":        keysvcv1.Reason_REASON_UNSPECIFIED,
		"::ffff:192.0.2.77": keysvcv1.Reason_REASON_UNSPECIFIED,
		"2001:db8::1":       keysvcv1.Reason_REASON_UNSPECIFIED,
		"192.0.3.1":         keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED,
		"":                  keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED,
	} {
		response, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{
			Token: created.GetToken(), RequiredScope: "emails:write", ClientAddress: address, WithDetails: true, IncludeGrant: true,
			WorkspaceId: "acme", MinRevision: created.GetRevision(), Epoch: created.GetEpoch(),
		})
		if err != nil || response.GetReason() != want || (response.GetDecision() == allowed) != (want == 0) || response.GetKeyId() != key.GetKeyId() {
			t.Errorf("from %q got %v, %v; want %s", address, response, err, want)
		}
		if set := response.GetPrincipal() != nil && response.GetGrant() != nil; set != (want == 0) {
			t.Errorf("from %q principal %v and grant %v; they are for ALLOWED", address, response.GetPrincipal(), response.GetGrant())
		}
		if principal := response.GetPrincipal(); principal != nil && (principal.GetMemberId() != "ann" || principal.GetRole() != "owner" ||
			principal.GetWorkspaceId() != "acme" || principal.GetKeyName() != request.GetName() || !slices.Equal(principal.GetScopes(), key.GetScopes())) {
			t.Errorf("principal %v", principal)
		}
	}

	revoked, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: key.GetKeyId()})
	if err != nil || revoked.GetKey().GetState() != keysvcv1.KeyState_KEY_STATE_REVOKED || revoked.GetKey().GetRevokeTime() == nil {
		t.Fatalf("got %v, %v", revoked, err)
	}
	b.expectRefused(t, created.GetToken(), "emails:write", keysvcv1.Reason_REASON_KEY_REVOKED)
	before := b.dump(t)
	b.clock.pass(time.Hour)
	again, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: key.GetKeyId()})
	if err != nil || again.GetRevision() != revoked.GetRevision() || !proto.Equal(again.GetKey(), revoked.GetKey()) {
		t.Errorf("repeated, it gave %v, %v; want %v", again, err, revoked)
	}
	expectUnchanged(t, before, b.dump(t))
}

func TestLargestKeyThatIsAllowedIsCreated(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, long(128), "a.B_c:d@e-1", "owner")
	labels := make(map[string]string)
	var cidrs []string
	for index := range 32 {
		labels[fmt.Sprintf("%0*d", 63, index)] = strings.Repeat("ä", 127) + "x"
		cidrs = append(cidrs, fmt.Sprintf("2001:db8:%x::/48", index))
	}
	catalogue := policy.Default().Scopes()
	response, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: long(128), MemberId: "a.B_c:d@e-1", Name: strings.Repeat("😀", 128), Scopes: catalogue,
		Labels: labels, AllowedCidrs: cidrs, RequestId: new(long(64)), ActorMemberId: new(long(128)),
		ExpireTime: b.clock.in(time.Second),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := response.GetKey(); len(got.GetScopes()) != 23 || len(got.GetLabels()) != 32 || len(got.GetAllowedCidrs()) != 32 {
		t.Errorf("got %v", got)
	}
}

func TestKeyEndsAtItsExpireTime(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	create := func(ahead time.Duration) *keysvcv1.CreateKeyResponse {
		t.Helper()
		response, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"emails:read"}, ExpireTime: b.clock.in(ahead),
		})
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	const year = 366 * 24 * time.Hour // from 1 March 2027: 2028 has a 29 February
	over := create(year + 4*time.Minute).GetKey()
	if want := over.GetCreateTime().AsTime().AddDate(1, 0, 0); !over.GetExpireTime().AsTime().Equal(want) {
		t.Errorf("4 minutes over a year became %s, want a year: %s", over.GetExpireTime().AsTime(), want)
	}
	short := create(time.Hour)
	b.expectAllowed(t, short.GetToken(), "emails:read")
	b.clock.pass(time.Hour - time.Minute)
	b.expectAllowed(t, short.GetToken(), "emails:read")
	b.clock.pass(time.Minute)
	b.expectRefused(t, short.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
	got, err := b.keys.GetKey(testContext(t), &keysvcv1.GetKeyRequest{KeyId: short.GetKey().GetKeyId()})
	if err != nil || got.GetKey().GetState() != keysvcv1.KeyState_KEY_STATE_EXPIRED {
		t.Errorf("got %v, %v", got, err)
	}
	// The clock goes back; what has expired does not come back with it.
	b.clock.pass(-2 * time.Hour)
	b.expectRefused(t, short.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
}

func TestMemberChangesActAtOnce(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	token := b.create(t, "acme", "ann", "financial_documents:read", "emails:read").GetToken()
	b.expectAllowed(t, token, "financial_documents:read")
	b.expectRefused(t, token, "emails:write", keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED)

	b.putMember(t, "acme", "ann", "manager")
	b.expectRefused(t, token, "financial_documents:read", keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE)
	b.expectAllowed(t, token, "emails:read")
	b.putMember(t, "acme", "ann", "member")
	b.expectRefused(t, token, "emails:read", keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE)
	b.push(t, "acme", "ann", "admin", suspended)
	b.expectRefused(t, token, "emails:read", keysvcv1.Reason_REASON_MEMBER_INACTIVE)
	b.putMember(t, "acme", "ann", "admin")
	b.expectAllowed(t, token, "financial_documents:read")

	removed, err := b.members.RemoveMember(testContext(t), &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	b.expectRefused(t, token, "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
	b.putMember(t, "acme", "ann", "admin")
	b.expectRefused(t, token, "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
	if fresh := b.create(t, "acme", "ann", "emails:read"); fresh.GetRevision() <= removed.GetRevision() {
		t.Errorf("revision %d after %d", fresh.GetRevision(), removed.GetRevision())
	} else {
		b.expectAllowed(t, fresh.GetToken(), "emails:read")
		if _, err := b.members.RemoveWorkspace(testContext(t), &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"}); err != nil {
			t.Fatal(err)
		}
		b.expectRefused(t, fresh.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
		b.putMember(t, "acme", "ann", "admin")
		b.expectRefused(t, fresh.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
	}
}

func TestPutMemberIsIdempotentAndOrderedBySourceVersion(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	put := func(role string, state keysvcv1.MemberState, version *int64) (*keysvcv1.PutMemberResponse, error) {
		return b.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{
			WorkspaceId: "acme", MemberId: "ann", Role: role, State: state, SourceVersion: version,
		})
	}
	first, err := put("owner", active, new(int64(7)))
	if err != nil || first.GetMember().GetSourceVersion() != 7 {
		t.Fatalf("got %v, %v", first, err)
	}
	before := b.dump(t)
	for name, version := range map[string]*int64{"the same": new(int64(7)), "no version": nil} {
		again, err := put("owner", active, version)
		if err != nil || !proto.Equal(again, first) {
			t.Errorf("%s: got %v, %v; want %v", name, again, err, first)
		}
	}
	_, err = put("member", suspended, new(int64(6)))
	expectError(t, err, codes.Aborted, "SOURCE_VERSION_OUTDATED")
	expectUnchanged(t, before, b.dump(t))

	changed, err := put("owner", suspended, nil)
	if err != nil || changed.GetRevision() <= first.GetRevision() || changed.GetMember().GetSourceVersion() != 7 ||
		changed.GetMember().GetState() != suspended || !proto.Equal(changed.GetMember().GetCreateTime(), first.GetMember().GetCreateTime()) {
		t.Errorf("got %v, %v", changed, err)
	}
	if _, err := b.members.RemoveMember(testContext(t), &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann", SourceVersion: new(int64(9))}); err != nil {
		t.Fatal(err)
	}
	_, err = put("owner", active, new(int64(8))) // pushed before the removal, arriving after it
	expectError(t, err, codes.Aborted, "SOURCE_VERSION_OUTDATED")
	got, err := b.members.GetMember(testContext(t), &keysvcv1.GetMemberRequest{WorkspaceId: "acme", MemberId: "ann"})
	if err != nil || got.GetMember().GetState() != keysvcv1.MemberState_MEMBER_STATE_REMOVED {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestWorkspacesCannotSeeEachOther: nothing of a workspace can be seen or changed through another.
func TestWorkspacesCannotSeeEachOther(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	b.putMember(t, "other", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read")
	keyID := created.GetKey().GetKeyId()
	before := b.dump(t)
	ctx := testContext(t)
	var unknown string
	for _, keyID := range []string{"0123456789abcdef", keyID} {
		for name, call := range map[string]func() error{
			"GetKey": func() error {
				_, err := b.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: "other", KeyId: keyID})
				return err
			},
			"RevokeKey": func() error {
				_, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "other", KeyId: keyID})
				return err
			},
			"FinishRotation": func() error {
				_, err := b.keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: "other", KeyId: keyID})
				return err
			},
		} {
			err := call()
			expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
			if unknown == "" {
				unknown = status.Convert(err).Message()
			}
			if message := status.Convert(err).Message(); message != unknown {
				t.Errorf("%s tells an unknown key from a foreign one: %q, %q", name, message, unknown)
			}
		}
	}
	expectUnchanged(t, before, b.dump(t))
	list, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "other"})
	if err != nil || len(list.GetKeys()) != 0 {
		t.Errorf("got %v, %v", list, err)
	}
	list, err = b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "nowhere"})
	if err != nil || len(list.GetKeys()) != 0 || list.GetNextPageToken() != "" {
		t.Errorf("an unknown workspace is an empty list, got %v, %v", list, err)
	}
	members, err := b.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: "nowhere"})
	if err != nil || len(members.GetMembers()) != 0 {
		t.Errorf("an unknown workspace is an empty list, got %v, %v", members, err)
	}
}

func TestRequestIDIsUsedOnce(t *testing.T) {
	t.Parallel()
	b := start(t, options{policy: func(p *policy.Policy) { p.Limits.LiveKeysPerWorkspace = 1 }})
	b.putMember(t, "acme", "ann", "owner")
	b.putMember(t, "other", "ann", "owner")
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"emails:read"}, RequestId: new("once"),
	}
	created, err := b.keys.CreateKey(testContext(t), request)
	if err != nil {
		t.Fatal(err)
	}
	retry := func(when string) {
		t.Helper()
		before := b.dump(t)
		_, err := b.keys.CreateKey(testContext(t), request)
		if found := expectError(t, err, codes.AlreadyExists, "REQUEST_ID_USED"); found.info.GetMetadata()["key_id"] != created.GetKey().GetKeyId() {
			t.Errorf("%s: metadata %v, want key_id %s", when, found.info.GetMetadata(), created.GetKey().GetKeyId())
		}
		expectUnchanged(t, before, b.dump(t))
	}
	retry("with the limit reached meanwhile")
	b.push(t, "acme", "ann", "member", suspended)
	retry("with the member suspended")
	if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	retry("with the key revoked")
	request.WorkspaceId = "other"
	if _, err := b.keys.CreateKey(testContext(t), request); err != nil {
		t.Errorf("the request id of another workspace: %v", err)
	}
}

// TestRequestIDIsUsedOnceByConcurrentCalls sends the same request many times at once.
func TestRequestIDIsUsedOnceByConcurrentCalls(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created, refused := b.race(t, 16, func(int) *keysvcv1.CreateKeyRequest {
		return &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"emails:read"}, RequestId: new("once"),
		}
	})
	if len(created) != 1 {
		t.Fatalf("%d keys were created", len(created))
	}
	for _, err := range refused {
		if found := expectError(t, err, codes.AlreadyExists, "REQUEST_ID_USED"); found.info.GetMetadata()["key_id"] != created[0].GetKey().GetKeyId() {
			t.Errorf("metadata %v", found.info.GetMetadata())
		}
	}
}

func TestLimitOfLiveKeysIsExactUnderConcurrency(t *testing.T) {
	t.Parallel()
	const limit, callers = 20, 64
	b := start(t, options{policy: func(p *policy.Policy) { p.Limits.LiveKeysPerWorkspace = limit }})
	b.putMember(t, "acme", "ann", "owner")
	created, refused := b.race(t, callers, func(caller int) *keysvcv1.CreateKeyRequest {
		return &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: fmt.Sprint("key ", caller), Scopes: []string{"emails:read"},
		}
	})
	if len(created) != limit {
		t.Errorf("%d keys were created, the limit is %d", len(created), limit)
	}
	for _, err := range refused {
		expectError(t, err, codes.FailedPrecondition, "LIMIT_REACHED")
	}
	list, err := b.keys.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: 1000})
	if err != nil || len(list.GetKeys()) != len(created) {
		t.Errorf("%d keys are listed, %v", len(list.GetKeys()), err)
	}
	// Who leaves makes room for one.
	if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: created[0].GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	b.create(t, "acme", "ann", "emails:read")
	_, err = b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"emails:read"}})
	expectError(t, err, codes.FailedPrecondition, "LIMIT_REACHED")
}

// race creates keys at once and returns who was faster, and what the others were told.
func (b *bench) race(t *testing.T, callers int, request func(caller int) *keysvcv1.CreateKeyRequest) (created []*keysvcv1.CreateKeyResponse, refused []error) {
	t.Helper()
	ctx := testContext(t)
	begin := make(chan struct{})
	var mutex sync.Mutex
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			<-begin
			response, err := b.keys.CreateKey(ctx, request(caller))
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				refused = append(refused, err)
			} else {
				created = append(created, response)
			}
		})
	}
	close(begin)
	all.Wait()
	return created, refused
}

// TestPagesAreStableWhileKeysAreAdded reads pages while keys are added.
func TestPagesAreStableWhileKeysAreAdded(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	b.putMember(t, "other", "bob", "owner")
	var want []string // newest first
	for range 25 {
		want = append([]string{b.create(t, "acme", "ann", "emails:read").GetKey().GetKeyId()}, want...)
	}
	var got []string
	request := &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: 7}
	for pages := 1; ; pages++ {
		page, err := b.keys.ListKeys(testContext(t), request)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range page.GetKeys() {
			got = append(got, key.GetKeyId())
		}
		if page.GetNextPageToken() == "" {
			break
		}
		if len(page.GetKeys()) > 7 || pages > 25 {
			t.Fatalf("page %d has %d keys", pages, len(page.GetKeys()))
		}
		// What is added, here and beside, comes on no later page.
		b.create(t, "acme", "ann", "emails:read")
		b.create(t, "other", "bob", "emails:read")
		request.PageToken = page.GetNextPageToken()
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pages give\n%q, want\n%q", got, want)
	}
	all, err := b.keys.ListKeys(testContext(t), &keysvcv1.ListKeysRequest{})
	if err != nil || len(all.GetKeys()) != 25+2*3 || all.GetNextPageToken() != "" {
		t.Errorf("%d keys of all workspaces, %v", len(all.GetKeys()), err)
	}
	times := func(a, b *keysvcv1.Key) int { return b.GetCreateTime().AsTime().Compare(a.GetCreateTime().AsTime()) }
	if !slices.IsSortedFunc(all.GetKeys(), times) {
		t.Error("the keys of all workspaces are not listed newest first")
	}
}

// TestPageSizeHasADefaultAndAMaximum: 0 is 50, and more than 1,000 is taken for 1,000.
func TestPageSizeHasADefaultAndAMaximum(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	const members = 1001
	var all sync.WaitGroup
	turns := make(chan int)
	for range 4 {
		all.Go(func() {
			for member := range turns {
				if _, err := b.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{
					WorkspaceId: "acme", MemberId: fmt.Sprintf("m%04d", member), Role: "owner", State: active,
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for member := range members {
		turns <- member
	}
	close(turns)
	all.Wait()
	for size, want := range map[int32]int{0: 50, 1: 1, 999: 999, 1000: 1000, 1001: 1000, 1<<31 - 1: 1000} {
		page, err := b.members.ListMembers(testContext(t), &keysvcv1.ListMembersRequest{WorkspaceId: "acme", PageSize: size})
		if err != nil || len(page.GetMembers()) != want || page.GetNextPageToken() == "" {
			t.Errorf("page_size %d gave %d members, %v; want %d and more to come", size, len(page.GetMembers()), err, want)
		}
		if page.GetMembers()[0].GetMemberId() != "m0000" {
			t.Errorf("the first is %s", page.GetMembers()[0].GetMemberId())
		}
		if size < 999 {
			continue
		}
		rest, err := b.members.ListMembers(testContext(t), &keysvcv1.ListMembersRequest{WorkspaceId: "acme", PageToken: page.GetNextPageToken()})
		if err != nil || len(rest.GetMembers()) != members-want || rest.GetNextPageToken() != "" {
			t.Errorf("after %d there are %d, %v", want, len(rest.GetMembers()), err)
		}
	}
}

func TestPolicyPlanChangesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	before := f.dump(t)
	narrowed := proto.CloneOf(f.policy)
	narrowed.Roles = narrowed.GetRoles()[1:] // without owner, who has the keys
	plan := &keysvcv1.ApplyPolicyRequest{Policy: narrowed, ReplacesDigest: f.digest, ValidateOnly: true}
	response, err := f.policies.ApplyPolicy(testContext(t), plan)
	if err != nil || len(response.GetRoleChanges()) != 1 || response.GetNarrowedKeys() != 4 || response.GetDigest() == f.digest {
		t.Errorf("got %v, %v", response, err)
	}
	expectUnchanged(t, before, f.dump(t))
	f.expectAllowed(t, f.key.GetToken(), "signatures:read")
	plan.ValidateOnly = false
	applied, err := f.policies.ApplyPolicy(testContext(t), plan)
	if err != nil || applied.GetRevision() <= response.GetRevision() {
		t.Fatalf("got %v, %v", applied, err)
	}
	f.expectRefused(t, f.key.GetToken(), "signatures:read", keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE)
}

func TestRotationEndsOldSecretsAfterTheOverlap(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	keyID := f.key.GetKey().GetKeyId()
	rotate := func(overlap time.Duration) *keysvcv1.RotateKeyResponse {
		t.Helper()
		response, err := f.keys.RotateKey(testContext(t), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationOf(overlap)})
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	second := rotate(time.Hour)
	f.expectAllowed(t, f.key.GetToken(), "signatures:read")
	f.expectAllowed(t, second.GetToken(), "signatures:read")
	_, err := f.keys.RotateKey(testContext(t), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationOf(time.Hour)})
	expectError(t, err, codes.FailedPrecondition, "ROTATION_IN_PROGRESS")
	f.clock.pass(time.Hour)
	f.expectRefused(t, f.key.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_INVALID)
	third := rotate(time.Hour)
	finished, err := f.keys.FinishRotation(testContext(t), &keysvcv1.FinishRotationRequest{WorkspaceId: "acme", KeyId: keyID})
	if err != nil || len(finished.GetKey().GetSecrets()) != 1 {
		t.Errorf("got %v, %v", finished, err)
	}
	f.expectRefused(t, second.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_INVALID)
	f.expectAllowed(t, third.GetToken(), "signatures:read")
	fourth := rotate(0)
	f.expectRefused(t, third.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_INVALID)
	if fourth.GetKey().GetKeyId() != keyID {
		t.Error("the rotation changed the key's id")
	}
	_, err = f.keys.RevokeToken(testContext(t), &keysvcv1.RevokeTokenRequest{Token: third.GetToken()})
	expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
	revoked, err := f.keys.RevokeToken(testContext(t), &keysvcv1.RevokeTokenRequest{Token: fourth.GetToken()})
	if err != nil || revoked.GetKeyId() != keyID || revoked.GetWorkspaceId() != "acme" {
		t.Errorf("got %v, %v", revoked, err)
	}
	f.expectRefused(t, fourth.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_REVOKED)
}
