package nearcache

import (
	"math"
	"slices"
	"testing"

	"github.com/scribe-mail/keysvc/internal/lease"
	"github.com/scribe-mail/keysvc/internal/race"
)

// fault is one broken rule. None of them is a switch of the production code: the simulation
// breaks the rules of the server and of the connection itself, and the rules inside Core by
// changing what it passes to Core, or what Core has stored.
type fault uint

const (
	acknowledgeFirst  fault = iota // S1: a change is acknowledged before it is in the hub
	barrierBeforePing              // S2: the barrier is read before the ping arrives
	pongBeforeEvents               // S2: the pong overtakes the events
	forgetDeparted                 // S3: a session that ended counts as one that gave up its lease
	forgetEarlier                  // S4: a new process ignores the leases of the process before it
	ignoreHash                     // S5: a session resumes without comparing histories
	loseEvents                     // S5: a slow reader misses events
	stampedLate                    // S6: the answer carries a newer revision than its records
	stampedEarly                   // S6: the answer carries an older revision than its records
	otherRightsAtOnce              // S7: a session goes on without a reset when its caller sees other workspaces
	ignoreRights                   // S7: a session resumes although its caller sees other workspaces

	leaseFromReceipt     // C1: the lease begins when the pong arrives
	answerAnyNonce       // C1: an old pong answers the newest ping
	leaseReadLast        // C2: the lease is read after the entry
	clockReadFirst       // C2: the clock is read before the entry is found
	authorizedOnce       // C2: a yes for one scope is a yes for another scope
	wallClockOnly        // C3: a clock that is set back prolongs a lease
	monotonicOnly        // C3: time in which the machine slept does not count
	keepDespiteEvents    // C4: the recent events are not searched
	keepAcrossGeneration // C4: the generation is not compared
	noMinRevision        // C4: the question carries no min_revision
	noEnd                // C5: an entry does not end
	keyedByID            // C5: an entry is found by key id, so any secret of the key is accepted
	joinSent             // C6: a request joins a question that was sent
	useLate              // C7: a late answer is used
	overlookUnknown      // C8: an event of an unknown kind drops nothing
	keepBeyondWelcome    // C9: entries from after the revision of a welcome are kept
	keepEntriesOnReset   // C9: entries are kept across a reset
	answersWithoutLease  // C10: an entry is used without a lease
	closesFirst          // C11: the client answers after it told the server that it ended
	keepOfOtherRights    // C12: a grant is kept although the session sees other workspaces
)

// faults is a set of broken rules.
type faults uint64

func faultsOf(broken ...fault) (set faults) {
	for _, each := range broken {
		set |= 1 << each
	}
	return set
}

// breaks reports whether the simulation breaks a rule.
func (s *simulation) breaks(rule fault) bool { return s.broken&(1<<rule) != 0 }

// dropping calls Welcome or Reset of a Core. If the simulation breaks the rule that a reset drops
// everything, dropping puts back what the call has dropped.
func (s *simulation) dropping(client *simulated, call func()) {
	core := client.core
	generation, before := core.generation, core.allEntries()
	call()
	if !s.breaks(keepEntriesOnReset) || core.generation == generation {
		return
	}
	for _, entry := range before {
		if entry.revision <= core.applied {
			core.entries.put(entry)
		}
	}
}

// allEntries returns the entries that a Core has.
func (c *Core) allEntries() []*entry {
	return slices.Collect(c.entries.all(""))
}

// beginFill is BeginFill of the client's Core.
func (s *simulation) beginFill(client *simulated) Fill {
	fill := client.core.BeginFill(s.clock(client))
	if s.breaks(noMinRevision) {
		fill.MinRevision = 0
	}
	return fill
}

// endFill is EndFill of the client's Core, in which the rules for keeping an answer can be
// broken.
func (s *simulation) endFill(client *simulated, pending *pendingFill) Verdict {
	core, fill, now := client.core, pending.fill, s.clock(client)
	recent, covered := core.recent, core.covered
	if s.breaks(keepDespiteEvents) {
		core.recent, core.covered = nil, 0
	}
	if s.breaks(keepAcrossGeneration) {
		fill.generation = core.generation
	}
	if s.breaks(keepBeyondWelcome) {
		fill.session = core.sessions
	}
	if s.breaks(useLate) {
		now = fill.sent
	}
	if s.breaks(keepOfOtherRights) && pending.reply.GetGrant() != nil {
		pending.reply.Grant.VisibleWorkspaces = core.visible
	}
	question := simulatedQuestion(pending.key)
	verdict := core.EndFill(fill, question, pending.reply, pending.answer, now)
	core.recent, core.covered = recent, covered
	if kept := core.findToken(question.Token); verdict == Keep && kept != nil {
		if s.breaks(noEnd) {
			kept.life = lease.New(fill.sent, math.MaxInt64)
		}
		if s.breaks(keepBeyondWelcome) {
			kept.revision = 0
		}
	}
	return verdict
}

// caughtBy has the first schedule that catches a broken rule, for those rules where the search takes
// long. A change of the simulation makes it out of date: TestEachRuleIsNeeded then searches, is slow,
// and logs the new numbers.
var caughtBy = map[string]uint64{
	"C6 joins what was sent":       1731,
	"C9 entries beyond a welcome":  8407,
	"C11 closes first":             62374,
	"C12 grants of other rights":   43134,
	"S2 barrier before the ping":   4156,
	"S2 pong before events":        4156,
	"S3 departed forgotten":        15204,
	"S4 earlier lease forgotten":   3219,
	"S6 stamped early":             8407,
	"S7 resumed with other rights": 6230,
}

// TestEachRuleIsNeeded breaks one rule at a time. For each, some schedule must break a promise.
// One part of C9 is not in the table: that a Welcome ends the lease. What the old lease vouches
// for is true in the next session as well, so that part only shortens the argument, at the cost
// of one ping.
func TestEachRuleIsNeeded(t *testing.T) {
	if race.Enabled() {
		t.Skip("the simulation has one goroutine, so the race detector finds nothing; it runs without")
	}
	const enough = 300_000
	for name, broken := range map[string]faults{
		"C1 lease from receipt":        faultsOf(leaseFromReceipt),
		"C1 nonce":                     faultsOf(answerAnyNonce),
		"C2 lease last":                faultsOf(leaseReadLast),
		"C2 clock first":               faultsOf(clockReadFirst),
		"C2 authorized once":           faultsOf(authorizedOnce),
		"C3 wall clock only":           faultsOf(wallClockOnly),
		"C3 monotonic clock only":      faultsOf(monotonicOnly),
		"C4 ring test":                 faultsOf(keepDespiteEvents),
		"C4 generation":                faultsOf(keepAcrossGeneration, keepDespiteEvents),
		"C4 min_revision":              faultsOf(noMinRevision, keepDespiteEvents),
		"C5 entry's end":               faultsOf(noEnd),
		"C5 keyed by the id":           faultsOf(keyedByID),
		"C6 joins what was sent":       faultsOf(joinSent),
		"C7 late answers":              faultsOf(useLate),
		"C8 unknown kinds":             faultsOf(overlookUnknown),
		"C9 entries beyond a welcome":  faultsOf(keepBeyondWelcome),
		"C9 entries survive a reset":   faultsOf(keepEntriesOnReset),
		"C10 no lease":                 faultsOf(answersWithoutLease),
		"C11 closes first":             faultsOf(closesFirst),
		"C12 grants of other rights":   faultsOf(keepOfOtherRights),
		"S1 acknowledged first":        faultsOf(acknowledgeFirst),
		"S2 barrier before the ping":   faultsOf(barrierBeforePing),
		"S2 pong before events":        faultsOf(pongBeforeEvents),
		"S3 departed forgotten":        faultsOf(forgetDeparted),
		"S4 earlier lease forgotten":   faultsOf(forgetEarlier),
		"S5 hash ignored":              faultsOf(ignoreHash),
		"S5 events lost":               faultsOf(loseEvents),
		"S6 stamped late":              faultsOf(stampedLate),
		"S6 stamped early":             faultsOf(stampedEarly),
		"S7 no reset":                  faultsOf(otherRightsAtOnce),
		"S7 resumed with other rights": faultsOf(ignoreRights),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The schedule that caught it when it was last looked for. It only saves time.
			seed, how, _ := runSchedules(1, caughtBy[name], broken)
			if how == "" {
				seed, how, _ = runSchedules(enough, 1, broken)
			}
			if how == "" {
				t.Fatal("nothing was caught")
			}
			t.Logf("schedule %d: %s", seed, how)
		})
	}
}
