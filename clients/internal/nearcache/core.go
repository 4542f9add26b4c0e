// Package nearcache answers validations from the memory of the calling process. It never accepts a
// key for longer than the protocol of docs/coherence.md allows. C1, C2 and so on are the
// protocol's rules for a client.
//
// Core decides: it starts no goroutine, sets no timer and knows no gRPC, so a simulation can
// drive it step by step. Cache talks to the server.
package nearcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/lease"
)

const (
	// maxLife is the longest life of an entry, whatever its grant says (C5).
	maxLife = 10 * time.Minute
	// refusalLife is how long a refusal may be repeated (C8).
	refusalLife = time.Second
	// maxRefusals bounds the number of refusals that are kept.
	maxRefusals = 4096
	// ringSize is how many recent events are kept to check answers that are on their way (C4).
	ringSize = 1024
	// maxUses is how many uses one ping carries. maxWaitingUses is how many uses wait for a
	// ping.
	maxUses        = 4096
	maxWaitingUses = 1 << 16
	// entryBytes is the memory of an entry without what it refers to: 300 bytes of its own, and
	// its share of the tables.
	entryBytes = 400
	// defaultStaleness is S until a server has sent its own value.
	defaultStaleness = time.Second
)

// digest identifies the secret part of a token, or a question.
type digest [sha256.Size]byte

// Core is the state of the cache. Its methods may be called from many goroutines, with one
// exception: the messages of the server are passed to it one after another, in their order.
type Core struct {
	identities identities
	freshness  lease.Freshness
	// limited is set while only the events of some workspaces come. Changed with mutex held.
	limited  atomic.Bool
	entries  entries
	counters Counters

	// mutex guards everything below, and changes of entries. One mutex covers storing an answer
	// and dropping entries for an event (C4).
	mutex      sync.Mutex
	epoch      string
	applied    int64
	generation uint64
	// sessions counts the Welcome messages. welcomed is the revision of the newest one.
	sessions  uint64
	welcomed  int64
	staleness time.Duration
	// hash and hashRevision identify the newest change that was seen.
	hash         []byte
	hashRevision int64
	// visible identifies the workspaces whose events come; empty for all of them (S7).
	visible []byte
	// recent are the newest events. It holds every event after the revision covered.
	recent   []event
	covered  int64
	refusals map[digest]refusal
	// repeated counts answers with kept refusals by their reasons, and hitsReported the hits, as far as
	// pings have reported the latter and not the former.
	repeated     map[keysvcv1.Reason]int64
	hitsReported int64
	watches      map[*watch]struct{}
	gaveUp       bool

	usesMutex sync.Mutex
	uses      []*entry
}

// Counters count what has happened.
type Counters struct {
	// Misses counts questions for the server. Of its answers, Kept were grants that were kept,
	// Unkept were used without keeping a grant, and Repeated had to be asked for again.
	Misses, Kept, Unkept, Repeated atomic.Int64
	// Events counts the events that came, Dropped the entries that were dropped for them, and
	// Resets how often everything was dropped.
	Events, Dropped, Resets atomic.Int64
	// Refused counts questions that were answered with a kept refusal.
	Refused atomic.Int64
}

// event is a change, with the fields that dropping needs.
type event struct {
	revision  int64
	kind      keysvcv1.SyncEventKind
	workspace string
	subject   string
}

// refusal is an answer that is not ALLOWED.
type refusal struct {
	answer keyauth.Answer
	life   lease.Lease
}

// watch is a call that waits for a change which may alter its answer.
type watch struct {
	principal keyauth.Principal
	changed   chan struct{}
}

// NewCore returns an empty Core that keeps at most maxEntries entries, and about maxBytes
// bytes.
func NewCore(maxEntries, maxBytes int) *Core {
	core := &Core{
		identities: newIdentities(),
		staleness:  defaultStaleness,
		refusals:   make(map[digest]refusal),
		repeated:   make(map[keysvcv1.Reason]int64),
		watches:    make(map[*watch]struct{}),
	}
	core.entries.init(maxEntries, maxBytes)
	return core
}

// digestQuestion returns the digest of a question: token, requirement, workspace and address.
func (c *Core) digestQuestion(question *keyauth.Question) digest {
	var buffer [512]byte
	text := append(buffer[:0], c.identities.text[:]...)
	address := question.ClientAddress.As16()
	text = append(text, address[:]...)
	flags := byte(0)
	if question.ClientAddress.IsValid() {
		flags |= 1
	}
	if question.Requirement.IsIdentityOnly() {
		flags |= 2
	}
	if question.Requirement.IsAllOf() {
		flags |= 4
	}
	if question.Requirement.IsAnyOf() {
		flags |= 8
	}
	if question.WithDetails {
		flags |= 16
	}
	text = append(text, flags)
	// String has all scopes of the requirement.
	for _, part := range []string{question.Requirement.String(), question.WorkspaceID, question.Token} {
		text = binary.AppendUvarint(text, uint64(len(part))) // the length keeps two parts from running together
		text = append(text, part...)
	}
	return sha256.Sum256(text)
}

// Found is an entry that answers a question, if Confirm agrees.
type Found struct {
	lease lease.Lease
	entry *entry
	// detailed is set if the principal has details.
	detailed bool
}

// Find is the first part of a hit (C2). Its order matters: read the lease, find the entry,
// authorize the request. If the lease were read last, it might be a lease that was given after an
// event had dropped the entry, and would wrongly prolong the use of the dropped entry.
func (c *Core) Find(question *keyauth.Question) (found Found, ok bool) {
	current := c.freshness.Current()
	if current == (lease.Lease{}) {
		return Found{}, false
	}
	if question.WorkspaceID == "" && c.limited.Load() {
		return Found{}, false // the server refuses such a question, so memory does not answer it either (C12)
	}
	known := c.identities.of(question.Token)
	entry := c.entries.find(&known)
	if entry == nil {
		return Found{}, false
	}
	if question.WithDetails && entry.detailed == nil {
		return Found{}, false
	}
	decision, _ := decide.Authorize(&entry.grant, question.WorkspaceID, needs(question.Requirement), question.ClientAddress, entry.filled)
	return Found{lease: current, entry: entry, detailed: question.WithDetails}, decision == decide.Allowed
}

// needs returns a requirement as package decide has it. Only that of several scopes takes memory.
func needs(requirement keyauth.Requirement) decide.Requirement {
	needed := decide.Requirement{Scope: requirement.Scope(), IdentityOnly: requirement.IsIdentityOnly()}
	switch {
	case requirement.IsAllOf():
		needed.AllOf = requirement.Scopes()
	case requirement.IsAnyOf():
		needed.AnyOf = requirement.Scopes()
	}
	return needed
}

// Confirm is the last part of a hit. The caller reads now after Find has returned, so that a time
// in which the process was stopped counts (C2). Nothing but returning the answer may come after
// Confirm.
func (f Found) Confirm(now time.Time) bool {
	return f.lease.Holds(now) && f.entry.life.Holds(now)
}

// Answer returns the answer of a hit.
func (f Found) Answer() keyauth.Answer {
	answer := keyauth.Answer{
		Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyID: f.entry.principal.KeyID, Principal: &f.entry.principal,
	}
	if f.detailed {
		answer.Principal = f.entry.detailed
	}
	if f.entry.expire != 0 {
		answer.ExpireTime = time.Unix(0, f.entry.expire).UTC()
	}
	return answer
}

// Used notes a hit, which is reported with a later ping (rule 9 of keyauth.Validator).
func (c *Core) Used(f Found, now time.Time) {
	seconds := now.Unix()
	if f.entry.used.Load() == seconds {
		return
	}
	f.entry.used.Store(seconds)
	f.entry.recent.Store(true)
	if !f.entry.waiting.CompareAndSwap(false, true) {
		return
	}
	c.usesMutex.Lock()
	defer c.usesMutex.Unlock()
	if len(c.uses) >= maxWaitingUses {
		f.entry.waiting.Store(false) // this use is lost; the next one is noted again
		return
	}
	c.uses = append(c.uses, f.entry)
}

// takeUses returns the uses to report with a ping.
func (c *Core) takeUses() []*keysvcv1.KeyUse {
	c.usesMutex.Lock()
	taken := c.uses[:min(maxUses, len(c.uses))]
	c.uses = c.uses[len(taken):]
	if len(c.uses) == 0 {
		c.uses = nil
	}
	c.usesMutex.Unlock()
	uses := make([]*keysvcv1.KeyUse, 0, len(taken))
	for _, entry := range taken {
		// The flag is cleared before the time is read: a use in between is reported again
		// rather than lost.
		entry.waiting.Store(false)
		uses = append(uses, &keysvcv1.KeyUse{
			KeyId: entry.principal.KeyID, SecretTag: entry.secretTag, Time: timestamppb.New(time.Unix(entry.used.Load(), 0)),
		})
	}
	return uses
}

// Hello returns the first message of a session.
func (c *Core) Hello() *keysvcv1.SyncHello {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.epoch == "" {
		return &keysvcv1.SyncHello{}
	}
	return &keysvcv1.SyncHello{
		Epoch: c.epoch, Revision: c.applied, AuditHash: c.hash, HashRevision: c.hashRevision, VisibleWorkspaces: c.visible,
	}
}

// Ping returns a request for a lease. The caller reads now before it calls Ping, and sends the
// message afterwards: the lease counts from now (C1).
func (c *Core) Ping(now time.Time) *keysvcv1.SyncPing {
	uses := c.takeUses()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return &keysvcv1.SyncPing{Nonce: c.freshness.Ask(now), Revision: c.applied, Uses: uses, Decisions: c.takeDecisions()}
}

// maxCount is the largest count in a ping, and maxReasons how many counts there may be besides that of
// ALLOWED.
const maxCount, maxReasons = 1_000_000_000, 15

// takeDecisions returns the decisions that were made from memory and not reported yet. Each hit is an
// ALLOWED. mutex is held.
func (c *Core) takeDecisions() []*keysvcv1.DecisionCount {
	var taken []*keysvcv1.DecisionCount
	if hits := min(maxCount, c.entries.hitCount()-c.hitsReported); hits > 0 {
		c.hitsReported += hits
		taken = append(taken, &keysvcv1.DecisionCount{Count: hits})
	}
	for reason, count := range c.repeated {
		taken = append(taken, &keysvcv1.DecisionCount{Reason: reason, Count: min(maxCount, count)})
	}
	clear(c.repeated)
	return taken
}

// awaitsPong reports whether a ping is open that may still give a lease (C1).
func (c *Core) awaitsPong(now time.Time) bool {
	asked, open := c.freshness.Open()
	return open && lease.Elapsed(asked, now) < c.period()
}

// Applied returns the answer to a Mark.
func (c *Core) Applied() *keysvcv1.SyncApplied {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return &keysvcv1.SyncApplied{Revision: c.applied}
}

// Welcome begins a session (C9). It reports whether everything was dropped.
func (c *Core) Welcome(message *keysvcv1.SyncWelcome) (reset bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	// 1. End the lease: it belongs to the session before.
	c.freshness.Drop()
	c.entries.open()
	c.staleness = message.GetStaleness().AsDuration()
	// 2. Drop everything unless the server resumes at the revision that this client has
	//    applied.
	reset = message.GetReset_() || message.GetEpoch() != c.epoch || message.GetRevision() != c.applied
	if reset {
		c.reset(message.GetRevision(), message.GetAuditHash(), message.GetHashRevision())
	}
	c.epoch = message.GetEpoch()
	c.sees(message.GetVisibleWorkspaces())
	// 3. Count the session: an answer whose question was sent in an earlier session is
	//    recognized by that number.
	c.sessions, c.welcomed = c.sessions+1, message.GetRevision()
	// 4. Drop the entries from after the revision of this Welcome. The server compared the two
	//    histories up to that revision and no further, so a later entry may come from changes that
	//    the store has lost.
	c.counters.Dropped.Add(int64(c.entries.dropAfter(c.welcomed)))
	return reset
}

// Reset drops everything, because the server says that events are missing, or that the events of
// other workspaces come from now on (C9, S7).
func (c *Core) Reset(message *keysvcv1.SyncReset) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.freshness.Drop()
	c.reset(message.GetRevision(), message.GetAuditHash(), message.GetHashRevision())
	c.sees(message.GetVisibleWorkspaces())
}

// sees notes the workspaces whose events come from now on. mutex is held.
func (c *Core) sees(visible []byte) {
	c.visible = visible
	c.limited.Store(len(visible) > 0)
}

// reset drops everything and starts a new generation at a revision. mutex is held.
func (c *Core) reset(revision int64, hash []byte, hashRevision int64) {
	c.generation++
	c.applied, c.covered, c.recent = revision, revision, nil
	c.hash, c.hashRevision = hash, hashRevision
	c.drop(event{kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED})
	c.counters.Resets.Add(1)
}

// Events drops what the changes concern, and moves the applied revision forward (C8).
func (c *Core) Events(message *keysvcv1.SyncEvents) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, each := range message.GetEvents() {
		change := event{
			revision: each.GetRevision(), kind: each.GetKind(), workspace: each.GetWorkspaceId(), subject: each.GetSubject(),
		}
		c.counters.Events.Add(1)
		c.drop(change)
		if len(c.recent) == ringSize {
			c.covered = c.recent[ringSize/2-1].revision
			c.recent = append(c.recent[:0], c.recent[ringSize/2:]...)
		}
		c.recent = append(c.recent, change)
		c.hash, c.hashRevision = each.GetAuditHash(), each.GetRevision()
		c.applied = max(c.applied, change.revision)
	}
	c.applied = max(c.applied, message.GetRevision())
}

// Pong takes the answer to a ping. Every event that was sent before it has been applied. Pong
// reports whether it answers the newest ping; only then does the lease begin.
func (c *Core) Pong(message *keysvcv1.SyncPong) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.applied = max(c.applied, message.GetRevision())
	if c.gaveUp {
		return false
	}
	return c.freshness.Answered(message.GetNonce(), c.staleness)
}

// GiveUp ends the lease for good. Only afterwards may the server be told (C11).
func (c *Core) GiveUp() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.gaveUp = true
	c.freshness.Drop()
}

// concerns reports whether an event concerns the keys of a principal.
func (c *Core) concerns(change event, principal *keyauth.Principal) bool {
	switch change.kind {
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE:
		return false
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY:
		return change.subject == principal.KeyID
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER:
		return change.workspace == principal.WorkspaceID && change.subject == principal.MemberID
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE:
		return change.workspace == principal.WorkspaceID
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY, keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED:
		return true
	}
	return true
}

// drop drops what a change concerns. mutex is held.
func (c *Core) drop(change event) {
	if change.kind == keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE {
		return
	}
	clear(c.refusals)
	workspace := ""
	switch change.kind {
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER,
		keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE:
		workspace = change.workspace
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY, keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED,
		keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE:
	}
	var dropped int
	if change.kind == keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY && workspace != "" {
		dropped = c.entries.dropKey(workspace, change.subject)
	} else {
		dropped = c.entries.drop(workspace, func(principal *keyauth.Principal) bool { return c.concerns(change, principal) })
	}
	c.counters.Dropped.Add(int64(dropped))
	for watch := range c.watches {
		if c.concerns(change, &watch.principal) {
			signal(watch.changed)
		}
	}
}

// watch returns a channel that receives a value when a change concerns a principal, until end is
// called.
func (c *Core) watch(principal keyauth.Principal) (changed <-chan struct{}, end func()) {
	begun := &watch{principal: principal, changed: make(chan struct{}, 1)}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.watches[begun] = struct{}{}
	return begun.changed, func() {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		delete(c.watches, begun)
	}
}

// Refusal returns a kept refusal of the same question (C8).
func (c *Core) Refusal(question *keyauth.Question, now time.Time) (keyauth.Answer, bool) {
	known := c.digestQuestion(question)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	kept, ok := c.refusals[known]
	if !ok || !kept.life.Holds(now) {
		return keyauth.Answer{}, false
	}
	c.counters.Refused.Add(1)
	if _, has := c.repeated[kept.answer.Reason]; has || len(c.repeated) < maxReasons {
		c.repeated[kept.answer.Reason]++
	}
	return kept.answer, true
}

// Fill is the state of the Core when a question was sent. EndFill compares it with the state
// when the answer comes.
type Fill struct {
	generation uint64
	session    uint64
	epoch      string
	// MinRevision and the epoch are sent with the question if both are set.
	MinRevision int64
	sent        time.Time
}

// Epoch returns the epoch that is sent with the question.
func (f Fill) Epoch() string { return f.epoch }

// BeginFill returns the present state, for questions that are sent afterwards. The caller reads
// now before it calls BeginFill.
func (c *Core) BeginFill(now time.Time) Fill {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return Fill{generation: c.generation, session: c.sessions, epoch: c.epoch, MinRevision: c.applied, sent: now}
}

// Verdict is what may be done with an answer of the server.
type Verdict uint8

// The values of Verdict.
const (
	// AskAgain: the answer is outdated and must not be used.
	AskAgain Verdict = iota
	// UseOnce: the answer may be used, and was not kept.
	UseOnce
	// Keep: the answer may be used, and was kept: a grant until it ends, a refusal for
	// refusalLife.
	Keep
)

// EndFill takes the answer to a question that was sent after BeginFill returned the Fill.
// answer is what was read from the response. Judging and keeping are one step under mutex,
// because an event between the two would be missed (C4).
func (c *Core) EndFill(fill Fill, question *keyauth.Question, response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, now time.Time) Verdict {
	allowed := answer.Decision == keysvcv1.Decision_DECISION_ALLOWED
	c.mutex.Lock()
	defer c.mutex.Unlock()
	verdict := c.judge(fill, response, answer, now)
	if verdict == Keep && allowed {
		if kept := newEntry(question, response, answer, fill.sent); kept != nil {
			kept.identify(c.identities.of(question.Token))
			if c.entries.put(kept) {
				c.counters.Kept.Add(1)
				return Keep
			}
		}
		verdict = UseOnce
	}
	if verdict == Keep {
		if len(c.refusals) >= maxRefusals {
			clear(c.refusals)
		}
		c.refusals[c.digestQuestion(question)] = refusal{answer: answer, life: lease.New(fill.sent, refusalLife)}
	}
	if verdict == AskAgain {
		c.counters.Repeated.Add(1)
	} else {
		c.counters.Unkept.Add(1)
	}
	return verdict
}

// judge returns what may be done with an answer, in the order of the rules. mutex is held.
func (c *Core) judge(fill Fill, response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, now time.Time) Verdict {
	allowed := answer.Decision == keysvcv1.Decision_DECISION_ALLOWED
	// 1. A late ALLOWED may describe a state more than S ago (C7).
	if late := lease.Elapsed(fill.sent, now) > c.staleness; allowed && late {
		return AskAgain
	}
	// 2. An answer of another epoch or generation cannot be compared with the events that were
	//    applied (C4).
	if fill.epoch == "" || response.GetEpoch() != fill.epoch || c.epoch != fill.epoch {
		return UseOnce
	}
	if c.generation != fill.generation {
		return UseOnce
	}
	revision := response.GetRevision()
	// 3. A grant that was given under other rights than those of the session may be of a workspace
	//    whose events do not come (C12).
	if allowed && !bytes.Equal(response.GetGrant().GetVisibleWorkspaces(), c.visible) {
		return UseOnce
	}
	// 4. An answer from after the revision of a Welcome cannot be compared either if its question
	//    was sent before that Welcome: it may come from changes that the store has lost (C9).
	if c.sessions != fill.session && revision > c.welcomed {
		return UseOnce
	}
	// 5. The ring must reach back to the answer's revision, because an older event may have
	//    fallen out of it (C4).
	if revision < c.covered {
		return AskAgain
	}
	// 6. No applied event after the answer's revision may concern the key: its entry was
	//    dropped for that event, and this answer would bring it back (C4).
	for _, change := range c.recent {
		if change.revision <= revision || change.kind == keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE {
			continue
		}
		// A refusal does not say whose key it was, so every change may concern it.
		if !allowed || c.concerns(change, answer.Principal) {
			return AskAgain
		}
	}
	return Keep
}

// newEntry makes an entry of an answer; nil if the grant may not be kept.
func newEntry(question *keyauth.Question, response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, sent time.Time) *entry {
	grant := response.GetGrant()
	validFor := grant.GetValidFor().AsDuration()
	if grant == nil || validFor <= 0 || len(grant.ProtoReflect().GetUnknown()) > 0 {
		return nil
	}
	var prefixes []netip.Prefix
	for _, condition := range grant.GetConditions() {
		rules := condition.GetAllowedAddresses()
		if rules == nil || len(condition.ProtoReflect().GetUnknown()) > 0 ||
			len(rules.ProtoReflect().GetUnknown()) > 0 || len(rules.GetCidrs()) == 0 || prefixes != nil {
			return nil // a condition that this version does not know
		}
		for _, cidr := range rules.GetCidrs() {
			prefix, err := netip.ParsePrefix(cidr)
			if err != nil {
				return nil
			}
			prefixes = append(prefixes, prefix)
		}
	}
	scopes := decide.NewScopes(grant.GetScopes()...)
	principal := *answer.Principal
	var detailed *keyauth.Principal
	if question.WithDetails {
		detailed = answer.Principal
		principal.Scopes, principal.KeyName, principal.ExpireTime = nil, "", time.Time{}
	}
	bytes := entryBytes + len(principal.KeyID) + len(principal.WorkspaceID) + len(principal.MemberID) + len(principal.Role) +
		len(prefixes)*int(unsafe.Sizeof(netip.Prefix{}))
	for _, scope := range scopes {
		bytes += len(scope) + int(unsafe.Sizeof(scope))
	}
	if detailed != nil {
		bytes += int(unsafe.Sizeof(*detailed)) + len(detailed.KeyName)
		for _, scope := range detailed.Scopes {
			bytes += len(scope) + int(unsafe.Sizeof(scope))
		}
	}
	return &entry{
		bytes:     bytes,
		principal: principal,
		detailed:  detailed,
		expire:    expireOf(answer),
		grant: decide.Grant{
			Principal: decide.Principal{
				KeyID: principal.KeyID, WorkspaceID: principal.WorkspaceID, MemberID: principal.MemberID, Role: principal.Role,
			},
			Granted: scopes, Role: scopes, AllowedPrefixes: prefixes,
			HoldsUntil: math.MaxInt64, // the entry's life is in the field life
		},
		filled:    sent,
		revision:  response.GetRevision(),
		secretTag: response.GetSecretTag(),
		life:      lease.New(sent, min(validFor, maxLife)),
	}
}

// expireOf returns the ExpireTime of an answer in Unix nanoseconds; 0 for the zero Time.
func expireOf(answer keyauth.Answer) int64 {
	if answer.ExpireTime.IsZero() {
		return 0
	}
	return answer.ExpireTime.UnixNano()
}

// identify sets the identity that the entry is found by.
func (e *entry) identify(known identity) {
	e.identity = known.retained()
	e.bytes += len(known.head)
}

// Snapshot is the state of the cache. keyclient.NearCacheState describes the fields.
type Snapshot struct {
	Connected  bool
	Sessions   int64
	Epoch      string
	Revision   int64
	Generation uint64
	Fresh      time.Duration
	Staleness  time.Duration
	Entries    int
	Bytes      int
	Watches    int
	Hits       int64
	Misses     int64
	Kept       int64
	Unkept     int64
	Repeated   int64
	Refused    int64
	Events     int64
	Dropped    int64
	Resets     int64
}

// Snapshot returns the state of the Core.
func (c *Core) Snapshot(now time.Time) Snapshot {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return Snapshot{
		Epoch: c.epoch, Revision: c.applied, Generation: c.generation,
		Fresh: c.freshness.Current().Left(now), Staleness: c.staleness,
		Entries: c.entries.size, Bytes: c.entries.bytes, Hits: c.entries.hitCount(),
		Misses: c.counters.Misses.Load(), Kept: c.counters.Kept.Load(), Unkept: c.counters.Unkept.Load(),
		Repeated: c.counters.Repeated.Load(), Refused: c.counters.Refused.Load(), Events: c.counters.Events.Load(),
		Dropped: c.counters.Dropped.Load(), Resets: c.counters.Resets.Load(), Watches: len(c.watches),
	}
}
