//go:build linux

package main

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// workersEach is how many clients a workspace has.
	workersEach = 4
	// maxKeys is how many keys a history creates at most.
	maxKeys = 120
	// avoid is for how long a worker leaves a replica alone that did not answer.
	avoid = 300 * time.Millisecond
	// Each near-cache is asked all the time. cacheTimeout is the deadline of such a question, cachePause the longest pause between two, and
	// cacheQuestions how many of those that were answered with ALLOWED are asked again.
	cacheTimeout   = 300 * time.Millisecond
	cachePause     = 20 * time.Millisecond
	cacheQuestions = 32
)

// batch is histories of several workspaces that are made at the same time. The policy is common to them.
type batch struct {
	w          *world
	name       string
	began      time.Time
	random     *rand.Rand // of the one who plans; workers have their own
	operations int        // of each history
	nextID     atomic.Int64
	// begun counts the operations of this phase, all histories together.
	begun atomic.Int64

	workspaces []*workspace
	// policy are the operations on the policy.
	policyMutex sync.Mutex
	policy      []*operation

	// base is a revision: what the setup did is not later.
	base int64
	// awaited are AwaitRevisions that returned.
	awaitedMutex sync.Mutex
	awaited      []ack
	// acknowledged is a change that was acknowledged, for AwaitRevision.
	acknowledged atomic.Pointer[ackedChange]
	// restart is when the restored cluster's predecessor was killed, in nanoseconds since began; 0 in a first phase.
	restart int64
}

type ackedChange struct {
	revision int64
	epoch    string
}

// ack is a revision that was answered at a time.
type ack struct{ at, revision int64 }

// workspace is one workspace with its history.
type workspace struct {
	name    string
	initial *state

	mutex sync.Mutex
	// keys and tokens are what was drawn, created or not.
	keys       []drawnKey
	tokens     []drawnToken
	numbers    map[string]int // of key ids
	operations []*operation
	version    int64 // the newest source version
}

type drawnKey struct {
	id     string
	nonce  [token.NonceLength]byte
	member int
	scopes scopes
	token  int
	// seen is set once an answer had the key.
	seen bool
}

type drawnToken struct {
	key  int
	text token.Token
}

func (b *batch) now() int64 { return int64(time.Since(b.began)) }

// setUp makes the workspaces with their members, and sets the policy to a variant. It tries again until it succeeds.
func (b *batch) setUp(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := func(do func(context.Context) (int64, error)) error {
		for {
			asked, end := context.WithTimeout(ctx, callTimeout)
			revision, err := do(asked)
			end()
			if err == nil {
				b.base = max(b.base, revision)
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("the setup: %w", err)
			}
			rest(ctx, 20*time.Millisecond)
		}
	}
	for number := range count {
		space := &workspace{
			name: fmt.Sprintf("%s-%d", b.name, number), initial: &state{keys: make([]keyState, maxKeys)}, numbers: make(map[string]int), version: 1,
		}
		space.initial.members[members-1].version = 1
		for member := range members {
			request := &keysvcv1.PutMemberRequest{WorkspaceId: space.name, MemberId: memberID(member), Role: roleNames[owner], State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE}
			if version := space.initial.members[member].version; version > 0 {
				request.SourceVersion = &version
			}
			if err := again(func(ctx context.Context) (int64, error) {
				answer, err := b.w.plain[number%replicas].Members.PutMember(ctx, request)
				return answer.GetRevision(), err
			}); err != nil {
				return err
			}
		}
		b.workspaces = append(b.workspaces, space)
	}
	return again(func(ctx context.Context) (int64, error) {
		stored, err := b.w.plain[0].Policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			return 0, err
		}
		answer, err := b.w.plain[0].Policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: b.w.policies[0], ReplacesDigest: stored.GetDigest()})
		return answer.GetRevision(), err
	})
}

func memberID(number int) string { return fmt.Sprintf("m%d", number) }

// work makes the histories.
func (b *batch) work(ctx context.Context) {
	var working, beside sync.WaitGroup
	b.begun.Store(0)
	for _, space := range b.workspaces {
		var begun atomic.Int64
		for range workersEach {
			own := &worker{b: b, space: space, random: rand.New(rand.NewPCG(b.random.Uint64(), b.random.Uint64()))}
			working.Go(func() {
				for begun.Add(1) <= int64(b.operations) && ctx.Err() == nil {
					b.begun.Add(1)
					own.one(ctx)
				}
			})
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	for range 2 {
		own := &worker{b: b, random: rand.New(rand.NewPCG(b.random.Uint64(), b.random.Uint64()))}
		beside.Go(func() {
			for ctx.Err() == nil {
				own.policyChange(ctx)
				rest(ctx, time.Duration(own.random.IntN(600))*time.Millisecond)
			}
		})
	}
	for replica := range replicas {
		random := rand.New(rand.NewPCG(b.random.Uint64(), b.random.Uint64()))
		beside.Go(func() { b.askCache(ctx, replica, random) })
	}
	beside.Go(func() {
		for ctx.Err() == nil {
			b.await(ctx)
			rest(ctx, 100*time.Millisecond)
		}
	})
	working.Wait()
	cancel()
	beside.Wait()
}

// cacheQuestion is a question that a near-cache has answered.
type cacheQuestion struct {
	space       *workspace
	key, number int
	scope       scopes
}

// askCache asks the near-cache of a replica again and again, mostly what it has allowed before: also while the replica is away and only
// memory answers. The clients of the workspaces wait for their other calls then.
func (b *batch) askCache(ctx context.Context, replica int, random *rand.Rand) {
	var allowed []cacheQuestion
	for ; ctx.Err() == nil; rest(ctx, time.Duration(random.Int64N(int64(cachePause)))) {
		w := &worker{b: b, space: b.workspaces[random.IntN(len(b.workspaces))], random: random}
		o := &operation{Kind: askCache, Replica: replica}
		again := -1
		if len(allowed) > 0 && random.IntN(4) > 0 {
			again = random.IntN(len(allowed))
			before := allowed[again]
			w.space, o.Key, o.Token, o.Asked = before.space, before.key, before.number, before.scope
		} else if !w.drawQuestion(o) {
			continue
		}
		o.ID, o.Workspace = int(b.nextID.Add(1)), w.space.name
		asked, cancel := context.WithTimeout(ctx, cacheTimeout)
		w.perform(asked, o)
		cancel()
		w.note(o)
		isAllowed := o.Outcome == done && o.Decision.Reason == ""
		question := cacheQuestion{w.space, o.Key, o.Token, o.Asked}
		switch {
		case again >= 0:
			if o.Outcome == done && !isAllowed {
				allowed = slices.Delete(allowed, again, again+1)
			}
		case isAllowed && len(allowed) < cacheQuestions:
			allowed = append(allowed, question)
		case isAllowed:
			allowed[random.IntN(len(allowed))] = question
		}
	}
}

// await waits with AwaitRevision for the change that was acknowledged last.
func (b *batch) await(ctx context.Context) {
	change := b.acknowledged.Load()
	if change == nil {
		return
	}
	replica := int(b.now() % replicas)
	ctx, cancel := context.WithTimeout(ctx, 2*staleness)
	defer cancel()
	if _, err := b.w.plain[replica].Sync.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: change.revision, Epoch: change.epoch}); err == nil {
		b.awaitedMutex.Lock()
		defer b.awaitedMutex.Unlock()
		b.awaited = append(b.awaited, ack{b.now(), change.revision})
	}
}

// worker is a client of a workspace, or of the policy.
type worker struct {
	b      *batch
	space  *workspace
	random *rand.Rand
	silent [replicas]time.Time
	// again is a creation that was not answered, to be repeated.
	again *operation
}

// weights are how often each kind is drawn.
var weights = map[kind]int{
	createKey: 8, rotateKey: 10, finishRotation: 3, revokeKey: 5, updateKey: 6, putMember: 12,
	getKey: 9, listKeys: 4, getMember: 8, getPolicy: 1, validateKey: 24, askCache: 10,
}

var totalWeight = func() (sum int) {
	for _, weight := range weights {
		sum += weight
	}
	return sum
}()

func (w *worker) draw() kind {
	left := w.random.IntN(totalWeight)
	for each := createKey; ; each++ {
		if left -= weights[each]; left < 0 {
			return each
		}
	}
}

// one makes one operation.
func (w *worker) one(ctx context.Context) {
	o := w.plan()
	w.perform(ctx, o)
	if o.Kind == createKey && o.Outcome == lost && w.random.IntN(2) == 0 {
		w.again = o
	} else {
		w.again = nil
	}
	w.note(o)
	if o.Outcome == lost {
		w.silent[o.Replica] = time.Now()
		rest(ctx, 100*time.Millisecond)
	}
}

// note adds an operation to the history.
func (w *worker) note(o *operation) {
	w.space.mutex.Lock()
	defer w.space.mutex.Unlock()
	w.space.operations = append(w.space.operations, o)
}

// replica draws a replica, rather one that answers.
func (w *worker) replica() int {
	for range 4 {
		if drawn := w.random.IntN(replicas); time.Since(w.silent[drawn]) > avoid {
			return drawn
		}
	}
	return w.random.IntN(replicas)
}

// plan draws an operation.
func (w *worker) plan() *operation {
	o := &operation{ID: int(w.b.nextID.Add(1)), Workspace: w.space.name, Kind: w.draw(), Replica: w.replica()}
	w.space.mutex.Lock()
	defer w.space.mutex.Unlock()
	if w.again != nil {
		o.Kind, o.Key, o.Member, o.Scopes, o.Token = createKey, w.again.Key, w.again.Member, w.again.Scopes, w.again.Token
		return o
	}
	if len(w.space.keys) == 0 {
		o.Kind = createKey
	}
	if o.Kind == createKey && len(w.space.keys) >= maxKeys {
		o.Kind = getMember
	}
	w.pickKey(o)
	o.Member = w.random.IntN(members)
	o.Scopes = scopes(1 + w.random.IntN(1<<len(scopeNames)-1))
	switch o.Kind {
	case createKey:
		w.space.drawKey(o)
	case rotateKey:
		o.Overlap = w.random.IntN(2) == 0
		o.Token = w.space.drawToken(o.Key)
	case putMember:
		o.To = memberSet{Role: max(0, role(w.random.IntN(5))-2), Suspended: w.random.IntN(6) == 0}
		if o.Member == members-1 {
			w.space.version++
			// Pushes that come late have a lower version than what is stored.
			o.Version = max(1, w.space.version-int64(w.random.IntN(3)))
		}
	case validateKey, askCache:
		w.pickToken(o)
	}
	return o
}

// pickKey draws a key of those that there are. Those that were made lately are asked for more often, so that calls meet; rarely those of
// which no answer has told. The workspace's mutex is held.
func (w *worker) pickKey(o *operation) {
	count := len(w.space.keys)
	if count == 0 {
		return
	}
	for range 8 {
		o.Key = count - 1 - min(w.random.IntN(8), w.random.IntN(count))
		if w.space.keys[o.Key].seen || w.random.IntN(6) == 0 {
			return
		}
	}
}

// pickToken draws what a validation asks: of the tokens that were drawn for the key, one of the last ones. The workspace's mutex is held.
func (w *worker) pickToken(o *operation) {
	var own []int
	for number, each := range w.space.tokens {
		if each.key == o.Key {
			own = append(own, number)
		}
	}
	o.Token = own[len(own)-1-min(w.random.IntN(3), len(own)-1)]
	o.Asked = 1 << w.random.IntN(len(scopeNames))
}

// drawQuestion draws what a near-cache is asked. It reports false if there is no key yet.
func (w *worker) drawQuestion(o *operation) bool {
	w.space.mutex.Lock()
	defer w.space.mutex.Unlock()
	if len(w.space.keys) == 0 {
		return false
	}
	w.pickKey(o)
	w.pickToken(o)
	return true
}

// drawKey draws a key with its token. The mutex is held.
func (s *workspace) drawKey(o *operation) {
	key := drawnKey{member: o.Member, scopes: o.Scopes}
	_, _ = crand.Read(key.nonce[:])
	key.id = token.KeyID(s.name, key.nonce)
	o.Key = len(s.keys)
	s.numbers[key.id] = o.Key
	s.keys = append(s.keys, key)
	o.Token = s.drawToken(o.Key)
	s.keys[o.Key].token = o.Token
}

// drawToken draws a token of a key. The mutex is held.
func (s *workspace) drawToken(key int) int {
	drawn, err := token.New("scribe", s.keys[key].id, crand.Reader)
	if err != nil {
		panic(err) // the prefix and the id are well-formed
	}
	s.tokens = append(s.tokens, drawnToken{key, drawn})
	return len(s.tokens) - 1
}

// perform makes the call, and notes the answer.
func (w *worker) perform(ctx context.Context, o *operation) {
	var drawn drawnKey
	var text token.Token
	if w.space != nil {
		w.space.mutex.Lock()
		if len(w.space.keys) > 0 {
			drawn = w.space.keys[o.Key]
			text = w.space.tokens[o.Token].text
		}
		w.space.mutex.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o.Call = w.b.now()
	epoch, err := w.call(ctx, o, drawn, text)
	o.Return = w.b.now()
	if err == nil {
		o.Outcome = done
		if o.Kind.changes() {
			w.b.acknowledged.Store(&ackedChange{o.Revision, epoch})
		}
		return
	}
	o.Outcome, o.Status, o.Reason = judgeError(err)
}

// judgeError tells refusals, which changed nothing, from calls that were not answered.
func judgeError(err error) (outcome, string, string) {
	said := status.Convert(err)
	reason := ""
	for _, detail := range said.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "keysvc" {
			reason = info.GetReason()
		}
	}
	switch said.Code() {
	case codes.Unavailable:
		// With a reason, keysvc itself says that nothing was changed.
		if reason != "" {
			return refused, said.Code().String(), reason
		}
		return lost, said.Code().String(), ""
	case codes.DeadlineExceeded:
		if strings.Contains(said.Message(), "nothing was changed") {
			return refused, said.Code().String(), reasonNothingChanged
		}
		return lost, said.Code().String() + ": " + said.Message(), reason
	case codes.Unknown, codes.Canceled:
		return lost, said.Code().String() + ": " + said.Message(), reason
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return lost, err.Error(), reason
	}
	return refused, said.Code().String() + ": " + said.Message(), reason
}

// call makes the call.
func (w *worker) call(ctx context.Context, o *operation, key drawnKey, text token.Token) (epoch string, err error) {
	client, actor := w.b.w.plain[o.Replica], o.actor()
	digest := func() []byte {
		sum := text.Digest()
		return sum[:]
	}
	keySeen := func(answers ...*keysvcv1.Key) {
		for _, each := range answers {
			o.KeysSeen = append(o.KeysSeen, w.space.view(each))
		}
	}
	switch o.Kind {
	case createKey:
		id := fmt.Sprintf("k%d", o.Key)
		answer, err := client.Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: o.Workspace, MemberId: memberID(o.Member), Name: id, Scopes: o.Scopes.names(), RequestId: &id, ActorMemberId: &actor,
			TokenDigest: digest(), KeyIdNonce: key.nonce[:],
		})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case rotateKey:
		overlap := time.Duration(0)
		if o.Overlap {
			overlap = time.Hour
		}
		answer, err := client.Keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{
			WorkspaceId: o.Workspace, KeyId: key.id, Overlap: durationpb.New(overlap), ActorMemberId: &actor, TokenDigest: digest(),
		})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case finishRotation:
		answer, err := client.Keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: o.Workspace, KeyId: key.id, ActorMemberId: &actor})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case revokeKey:
		answer, err := client.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: o.Workspace, KeyId: key.id, ActorMemberId: &actor})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case updateKey:
		answer, err := client.Keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
			Key:        &keysvcv1.Key{KeyId: key.id, WorkspaceId: o.Workspace, Scopes: o.Scopes.names()},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"scopes"}}, ActorMemberId: &actor,
		})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case getKey:
		answer, err := client.Keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: o.Workspace, KeyId: key.id})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKey())
		o.Revision, o.Effective = answer.GetRevision(), scopesOf(answer.GetEffectiveScopes())
		return answer.GetEpoch(), nil
	case listKeys:
		answer, err := client.Keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: o.Workspace, PageSize: 1000})
		if err != nil {
			return "", err
		}
		keySeen(answer.GetKeys()...)
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	default:
		return w.callOthers(ctx, o, text)
	}
}

// callOthers is call for what is not about one key's record.
func (w *worker) callOthers(ctx context.Context, o *operation, text token.Token) (epoch string, err error) {
	client, actor := w.b.w.plain[o.Replica], o.actor()
	switch o.Kind {
	case putMember:
		request := &keysvcv1.PutMemberRequest{
			WorkspaceId: o.Workspace, MemberId: memberID(o.Member), Role: roleNames[o.To.Role], State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE, ActorMemberId: &actor,
		}
		if o.To.Suspended {
			request.State = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
		}
		if o.Version > 0 {
			request.SourceVersion = &o.Version
		}
		answer, err := client.Members.PutMember(ctx, request)
		if err != nil {
			return "", err
		}
		o.Revision, o.MemberSeen = answer.GetRevision(), memberOf(answer.GetMember())
		return answer.GetEpoch(), nil
	case getMember:
		answer, err := client.Members.GetMember(ctx, &keysvcv1.GetMemberRequest{WorkspaceId: o.Workspace, MemberId: memberID(o.Member)})
		if err != nil {
			return "", err
		}
		o.Revision, o.MemberSeen = answer.GetRevision(), memberOf(answer.GetMember())
		return answer.GetEpoch(), nil
	case getPolicy:
		answer, err := client.Policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			return "", err
		}
		o.Revision, o.PolicySeen = answer.GetRevision(), slices.Index(w.b.w.digests[:], answer.GetDigest())
		return answer.GetEpoch(), nil
	case applyPolicy:
		answer, err := client.Policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{
			Policy: w.b.w.policies[o.New], ReplacesDigest: w.b.w.digests[o.Old], ActorMemberId: &actor,
		})
		if err != nil {
			return "", err
		}
		o.Revision = answer.GetRevision()
		return answer.GetEpoch(), nil
	case validateKey:
		digest := text.Digest()
		answer, err := client.Validations.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{
			TokenDigest: digest[:], KeyId: text.ID(), RequiredScope: o.Asked.names()[0], WorkspaceId: o.Workspace,
		})
		if err != nil {
			return "", err
		}
		o.Revision = answer.GetRevision()
		o.Decision = w.space.decisionOf(answer.GetDecision(), answer.GetReason(), answer.GetKeyId(), answer.GetPrincipal().GetRole(), answer.GetPrincipal().GetMemberId())
		return answer.GetEpoch(), nil
	default: // askCache
		answer, err := w.b.w.cached[o.Replica].Validate(ctx, keyauth.Question{Token: text.Reveal(), Requirement: keyauth.Scope(o.Asked.names()[0]), WorkspaceID: o.Workspace})
		if err != nil {
			return "", err
		}
		role, member := "", ""
		if answer.Principal != nil {
			role, member = answer.Principal.Role, answer.Principal.MemberID
		}
		o.Decision = w.space.decisionOf(answer.Decision, answer.Reason, answer.KeyID, role, member)
		return "", nil
	}
}

// policyChange reads the policy, or replaces it by another variant, perhaps of a digest that is old.
func (w *worker) policyChange(ctx context.Context) {
	perform := func(o *operation) {
		o.ID, o.Replica = int(w.b.nextID.Add(1)), w.replica()
		w.perform(ctx, o)
		w.b.policyMutex.Lock()
		w.b.policy = append(w.b.policy, o)
		w.b.policyMutex.Unlock()
	}
	read := &operation{Kind: getPolicy}
	perform(read)
	if read.Outcome != done || read.PolicySeen < 0 {
		return
	}
	old := read.PolicySeen
	if w.random.IntN(5) == 0 {
		old = w.random.IntN(policyVariants)
	}
	perform(&operation{Kind: applyPolicy, Old: old, New: w.random.IntN(policyVariants)})
}

// view returns a key as it was answered. What the campaign does not know has values that no state gives.
func (s *workspace) view(key *keysvcv1.Key) keyView {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	number, known := s.numbers[key.GetKeyId()]
	if !known || key.GetWorkspaceId() != s.name {
		number = -1
	} else {
		s.keys[number].seen = true
	}
	seen := keyView{Key: number, Member: memberNumber(key.GetMemberId()), Scopes: scopesOf(key.GetScopes()), By: -1, Secrets: len(key.GetSecrets())}
	switch key.GetState() {
	case keysvcv1.KeyState_KEY_STATE_ACTIVE:
		seen.Status = active
	case keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		seen.Status = suspended
	case keysvcv1.KeyState_KEY_STATE_REVOKED:
		seen.Status = revoked
	}
	if by := key.GetRevokedBy().GetActorMemberId(); by != "" {
		if _, err := fmt.Sscanf(by, "o%d", &seen.By); err != nil {
			seen.By = -2
		}
	}
	return seen
}

func memberNumber(id string) int {
	for number := range members {
		if id == memberID(number) {
			return number
		}
	}
	return -1
}

// memberOf returns a member as it was answered.
func memberOf(member *keysvcv1.Member) memberSet {
	set := memberSet{Role: role(slices.Index(roleNames, member.GetRole()))}
	switch member.GetState() {
	case keysvcv1.MemberState_MEMBER_STATE_ACTIVE:
	case keysvcv1.MemberState_MEMBER_STATE_SUSPENDED:
		set.Suspended = true
	default:
		set.Role = -1
	}
	return set
}

// decisionOf returns an answer to a validation.
func (s *workspace) decisionOf(said keysvcv1.Decision, reason keysvcv1.Reason, keyID, roleName, member string) decision {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	d := decision{Reason: reason.String()[len("REASON_"):], Key: -1}
	if number, known := s.numbers[keyID]; known {
		d.Key = number
	}
	if said == keysvcv1.Decision_DECISION_ALLOWED {
		d.Reason, d.Role = "", role(slices.Index(roleNames, roleName))
		if d.Key < 0 || memberNumber(member) != s.keys[d.Key].member {
			d.Reason = "?"
		}
	}
	return d
}
