package keystest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/validation"
)

const none = keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED

// The ids that the operations use: few of each, so that operations often meet the same one.
var (
	workspaceIDs = []string{"acme", "blue", "cobalt"}
	memberIDs    = []string{"ann", "bob", "eve"}
	roleNames    = []string{"owner", "manager", "member"}
	scopeNames   = []string{"signatures:read", "signatures:write", "folders:read", "financial_documents:read"}
	cidrSets     = [][]string{nil, {"192.0.2.0/24"}, {"192.0.2.0/24", "2001:db8::/32"}}
	addresses    = []string{"", "192.0.2.7", "::ffff:192.0.2.9", "198.51.100.1", "2001:db8::5"}
)

// liveLimit is the limit of live keys of a run's policy: low, so that operations reach it.
const liveLimit = 4

// Run makes random operations, with restarts and steps of the clock, on a new store and on a model, and
// fails at the first difference. It returns a digest of all answers: the same seed gives the same digest
// on each backend.
func Run(t testing.TB, backend Backend, seed uint64, operations int) string {
	t.Helper()
	source := rand.New(rand.NewPCG(seed, 1))
	r := &run{
		World:    NewWorld(t, backend, rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})),
		random:   source,
		digest:   sha256.New(),
		requests: 1,
	}
	r.model = newModel(r.Clock.Now())
	r.applyPolicy(func(wanted *policy.Policy) { wanted.Limits.LiveKeysPerWorkspace = liveLimit })
	for r.step = range operations {
		r.one()
		if t.Failed() {
			t.Fatalf("seed %d, operation %d: the store and the model differ", seed, r.step)
		}
		if r.step%500 == 499 {
			r.compare()
		}
	}
	r.compare()
	return hex.EncodeToString(r.digest.Sum(nil))
}

// run is one run of the model test.
type run struct {
	*World
	model    *model
	random   *rand.Rand
	digest   hash.Hash
	step     int
	requests int
	// tokens are all tokens that were ever issued.
	tokens []string
}

func pick[T any](r *run, from []T) T { return from[r.random.IntN(len(from))] }

// chance returns true once in n times.
func (r *run) chance(n int) bool { return r.random.IntN(n) == 0 }

// note compares an answer with that of the model, and adds it to the digest.
func (r *run) note(operation string, got, want any) {
	fmt.Fprintln(r.digest, r.step, operation, got)
	if got != want {
		r.t.Errorf("%s: got %v, the model says %v", operation, got, want)
	}
}

// one makes one random operation.
func (r *run) one() {
	switch at := r.random.IntN(1000); {
	case at < 380:
		r.validate()
	case at < 500:
		r.create()
	case at < 600:
		r.putMember()
	case at < 640:
		r.removeMember()
	case at < 650:
		r.removeWorkspace()
	case at < 720:
		r.rotate()
	case at < 750:
		r.finish()
	case at < 800:
		r.revoke()
	case at < 815:
		r.revokeToken()
	case at < 870:
		r.update()
	case at < 910:
		r.list()
	case at < 930:
		r.trespass()
	case at < 980:
		r.moveClock()
	case at < 990:
		r.sweep()
	case at < 995:
		r.narrowOrWiden()
	default:
		r.restart()
	}
}

// now returns the time that changes are stamped with.
func (r *run) now() time.Time { return r.model.now }

func (r *run) moveClock() {
	step := time.Duration(r.random.Int64N(int64(time.Hour)))
	switch r.random.IntN(12) {
	case 0:
		step *= 24 * 20
	case 1:
		step = -step // the wall clock is set back, and the product's time stands still
	case 2:
		step *= 24
	}
	r.Clock.Advance(step)
	if now := r.Clock.Now().Truncate(time.Microsecond); now.After(r.model.now) {
		r.Clock.Advance(now.Sub(r.Clock.Now()))
		r.model.now = now
		// Any call makes the process read the clock. Without one, it would miss this time if the clock
		// goes back next.
		r.listAll(&keysvcv1.ListKeysRequest{WorkspaceId: "nowhere"})
	}
}

func (r *run) putMember() {
	workspaceID, memberID, role := pick(r, workspaceIDs), pick(r, memberIDs), pick(r, roleNames)
	state := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	if r.chance(4) {
		state = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
	}
	version := r.version()
	want := none
	workspace := r.model.workspaces[workspaceID]
	if workspace == nil {
		workspace = &modelWorkspace{removed: true, members: map[string]*modelMember{}}
	}
	stored := workspace.members[memberID]
	present := r.model.member(workspaceID, memberID)
	if !workspace.isNewer(stored, version, present != nil && present.role == role && present.state == state) {
		want = keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED
	}
	_, err := insist(r, r.PutMember, &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: state, SourceVersion: version,
	})
	r.note("put member", ReasonOf(err), want)
	if want != none {
		return
	}
	if workspace.removed {
		r.model.lives++
		workspace.life, workspace.removed, workspace.since = r.model.lives, false, r.now()
		r.model.workspaces[workspaceID] = workspace
	}
	before := modelMember{}
	if stored != nil {
		before = *stored
	}
	next := before
	if r.model.member(workspaceID, memberID) == nil {
		r.model.lives++
		next = modelMember{life: r.model.lives, workspaceLife: workspace.life, version: before.version}
	}
	if next.state != state {
		next.since = r.now()
	}
	next.role, next.state = role, state
	if version != nil {
		next.version = *version
	}
	if next != before {
		next.updated = r.now()
	}
	workspace.members[memberID] = &next
}

// version returns a random source version; nil in half of the cases.
func (r *run) version() *int64 {
	if r.chance(2) {
		return nil
	}
	version := r.random.Int64N(int64(r.step/200 + 3))
	return &version
}

func (r *run) removeMember() {
	workspaceID, memberID, version := pick(r, workspaceIDs), pick(r, memberIDs), r.version()
	var stored *modelMember
	workspace := r.model.workspaces[workspaceID]
	if workspace != nil {
		stored = workspace.members[memberID]
	}
	want := none
	if !workspace.isNewer(stored, version, stored != nil && stored.state == keysvcv1.MemberState_MEMBER_STATE_REMOVED) {
		want = keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED
	}
	_, err := insist(r, r.RemoveMember, &keysvcv1.RemoveMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, SourceVersion: version,
	})
	r.note("remove member", ReasonOf(err), want)
	if want != none || stored == nil && (version == nil || *version == 0) {
		return
	}
	if workspace == nil {
		workspace = &modelWorkspace{removed: true, members: map[string]*modelMember{}}
		r.model.workspaces[workspaceID] = workspace
	}
	if stored == nil {
		stored = &modelMember{}
		workspace.members[memberID] = stored
	}
	next := *stored
	if next.state != keysvcv1.MemberState_MEMBER_STATE_REMOVED {
		r.model.ends[next.life] = r.now()
	}
	next.state = keysvcv1.MemberState_MEMBER_STATE_REMOVED
	if version != nil {
		next.version = *version
	}
	if next != *stored {
		next.updated = r.now()
	}
	*stored = next
}

func (r *run) removeWorkspace() {
	workspaceID, version := pick(r, workspaceIDs), r.version()
	workspace := r.model.workspaces[workspaceID]
	want, repeated := none, false
	if version != nil && workspace != nil {
		repeated = workspace.life > 0 && workspace.removed && *version == workspace.removal
		if newest := workspace.newest(); !repeated && *version <= newest && newest > 0 {
			want = keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED
		}
	}
	_, err := insist(r, r.RemoveWorkspace, &keysvcv1.RemoveWorkspaceRequest{
		WorkspaceId: workspaceID, SourceVersion: version,
	})
	r.note("remove workspace", ReasonOf(err), want)
	there := workspace != nil && !workspace.removed
	if want != none || repeated || !there && (version == nil || *version == 0) {
		return
	}
	if workspace == nil {
		workspace = &modelWorkspace{removed: true, members: map[string]*modelMember{}}
		r.model.workspaces[workspaceID] = workspace
	}
	if workspace.life == 0 {
		r.model.lives++
		workspace.life, workspace.since = r.model.lives, r.now()
	}
	if !workspace.removed {
		workspace.removed, workspace.since = true, r.now()
		r.model.ends[workspace.life] = r.now()
	}
	if version != nil {
		workspace.removal = *version
	}
}

// someScopes returns one to three scopes, sorted.
func (r *run) someScopes() []string {
	set := []string{pick(r, scopeNames)}
	for range r.random.IntN(3) {
		if scope := pick(r, scopeNames); !slices.Contains(set, scope) {
			set = append(set, scope)
		}
	}
	slices.Sort(set)
	return set
}

// requestID returns a request id, which may have been used before; nil in half of the cases.
func (r *run) requestID() *string {
	if r.chance(2) {
		return nil
	}
	number := r.requests
	if r.chance(4) {
		number = max(0, r.requests-1-r.random.IntN(60)) // some of them are purged by now
	} else {
		r.requests++
	}
	id := fmt.Sprintf("request-%d", number)
	return &id
}

// lifetime returns when a secret expires: at the time in the message, or after a year.
func (r *run) lifetime() (asked *timestamppb.Timestamp, until time.Time) {
	if r.chance(2) {
		return nil, r.yearFromNow()
	}
	until = r.now().Add(time.Duration(1+r.random.IntN(24*60)) * time.Hour)
	return timestamppb.New(until), until
}

// yearFromNow returns the same moment a year later. A year after 29 February is 28 February.
func (r *run) yearFromNow() time.Time {
	now := r.now()
	if now.Month() == time.February && now.Day() == 29 {
		now = now.AddDate(0, 0, -1)
	}
	return now.AddDate(1, 0, 0)
}

func (r *run) create() {
	workspaceID, memberID, scopes, cidrs := pick(r, workspaceIDs), pick(r, memberIDs), r.someScopes(), pick(r, cidrSets)
	requestID := r.requestID()
	asked, until := r.lifetime()
	member := r.model.member(workspaceID, memberID)
	want := none
	switch {
	case requestID != nil && r.model.requestUsed(workspaceID, *requestID):
		want = keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED
	case member == nil:
		want = keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND
	case member.state == keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		want = keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED
	case slices.ContainsFunc(scopes, func(scope string) bool { return !slices.Contains(r.model.roles[member.role], scope) }):
		want = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE
	case r.model.liveKeys(workspaceID) >= r.model.liveLimit:
		want = keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED
	}
	name := fmt.Sprintf("key %d", r.step)
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: name, Scopes: scopes,
		AllowedCidrs: cidrs, RequestId: requestID, ExpireTime: asked,
	}
	created, err := r.CreateKey(context.Background(), r.actor(request), request)
	r.note("create", ReasonOf(err), want)
	if want != none || err != nil {
		return
	}
	key := &modelKey{
		id: created.GetKey().GetKeyId(), workspace: workspaceID, member: memberID,
		memberLife: member.life, workspaceLife: member.workspaceLife,
		name: name, scopes: scopes, cidrs: cidrs, created: r.now(),
		secrets: []modelSecret{{token: created.GetToken(), created: r.now(), expire: until, end: until}},
	}
	if requestID != nil {
		key.requests = []string{*requestID}
	}
	r.model.keys[key.id] = key
	r.model.order = append(r.model.order, key.id)
	r.tokens = append(r.tokens, created.GetToken())
	r.note("created", describeReal(created.GetKey()), r.model.describe(key))
}

// someKey returns a random key, and the workspace in which an operation names it; nil if no key is
// left. Sometimes the workspace is a wrong one, and want is then KEY_NOT_FOUND.
func (r *run) someKey() (key *modelKey, workspaceID string, want keysvcv1.ErrorReason) {
	if len(r.model.order) == 0 {
		return nil, "", none
	}
	// Mostly one of the newest keys, because older ones are seldom live.
	from := r.model.order[max(0, len(r.model.order)-20):]
	if r.chance(5) {
		from = r.model.order
	}
	key = r.model.keys[pick(r, from)]
	workspaceID = key.workspace
	if r.chance(20) {
		workspaceID = pick(r, workspaceIDs)
	}
	if workspaceID != key.workspace {
		return key, workspaceID, keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND
	}
	return key, workspaceID, none
}

func (r *run) rotate() {
	key, workspaceID, want := r.someKey()
	if key == nil {
		return
	}
	overlap := time.Duration(r.random.IntN(3)) * 5 * time.Hour
	requestID := r.requestID()
	asked, until := r.lifetime()
	if asked == nil {
		newest := key.secrets[0]
		if until = r.now().Add(newest.expire.Sub(newest.created)); until.After(r.yearFromNow()) {
			until = r.yearFromNow()
		}
	}
	rotating := len(key.secrets) > 1 && r.now().Before(key.secrets[1].end)
	switch {
	case want != none:
	case requestID != nil && r.model.requestUsed(workspaceID, *requestID):
		want = keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED
	case r.model.notLive(key) != none:
		want = r.model.notLive(key)
	case rotating && overlap > 0:
		want = keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS
	}
	request := &keysvcv1.RotateKeyRequest{
		WorkspaceId: workspaceID, KeyId: key.id, Overlap: durationpb.New(overlap), RequestId: requestID, ExpireTime: asked,
	}
	rotated, err := r.RotateKey(context.Background(), r.actor(request), request)
	r.note("rotate", ReasonOf(err), want)
	if want != none || err != nil {
		return
	}
	secrets := []modelSecret{{token: rotated.GetToken(), created: r.now(), expire: until, end: until}}
	if overlap > 0 {
		old := key.secrets[0]
		if end := r.now().Add(overlap); end.Before(old.end) {
			old.end = end
		}
		if until.Before(old.end) {
			old.end = until
		}
		secrets = append(secrets, old)
	}
	key.secrets = secrets
	if requestID != nil {
		if len(key.requests) == 64 {
			key.requests = slices.Delete(key.requests, 1, 2)
		}
		key.requests = append(key.requests, *requestID)
	}
	r.tokens = append(r.tokens, rotated.GetToken())
	r.note("rotated", describeReal(rotated.GetKey()), r.model.describe(key))
}

func (r *run) finish() {
	key, workspaceID, want := r.someKey()
	if key == nil {
		return
	}
	if want == none {
		want = r.model.notLive(key)
	}
	finished, err := insist(r, r.FinishRotation, &keysvcv1.FinishRotationRequest{WorkspaceId: workspaceID, KeyId: key.id})
	r.note("finish", ReasonOf(err), want)
	if want == none && err == nil {
		key.secrets = key.secrets[:1]
		r.note("finished", describeReal(finished.GetKey()), r.model.describe(key))
	}
}

func (r *run) revoke() {
	key, workspaceID, want := r.someKey()
	if key == nil {
		return
	}
	revoked, err := insist(r, r.RevokeKey, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: key.id})
	r.note("revoke", ReasonOf(err), want)
	if want == none && err == nil {
		r.markRevoked(key, false)
		r.note("revoked", describeReal(revoked.GetKey()), r.model.describe(key))
	}
}

func (r *run) markRevoked(key *modelKey, reported bool) {
	if key.revoked == nil {
		now := r.now()
		key.revoked, key.reported = &now, reported
	}
}

func (r *run) revokeToken() {
	if len(r.tokens) == 0 {
		return
	}
	token := pick(r, r.tokens)
	want := keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND
	var owner *modelKey
	for _, key := range r.model.keys {
		for index, secret := range key.secrets {
			if secret.token != token || index > 0 && !r.now().Before(secret.end) ||
				r.model.state(key) == keysvcv1.KeyState_KEY_STATE_EXPIRED {
				continue
			}
			owner, want = key, none
		}
	}
	_, err := insist(r, r.RevokeToken, &keysvcv1.RevokeTokenRequest{Token: token})
	r.note("revoke token", ReasonOf(err), want)
	if owner != nil {
		r.markRevoked(owner, true)
	}
}

func (r *run) update() {
	key, workspaceID, want := r.someKey()
	if key == nil {
		return
	}
	request := &keysvcv1.UpdateKeyRequest{
		Key: &keysvcv1.Key{
			WorkspaceId: workspaceID, KeyId: key.id,
			Name: fmt.Sprintf("renamed %d", r.random.IntN(3)), Scopes: r.someScopes(), AllowedCidrs: pick(r, cidrSets),
		},
		UpdateMask: &fieldmaskpb.FieldMask{},
	}
	next := *key
	for _, path := range []string{"name", "scopes", "allowed_cidrs"} {
		if !r.chance(2) {
			continue
		}
		request.UpdateMask.Paths = append(request.UpdateMask.Paths, path)
		switch path {
		case "name":
			next.name = request.GetKey().GetName()
		case "scopes":
			next.scopes = request.GetKey().GetScopes()
		case "allowed_cidrs":
			next.cidrs = request.GetKey().GetAllowedCidrs()
		}
	}
	masked := request.GetUpdateMask().GetPaths()
	changes := next.name != key.name || !slices.Equal(next.scopes, key.scopes) || !slices.Equal(next.cidrs, key.cidrs)
	switch {
	case len(masked) == 0:
		want = keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID
	case want != none:
	case r.model.notLive(key) != none:
		want = r.model.notLive(key)
	case changes && slices.Contains(masked, "scopes") && slices.ContainsFunc(next.scopes, func(scope string) bool {
		return !slices.Contains(r.model.roles[r.model.owner(key).role], scope)
	}):
		want = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE
	}
	updated, err := insist(r, r.UpdateKey, request)
	r.note("update", ReasonOf(err), want)
	if want == none && err == nil {
		*key = next
		r.note("updated", describeReal(updated.GetKey()), r.model.describe(key))
	}
}

func (r *run) validate() {
	if len(r.tokens) == 0 {
		return
	}
	from := r.tokens[max(0, len(r.tokens)-30):]
	if r.chance(5) {
		from = r.tokens
	}
	token, scope, address := pick(r, from), pick(r, scopeNames), pick(r, addresses)
	workspaceID := ""
	if r.chance(3) {
		workspaceID = pick(r, workspaceIDs)
	}
	if len(r.model.order) > 0 && r.chance(2) {
		// Something that is likely to be allowed.
		key := r.model.keys[pick(r, r.model.order[max(0, len(r.model.order)-10):])]
		token, scope, address, workspaceID = key.secrets[0].token, pick(r, key.scopes), "192.0.2.7", key.workspace
	}
	want := r.model.validate(token, scope, workspaceID, address)
	question := validation.Question{
		Workspaces: access.All(),
		Token:      token, Requirement: decide.Requirement{Scope: scope}, WorkspaceID: workspaceID,
	}
	question.Address, _ = netip.ParseAddr(address)
	answer, err := r.Validator.Validate(context.Background(), question)
	if err != nil {
		r.t.Errorf("validate: %v", err)
	}
	r.note("validate", keysvcv1.Reason(answer.Reason), want)
	if (answer.Decision == decide.Allowed) != (want == keysvcv1.Reason_REASON_UNSPECIFIED) {
		r.t.Errorf("validate: decision %d with reason %v", answer.Decision, want)
	}
}

func (r *run) list() {
	request := &keysvcv1.ListKeysRequest{PageSize: int32(1 + r.random.IntN(7))}
	if !r.chance(4) {
		request.WorkspaceId = pick(r, workspaceIDs)
	}
	if r.chance(3) {
		member := pick(r, memberIDs)
		request.MemberId = &member
	}
	if r.chance(3) {
		scope := pick(r, scopeNames)
		request.Scope = &scope
	}
	if r.chance(3) {
		request.States = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED}
	}
	if r.chance(3) {
		request.ExpiringBefore = timestamppb.New(r.now().AddDate(0, 0, r.random.IntN(200)))
	}
	if r.chance(3) {
		request.UnusedSince = timestamppb.New(r.now().AddDate(0, 0, -r.random.IntN(20)))
	}
	want := r.model.list(request)
	r.note("list", fmt.Sprint(r.listAll(request)), fmt.Sprint(want))
}

// listAll follows the pages of a list.
func (r *run) listAll(request *keysvcv1.ListKeysRequest) []string {
	var ids []string
	for {
		page, err := r.ListKeys(context.Background(), access.All(), request)
		if err != nil {
			r.t.Errorf("list: %v", err)
			return ids
		}
		for _, key := range page.GetKeys() {
			ids = append(ids, key.GetKeyId())
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return ids
		}
	}
}

func (r *run) sweep() {
	if _, err := r.Sweep(context.Background(), Actor); err != nil {
		r.t.Errorf("sweep: %v", err)
	}
	r.model.sweep()
}

// narrowOrWiden applies the policy with one scope more or less for managers.
func (r *run) narrowOrWiden() {
	r.applyPolicy(func(wanted *policy.Policy) {
		for index := range wanted.Roles {
			if wanted.Roles[index].Name == "manager" && r.chance(2) {
				wanted.Roles[index].Scopes = []string{"signatures:*"}
			}
		}
		wanted.Limits.LiveKeysPerWorkspace = liveLimit
	})
}

// applyPolicy applies the built-in policy with a change.
func (r *run) applyPolicy(change func(*policy.Policy)) {
	wanted := policy.Default()
	change(wanted)
	active, err := r.GetPolicy(context.Background(), access.All(), nil)
	if err != nil {
		r.t.Errorf("get policy: %v", err)
		return
	}
	sent := active.GetPolicy()
	sent.Limits.LiveKeysPerWorkspace = liveLimit
	sent.Roles = nil
	for _, role := range wanted.Roles {
		sent.Roles = append(sent.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: role.Scopes})
	}
	applied, err := r.ApplyPolicy(context.Background(), Actor, &keysvcv1.ApplyPolicyRequest{
		Policy: sent, ReplacesDigest: active.GetDigest(),
	})
	r.note("apply policy", ReasonOf(err), none)
	r.note("digest", applied.GetDigest(), wanted.Digest())
	r.model.roles = map[string][]string{}
	for _, role := range wanted.Roles {
		r.model.roles[role.Name], _ = wanted.RoleScopes(role.Name)
	}
	r.model.retention, r.model.liveLimit = wanted.Retention, wanted.Limits.LiveKeysPerWorkspace
}

func (r *run) restart() {
	r.Restart(true)
	// The product's time is now that of the last commit or of the wall clock, which may have been set
	// back. The model's time may be later than both.
	if behind := r.model.now.Sub(r.Clock.Now()); behind > 0 {
		r.Clock.Advance(behind)
	}
	r.compare()
}

// compare compares everything that can be read.
func (r *run) compare() {
	for _, workspaceID := range append([]string{""}, workspaceIDs...) {
		request := &keysvcv1.ListKeysRequest{WorkspaceId: workspaceID, PageSize: 1000}
		r.note("all keys", fmt.Sprint(r.listAll(request)), fmt.Sprint(r.model.list(request)))
	}
	for _, id := range r.model.order {
		key := r.model.keys[id]
		got, err := r.GetKey(context.Background(), access.All(), &keysvcv1.GetKeyRequest{KeyId: id})
		if err != nil {
			r.t.Errorf("get %s: %v", id, err)
			continue
		}
		r.note("key", describeReal(got.GetKey()), r.model.describe(key))
		r.note("effect", fmt.Sprint(got.GetRole(), got.GetEffectiveScopes()), r.model.effect(key))
	}
	for _, workspaceID := range workspaceIDs {
		r.compareMembers(workspaceID)
	}
	r.compareWorkspaces()
	r.replayEvents()
}

func (r *run) compareWorkspaces() {
	page, err := r.ListWorkspaces(context.Background(), access.All(), &keysvcv1.ListWorkspacesRequest{})
	if err != nil {
		r.t.Errorf("list workspaces: %v", err)
		return
	}
	var got, want []string
	for _, each := range page.GetWorkspaces() {
		got = append(got, fmt.Sprint(each.GetWorkspaceId(), each.GetState(), each.GetKeyCount(), each.GetMemberCount()))
	}
	for _, workspaceID := range workspaceIDs {
		workspace := r.model.workspaces[workspaceID]
		if workspace == nil || workspace.life == 0 { // at most the removal of a member is stored
			continue
		}
		state, keys := keysvcv1.WorkspaceState_WORKSPACE_STATE_ACTIVE, 0
		if workspace.removed {
			state = keysvcv1.WorkspaceState_WORKSPACE_STATE_REMOVED
		}
		for _, key := range r.model.keys {
			if key.workspace == workspaceID {
				keys++
			}
		}
		want = append(want, fmt.Sprint(workspaceID, state, keys, len(workspace.members)))
	}
	r.note("workspaces", fmt.Sprint(got), fmt.Sprint(want))
}

func (r *run) compareMembers(workspaceID string) {
	page, err := r.ListMembers(context.Background(), access.All(), &keysvcv1.ListMembersRequest{WorkspaceId: workspaceID})
	if err != nil {
		r.t.Errorf("list members: %v", err)
		return
	}
	var got, want []string
	for _, member := range page.GetMembers() {
		got = append(got, fmt.Sprint(member.GetMemberId(), member.GetRole(), member.GetState(), member.GetSourceVersion()))
	}
	if workspace := r.model.workspaces[workspaceID]; workspace != nil {
		for _, memberID := range memberIDs {
			stored := workspace.members[memberID]
			if stored == nil {
				continue
			}
			state := keysvcv1.MemberState_MEMBER_STATE_REMOVED
			if r.model.member(workspaceID, memberID) != nil {
				state = stored.state
			}
			want = append(want, fmt.Sprint(memberID, stored.role, state, stored.version))
		}
	}
	r.note("members", fmt.Sprint(got), fmt.Sprint(want))
}
