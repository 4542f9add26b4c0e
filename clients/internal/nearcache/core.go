// Package nearcache answers validations from the memory of the process that asks, and
// never honours a key longer than the protocol of docs/coherence.md allows. C1, C2 and so
// on are its rules for the client.
//
// Core is the part that decides: it starts no goroutine, sets no timer and knows no gRPC,
// so that a simulation can drive it step by step. Cache is the part that talks.
package nearcache

import (
	"crypto/rand"
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
	// longest is how long an entry is kept at most, whatever its grant says (C5).
	longest = 10 * time.Minute
	// refusalLife is how long a refusal may be repeated (C8).
	refusalLife = time.Second
	// maxRefusals bounds their table.
	maxRefusals = 4096
	// ringSize is how many events are remembered for fills under way (C4).
	ringSize = 1024
	// maxUses is how many uses one ping carries, and maxWaitingUses how many wait for one.
	maxUses        = 4096
	maxWaitingUses = 1 << 16
	// entryBytes is what an entry takes besides what it refers to: 300 of its own, and its
	// share of the tables.
	entryBytes = 400
	// defaultStaleness is S while no server has said another one.
	defaultStaleness = time.Second
)

// digest is what a token, or a question, is known by.
type digest [sha256.Size]byte

// Core is the state of the cache. Its methods may be called from many goroutines, except
// that messages of the server are passed to it one after the other, in order.
type Core struct {
	// secret keys the digests, so that nobody can choose tokens that collide.
	secret    [32]byte
	freshness lease.Freshness
	entries   entries
	counters  Counters

	// mutex covers fills and events alike (C4), and everything below.
	mutex      sync.Mutex
	epoch      string
	applied    int64
	generation uint64
	// sessions counts welcomes; the newest one was at welcomed.
	sessions  uint64
	welcomed  int64
	staleness time.Duration
	// hash identifies the newest change that was seen, with its revision.
	hash         []byte
	hashRevision int64
	// recent are the newest events; there were no others after covered.
	recent   []event
	covered  int64
	refusals map[digest]refusal
	watches  map[*watch]struct{}
	gaveUp   bool

	usesMutex sync.Mutex
	uses      []*entry
}

// Counters are what has happened so far.
type Counters struct {
	// Misses were asked of the server, Kept of the answers were kept, Unkept were used once,
	// and Repeated had to be asked again.
	Misses, Kept, Unkept, Repeated atomic.Int64
	// Events came, and Dropped entries went with them. Resets dropped everything.
	Events, Dropped, Resets atomic.Int64
	// Refused were answered with a refusal that was kept.
	Refused atomic.Int64
}

// event is a change, as far as dropping needs it.
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

// watch is somebody who wants to know when an answer may have changed.
type watch struct {
	principal keyauth.Principal
	changed   chan struct{}
}

// NewCore returns an empty Core that keeps up to a number of entries and, about, of bytes.
func NewCore(maxEntries, maxBytes int) *Core {
	core := &Core{
		staleness: defaultStaleness,
		refusals:  make(map[digest]refusal),
		watches:   make(map[*watch]struct{}),
	}
	core.entries.init(maxEntries, maxBytes)
	if _, err := rand.Read(core.secret[:]); err != nil {
		panic(err) // crypto/rand does not fail
	}
	return core
}

// digestToken returns what a token is known by (C5). It does not allocate for tokens of
// the usual length.
func (c *Core) digestToken(token string) digest {
	var buffer [192]byte
	text := append(buffer[:0], c.secret[:]...)
	text = append(text, token...)
	return sha256.Sum256(text)
}

// digestQuestion returns what a question is known by.
func (c *Core) digestQuestion(question *keyauth.Question) digest {
	var buffer [512]byte
	text := append(buffer[:0], c.secret[:]...)
	address := question.ClientAddress.As16()
	text = append(text, address[:]...)
	flags := byte(0)
	if question.ClientAddress.IsValid() {
		flags |= 1
	}
	if question.Requirement.IsIdentityOnly() {
		flags |= 2
	}
	text = append(text, flags)
	for _, part := range []string{question.Requirement.Scope(), question.WorkspaceID, question.Token} {
		text = binary.AppendUvarint(text, uint64(len(part))) // so that no part reaches into the next
		text = append(text, part...)
	}
	return sha256.Sum256(text)
}

// Found is an entry that answers a question, if the clock agrees.
type Found struct {
	lease lease.Lease
	entry *entry
}

// Find is the first part of a hit: the lease is read first, then the entry is found and
// must authorize the request (C2).
func (c *Core) Find(question *keyauth.Question) (found Found, ok bool) {
	current := c.freshness.Current()
	if current == (lease.Lease{}) {
		return Found{}, false
	}
	known := c.digestToken(question.Token)
	entry := c.entries.find(&known)
	if entry == nil {
		return Found{}, false
	}
	decision, _ := decide.Authorize(&entry.grant, question.WorkspaceID,
		decide.Requirement{Scope: question.Requirement.Scope(), IdentityOnly: question.Requirement.IsIdentityOnly()},
		question.ClientAddress, entry.filled)
	return Found{lease: current, entry: entry}, decision == decide.Allowed
}

// Confirm is the last part of a hit: now was read after Find. Nothing but returning may
// come after it.
func (f Found) Confirm(now time.Time) bool {
	return f.lease.Holds(now) && f.entry.life.Holds(now)
}

// Answer returns what the hit answers.
func (f Found) Answer() keyauth.Answer {
	return keyauth.Answer{
		Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyID: f.entry.principal.KeyID, Principal: &f.entry.principal,
	}
}

// Used notes that a hit was answered, to be reported with a ping (rule 9 of the contract).
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
		f.entry.waiting.Store(false) // this one is lost, the next may not be
		return
	}
	c.uses = append(c.uses, f.entry)
}

// takeUses returns what is to be reported.
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
		// In this order, so that a use in between is noted anew rather than lost.
		entry.waiting.Store(false)
		uses = append(uses, &keysvcv1.KeyUse{KeyId: entry.principal.KeyID, Time: timestamppb.New(time.Unix(entry.used.Load(), 0))})
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
	return &keysvcv1.SyncHello{Epoch: c.epoch, Revision: c.applied, AuditHash: c.hash, HashRevision: c.hashRevision}
}

// Ping returns a request for a lease. now was read before, and the message is sent after
// (C1).
func (c *Core) Ping(now time.Time) *keysvcv1.SyncPing {
	uses := c.takeUses()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return &keysvcv1.SyncPing{Nonce: c.freshness.Ask(now), Revision: c.applied, Uses: uses}
}

// waits says whether a ping is open that may still give a lease (C1).
func (c *Core) waits(now time.Time) bool {
	asked, open := c.freshness.Open()
	return open && lease.Elapsed(asked, now) < c.period()
}

// Applied returns the answer to a mark.
func (c *Core) Applied() *keysvcv1.SyncApplied {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return &keysvcv1.SyncApplied{Revision: c.applied}
}

// Welcome takes the beginning of a session (C9). It says whether everything was dropped.
func (c *Core) Welcome(message *keysvcv1.SyncWelcome) (reset bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.freshness.Drop()
	c.staleness = message.GetStaleness().AsDuration()
	reset = message.GetReset_() || message.GetEpoch() != c.epoch || message.GetRevision() != c.applied
	if reset {
		c.reset(message.GetRevision(), message.GetAuditHash(), message.GetHashRevision())
	}
	c.epoch = message.GetEpoch()
	c.sessions, c.welcomed = c.sessions+1, message.GetRevision()
	// The histories were compared up to here. What is from after it may be from one that
	// the store has lost.
	c.counters.Dropped.Add(int64(c.entries.dropAfter(c.welcomed)))
	return reset
}

// Reset takes the word that events are missing (C9).
func (c *Core) Reset(message *keysvcv1.SyncReset) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.freshness.Drop()
	c.reset(message.GetRevision(), message.GetAuditHash(), message.GetHashRevision())
}

// reset drops everything and begins anew at a revision. mutex is held.
func (c *Core) reset(revision int64, hash []byte, hashRevision int64) {
	c.generation++
	c.applied, c.covered, c.recent = revision, revision, nil
	c.hash, c.hashRevision = hash, hashRevision
	c.drop(event{kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED})
	c.counters.Resets.Add(1)
}

// Events takes changes (C8).
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

// Pong takes the answer to a ping: everything before it was seen. It says whether the answer
// was to the newest ping.
func (c *Core) Pong(message *keysvcv1.SyncPong) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.applied = max(c.applied, message.GetRevision())
	if c.gaveUp {
		return false
	}
	return c.freshness.Answered(message.GetNonce(), c.staleness)
}

// GiveUp ends the lease for good. Whoever calls it may tell the server afterwards.
func (c *Core) GiveUp() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.gaveUp = true
	c.freshness.Drop()
}

// concerns says whether an event says anything about a principal's keys.
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
	c.counters.Dropped.Add(int64(c.entries.drop(workspace, func(principal *keyauth.Principal) bool { return c.concerns(change, principal) })))
	for watch := range c.watches {
		if c.concerns(change, &watch.principal) {
			signal(watch.changed)
		}
	}
}

// watch begins to tell of changes that concern a principal, until end.
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

// Refusal returns a refusal that may be repeated (C8).
func (c *Core) Refusal(question *keyauth.Question, now time.Time) (keyauth.Answer, bool) {
	known := c.digestQuestion(question)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	kept, ok := c.refusals[known]
	if !ok || !kept.life.Holds(now) {
		return keyauth.Answer{}, false
	}
	c.counters.Refused.Add(1)
	return kept.answer, true
}

// Fill is a question on its way to the server.
type Fill struct {
	generation uint64
	session    uint64
	epoch      string
	// MinRevision and the epoch go with the question, unless the epoch is empty.
	MinRevision int64
	sent        time.Time
}

// Epoch returns the epoch that goes with the question.
func (f Fill) Epoch() string { return f.epoch }

// BeginFill notes that questions are about to be sent. now was read before.
func (c *Core) BeginFill(now time.Time) Fill {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return Fill{generation: c.generation, session: c.sessions, epoch: c.epoch, MinRevision: c.applied, sent: now}
}

// Verdict is what may be done with an answer of the server.
type Verdict uint8

// The verdicts.
const (
	// AskAgain: the answer is outdated; it is not used.
	AskAgain Verdict = iota
	// UseOnce: the answer counts for those who asked.
	UseOnce
	// Keep: it counts, and was kept.
	Keep
)

// EndFill takes the answer to a question that was sent with a Fill. answer is the
// response's, read and checked.
func (c *Core) EndFill(fill Fill, question *keyauth.Question, response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, now time.Time) Verdict {
	allowed := answer.Decision == keysvcv1.Decision_DECISION_ALLOWED
	c.mutex.Lock()
	defer c.mutex.Unlock()
	verdict := c.judge(fill, response, answer, now)
	if verdict == Keep && allowed {
		if kept := newEntry(response, answer, fill.sent); kept != nil {
			kept.digest = c.digestToken(question.Token)
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

// judge says what may be done with an answer. mutex is held.
func (c *Core) judge(fill Fill, response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, now time.Time) Verdict {
	allowed := answer.Decision == keysvcv1.Decision_DECISION_ALLOWED
	if late := lease.Elapsed(fill.sent, now) > c.staleness; allowed && late {
		return AskAgain // C7
	}
	if fill.epoch == "" || response.GetEpoch() != fill.epoch || c.epoch != fill.epoch {
		return UseOnce
	}
	if c.generation != fill.generation {
		return UseOnce
	}
	revision := response.GetRevision()
	if c.sessions != fill.session && revision > c.welcomed {
		return UseOnce // C9: perhaps from a history that the store has lost
	}
	if revision < c.covered {
		return AskAgain // the ring does not reach back so far
	}
	for _, change := range c.recent {
		if change.revision <= revision || change.kind == keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE {
			continue
		}
		// A refusal tells little of whose it is: any change may concern it.
		if !allowed || c.concerns(change, answer.Principal) {
			return AskAgain
		}
	}
	return Keep
}

// newEntry makes an entry of an answer; nil if its grant may not be kept.
func newEntry(response *keysvcv1.ValidateKeyResponse, answer keyauth.Answer, sent time.Time) *entry {
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
	bytes := entryBytes + len(principal.KeyID) + len(principal.WorkspaceID) + len(principal.MemberID) + len(principal.Role) +
		len(prefixes)*int(unsafe.Sizeof(netip.Prefix{}))
	for _, scope := range scopes {
		bytes += len(scope) + int(unsafe.Sizeof(scope))
	}
	return &entry{
		bytes:     bytes,
		principal: principal,
		grant: decide.Grant{
			Principal: decide.Principal{
				KeyID: principal.KeyID, WorkspaceID: principal.WorkspaceID, MemberID: principal.MemberID, Role: principal.Role,
			},
			Granted: scopes, Role: scopes, AllowedPrefixes: prefixes,
			HoldsUntil: math.MaxInt64, // life says until when
		},
		filled:   sent,
		revision: response.GetRevision(),
		life:     lease.New(sent, min(validFor, longest)),
	}
}

// Snapshot is what keyclient.NearCacheState says.
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

// Snapshot returns how the cache stands.
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
