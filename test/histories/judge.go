//go:build linux

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// checkTime bounds one check by porcupine.
const checkTime = 20 * time.Second

// reasonNothingChanged stands for a deadline that keysvc itself has noticed.
const reasonNothingChanged = "the deadline passed; nothing was changed"

// unanswered are reasons of refusals that say nothing about the state: keysvc could not find out, and changed nothing.
var unanswered = []string{"STORE_UNAVAILABLE", "REVISION_NOT_REACHED", "TOO_MANY_REQUESTS", reasonNothingChanged}

// floors are the newest revisions that were answered until a time.
type floors struct{ acks []ack }

// newFloors returns the floors of some answers, none of which is below base.
func newFloors(base int64, acks []ack) *floors {
	sorted := append([]ack{{math.MinInt64, base}}, acks...)
	slices.SortFunc(sorted, func(a, b ack) int { return cmp.Compare(a.at, b.at) })
	for index := 1; index < len(sorted); index++ {
		sorted[index].revision = max(sorted[index].revision, sorted[index-1].revision)
	}
	return &floors{sorted}
}

// at returns the newest revision that was answered before a time.
func (f *floors) at(when int64) int64 {
	index := sort.Search(len(f.acks), func(index int) bool { return f.acks[index].at >= when })
	return f.acks[max(0, index-1)].revision
}

// ceilings are the revisions that may have been committed by a time.
type ceilings struct{ begun []ack }

func newCeilings(begun []ack) *ceilings {
	sorted := slices.Clone(begun)
	slices.SortFunc(sorted, func(a, b ack) int { return cmp.Compare(a.at, b.at) })
	for index := len(sorted) - 2; index >= 0; index-- {
		sorted[index].revision = min(sorted[index].revision, sorted[index+1].revision)
	}
	return &ceilings{sorted}
}

// at returns the largest revision that may have been committed at a time: every change of a later one began after it.
func (c *ceilings) at(when int64) int64 {
	index := sort.Search(len(c.begun), func(index int) bool { return c.begun[index].at > when })
	if index == len(c.begun) {
		return math.MaxInt64
	}
	return c.begun[index].revision - 1
}

// verdict is what was found in the histories of a batch.
type verdict struct {
	// Broken are promises that were broken.
	broken []string
	// Histories is how many were checked, undecided how many of them porcupine could not decide in time.
	histories, undecided int
	counts               counts
}

// counts are for the report.
type counts struct{ operations, answered, refused, lost, lateMade, contended, resumes, resets int }

func (c *counts) add(other counts) {
	c.operations += other.operations
	c.answered += other.answered
	c.refused += other.refused
	c.lost += other.lost
	c.lateMade += other.lateMade
	c.contended += other.contended
	c.resumes += other.resumes
	c.resets += other.resets
}

// record is all that was observed in a batch.
type record struct {
	histories []*history
	policy    []*operation
	base      int64
	made      []*keysvcv1.AuditEvent // after base, in order
	awaited   []ack
	// restart is when the cluster was restored, or 0.
	restart int64
}

// history is what happened to one workspace.
type history struct {
	workspace  string
	initial    *state
	operations []*operation
}

// moment is a change, and the state after it.
type moment struct {
	revision int64
	state    *state
}

// judge compares a record with the promises.
func (r *record) judge() *verdict {
	v := &verdict{}
	broken := func(format string, arguments ...any) { v.broken = append(v.broken, fmt.Sprintf(format, arguments...)) }
	all := slices.Clone(r.policy)
	for _, each := range r.histories {
		all = append(all, each.operations...)
	}
	byActor := make(map[string]*operation)
	for _, o := range all {
		byActor[o.actor()] = o
	}
	// Each change has one event, at the revision that was answered, and no refused one has any.
	for _, event := range r.made {
		o := byActor[event.GetActorMemberId()]
		switch {
		case o == nil:
			broken("nobody asked for the change of %d (%v by %q)", event.GetRevision(), event.GetAction(), event.GetActorMemberId())
		case o.Made != 0:
			broken("%v: made twice, at %d as well", o, event.GetRevision())
		case o.Outcome == refused || !o.Kind.changes() || o.Workspace != event.GetWorkspaceId():
			broken("%v: and yet there is a change of it at %d", o, event.GetRevision())
		default:
			o.Made = event.GetRevision()
			if o.Outcome == done && o.Revision != o.Made {
				broken("%v: the answer names another revision", o)
			}
		}
	}
	var acknowledged, answered, begun []ack
	for _, o := range all {
		v.counts.operations++
		switch o.Outcome {
		case done:
			v.counts.answered++
			if o.Kind.changes() {
				acknowledged = append(acknowledged, ack{o.Return, o.Revision})
			}
			if o.Kind.changes() || o.Kind.reads() {
				answered = append(answered, ack{o.Return, o.Revision})
			}
		case refused:
			v.counts.refused++
		case lost:
			v.counts.lost++
			if o.Made != 0 {
				v.counts.lateMade++
			}
		}
		if o.Made != 0 {
			begun = append(begun, ack{o.Call, o.Made})
		}
	}
	windows := &windows{
		acknowledged: newFloors(r.base, acknowledged), answered: newFloors(r.base, answered),
		awaited: newFloors(r.base, r.awaited), begun: newCeilings(begun), restart: r.restart,
	}
	policy := madeOf(r.policy)
	for _, each := range r.histories {
		v.broken = append(v.broken, each.judge(r.base, policy, windows, &v.counts)...)
	}
	v.broken = append(v.broken, (&history{initial: &state{policy: r.startPolicy()}, operations: r.policy}).judge(r.base, nil, windows, &v.counts)...)
	return v
}

func (r *record) startPolicy() int {
	if len(r.histories) == 0 {
		return 0
	}
	return r.histories[0].initial.policy
}

// linearize asks porcupine about one history after the other.
func (r *record) linearize(v *verdict) {
	policy := &history{workspace: "policy", initial: &state{policy: r.startPolicy()}}
	for _, each := range append(r.histories, policy) {
		switch each.linearizable(r.policy) {
		case porcupine.Illegal:
			v.broken = append(v.broken, fmt.Sprintf("workspace %s: no order of its changes and reads explains the answers", each.workspace))
		case porcupine.Unknown:
			v.undecided++
		}
	}
	v.histories += len(r.histories)
}

// madeOf returns the changes that were made, by revision.
func madeOf(operations []*operation) []*operation {
	var made []*operation
	for _, o := range operations {
		if o.Made != 0 {
			made = append(made, o)
		}
	}
	slices.SortFunc(made, func(a, b *operation) int { return int(a.Made - b.Made) })
	return made
}

// windows are the revisions that an answer may be read at.
type windows struct {
	acknowledged, answered, awaited *floors
	begun                           *ceilings
	restart                         int64
}

// judge checks each answer against the states in the order of the revisions. policy are the changes of the policy.
func (h *history) judge(base int64, policy []*operation, w *windows, count *counts) (broken []string) {
	report := func(o *operation, format string, arguments ...any) {
		broken = append(broken, fmt.Sprintf("%s: %v: ", h.workspace, o)+fmt.Sprintf(format, arguments...))
	}
	moments := []moment{{base, h.initial}}
	made := append(slices.Clone(policy), madeOf(h.operations)...)
	slices.SortFunc(made, func(a, b *operation) int { return int(a.Made - b.Made) })
	for _, o := range made {
		before := moments[len(moments)-1].state
		next, explained := before.explains(o)
		if !explained {
			report(o, "the state before it, by revision, gives another answer: %s", before.describe(o))
			next, _ = before.step(o)
		}
		if floor := w.answered.at(o.Call); o.Made <= floor && o.Workspace == h.workspace {
			report(o, "%d was answered before it began", floor)
		}
		moments = append(moments, moment{o.Made, next})
	}
	// at returns the index of the state at a revision.
	at := func(revision int64) int {
		return max(0, sort.Search(len(moments), func(index int) bool { return moments[index].revision > revision })-1)
	}
	within := func(o *operation, from, to int64) {
		for index := at(from); index <= at(to); index++ {
			if _, explained := moments[index].state.explains(o); explained {
				return
			}
		}
		report(o, "no state from %d to %d gives this answer; the first: %s, the last: %s", from, to, moments[at(from)].state.describe(o), moments[at(to)].state.describe(o))
	}
	for _, o := range h.operations {
		ceiling := w.begun.at(o.Return)
		switch {
		case o.Outcome == lost || o.Made != 0:
		case o.Kind == askCache && o.Call < w.restart+int64(staleness) && w.restart > 0:
			// From memory, of the history that was put an end to.
		case o.Outcome == refused && slices.Contains(unanswered, o.Reason):
		case o.Outcome == refused && o.Reason == "CONCURRENT_CHANGE":
			count.contended++
		case o.Kind == askCache:
			within(o, max(w.acknowledged.at(o.Call-int64(staleness)), w.awaited.at(o.Call)), ceiling)
		case o.Outcome == refused:
			within(o, w.answered.at(o.Call), ceiling)
		default:
			floor := w.answered.at(o.Call)
			if o.Kind == validateKey {
				floor = w.acknowledged.at(o.Call)
			}
			before := moments[at(o.Revision)].state
			switch next, explained := before.explains(o); {
			case o.Revision < floor:
				report(o, "%d was answered before it began", floor)
			case o.Revision > ceiling:
				report(o, "the changes after %d had not begun when it was answered", ceiling)
			case !explained:
				report(o, "the state at its revision gives another answer: %s", before.describe(o))
			case !next.equal(before):
				report(o, "acknowledged, and there is no change of it")
			}
		}
	}
	return broken
}

// describe says what the state has of what an operation is about.
func (s *state) describe(o *operation) string {
	_, reasons := s.step(o)
	text := fmt.Sprintf("policy %d, members %v, reasons %v", s.policy, s.members, reasons)
	if o.Key < len(s.keys) {
		text += fmt.Sprintf(", key %+v", s.keys[o.Key])
	}
	if o.Kind == validateKey || o.Kind == askCache {
		text += fmt.Sprintf(", %v", s.decide(o))
	}
	return text
}

// linearizable asks porcupine if some order of the changes and reads, policy's included, explains all answers.
func (h *history) linearizable(policy []*operation) porcupine.CheckResult {
	var operations []porcupine.Operation
	for _, o := range append(slices.Clone(policy), h.operations...) {
		switch {
		case !o.Kind.changes() && !o.Kind.reads(),
			o.Outcome == lost && o.Made == 0, // it was not made, or comes after everything
			o.Outcome == refused && (slices.Contains(unanswered, o.Reason) || o.Reason == "CONCURRENT_CHANGE"),
			o.Kind == getPolicy && o.Workspace == "" && h.workspace != "policy":
			continue
		}
		end := o.Return
		if o.Outcome == lost {
			end = math.MaxInt64
		}
		operations = append(operations, porcupine.Operation{ClientId: len(operations), Input: o, Call: o.Call, Return: end})
	}
	return porcupine.CheckOperationsTimeout(h.model(), operations, checkTime)
}

func (h *history) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return h.initial },
		Step: func(from, input, _ any) (bool, any) {
			next, explained := from.(*state).explains(input.(*operation))
			return explained, next
		},
		Equal: func(a, b any) bool { return a.(*state).equal(b.(*state)) },
		Hash:  func(s any) uint64 { return s.(*state).hash() },
	}
}
