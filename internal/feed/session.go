package feed

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/lease"
)

const (
	// maxBatch is how many changes are looked at for one message.
	maxBatch = 512
	// pingsPerLease is how many messages a client may send in S, and burst how many of
	// them may come at once, as they do after a stall of the network.
	pingsPerLease = 20
	burst         = 100
)

// Session is one client's place in the feed. Its methods may be called from many
// goroutines; the messages of Next go to the client in the order in which Next gave them.
type Session struct {
	hub     *Hub
	visible func(workspaceID string) bool
	holder  *lease.Holder
	ends    time.Time
	// wake has room for one: more need not be known than that there is something.
	wake chan struct{}

	// What follows is guarded by the hub's mutex.

	// first is the Welcome, until it has been handed out.
	first *keysvcv1.SyncResponse
	// next is the place of the next change to hand out, and sent the revision up to which
	// everything was.
	next int64
	sent int64
	// applied is the revision up to which the client said it has applied everything.
	applied int64
	// awaited is the newest revision that somebody waits for, and marked the newest that
	// the client was told of.
	awaited, marked int64
	// nonce is the newest ping's, 0 if it was answered, and barrier its revision.
	nonce   uint64
	barrier int64
	// allowance is how many messages the client may send now, as of counted.
	allowance float64
	counted   time.Time
	over      bool // Goodbye was handed out
	closed    bool
}

func newSession(hub *Hub, visible func(string) bool) *Session {
	now := hub.config.Now()
	age := time.Duration(float64(hub.config.MaxAge) * (0.9 + 0.2*hub.config.Random()))
	return &Session{
		hub: hub, visible: visible, holder: hub.ledger.Enter(), ends: now.Add(age), wake: make(chan struct{}, 1),
		allowance: burst, counted: now,
	}
}

// welcome begins the session where the client was, or at the newest revision. The hub is
// locked.
func (s *Session) welcome(place int64, resumed bool, hello *keysvcv1.SyncHello) {
	welcome := &keysvcv1.SyncWelcome{Epoch: s.hub.config.Epoch, Staleness: durationpb.New(s.hub.config.Staleness)}
	if resumed {
		s.next, s.sent = place, hello.GetRevision()
		welcome.AuditHash, welcome.HashRevision = hello.GetAuditHash(), hello.GetHashRevision()
	} else {
		s.next, s.sent = s.hub.ring.end, s.hub.revision
		welcome.Reset_ = true
		welcome.AuditHash, welcome.HashRevision = s.hub.newest()
	}
	welcome.Revision = s.sent
	s.first = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: welcome}}
}

func (s *Session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// spend counts a message of the client. The hub is locked.
func (s *Session) spend(now time.Time) error {
	if passed := now.Sub(s.counted); passed > 0 {
		s.allowance = min(burst, s.allowance+pingsPerLease*float64(passed)/float64(s.hub.config.Staleness))
		s.counted = now
	}
	if s.allowance < 1 {
		return ErrTooFast
	}
	s.allowance--
	return nil
}

// heard notes what the client has applied. The hub is locked.
func (s *Session) heard(revision int64, now time.Time) error {
	if s.closed {
		return ErrClosed
	}
	if err := s.spend(now); err != nil {
		return err
	}
	if revision > s.sent {
		return ErrBeyond
	}
	s.applied = max(s.applied, revision)
	s.holder.Applied(revision)
	return nil
}

// Ping notes that the client asks for a lease and has applied everything up to a
// revision. arrived was read after the ping had come, and before this call. Its nonce is
// not 0. It will be answered once everything up to the newest revision of now has been
// handed out; only the newest ping is (S2, S3). Errors: ErrBeyond, ErrTooFast, ErrClosed.
func (s *Session) Ping(nonce uint64, revision int64, arrived time.Time) error {
	s.hub.mutex.Lock()
	defer s.hub.mutex.Unlock()
	if err := s.heard(revision, arrived); err != nil {
		return err
	}
	s.nonce, s.barrier = nonce, s.hub.revision
	s.holder.Extend(arrived)
	s.wakeUp()
	return nil
}

// Applied notes that the client has applied everything up to a revision. Errors:
// ErrBeyond, ErrTooFast, ErrClosed.
func (s *Session) Applied(revision int64) error {
	s.hub.mutex.Lock()
	defer s.hub.mutex.Unlock()
	return s.heard(revision, s.hub.config.Now())
}

// Step is what a session has to do next.
type Step struct {
	// Response is to be sent; nil if there is nothing to send now.
	Response *keysvcv1.SyncResponse
	// Last says that nothing follows: Response is Goodbye, or was before.
	Last bool
	// Wait yields when there may be something to send; ask again then, and after Within
	// at the latest. Set if there is nothing to send.
	Wait   <-chan struct{}
	Within time.Duration
}

// Next hands out what to send next. It does not block.
func (s *Session) Next() Step {
	response, batch, last := s.take()
	switch {
	case last:
		return Step{Response: response, Last: true}
	case batch != nil:
		return Step{Response: batch.message()}
	case response != nil:
		return Step{Response: response}
	}
	return Step{Wait: s.wake, Within: s.ends.Sub(s.hub.config.Now())}
}

// take is Next with the hub locked; a batch is made into a message after that.
func (s *Session) take() (response *keysvcv1.SyncResponse, changes *batch, last bool) {
	h := s.hub
	h.mutex.Lock()
	defer h.mutex.Unlock()
	switch {
	case s.closed, s.over:
		return nil, nil, true
	case h.stopping, !h.config.Now().Before(s.ends):
		s.over = true
		return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Goodbye{Goodbye: &keysvcv1.SyncGoodbye{}}}, nil, true
	case s.first != nil:
		response, s.first = s.first, nil
	case s.next < h.ring.start:
		response = s.reset()
	// What waits only for what was handed out does not wait for more: changes may come in
	// without end.
	case s.awaited > max(s.marked, s.applied) && s.sent >= s.awaited:
		s.marked = s.awaited
		s.allowance = min(burst, s.allowance+1) // it is asked to answer
		response = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Mark{Mark: &keysvcv1.SyncMark{Revision: s.marked}}}
	case s.nonce != 0 && s.sent >= s.barrier:
		response = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Pong{
			Pong: &keysvcv1.SyncPong{Nonce: s.nonce, Revision: s.barrier},
		}}
		s.nonce = 0
	case s.next < h.ring.end:
		changes = s.changes()
	}
	return response, changes, false
}

// reset takes the session to the newest revision. The hub is locked.
func (s *Session) reset() *keysvcv1.SyncResponse {
	h := s.hub
	s.next, s.sent = h.ring.end, h.revision
	reset := &keysvcv1.SyncReset{Revision: s.sent}
	reset.AuditHash, reset.HashRevision = h.newest()
	h.config.Observer.SessionReset()
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Reset_{Reset_: reset}}
}

// batch is some changes, complete up to a revision.
type batch struct {
	events   []event
	revision int64
}

// changes takes the next ones. The hub is locked.
func (s *Session) changes() *batch {
	h := s.hub
	end := min(h.ring.end, s.next+maxBatch)
	taken := &batch{events: make([]event, 0, end-s.next)}
	for ; s.next < end; s.next++ {
		change := h.ring.at(s.next)
		taken.revision = change.revision
		if s.visible == nil || s.visible(change.workspaceID) {
			taken.events = append(taken.events, *change)
		}
	}
	s.sent = taken.revision
	return taken
}

func (b *batch) message() *keysvcv1.SyncResponse {
	events := &keysvcv1.SyncEvents{Revision: b.revision, Events: make([]*keysvcv1.SyncEvent, len(b.events))}
	for index, each := range b.events {
		events.Events[index] = each.message()
	}
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Events{Events: events}}
}

// Close ends the session. gaveUp says that the client has given its lease up, by closing
// its half of the stream; otherwise it may go on answering until the lease is over, and
// is waited for (S3). Closing again does nothing.
func (s *Session) Close(gaveUp bool) {
	h := s.hub
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	delete(h.sessions, s)
	if gaveUp {
		s.holder.GiveUp()
	} else {
		s.holder.Leave(h.config.Now())
	}
	h.config.Observer.SessionEnded(gaveUp)
	s.wakeUp()
}
