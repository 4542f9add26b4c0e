package nearcache

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/feed"
)

// This file has what callers ask the simulated replicas: changes, validations, and AwaitRevision.

// stage is how far a call has come.
type stage int

const (
	asksBarrier stage = iota // waits until the projection is fresh
	waitsFor                 // waits until the projection shows a revision, and looks then
	sent                     // waits for the answer to its transaction
	fencing                  // has lost the transaction, and waits for the answer to its fence
	raising                  // has nothing to change, and waits for the answer to its fence
	publishing               // is committed, and waits until the projection shows it
)

// call is a call that changes something: a key, all keys of a workspace, all keys, or S. report is set for a
// call that is refused if the key is not allowed.
type call struct {
	key, workspace int
	kind           storagev1.FeedKind
	want           bool
	staleness      time.Duration
	report         bool

	stage     stage
	startedAt int
	acked     int
	fresh     *fresh
	revision  int
	change    *transaction
	fence     *transaction
	// ended is the step in which the caller was told that the outcome is unknown, or gave up. unchanged is
	// set if the caller was told that nothing was changed.
	ended     int
	unchanged bool
	times     int
}

// begin begins a call at a replica.
func (c *cluster) begin(r *replica) {
	key := c.random.IntN(simulatedKeys)
	called := &call{
		key: key, workspace: map[string]int{"w0": 0, "w1": 1}[simulatedOwner(key).WorkspaceID], want: c.chance(50),
		kind: storagev1.FeedKind_FEED_KIND_KEY,
	}
	switch c.random.IntN(10) {
	case 0:
		called.kind = storagev1.FeedKind_FEED_KIND_WORKSPACE
	case 1:
		called.kind, called.workspace = storagev1.FeedKind_FEED_KIND_POLICY, policyOfTheReplicas
	case 2, 3:
		called.report, called.want = true, false
	}
	c.beginWith(r, called)
}

func (c *cluster) beginWith(r *replica, called *call) {
	called.startedAt, called.acked, called.fresh = c.steps, c.acked, c.fresh(r)
	r.operations = append(r.operations, called)
}

// concerns reports whether a call is about a key.
func (a *call) concerns(key int) bool {
	switch {
	case a.staleness > 0:
		return false
	case a.kind == storagev1.FeedKind_FEED_KIND_WORKSPACE:
		return simulatedOwner(key).WorkspaceID == simulatedOwner(a.key).WorkspaceID
	case a.kind == storagev1.FeedKind_FEED_KIND_POLICY:
		return true
	}
	return key == a.key
}

// end notes that the caller hears nothing more.
func (a *call) end(c *cluster, how string) {
	a.ended = c.steps
	a.unchanged = a.stage != sent && a.stage != fencing && a.stage != publishing
	c.note("call of step %d: %s", a.startedAt, how)
}

// executed notes that the store has executed the call's change.
func (a *call) executed(c *cluster) {
	a.times++
	switch {
	case a.times > 1:
		c.violate("the change of the call of step %d was made twice", a.startedAt)
	case a.unchanged:
		c.violate("the call of step %d changed something after it was answered that nothing was changed", a.startedAt)
	case a.ended > 0 && c.answered[a.workspace] > a.ended:
		c.violate("the call of step %d ended in step %d and took effect after a call of step %d was answered",
			a.startedAt, a.ended, c.answered[a.workspace])
	}
}

// done notes that the caller is told that the store is as the caller wanted it.
func (a *call) done(c *cluster) {
	if a.startedAt > c.rolledBackAt {
		c.answered[a.workspace] = max(c.answered[a.workspace], a.startedAt)
	}
}

func (a *call) step(c *cluster, r *replica) (over bool) {
	if c.chance(1) && a.stage != publishing {
		// The deadline. The fence is raised in the background, unless the process dies.
		a.end(c, "its deadline has passed")
		if a.stage == sent || a.stage == fencing {
			r.operations = append(r.operations, &background{a.change})
		}
		return true
	}
	switch a.stage {
	case asksBarrier:
		if c.breaks(refusesAtOnce) && a.report && !r.applied.allowed[a.key] {
			a.refuse(c, r)
			return true
		}
		done, err := a.fresh.poll(c, r)
		if err != nil {
			a.end(c, "unavailable")
			return true
		}
		return done && a.look(c, r)
	case waitsFor:
		return r.applied.revision >= a.revision && a.look(c, r)
	case sent:
		if answer := a.change.answer; answer != nil {
			a.take(answer)
			return false
		}
		if c.chance(5) {
			a.lost(c)
		}
	case fencing:
		a.fenced(c)
	case raising:
		return a.raised(c, r)
	case publishing:
		if r.applied.revision < a.revision {
			return false
		}
		c.acknowledge(a.revision)
		a.done(c)
		return true
	}
	return false
}

// take takes the store's answer to the change.
func (a *call) take(answer *outcome) {
	a.revision, a.stage = answer.revision, waitsFor
	if answer.committed {
		a.stage = publishing
	}
}

// refuse answers that the key is not allowed.
func (a *call) refuse(c *cluster, r *replica) {
	c.judge("a refusal", r.applied, a.startedAt, a.acked)
}

// look looks at what the projection shows, and sends a change if there is something to change.
func (a *call) look(c *cluster, r *replica) (over bool) {
	view := r.applied
	if a.report && !view.allowed[a.key] {
		a.refuse(c, r)
		return true
	}
	nothing := a.staleness == 0 || a.staleness == view.staleness
	for key, allowed := range view.allowed {
		nothing = nothing && (!a.concerns(key) || allowed == a.want)
	}
	if nothing {
		if c.breaks(noFenceAtNothing) {
			return a.nothing(c, view)
		}
		a.fence, a.stage = c.send(&transaction{workspace: a.workspace, expect: view.heads[a.workspace], call: a}), raising
		a.revision = view.revision
		return false
	}
	// The clocks of the replicas may differ by more than any S, so a former S counts for as long as this
	// simulation runs.
	owner, former := simulatedOwner(a.key), max(view.staleness, view.former)
	if c.breaks(formerIsTheLast) {
		former = view.staleness
	}
	if former <= a.staleness {
		former = 0
	}
	a.stage = sent
	a.change = c.send(&transaction{
		workspace: a.workspace, expect: view.heads[a.workspace], policy: view.heads[policyOfTheReplicas], call: a,
		effect: func(next *stored) {
			next.feed.Kind = a.kind
			if a.kind == storagev1.FeedKind_FEED_KIND_KEY {
				next.feed.Subject = owner.KeyID
			}
			for key := range next.allowed {
				if a.concerns(key) {
					next.allowed[key] = a.want
				}
			}
			if a.staleness > 0 {
				next.staleness, next.former = a.staleness, former
			}
		},
	})
	return false
}

// nothing answers that there is nothing to change.
func (a *call) nothing(c *cluster, shown *stored) (over bool) {
	c.judge("a call that changes nothing", shown, a.startedAt, a.acked)
	a.done(c)
	return true
}

// lost raises the fence for a transaction whose answer did not come (R4).
func (a *call) lost(c *cluster) {
	if c.breaks(noFenceFirst) {
		a.stage = waitsFor // the change is made anew at once
		return
	}
	a.fence, a.stage = c.send(&transaction{workspace: a.workspace, expect: a.change.expect, call: a}), fencing
}

// fenced takes the answer to the fence, or sends another one.
func (a *call) fenced(c *cluster) {
	switch answer := a.fence.answer; {
	case answer == nil && c.chance(5):
		a.lost(c)
	case answer == nil:
	case answer.committed:
		a.revision, a.stage = answer.revision, waitsFor
	case a.times > 0:
		// The head is another one, and the event of the change is stored.
		a.revision, a.stage = c.revisionOf(a.change), publishing
	default:
		a.revision, a.stage = answer.revision, waitsFor
	}
}

// raised takes the answer to the fence of a call that has nothing to change (R5).
func (a *call) raised(c *cluster, r *replica) (over bool) {
	switch answer := a.fence.answer; {
	case answer == nil && c.chance(5):
		a.end(c, "unavailable")
		return true
	case answer == nil:
		return false
	case !answer.committed && answer.head.hash == a.fence.expect.hash:
		// Another call has raised the same fence.
	case !answer.committed:
		a.revision, a.stage = answer.revision, waitsFor
		return false
	case r.applied.revision < a.revision:
		return false
	}
	if a.startedAt <= c.rolledBackAt {
		return true
	}
	return a.nothing(c, c.log[a.revision])
}

// revisionOf returns the revision of a transaction that was executed.
func (c *cluster) revisionOf(t *transaction) int {
	for _, each := range c.log {
		if each.hash == t.hash {
			return each.revision
		}
	}
	return 0
}

func (c *cluster) acknowledge(revision int) {
	c.acked = max(c.acked, revision)
	if c.log[revision].acked.IsZero() {
		c.log[revision].acked = c.now
		c.note("acknowledge %d", revision)
	}
}

// background raises the fence for a transaction whose outcome the caller was told to be unknown.
type background struct{ change *transaction }

func (b *background) step(c *cluster, _ *replica) (over bool) {
	if !c.breaks(noFenceFirst) {
		c.send(&transaction{workspace: b.change.workspace, expect: b.change.expect, call: b.change.call})
	}
	return true
}

// validation is a question at a replica: of a client, or of a caller without a near-cache.
type validation struct {
	key       int
	minimum   int
	fill      *pendingFill // nil for a caller without a near-cache
	startedAt int
	acked     int
	fresh     *fresh
}

func (c *cluster) validate(r *replica, key int, fill *pendingFill) {
	asked := &validation{key: key, fill: fill, startedAt: c.steps, acked: c.acked, fresh: c.fresh(r)}
	if fill != nil && fill.fill.Epoch() != "" {
		asked.minimum = int(fill.fill.MinRevision)
	}
	r.operations = append(r.operations, asked)
}

func (v *validation) step(c *cluster, r *replica) (over bool) {
	done, err := v.fresh.poll(c, r)
	switch {
	case err != nil:
		v.decide(nil, keyauth.Answer{})
		return true
	case !done:
		return false
	case r.applied.revision < v.minimum:
		if c.chance(90) {
			return false
		}
		v.decide(nil, keyauth.Answer{}) // min_revision was not reached in time
		return true
	}
	shown := r.applied
	c.judge("a validation", shown, v.startedAt, v.acked)
	reply, answer := &keysvcv1.ValidateKeyResponse{Revision: int64(shown.revision), Epoch: "epoch"}, keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED}
	if shown.allowed[v.key] {
		owner := simulatedOwner(v.key)
		answer = keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &owner}
		reply.Grant = &keysvcv1.Grant{Scopes: []string{"a:b"}, ValidFor: durationpb.New(time.Hour)}
	}
	v.decide(reply, answer)
	return true
}

func (v *validation) decide(reply *keysvcv1.ValidateKeyResponse, answer keyauth.Answer) {
	if v.fill != nil {
		v.fill.decided, v.fill.reply, v.fill.answer = true, reply, answer
	}
}

// awaiting is a call of AwaitRevision.
type awaiting struct {
	revision int
	fresh    *fresh
	wait     *feed.Await
}

func (c *cluster) await(r *replica) {
	r.operations = append(r.operations, &awaiting{revision: c.acked, fresh: c.fresh(r)})
}

func (a *awaiting) step(c *cluster, r *replica) (over bool) {
	if a.wait == nil {
		done, err := a.fresh.poll(c, r)
		if err != nil {
			return true
		}
		if !done || r.applied.revision < a.revision {
			return false
		}
		if a.wait, err = r.awaits.Await(int64(a.revision)); err != nil {
			return true
		}
	}
	if _, over, _, _ := a.wait.Poll(); !over {
		return false
	}
	c.note("awaited %d", a.revision)
	c.awaited = max(c.awaited, a.revision)
	return true
}
