//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// pingEvery is how often a session of the feed asks for a lease.
const pingEvery = staleness / 3

// follower has sessions of the feed with one replica, one after the other, as a near-cache has.
type follower struct {
	b       *batch
	replica int

	mutex sync.Mutex
	// segments are the parts of the feed that are complete in themselves.
	segments []*segment
	// wrong is what the sessions themselves have found.
	wrong []string
	pongs []pong
	// resumes and resets count how sessions began.
	resumes, resets int
}

// segment is what was sent after a revision, without a reset between.
type segment struct {
	from, covered int64
	events        []*keysvcv1.SyncEvent
	hash          []byte
	hashRevision  int64
	epoch         string
	visible       []byte
}

// pong is the answer to a ping that was sent at a time.
type pong struct{ sent, revision int64 }

// follow holds sessions until the context ends.
func (f *follower) follow(ctx context.Context) {
	for ctx.Err() == nil {
		f.session(ctx)
		rest(ctx, 50*time.Millisecond)
	}
}

func (f *follower) session(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A session that hears nothing is given up, as a near-cache does.
	silence := time.AfterFunc(2*staleness, cancel)
	defer silence.Stop()
	stream, err := f.b.w.plain[f.replica].Sync.Sync(ctx)
	if err != nil {
		return
	}
	hello := &keysvcv1.SyncHello{}
	f.mutex.Lock()
	var last *segment
	if len(f.segments) > 0 {
		last = f.segments[len(f.segments)-1]
		hello = &keysvcv1.SyncHello{Epoch: last.epoch, Revision: last.covered, AuditHash: last.hash, HashRevision: last.hashRevision, VisibleWorkspaces: last.visible}
	}
	f.mutex.Unlock()
	if stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: hello}}) != nil {
		return
	}
	var sending, pinging sync.Mutex // sending guards the stream, pinging what follows
	sent := make(map[uint64]int64)
	var nonce uint64
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	welcomed := false
	send := func(request *keysvcv1.SyncRequest) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(request)
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return
		}
		silence.Reset(2 * staleness)
		switch {
		case message.GetWelcome() != nil:
			f.welcome(message.GetWelcome(), last)
			if !welcomed {
				welcomed = true
				running.Go(func() {
					for ctx.Err() == nil {
						pinging.Lock()
						nonce++
						number := nonce
						sent[number] = f.b.now()
						pinging.Unlock()
						send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: number, Revision: f.covered()}}})
						rest(ctx, pingEvery)
					}
				})
			}
		case message.GetEvents() != nil:
			f.events(message.GetEvents())
			if mark := message.GetEvents().GetMark(); mark != 0 {
				send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{Revision: f.covered()}}})
			}
		case message.GetMark() != nil:
			send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{Revision: f.covered()}}})
		case message.GetPong() != nil:
			pinging.Lock()
			at, known := sent[message.GetPong().GetNonce()]
			pinging.Unlock()
			f.pong(message.GetPong(), at, known)
		case message.GetReset_() != nil:
			reset := message.GetReset_()
			f.mutex.Lock()
			f.resets++
			now := f.segments[len(f.segments)-1]
			f.segments = append(f.segments, &segment{
				from: reset.GetRevision(), covered: reset.GetRevision(), hash: reset.GetAuditHash(), hashRevision: reset.GetHashRevision(),
				epoch: now.epoch, visible: reset.GetVisibleWorkspaces(),
			})
			f.mutex.Unlock()
		case message.GetGoodbye() != nil:
			return
		}
	}
}

// covered returns the revision up to which everything was sent.
func (f *follower) covered() int64 {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if len(f.segments) == 0 {
		return 0
	}
	return f.segments[len(f.segments)-1].covered
}

func (f *follower) welcome(said *keysvcv1.SyncWelcome, last *segment) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	next := &segment{
		from: said.GetRevision(), covered: said.GetRevision(), hash: said.GetAuditHash(), hashRevision: said.GetHashRevision(),
		epoch: said.GetEpoch(), visible: said.GetVisibleWorkspaces(),
	}
	if last != nil && !said.GetReset_() && said.GetEpoch() == last.epoch {
		f.resumes++
		if said.GetRevision() > last.covered {
			f.wrong = append(f.wrong, fmt.Sprintf("r%d resumes a session at %d that had everything up to %d alone", f.replica, said.GetRevision(), last.covered))
		}
	} else if last != nil {
		f.resets++
	}
	f.segments = append(f.segments, next)
}

func (f *follower) events(said *keysvcv1.SyncEvents) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	now := f.segments[len(f.segments)-1]
	for _, event := range said.GetEvents() {
		if event.GetRevision() <= now.covered {
			f.wrong = append(f.wrong, fmt.Sprintf("r%d sends the event of %d after saying that everything up to %d was sent", f.replica, event.GetRevision(), now.covered))
		}
		now.events = append(now.events, event)
		now.covered = max(now.covered, event.GetRevision())
		now.hash, now.hashRevision = event.GetAuditHash(), event.GetRevision()
	}
	now.covered = max(now.covered, said.GetRevision())
}

func (f *follower) pong(said *keysvcv1.SyncPong, at int64, known bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if !known {
		f.wrong = append(f.wrong, fmt.Sprintf("r%d answers a ping that was not sent", f.replica))
		return
	}
	now := f.segments[len(f.segments)-1]
	now.covered = max(now.covered, said.GetRevision())
	f.pongs = append(f.pongs, pong{at, said.GetRevision()})
}

// caughtUp waits until everything up to a revision was sent.
func (f *follower) caughtUp(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for f.covered() < revision {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: r%d sends the feed up to %d, and the newest change is %d", errBroken, f.replica, f.covered(), revision)
		}
		rest(ctx, 10*time.Millisecond)
	}
	return nil
}

// judgeFeed compares what was sent with the changes that were made, all after base, and with what was acknowledged.
func (f *follower) judgeFeed(made []*keysvcv1.AuditEvent, base int64, acknowledged *floors) []string {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	wrong := slices.Clone(f.wrong)
	for _, part := range f.segments {
		sent := make(map[int64]*keysvcv1.SyncEvent)
		for _, event := range part.events {
			sent[event.GetRevision()] = event
		}
		for _, change := range made {
			revision := change.GetRevision()
			if revision <= part.from || revision <= base || revision > part.covered {
				continue
			}
			event := sent[revision]
			switch {
			case event == nil:
				wrong = append(wrong, fmt.Sprintf("r%d sent everything from %d to %d, it says, but not the change of %d (%v)", f.replica, part.from, part.covered, revision, change.GetAction()))
			case event.GetWorkspaceId() != change.GetWorkspaceId() || string(event.GetAuditHash()) != string(change.GetHash()):
				wrong = append(wrong, fmt.Sprintf("r%d sent another event of %d than what was made", f.replica, revision))
			case !concerns(event, change):
				wrong = append(wrong, fmt.Sprintf("r%d sent of %d that %v %q has changed, and it was %v of %q%q", f.replica, revision, event.GetKind(), event.GetSubject(), change.GetAction(), change.GetKeyId(), change.GetMemberId()))
			}
		}
	}
	for _, each := range f.pongs {
		if newest := acknowledged.at(each.sent); each.revision < newest {
			wrong = append(wrong, fmt.Sprintf("r%d answered a ping of %.3f s with %d, and %d was acknowledged before", f.replica, float64(each.sent)/1e9, each.revision, newest))
		}
	}
	return wrong
}

// concerns reports whether an event drops what a change concerns.
func concerns(event *keysvcv1.SyncEvent, change *keysvcv1.AuditEvent) bool {
	switch event.GetKind() {
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY:
		return event.GetSubject() == change.GetKeyId() && change.GetKeyId() != ""
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER:
		return event.GetSubject() == change.GetMemberId() && change.GetAction() == keysvcv1.AuditAction_AUDIT_ACTION_MEMBER_PUT
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE:
		return false
	case keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE:
		return change.GetWorkspaceId() != ""
	default:
		return true
	}
}
