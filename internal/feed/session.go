package feed

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/lease"
)

const (
	// maxBatch is how many changes are looked at for one message, and maxShared how many
	// there are in one that sessions share.
	maxBatch  = 512
	maxShared = 16
	// pingsPerLease is how many messages a client may send in S, and burst how many of
	// them may come at once, as they do after a stall of the network.
	pingsPerLease = 20
	burst         = 100
)

// Session is one client's index in the feed. Its methods may be called from many
// goroutines; the messages of Next go to the client in the order in which Next gave them.
type Session struct {
	hub     *Hub
	visible func(workspaceID string) bool
	holder  *lease.Holder
	ends    time.Time
	// ahead says that the client had applied what the store does not have.
	ahead bool
	// wake has room for one: more need not be known than that there is something.
	wake chan struct{}

	// What follows is guarded by the hub's mutex.

	// first is the Welcome, until it has been handed out.
	first *keysvcv1.SyncResponse
	// next is the index of the next change to hand out, and sent the revision up to which
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
		hub: hub, visible: visible, holder: hub.leases.Enter(), ends: now.Add(age), wake: make(chan struct{}, 1),
		allowance: burst, counted: now,
	}
}

// welcome begins the session where the client was, or at the newest revision. The hub is
// locked.
func (s *Session) welcome(index int64, resumed bool, hello *keysvcv1.SyncHello) {
	welcome := &keysvcv1.SyncWelcome{Epoch: s.hub.config.Epoch, Staleness: durationpb.New(s.hub.config.Staleness)}
	if resumed {
		s.next, s.sent = index, hello.GetRevision()
		welcome.AuditHash, welcome.HashRevision = hello.GetAuditHash(), hello.GetHashRevision()
	} else {
		s.next, s.sent = s.hub.ring.end, s.hub.revision
		welcome.Reset_ = true
		welcome.AuditHash, welcome.HashRevision = s.hub.newest()
	}
	welcome.Revision = s.sent
	s.first = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: welcome}}
}

// Ahead reports whether the client's hello was ahead of the store: of this epoch, and with a
// revision beyond the newest one that was published.
func (s *Session) Ahead() bool { return s.ahead }

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
	s.Wake()
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
	// Response is to be sent; nil if there is nothing to send now. Other sessions may be
	// given the same one, so it must not be changed.
	Response *keysvcv1.SyncResponse
	// Last says that nothing follows: Response is Goodbye, or was before.
	Last bool
	// Wait is set if there is nothing to send after Response. It yields when there may be
	// something again; ask then, and after Within at the latest.
	Wait   <-chan struct{}
	Within time.Duration
}

// Next hands out what to send next. It does not block.
func (s *Session) Next() Step {
	step, own := s.take()
	if own != nil {
		step.Response = own.message()
	}
	return step
}

// Wake lets who waits for something to send ask again.
func (s *Session) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take is Next with the hub locked; what is only this session's is made into a message
// after that.
func (s *Session) take() (step Step, own *batch) {
	h := s.hub
	h.mutex.Lock()
	defer h.mutex.Unlock()
	left := s.ends.Sub(h.config.Now())
	switch {
	case s.closed, s.over:
		return Step{Last: true}, nil
	case h.stopping, left <= 0:
		s.over = true
		return Step{Response: goodbye, Last: true}, nil
	case s.first != nil:
		step.Response, s.first = s.first, nil
	case s.next < h.ring.start:
		step.Response = s.reset()
	// What waits only for what was handed out does not wait for more: changes may come in
	// without end.
	case s.unmarked():
		step.Response = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Mark{Mark: &keysvcv1.SyncMark{Revision: s.mark()}}}
	case s.unanswered():
		step.Response = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Pong{
			Pong: &keysvcv1.SyncPong{Nonce: s.nonce, Revision: s.barrier},
		}}
		s.nonce = 0
	case s.next < h.ring.end:
		step.Response, own = s.changes()
	}
	if s.next == h.ring.end && !s.unmarked() && !s.unanswered() {
		step.Wait, step.Within = s.wake, left
	}
	return step, own
}

// goodbye is the last message of every session.
var goodbye = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Goodbye{Goodbye: &keysvcv1.SyncGoodbye{}}}

// unanswered says whether a ping is to be answered now (S2). The hub is locked.
func (s *Session) unanswered() bool { return s.nonce != 0 && s.sent >= s.barrier }

// unmarked says whether somebody awaits what was handed out, and the client has not been
// told. The hub is locked.
func (s *Session) unmarked() bool {
	return s.awaited > max(s.marked, s.applied) && s.sent >= s.awaited
}

// mark returns the revision that the client is to be told of; 0 if there is none. The hub
// is locked.
func (s *Session) mark() int64 {
	if !s.unmarked() {
		return 0
	}
	s.marked = s.awaited
	s.allowance = min(burst, s.allowance+1) // it is asked to answer
	return s.marked
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

// batch is some changes, complete up to a revision, and the mark that goes with them.
type batch struct {
	events         []event
	revision, mark int64
}

// changes takes the next ones: as the message that all sessions at this index share, or as
// a batch that is made into a message with the hub unlocked. The hub is locked.
func (s *Session) changes() (common *keysvcv1.SyncResponse, own *batch) {
	h := s.hub
	begin, end := s.next, min(h.ring.end, s.next+maxBatch)
	s.next, s.sent = end, h.ring.at(end-1).revision
	taken := batch{revision: s.sent, mark: s.mark()}
	common = h.shared.message
	small := s.visible == nil && end-begin <= maxShared
	if small && common != nil && h.shared.begin == begin && h.shared.end == end && common.GetEvents().GetMark() == taken.mark {
		return common, nil
	}
	taken.events = make([]event, 0, end-begin)
	for index := begin; index < end; index++ {
		if change := h.ring.at(index); s.visible == nil || s.visible(change.workspaceID) {
			taken.events = append(taken.events, *change)
		}
	}
	if !small {
		return nil, &taken
	}
	h.shared = shared{message: taken.message(), begin: begin, end: end}
	return h.shared.message, nil
}

func (b *batch) message() *keysvcv1.SyncResponse {
	events := &keysvcv1.SyncEvents{Revision: b.revision, Mark: b.mark, Events: make([]*keysvcv1.SyncEvent, len(b.events))}
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
	s.Wake()
}
