package nearcache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/barrier"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// This file and the others whose names begin with replicas simulate three keysvc processes over one
// store, as docs/replication.md has them; R1 and so on are its rules. The hub, the sharing of barriers and the core of the
// near-cache are the real ones. The store, its watch and the projection are modelled: a revision is a state
// of three keys.

const (
	replicaCount        = 3
	stepsPerReplicaRun  = 500
	shortestStaleness   = 300 * time.Millisecond
	longestStaleness    = 1600 * time.Millisecond
	policyOfTheReplicas = 2 // the head of the policy, beside those of the two workspaces
)

// head is the head of a workspace, or of the policy.
type head struct {
	hash  [32]byte
	fence int
}

// stored is one revision of the store: what was changed, and everything as it is from then on. It is never
// changed, except that it is acknowledged.
type stored struct {
	revision int
	feed     *storagev1.FeedRecord
	hash     [32]byte
	allowed  [simulatedKeys]bool
	heads    [3]head
	// staleness is S, and former a larger S under which leases may still hold; 0 without such an S.
	staleness, former time.Duration
	committed, acked  time.Time
}

func (e *stored) barrier() storage.Barrier {
	return storage.Barrier{Revision: int64(e.revision), Hash: e.hash}
}

// same reports whether two entries say the same, as the same fence does in two histories.
func (e *stored) same(other *stored) bool {
	return e == other || e.hash == other.hash && e.allowed == other.allowed && e.heads == other.heads && e.staleness == other.staleness
}

// cluster is the store, three replicas, two clients, and the messages between them.
type cluster struct {
	random *rand.Rand
	now    time.Time
	broken cuts
	steps  int

	log []*stored
	// made counts changes, so that each has a hash of its own.
	made uint64
	// flying are transactions that were sent and neither executed nor lost.
	flying   []*transaction
	replicas [replicaCount]*replica
	clients  []*roamer
	// acked is the newest acknowledged revision, and awaited the newest one that an AwaitRevision has
	// returned for.
	acked, awaited int
	// answered has, for each head, the step in which the latest call began that was told that the store
	// is in the state it wanted.
	answered [3]int
	// rolledBack is when an older copy of the store was put back, rolledBackAt the step.
	rolledBack   time.Time
	rolledBackAt int

	// changesStaleness is set if S is changed.
	changesStaleness bool

	traced    bool
	trace     []string
	violation string
}

func newCluster(seed uint64, broken cuts, traced bool) *cluster {
	c := &cluster{random: rand.New(rand.NewPCG(seed, 2)), now: simulationStart, broken: broken, traced: traced}
	c.changesStaleness = c.chance(50)
	staleness := c.anyStaleness()
	first := &stored{staleness: staleness, committed: c.now, acked: c.now}
	for key := range first.allowed {
		first.allowed[key] = true
	}
	first.feed = &storagev1.FeedRecord{}
	c.log = []*stored{first}
	for number := range c.replicas {
		c.replicas[number] = c.start(number)
	}
	for range 2 {
		c.clients = append(c.clients, &roamer{core: NewCore(2, 1<<20)})
	}
	return c
}

func (c *cluster) breaks(rule cut) bool { return c.broken&(1<<rule) != 0 }

func (c *cluster) chance(percent int) bool { return c.random.IntN(100) < percent }

func (c *cluster) note(format string, arguments ...any) {
	if c.traced {
		c.trace = append(c.trace, fmt.Sprintf("%4d %6d ms  ", c.steps, c.now.Sub(simulationStart).Milliseconds())+fmt.Sprintf(format, arguments...))
	}
}

func (c *cluster) violate(format string, arguments ...any) {
	if c.violation == "" {
		c.violation = fmt.Sprintf(format, arguments...)
	}
}

func (c *cluster) newest() *stored { return c.log[len(c.log)-1] }

// anyStaleness returns a value for S.
func (c *cluster) anyStaleness() time.Duration {
	return []time.Duration{shortestStaleness, shortestStaleness + 100*time.Millisecond, longestStaleness}[c.random.IntN(3)]
}

// transaction is a message to the store: a change, or a fence if effect is nil. It compares the head of its
// workspace and, if it is a change, that of the policy.
type transaction struct {
	workspace      int
	expect, policy head
	effect         func(*stored)
	call           *call
	hash           [32]byte
	// slow is set if it takes long, and mute if its answer does not come.
	slow, mute bool
	answer     *outcome
}

// outcome is the store's answer to a transaction.
type outcome struct {
	committed bool
	revision  int
	// head is the one that was found if nothing was committed.
	head head
}

// send gives a transaction to the network.
func (c *cluster) send(t *transaction) *transaction {
	t.slow, t.mute = c.chance(15), c.chance(10)
	c.made++
	t.hash = [32]byte{1}
	binary.BigEndian.PutUint64(t.hash[8:], c.made)
	c.flying = append(c.flying, t)
	return t
}

// arrive lets a transaction arrive at the store, or loses it.
func (c *cluster) arrive() {
	if len(c.flying) == 0 {
		return
	}
	index := c.random.IntN(len(c.flying))
	t := c.flying[index]
	if t.slow && c.chance(92) {
		return
	}
	c.flying = slices.Delete(c.flying, index, index+1)
	if c.chance(5) {
		c.note("a transaction is lost")
		return
	}
	answer := c.execute(t)
	if !t.mute {
		t.answer = answer
	}
}

// execute is one transaction of the store.
func (c *cluster) execute(t *transaction) *outcome {
	last := c.newest()
	if last.heads[t.workspace] != t.expect || t.effect != nil && last.heads[policyOfTheReplicas] != t.policy {
		return &outcome{revision: last.revision, head: last.heads[t.workspace]}
	}
	next := *last
	next.revision, next.committed, next.acked, next.hash = last.revision+1, c.now, time.Time{}, t.hash
	next.feed = &storagev1.FeedRecord{
		Revision: int64(next.revision), WorkspaceId: [...]string{"w0", "w1", ""}[t.workspace], Kind: storagev1.FeedKind_FEED_KIND_PURGE,
	}
	if t.effect != nil {
		t.effect(&next)
		next.heads[t.workspace].hash = t.hash
		t.call.executed(c)
	} else {
		next.heads[t.workspace].fence++
		if c.breaks(fencesLookAlike) {
			next.hash = last.heads[t.workspace].hash
		}
	}
	next.feed.AuditHash = next.hash[:]
	c.log = append(c.log, &next)
	c.note("commit %d: %v of %q → %v, S %s", next.revision, next.feed.GetKind(), next.feed.GetWorkspaceId(), next.allowed, next.staleness)
	return &outcome{committed: true, revision: next.revision}
}

// rollBack puts an older copy of the store back. Whatever was on its way to the store is gone, and so are
// the calls that wait for it: nobody can promise them anything. The watches break.
func (c *cluster) rollBack() {
	back := 1 + c.random.IntN(3)
	keep := len(c.log) - back
	if keep < 1 {
		return
	}
	c.log = slices.Clone(c.log[:keep])
	c.acked, c.awaited = min(c.acked, keep-1), min(c.awaited, keep-1)
	c.rolledBack, c.rolledBackAt = c.now, c.steps
	c.flying = nil
	for _, r := range c.replicas {
		r.following = false
		r.operations = slices.DeleteFunc(r.operations, func(each operation) bool {
			_, called := each.(*call)
			_, awaits := each.(*awaiting)
			return called || awaits
		})
	}
	c.note("rolled back to %d", keep-1)
}

// replica is one keysvc process.
type replica struct {
	number int
	hub    *feed.Hub
	// applied is what the projection shows. following is set while the watch is open.
	applied   *stored
	following bool
	// lag is how probable it is, in percent, that the watch brings a change when it could.
	lag int
	// still is for how many of its steps the process does nothing.
	still int
	queue barrier.Queue
	// sending is set while somebody must take reads from the queue. asked is the read that was sent.
	sending     bool
	asked       *asked
	operations  []operation
	connections []*wire
	// awaits is the hub that AwaitRevision waits with: hub, unless the simulation breaks a rule.
	awaits *feed.Hub
}

// asked is a read of the barrier that was sent to one member of the store, or to several (R3).
type asked struct {
	read  *barrier.Read
	tries []*try
}

// try is a read at one member. oldest is the newest revision when it was sent: a linearizable read
// returns that one or a later one.
type try struct {
	oldest int
	found  *stored
}

// operation is something that a replica does in several steps.
type operation interface {
	// step makes a step if it can, and reports whether the operation is over.
	step(c *cluster, r *replica) (over bool)
}

// start starts the process of a replica. It loads the store.
func (c *cluster) start(number int) *replica {
	loaded := max(0, len(c.log)-1-c.random.IntN(2))
	r := &replica{number: number, applied: c.log[loaded], following: true, lag: []int{3, 30, 90}[c.random.IntN(3)]}
	var history []*storagev1.FeedRecord
	for _, each := range c.log[1:] {
		history = append(history, each.feed)
	}
	config := feed.Config{
		Epoch: "epoch", Revision: int64(loaded), History: history, Started: c.now,
		Staleness: r.applied.staleness, PreviousStaleness: r.applied.former, Shared: !c.breaks(awaitsOwnSessions),
		RingSize: 16, Now: func() time.Time { return c.now }, Random: c.random.Float64,
	}
	if c.breaks(stalenessOfTheProcess) {
		config.Staleness, config.PreviousStaleness = stalenessOf(r), 0
	}
	r.hub = feed.New(config)
	r.awaits = r.hub
	if c.breaks(pongOfAnotherStaleness) {
		r.awaits = feed.New(config)
	}
	c.note("replica %d starts at %d", number, loaded)
	return r
}

// end ends the process of a replica, and starts another one. The replica's callers do not hear how their
// calls ended.
func (c *cluster) end(r *replica, why string) {
	if c.replicas[r.number] != r {
		return
	}
	c.note("replica %d ends: %s", r.number, why)
	for _, each := range r.operations {
		if called, is := each.(*call); is {
			called.end(c, "died")
		}
	}
	for _, each := range r.connections {
		each.dead = true
	}
	r.operations, r.connections = nil, nil
	c.replicas[r.number] = c.start(r.number)
}

// step lets a replica do something.
func (c *cluster) stepReplica(r *replica) {
	if r.still > 0 {
		r.still--
		return
	}
	switch pick := c.random.IntN(100); {
	case pick < 25:
		c.watch(r)
	case pick < 55:
		c.stepBarrier(r)
	case len(r.operations) > 0:
		index := c.random.IntN(len(r.operations))
		each := r.operations[index]
		// A step may end the process, and with it all of its operations.
		if over := each.step(c, r); over && len(r.operations) > 0 {
			r.operations = slices.DeleteFunc(r.operations, func(other operation) bool { return other == each })
		}
	}
}

// watch lets the watch bring the next change, or opens it again (R7).
func (c *cluster) watch(r *replica) {
	newest := c.newest()
	switch {
	case !r.following && c.breaks(noHistoryCheck):
		// The store's watch begins in the future, if it has to, and waits.
		r.following = r.applied.revision <= newest.revision
	case !r.following:
		if r.applied.revision > newest.revision || c.log[r.applied.revision].hash != r.applied.hash {
			c.end(r, "the history is another one")
			return
		}
		r.following = true
		if !c.breaks(sessionsGoOn) {
			r.hub.Renew()
		}
	case r.applied.revision < newest.revision && c.chance(r.lag):
		next := c.log[r.applied.revision+1]
		change := &storage.Committed{Revision: int64(next.revision), Feed: next.feed}
		r.hub.Publish(change)
		if r.awaits != r.hub {
			r.awaits.Publish(change)
		}
		if r.applied.staleness != next.staleness && !c.breaks(stalenessOfTheProcess) {
			r.awaits.SetStaleness(next.staleness, next.former)
		}
		r.applied = next
		r.hub.Announce()
	}
}

// stalenessOf returns the S that the process of a replica was given, for stalenessOfTheProcess.
func stalenessOf(r *replica) time.Duration {
	if r.number == 0 {
		return shortestStaleness
	}
	return longestStaleness
}

// stepBarrier sends a read of the barrier, asks another member, or brings an answer.
func (c *cluster) stepBarrier(r *replica) {
	if r.asked == nil {
		if !r.sending {
			return
		}
		read := r.queue.Take()
		if read == nil {
			r.sending = false
			return
		}
		r.asked = &asked{read: read, tries: []*try{c.newTry()}}
		return
	}
	if c.chance(10) {
		r.asked.tries = append(r.asked.tries, c.newTry())
	}
	each := r.asked.tries[c.random.IntN(len(r.asked.tries))]
	switch {
	case c.chance(2):
		r.asked.read.Finish(storage.Barrier{}, storage.ErrUnavailable)
		r.asked = nil
	case each.found == nil && c.chance(70):
		newest := len(c.log) - 1
		oldest := min(each.oldest, newest)
		each.found = c.log[oldest+c.random.IntN(newest-oldest+1)]
	case each.found != nil && c.chance(70):
		r.asked.read.Finish(each.found.barrier(), nil)
		r.asked = nil
	}
}

func (c *cluster) newTry() *try {
	oldest := len(c.log) - 1
	if c.breaks(notLinearizable) {
		oldest = max(0, oldest-c.random.IntN(3))
	}
	return &try{oldest: oldest}
}

// fresh is what Fresh of the projection does, step by step.
type fresh struct {
	before *stored
	read   *barrier.Read
	// need is the revision to wait for, once the barrier has been read.
	need   int
	isRead bool
}

func (c *cluster) fresh(r *replica) *fresh {
	f := &fresh{before: r.applied}
	if r.asked != nil && c.breaks(joinSentBarrier) {
		f.read = r.asked.read
		return f
	}
	read, send := r.queue.Join()
	f.read, r.sending = read, r.sending || send
	return f
}

// poll reports whether the projection is fresh, or why it will not be.
func (f *fresh) poll(c *cluster, r *replica) (done bool, err error) {
	if !f.isRead {
		select {
		case <-f.read.Done():
		default:
			return false, nil
		}
		found, err := f.read.Result()
		if err != nil {
			return false, err
		}
		if !c.breaks(noHistoryCheck) {
			if err := barrier.Compare(found, f.before.barrier(), r.applied.barrier()); err != nil {
				c.end(r, err.Error())
				return false, err
			}
		}
		f.need, f.isRead = int(found.Revision), true
	}
	return r.applied.revision >= f.need || c.breaks(noWait), nil
}

// judge checks an answer that a replica gave from what its projection showed: it reflects everything that
// was acknowledged before the question came, and nothing that was not committed.
func (c *cluster) judge(what string, shown *stored, startedAt, acked int) {
	switch {
	case startedAt <= c.rolledBackAt && c.rolledBackAt > 0:
		// The replica cannot know what the store has lost since then.
	case shown.revision < acked:
		c.violate("%s of step %d was answered at %d, although %d was acknowledged before", what, startedAt, shown.revision, acked)
	case shown.revision >= len(c.log) || !c.log[shown.revision].same(shown):
		c.violate("%s of step %d was answered at %d, which is not in the store", what, startedAt, shown.revision)
	}
}
