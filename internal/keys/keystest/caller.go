package keystest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// brief is the workspace whose keys expire within seconds.
const brief = "brief"

// severalLimit is the policy's limit of live keys in a workspace: low, so that calls reach it.
const severalLimit = 5

// pool has the keys that were issued to any caller; all callers share it.
type pool struct {
	mutex sync.Mutex
	keys  []pooled
}

type pooled struct{ workspaceID, keyID, token string }

func (p *pool) add(key pooled) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.keys = append(p.keys, key)
}

// pick returns a key, in three of four cases one of the newest eight.
func (p *pool) pick(random *rand.Rand) (pooled, bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if len(p.keys) == 0 {
		return pooled{}, false
	}
	from := p.keys
	if random.IntN(4) > 0 {
		from = from[max(0, len(from)-8):]
	}
	return from[random.IntN(len(from))], true
}

// caller makes random calls, one after another.
type caller struct {
	*several

	number int // 1 for the first caller; 0 for setup
	random *rand.Rand
	left   int // calls to make
	ids    int
}

func choose[T any](c *caller, from ...T) T { return from[c.random.IntN(len(from))] }

func (c *caller) chance(n int) bool { return c.random.IntN(n) == 0 }

func (c *caller) run() {
	_ = c.pacer.pause(context.Background(), c.number, atStart)
	for c.left > 0 {
		if c.campaign.Restarts > 0 && c.chance(c.campaign.Restarts) {
			c.left--
			c.restart(c.random.IntN(len(c.seats)))
			continue
		}
		if c.chance(40) {
			c.outlive()
			continue
		}
		if c.chance(20) {
			c.left--
			c.trespass()
			continue
		}
		request := c.request()
		done := c.insist(request)
		if done.err == nil && done.mutation() && c.chance(2) {
			c.follow(done)
		}
	}
}

// insist calls a random manager. It repeats the call as clients do, if the outcome is unknown or
// the store unavailable, and sometimes without a reason.
func (c *caller) insist(request any) *call {
	number := c.random.IntN(len(c.seats))
	for attempt := 0; ; attempt++ {
		done := c.call(number, request)
		c.left--
		again := errors.Is(done.err, storage.ErrOutcomeUnknown) || errors.Is(done.err, storage.ErrUnavailable)
		if attempt == 4 || !again && !c.chance(12) || again && c.chance(6) {
			return done
		}
		if c.chance(2) {
			number = c.random.IntN(len(c.seats))
		}
	}
}

// follow calls a random manager, mostly another one, with a message whose answer depends on the
// change.
func (c *caller) follow(done *call) {
	number := (done.seat + c.random.IntN(len(c.seats))) % len(c.seats)
	c.left--
	switch key, found := c.pool.pick(c.random); {
	case done.token != "" && c.chance(3):
		c.call(number, &keysvcv1.RevokeTokenRequest{Token: done.token})
	case done.token != "":
		c.call(number, &question{token: done.token, scope: choose(c, c.scopes()...)})
	case found:
		c.call(number, &question{token: key.token, scope: choose(c, c.scopes()...)})
	}
}

// outlive issues a secret that expires within seconds, waits until the secret has expired, and
// sends the same message again.
func (c *caller) outlive() {
	if !c.brief.TryLock() {
		return
	}
	defer c.brief.Unlock()
	soon := timestamppb.New(c.clock.Now().Add(2 * time.Second))
	requestID := c.newID("request")
	var request any = &keysvcv1.CreateKeyRequest{
		WorkspaceId: brief, MemberId: "ann", Name: "brief", Scopes: []string{"signatures:read"},
		ExpireTime: soon, RequestId: &requestID,
	}
	if c.chance(2) {
		c.left--
		created := c.call(c.random.IntN(len(c.seats)), &keysvcv1.CreateKeyRequest{
			WorkspaceId: brief, MemberId: "ann", Name: "brief", Scopes: []string{"signatures:read"},
		})
		if created.err != nil {
			return
		}
		request = &keysvcv1.RotateKeyRequest{
			WorkspaceId: brief, KeyId: created.keyID, Overlap: durationpb.New(0), ExpireTime: soon, RequestId: &requestID,
		}
	}
	c.call(c.random.IntN(len(c.seats)), request)
	c.clock.Advance(3 * time.Second)
	c.insist(request)
	c.left--
}

// newID returns a unique name.
func (c *caller) newID(kind string) string {
	c.ids++
	return fmt.Sprintf("%s-%d-%d", kind, c.number, c.ids)
}

func (c *caller) workspaceID() string {
	return fmt.Sprintf("ws-%d", c.random.IntN(c.campaign.Workspaces))
}

// request returns a random message.
func (c *caller) request() any {
	key, found := c.pool.pick(c.random)
	at := c.random.IntN(100)
	if !found && at >= 12 {
		at = 12
	}
	switch {
	case at < 7:
		return c.putMember()
	case at < 8:
		return c.removeMember()
	case at < 10:
		return c.applyPolicy()
	case at < 11:
		return &keysvcv1.GetPolicyRequest{}
	case at < 12:
		return &keysvcv1.GetMemberRequest{WorkspaceId: c.workspaceID(), MemberId: choose(c, memberIDs...)}
	case at < 32:
		return c.create()
	case at < 40:
		return c.rotate(key)
	case at < 43:
		return &keysvcv1.FinishRotationRequest{WorkspaceId: key.workspaceID, KeyId: key.keyID}
	case at < 50:
		return &keysvcv1.RevokeKeyRequest{WorkspaceId: key.workspaceID, KeyId: key.keyID}
	case at < 53:
		return &keysvcv1.RevokeTokenRequest{Token: key.token}
	case at < 61:
		return c.update(key)
	case at < 67:
		return &keysvcv1.GetKeyRequest{WorkspaceId: choose(c, key.workspaceID, key.workspaceID, "ws-0"), KeyId: key.keyID}
	case at < 69:
		return &keysvcv1.ListKeysRequest{WorkspaceId: c.workspaceID(), PageSize: 1000}
	}
	asked := &question{token: key.token, scope: choose(c, c.scopes()...)}
	if c.chance(4) {
		asked.workspaceID = choose(c, key.workspaceID, c.workspaceID())
	}
	return asked
}

// versioned reports whether the members of a workspace are pushed with versions. Such a
// workspace is never removed.
func versioned(workspaceID string) bool { return workspaceID[len(workspaceID)-1]%2 == 0 }

// version returns a unique source version, which is sometimes older than others; nil for a workspace
// without versions.
func (c *caller) version(workspaceID string) *int64 {
	if !versioned(workspaceID) {
		return nil
	}
	version := c.versions.Add(1) * 8
	if c.chance(4) {
		version = max(1, version-80+int64(c.random.IntN(8)))
	}
	return &version
}

func (c *caller) putMember() any {
	workspaceID := c.workspaceID()
	return &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: choose(c, memberIDs...), Role: choose(c, "owner", "manager", "manager"),
		State:         choose(c, keysvcv1.MemberState_MEMBER_STATE_ACTIVE, keysvcv1.MemberState_MEMBER_STATE_ACTIVE, keysvcv1.MemberState_MEMBER_STATE_SUSPENDED),
		SourceVersion: c.version(workspaceID),
	}
}

func (c *caller) removeMember() any {
	workspaceID := c.workspaceID()
	if !versioned(workspaceID) && c.chance(4) {
		return &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: workspaceID}
	}
	return &keysvcv1.RemoveMemberRequest{
		WorkspaceId: workspaceID, MemberId: choose(c, memberIDs...), SourceVersion: c.version(workspaceID),
	}
}

// scopes returns a few scopes, mostly scopes that members have.
func (c *caller) scopes() []string {
	scopes := []string{choose(c, "signatures:read", "signatures:write")}
	if c.chance(3) {
		scopes = append(scopes, choose(c, scopeNames...))
	}
	slices.Sort(scopes)
	return slices.Compact(scopes)
}

func (c *caller) create() any {
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: c.workspaceID(), MemberId: choose(c, memberIDs...), Name: c.newID("key"), Scopes: c.scopes(),
	}
	if c.chance(2) {
		id := c.newID("request")
		request.RequestId = &id
	}
	return request
}

func (c *caller) rotate(key pooled) any {
	request := &keysvcv1.RotateKeyRequest{
		WorkspaceId: key.workspaceID, KeyId: key.keyID, Overlap: durationpb.New(choose(c, 0, 30*24*time.Hour)),
	}
	if c.chance(2) {
		id := c.newID("request")
		request.RequestId = &id
	}
	return request
}

func (c *caller) update(key pooled) any {
	return &keysvcv1.UpdateKeyRequest{
		Key: &keysvcv1.Key{
			WorkspaceId: key.workspaceID, KeyId: key.keyID, Name: choose(c, "one", "two"), Scopes: c.scopes(),
		},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: choose(c, []string{"name"}, []string{"scopes"}, []string{"name", "scopes"})},
	}
}

// applyPolicy takes a scope from the managers, or gives it back.
func (c *caller) applyPolicy() any {
	number := c.random.IntN(len(c.seats))
	got := c.call(number, &keysvcv1.GetPolicyRequest{})
	c.left--
	return &keysvcv1.ApplyPolicyRequest{
		Policy:         policyWith(choose(c, "signatures:*", "folders:*")),
		ReplacesDigest: cmp.Or(got.answer, "none"),
		ValidateOnly:   c.chance(3),
	}
}

// policyWith returns the built-in policy with other scopes for managers.
func policyWith(scopes string) *keysvcv1.Policy {
	wanted := policy.Default()
	sent := &keysvcv1.Policy{
		TokenPrefix: wanted.TokenPrefix,
		Retention:   durationpb.New(wanted.Retention),
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: severalLimit,
			ScopesPerKey:         int32(wanted.Limits.ScopesPerKey),
			KeyNameCharacters:    int32(wanted.Limits.KeyNameCharacters),
		},
	}
	for _, resource := range wanted.Resources {
		sent.Resources = append(sent.Resources, &keysvcv1.PolicyResource{
			Name: resource.Name, Actions: resource.Actions, Title: resource.Title, Description: resource.Description,
		})
	}
	for _, action := range wanted.Actions {
		sent.Actions = append(sent.Actions, &keysvcv1.PolicyAction{Name: action.Name, Title: action.Title, Description: action.Description})
	}
	for _, role := range wanted.Roles {
		granted := role.Scopes
		if role.Name == "manager" {
			granted = []string{scopes}
		}
		sent.Roles = append(sent.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: granted})
	}
	return sent
}

// prepare makes the policy, workspaces and members that the callers begin with.
func (s *several) prepare() {
	s.t.Helper()
	requests := []any{
		&keysvcv1.ApplyPolicyRequest{Policy: policyWith("signatures:*"), ReplacesDigest: policy.Default().Digest()},
	}
	for _, workspaceID := range append([]string{brief}, s.workspaceIDs()...) {
		version := proto.Int64(1)
		if !versioned(workspaceID) {
			version = nil
		}
		for _, memberID := range memberIDs {
			requests = append(requests, &keysvcv1.PutMemberRequest{
				WorkspaceId: workspaceID, MemberId: memberID, Role: "manager",
				State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE, SourceVersion: version,
			})
		}
	}
	for _, request := range requests {
		if done := s.setup.call(0, request); done.err != nil {
			s.t.Fatal(done)
		}
	}
}

func (s *several) workspaceIDs() []string {
	ids := make([]string, s.campaign.Workspaces)
	for number := range ids {
		ids[number] = fmt.Sprintf("ws-%d", number)
	}
	return ids
}

// checkCalm checks that all calls succeed once the faults are over.
func (s *several) checkCalm() []Violation {
	s.t.Helper()
	var violations []Violation
	want := func(number int, request any) *call {
		for attempt := 0; ; attempt++ {
			done := s.setup.call(number, request)
			again := errors.Is(done.err, storage.ErrOutcomeUnknown) || errors.Is(done.err, storage.ErrUnavailable)
			if done.err != nil && (!again || attempt == 200) {
				violations = append(violations, Violation{ruleEnd, done.String()})
			}
			if !again || attempt == 200 {
				return done
			}
			// The store is still being loaded again.
			_ = wait(context.Background(), 50*time.Millisecond)
		}
	}
	for number := range s.seats {
		want(number, &keysvcv1.PutMemberRequest{
			WorkspaceId: "ws-end", MemberId: "ann", Role: "owner",
			State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE, SourceVersion: proto.Int64(1 << 40),
		})
		created := want(number, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "ws-end", MemberId: "ann", Name: "end", Scopes: []string{"signatures:read"},
		})
		for other := range s.seats {
			want(other, &question{token: created.token, scope: "signatures:read"})
		}
	}
	return violations
}

// call calls one manager and adds the call to the history.
func (c *caller) call(number int, request any) *call {
	made := &call{id: c.newID("call"), seat: number, request: request, workspaces: access.All()}
	if workspaceID := workspaceOf(request); workspaceID != "" && c.random != nil && c.chance(2) {
		made.workspaces = access.Only(workspaceID, "elsewhere")
	}
	ctx, cancel := context.WithTimeout(asCaller(context.Background(), c.number), c.campaign.Deadline)
	defer cancel()
	_ = c.pacer.pause(ctx, number, atCall)
	called := c.seat(number)
	made.at = c.clock.Now()
	c.history.begin(made)
	made.ask(ctx, called)
	made.late = ctx.Err() != nil
	c.history.end(made)
	if made.token != "" && made.err == nil {
		if created, is := request.(interface{ GetWorkspaceId() string }); is && created.GetWorkspaceId() != brief {
			c.pool.add(pooled{created.GetWorkspaceId(), made.keyID, made.token})
		}
	}
	return made
}

// answered is the response of most verbs.
type answered interface{ GetRevision() int64 }

// note stores a response in the call, with the answer in words.
func (c *call) note(response answered, err error, answer func() string) {
	if c.err = err; err != nil {
		return
	}
	c.revision, c.answer = response.GetRevision(), answer()
}

// ask makes the call.
func (c *call) ask(ctx context.Context, at *seat) {
	actor := audit.Actor{Caller: "test", RequestID: c.id, Workspaces: c.workspaces}
	nothing := func() string { return "" }
	switch request := c.request.(type) {
	case *keysvcv1.PutMemberRequest:
		got, err := at.manager.PutMember(ctx, actor, request)
		c.note(got, err, func() string { return describeShownMember(got.GetMember()) })
	case *keysvcv1.RemoveMemberRequest:
		got, err := at.manager.RemoveMember(ctx, actor, request)
		c.note(got, err, nothing)
	case *keysvcv1.RemoveWorkspaceRequest:
		got, err := at.manager.RemoveWorkspace(ctx, actor, request)
		c.note(got, err, nothing)
	case *keysvcv1.CreateKeyRequest:
		got, err := at.manager.CreateKey(ctx, actor, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), false) })
		c.token, c.keyID = got.GetToken(), got.GetKey().GetKeyId()
	case *keysvcv1.RotateKeyRequest:
		got, err := at.manager.RotateKey(ctx, actor, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), false) })
		c.token, c.keyID = got.GetToken(), request.GetKeyId()
	case *keysvcv1.UpdateKeyRequest:
		got, err := at.manager.UpdateKey(ctx, actor, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), false) })
	case *keysvcv1.FinishRotationRequest:
		got, err := at.manager.FinishRotation(ctx, actor, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), false) })
	case *keysvcv1.RevokeKeyRequest:
		got, err := at.manager.RevokeKey(ctx, actor, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), false) })
	case *keysvcv1.RevokeTokenRequest:
		got, err := at.manager.RevokeToken(ctx, actor, request)
		c.note(got, err, func() string { return got.GetWorkspaceId() + " " + got.GetKeyId() })
	case *keysvcv1.ApplyPolicyRequest:
		got, err := at.manager.ApplyPolicy(ctx, actor, request)
		c.note(got, err, got.GetDigest)
	default:
		c.read(ctx, at)
	}
}

// read makes the calls that change nothing.
func (c *call) read(ctx context.Context, at *seat) {
	switch request := c.request.(type) {
	case *keysvcv1.GetKeyRequest:
		got, err := at.manager.GetKey(ctx, c.workspaces, request)
		c.note(got, err, func() string { return describeShown(got.GetKey(), true) })
	case *keysvcv1.ListKeysRequest:
		got, err := at.manager.ListKeys(ctx, c.workspaces, request)
		c.note(got, err, func() string {
			text := ""
			for index, key := range got.GetKeys() {
				if index > 0 {
					text += "\n"
				}
				text += describeShown(key, true)
			}
			if got.GetNextPageToken() != "" {
				return "" // what is on the next page was not read at this revision
			}
			return text
		})
	case *keysvcv1.GetMemberRequest:
		got, err := at.manager.GetMember(ctx, c.workspaces, request)
		c.note(got, err, func() string { return describeShownMember(got.GetMember()) })
	case *keysvcv1.GetPolicyRequest:
		got, err := at.manager.GetPolicy(ctx, c.workspaces, request)
		c.note(got, err, got.GetDigest)
	case *question:
		answer, err := at.validator.Validate(ctx, validation.Question{
			Workspaces: c.workspaces,
			Token:      request.token, Requirement: decide.Requirement{Scope: request.scope}, WorkspaceID: request.workspaceID,
		})
		if c.err = err; err != nil {
			return
		}
		c.revision, c.answer, c.keyID = answer.Revision, keysvcv1.Reason(answer.Reason).String(), answer.KeyID
		if (answer.Decision == decide.Allowed) != (answer.Reason == decide.NoReason) {
			c.answer = fmt.Sprintf("decision %d with %s", answer.Decision, c.answer)
		}
	default:
		panic(fmt.Sprintf("no call for a %T", request))
	}
}
