//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// second is a second, as operations count time.
const second = int64(time.Second)

// story is a record of one workspace: key 0 is created (revision 11), read, rotated (12) and revoked (13); the member's
// role is lowered (14), by a call that was not answered; and the token is asked about all the time.
func story() *record {
	view := func(change func(*keyView)) []keyView {
		seen := keyView{Key: 0, Scopes: 1, Status: active, By: -1, Secrets: 1}
		change(&seen)
		return []keyView{seen}
	}
	same := func(*keyView) {}
	begun := &state{keys: make([]keyState, 1)}
	begun.members[members-1].version = 1
	h := &history{workspace: "w", initial: begun, operations: []*operation{
		{ID: 1, Kind: createKey, Scopes: 1, Outcome: done, Revision: 11, KeysSeen: view(same)},
		{ID: 2, Kind: getKey, Outcome: done, Revision: 11, KeysSeen: view(same), Effective: 1},
		{ID: 3, Kind: rotateKey, Token: 1, Outcome: done, Revision: 12, KeysSeen: view(same)},
		{ID: 4, Kind: validateKey, Token: 1, Asked: 1, Outcome: done, Revision: 12, Decision: decision{Key: 0, Role: owner}},
		{ID: 5, Kind: revokeKey, Outcome: done, Revision: 13, KeysSeen: view(func(k *keyView) { k.Status, k.By = revoked, 5 })},
		{ID: 6, Kind: updateKey, Scopes: 3, Outcome: refused, Reason: reasonKeyRevoked},
		{ID: 7, Kind: putMember, To: memberSet{Role: plainMember}},
		{ID: 8, Kind: validateKey, Token: 1, Asked: 1, Outcome: done, Revision: 14, Decision: decision{Reason: decisionRevoked, Key: 0}},
		{ID: 9, Kind: getMember, Outcome: done, Revision: 14, MemberSeen: memberSet{Role: plainMember}},
		{ID: 10, Kind: askCache, Token: 1, Asked: 1, Outcome: done, Decision: decision{Reason: decisionRevoked, Key: 0}},
	}}
	r := &record{base: 10, histories: []*history{h}}
	for index, o := range h.operations {
		o.Workspace, o.Call, o.Return = "w", int64(index)*second, int64(index)*second+second/2
	}
	for revision, id := range map[int64]int{11: 1, 12: 3, 13: 5, 14: 7} {
		r.made = append(r.made, &keysvcv1.AuditEvent{Revision: revision, WorkspaceId: "w", ActorMemberId: (&operation{ID: id}).actor()})
	}
	slices.SortFunc(r.made, func(a, b *keysvcv1.AuditEvent) int { return int(a.GetRevision() - b.GetRevision()) })
	return r
}

// A judge that finds nothing wrong with anything is no judge.
func TestBrokenPromisesAreFound(t *testing.T) {
	// repeated adds the creation of key 0 once more, at a time, with the answer that the key has then.
	repeated := func(r *record, at int64) *operation {
		again := *r.histories[0].operations[0]
		again.ID, again.Call, again.Return = 11, at, at+1
		if at > 5*second {
			again.Revision = 14
			again.KeysSeen = []keyView{{Key: 0, Scopes: 1, Status: revoked, By: 5, Secrets: 1}}
		}
		r.histories[0].operations = append(r.histories[0].operations, &again)
		return &again
	}
	// of returns the operation with an id.
	of := func(r *record, id int) *operation { return r.histories[0].operations[id-1] }
	for name, test := range map[string]struct {
		spoil func(*record)
		want  string // part of the complaint; empty for none
		// illegal: porcupine, which knows no revisions, finds it as well.
		illegal bool
	}{
		"nothing": {func(*record) {}, "", false},
		"a validation from before a revocation": {func(r *record) {
			of(r, 8).Decision, of(r, 8).Revision = decision{Key: 0, Role: owner}, 12
		}, "13 was answered before it began", false},
		"a revoked token that is allowed": {func(r *record) { of(r, 8).Decision = decision{Key: 0} }, "gives another answer", false},
		"a token that was replaced":       {func(r *record) { of(r, 4).Token = 0 }, "gives another answer", false},
		"a read from before a change": {func(r *record) {
			of(r, 9).MemberSeen, of(r, 9).Revision = memberSet{}, 12
		}, "13 was answered before it began", false},
		"a change that was seen and is gone": {func(r *record) {
			seen := *of(r, 9)
			seen.ID, seen.Call, seen.Return = 11, 20*second, 21*second
			seen.MemberSeen = memberSet{}
			r.histories[0].operations = append(r.histories[0].operations, &seen)
		}, "gives another answer", true},
		"a read of what nobody has asked for yet": {func(r *record) {
			of(r, 2).Revision = 12
		}, "had not begun", false},
		"a refusal without cause":        {func(r *record) { of(r, 6).Reason = reasonRotation }, "no state from 13", true},
		"an internal error":              {func(r *record) { of(r, 9).Outcome, of(r, 9).Reason = refused, "INTERNAL" }, "no state from", true},
		"keysvc cannot answer":           {func(r *record) { of(r, 9).Outcome, of(r, 9).Reason = refused, unanswered[0] }, "", false},
		"a refused change that was made": {func(r *record) { of(r, 7).Outcome, of(r, 7).Reason = refused, unanswered[0] }, "and yet there is a change", false},
		"a change that was made twice": {func(r *record) {
			r.made = append(r.made, &keysvcv1.AuditEvent{Revision: 15, WorkspaceId: "w", ActorMemberId: "o7"})
		}, "made twice", false},
		"a change of nobody": {func(r *record) {
			r.made = append(r.made, &keysvcv1.AuditEvent{Revision: 15, WorkspaceId: "w", ActorMemberId: "o99"})
		}, "nobody asked", false},
		"a change without an event":              {func(r *record) { r.made = r.made[1:] }, "there is no change of it", false},
		"another revision":                       {func(r *record) { of(r, 5).Revision = 12 }, "names another revision", false},
		"a change that was lost, and never made": {func(r *record) { r.made = r.made[:3]; of(r, 9).Outcome = lost; of(r, 8).Revision = 13 }, "", false},
		"a near-cache that is less than S old": {func(r *record) {
			of(r, 10).Decision, of(r, 10).Call = decision{Key: 0, Role: owner}, of(r, 5).Return+staleness.Nanoseconds()-1
		}, "", false},
		"a near-cache that is S old": {func(r *record) {
			of(r, 10).Decision, of(r, 10).Call = decision{Key: 0, Role: owner}, of(r, 5).Return+staleness.Nanoseconds()+1
		}, "gives this answer", false},
		"a near-cache after AwaitRevision": {func(r *record) {
			of(r, 10).Decision, of(r, 10).Call = decision{Key: 0, Role: owner}, of(r, 5).Return+2
			r.awaited = []ack{{of(r, 5).Return + 1, 13}}
		}, "gives this answer", false},
		"two changes in another order than they were made": {func(r *record) {
			r.made[1].ActorMemberId, r.made[2].ActorMemberId = r.made[2].GetActorMemberId(), r.made[1].GetActorMemberId()
		}, "names another revision", false},
		"a creation that is repeated": {func(r *record) { repeated(r, second*7/4) }, "", false},
		"a creation that is repeated after its token was replaced, and is recognized": {func(r *record) { repeated(r, 11*second) }, "gives another answer", true},
		"a creation that is repeated after its token was replaced": {func(r *record) {
			o := repeated(r, 11*second)
			o.Outcome, o.Reason = refused, reasonRequestIDUsed
		}, "", false},
		"a creation that is repeated and not recognized": {func(r *record) {
			o := repeated(r, second*7/4)
			o.Outcome, o.Reason = refused, reasonRequestIDUsed
		}, "no state from", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := story()
			test.spoil(r)
			v := r.judge()
			found := strings.Join(v.broken, "\n")
			if test.want == "" && found != "" || !strings.Contains(found, test.want) {
				t.Errorf("found %q, want %q", found, test.want)
			}
			result := r.histories[0].linearizable(nil)
			if test.want == "" && result != porcupine.Ok || test.illegal && result != porcupine.Illegal {
				t.Errorf("porcupine: %s", result)
			}
		})
	}
}

// porcupine knows no revisions: it finds what the order of the calls alone shows.
func TestOrderOfCallsIsJudgedWithoutRevisions(t *testing.T) {
	r := story()
	r.judge() // finds which changes were made
	late := *r.histories[0].operations[1]
	late.Call, late.Return = 8*second, 9*second // GetKey, of before the revocation
	r.histories[0].operations = append(r.histories[0].operations, &late)
	if result := r.histories[0].linearizable(nil); result != porcupine.Illegal {
		t.Errorf("porcupine: %s", result)
	}
}

func TestWrongFeedIsFound(t *testing.T) {
	change := func(revision int64) *keysvcv1.AuditEvent {
		return &keysvcv1.AuditEvent{Revision: revision, WorkspaceId: "w", KeyId: "k", Hash: []byte{byte(revision)}, Action: keysvcv1.AuditAction_AUDIT_ACTION_KEY_REVOKED}
	}
	event := func(revision int64) *keysvcv1.SyncEvent {
		return &keysvcv1.SyncEvent{
			Revision: revision, WorkspaceId: "w", Subject: "k", AuditHash: []byte{byte(revision)}, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY,
		}
	}
	made := []*keysvcv1.AuditEvent{change(11), change(12), change(14)}
	acknowledged := newFloors(10, []ack{{second, 12}})
	for name, test := range map[string]struct {
		play func(*follower)
		want string
	}{
		"all": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11), event(12), event(14)}, Revision: 14})
		}, ""},
		"a fence more": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11), event(12), event(13), event(14)}})
		}, ""},
		"a gap": {func(f *follower) { f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11), event(14)}}) }, "not the change of 12"},
		"an end that was not reached yet": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11)}, Revision: 11})
		}, ""},
		"an end that was said to be reached": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11)}, Revision: 12})
		}, "not the change of 12"},
		"out of order": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(12), event(11), event(14)}})
		}, "after saying"},
		"another key": {func(f *follower) {
			other := event(12)
			other.Subject = "other"
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11), other, event(14)}})
		}, "sent of 12"},
		"another change": {func(f *follower) {
			other := event(12)
			other.AuditHash = []byte{99}
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11), other, event(14)}})
		}, "another event of 12"},
		"a pong from before": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11)}})
			f.pong(&keysvcv1.SyncPong{Nonce: 1, Revision: 11}, 2*second, true)
		}, "was acknowledged before"},
		"a pong that ran ahead": {func(f *follower) { f.pong(&keysvcv1.SyncPong{Nonce: 1, Revision: 12}, 2*second, true) }, "not the change of 11"},
		"resumed with a gap": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11)}})
			f.welcome(&keysvcv1.SyncWelcome{Revision: 14}, f.segments[0])
		}, "resumes a session at 14"},
		"reset": {func(f *follower) {
			f.events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{event(11)}})
			f.welcome(&keysvcv1.SyncWelcome{Revision: 14, Reset_: true}, f.segments[0])
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := &follower{}
			f.welcome(&keysvcv1.SyncWelcome{Revision: 10}, nil)
			test.play(f)
			found := strings.Join(f.judgeFeed(made, 10, acknowledged), "\n")
			if test.want == "" && found != "" || !strings.Contains(found, test.want) {
				t.Errorf("found %q, want %q", found, test.want)
			}
		})
	}
}

// TestTheCopyHasWhatWasUnderWay: a change that was under way when etcd was copied was in the log of a member there. It is executed
// after the restore, at another revision than before.
func TestTheCopyHasWhatWasUnderWay(t *testing.T) {
	event := func(revision int64, actor, hash string) *keysvcv1.AuditEvent {
		return &keysvcv1.AuditEvent{Revision: revision, WorkspaceId: "w", ActorMemberId: actor, Hash: []byte(hash)}
	}
	for name, test := range map[string]struct {
		returned int64 // when the change was acknowledged; the copy is made from 5 to 6
		made     int
		broken   bool
	}{
		"under way":    {9, 1, false},
		"acknowledged": {4, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			of := func(id int, call, returned int64, to memberSet) *operation {
				return &operation{ID: id, Workspace: "w", Kind: putMember, To: to, Call: call, Return: returned, Outcome: done}
			}
			initial := &state{keys: make([]keyState, 1)}
			first := &phase{record: &record{histories: []*history{{workspace: "w", initial: initial, operations: []*operation{
				of(1, 1, 2, memberSet{Role: manager}), of(2, 3, test.returned, memberSet{Role: plainMember}), of(3, 7, 8, memberSet{}),
			}}}}, copyBegan: 5, copyEnd: 6, all: []*keysvcv1.AuditEvent{event(1, "o1", "a"), event(3, "o3", "b"), event(4, "o2", "c")}}
			second := &phase{
				record: &record{histories: []*history{{workspace: "w"}}},
				all:    []*keysvcv1.AuditEvent{event(1, "o1", "a"), event(3, "o2", "d"), event(4, "o4", "e")},
			}
			seen := &observed{faults: &faults{w: &world{ended: [replicas]bool{true, true, true}}}}
			if err := second.follows(first, seen); err != nil {
				t.Fatal(err)
			}
			if len(second.made) != test.made || (len(seen.broken) > 0) != test.broken {
				t.Errorf("%d changes after the restore, want %d; broken: %q", len(second.made), test.made, seen.broken)
			}
			if got := second.histories[0].initial.members[0].Role; !test.broken && (got != plainMember || second.base != 3) {
				t.Errorf("the second history begins with the role %d at %d", got, second.base)
			}
		})
	}
}
