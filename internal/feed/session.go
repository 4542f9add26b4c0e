package feed

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/lease"
)

const (
	// maxBatch is how many changes one message is made from. maxShared is how many changes a
	// message may have that sessions share.
	maxBatch  = 512
	maxShared = 16
	// pingsPerLease is how many messages a client may send in S. burst is how many of them may
	// come at once, as they do after the network has stalled.
	pingsPerLease = 20
	burst         = 100
)

// Session is one client's index into the ring of a Hub. Its methods may be called from many
// goroutines. The messages that Next returns are sent in the order in which Next returned them.
type Session struct {
	hub    *Hub
	holder *lease.Holder
	ends   time.Time
	// staleness is the S that the client was welcomed with, more than 0.
	staleness time.Duration
	// number counts the sessions of the hub.
	number int64
	// silence is how long the client may be silent.
	silence time.Duration
	// ahead is set if the client had applied a revision that the store does not have.
	ahead bool
	// wake has room for one value, which stands for any number of reasons to call Next.
	wake chan struct{}

	// The fields below are guarded by the hub's mutex.

	// visible are the workspaces that the client may hear of. unlike is set while they differ from
	// those that the client was told last: the next message is then Reset (S7).
	visible access.Workspaces
	unlike  bool
	// first is the Welcome; nil once Next has returned it.
	first *keysvcv1.SyncResponse
	// next is the index of the next change to send. sent is the revision up to which every
	// change was sent.
	next int64
	sent int64
	// heardAt is when the newest message of the client came.
	heardAt time.Time
	// leasedAt is when the newest ping came; zero before the first.
	leasedAt time.Time
	// applied is the revision up to which the client said that it has applied every change.
	applied int64
	// awaited is the newest revision that an Await waits for. marked is the newest revision
	// that the client was sent a mark for.
	awaited, marked int64
	// nonce is that of the newest ping; 0 once the ping was answered. barrier is the revision
	// of that answer.
	nonce   uint64
	barrier int64
	// allowance is how many messages the client could send at the time counted.
	allowance float64
	counted   time.Time
	over      bool // Goodbye was sent
	closed    bool
}

func newSession(hub *Hub, visible access.Workspaces) *Session {
	now := hub.config.Now()
	jitter := 0.9 + 0.2*hub.config.Random()
	age, silence := time.Duration(float64(hub.config.MaxAge)*jitter), time.Duration(float64(hub.config.MaxSilence)*jitter)
	return &Session{
		hub: hub, staleness: hub.staleness, visible: visible, holder: hub.leases.Enter(), ends: now.Add(age), silence: silence, heardAt: now, wake: make(chan struct{}, 1),
		allowance: burst, counted: now,
	}
}

// welcome begins the session at the client's revision if it resumes, and at the newest revision
// otherwise. The hub is locked.
func (s *Session) welcome(index int64, resumed bool, hello *keysvcv1.SyncHello) {
	welcome := &keysvcv1.SyncWelcome{Epoch: s.hub.config.Epoch, Staleness: durationpb.New(s.staleness)}
	if resumed {
		s.next, s.sent = index, hello.GetRevision()
		welcome.AuditHash, welcome.HashRevision = hello.GetAuditHash(), hello.GetHashRevision()
	} else {
		s.next, s.sent = s.hub.ring.end, s.hub.revision
		welcome.Reset_ = true
		welcome.AuditHash, welcome.HashRevision = s.hub.newest()
	}
	welcome.Revision, welcome.VisibleWorkspaces = s.sent, s.visible.Fingerprint()
	s.first = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: welcome}}
}

// Ahead reports whether the client's hello was ahead of the store: of this epoch, and with a
// revision beyond the newest published one.
func (s *Session) Ahead() bool { return s.ahead }

// spend takes one message off the client's allowance. Error: ErrTooFast. The hub is locked.
func (s *Session) spend(now time.Time) error {
	if passed := now.Sub(s.counted); passed > 0 {
		s.allowance = min(burst, s.allowance+pingsPerLease*float64(passed)/float64(s.staleness))
		s.counted = now
	}
	if s.allowance < 1 {
		return ErrTooFast
	}
	s.allowance--
	return nil
}

// heard notes what the client has applied. Errors: ErrClosed, ErrTooFast, ErrBeyond. The hub is
// locked.
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
	if now.After(s.heardAt) {
		s.heardAt = now
	}
	s.applied = max(s.applied, revision)
	s.holder.Applied(revision)
	return nil
}

// Ping notes that the client asks for a lease and has applied every change up to a revision.
// arrived is a reading of the clock from after the ping has arrived. nonce is not 0. The Pong
// follows once every change up to the present newest revision was sent. Only the newest ping
// gets a Pong (S2, S3). If S has changed, no Pong follows (R9). Errors: ErrBeyond, ErrTooFast, ErrClosed.
func (s *Session) Ping(nonce uint64, revision int64, arrived time.Time) error {
	s.hub.mutex.Lock()
	defer s.hub.mutex.Unlock()
	if err := s.heard(revision, arrived); err != nil {
		return err
	}
	if s.outdated() {
		s.Wake()
		return nil
	}
	s.nonce, s.barrier = nonce, s.hub.revision
	s.leasedAt = arrived
	s.holder.Extend(arrived)
	s.Wake()
	return nil
}

// Applied notes that the client has applied every change up to a revision. Errors: ErrBeyond,
// ErrTooFast, ErrClosed.
func (s *Session) Applied(revision int64) error {
	s.hub.mutex.Lock()
	defer s.hub.mutex.Unlock()
	return s.heard(revision, s.hub.config.Now())
}

// See changes the workspaces that the client may hear of. If they differ from those before, the
// client is reset before it is sent anything else (S7): it may hold entries of workspaces whose
// changes it hears of no longer, and it does not know changes of workspaces that are new to it.
func (s *Session) See(visible access.Workspaces) {
	s.hub.mutex.Lock()
	defer s.hub.mutex.Unlock()
	if s.visible.Equal(visible) {
		return
	}
	// Once set, unlike stays set until the reset is sent, even if the workspaces change back: what
	// the client is sent after this moment is no longer complete for either set.
	s.visible, s.unlike = visible, true
	s.Wake()
}

// sees reports whether somebody who may hear of some workspaces hears of a change of a workspace.
// The policy's changes have the empty workspaceID, and concern everybody.
func sees(visible access.Workspaces, workspaceID string) bool {
	return workspaceID == "" || visible.Has(workspaceID)
}

// Step is what the caller does next for a session.
type Step struct {
	// Response is the message to send; nil if there is nothing to send now. Several sessions may
	// get the same message, so it must not be changed.
	Response *keysvcv1.SyncResponse
	// Last reports whether nothing follows: Response is Goodbye, or Goodbye was sent before.
	Last bool
	// Wait is set if nothing follows Response for now. Call Next again when Wait yields a value,
	// or after Within if that is earlier. Within is the time until the session's age ends.
	Wait   <-chan struct{}
	Within time.Duration
}

// Next returns what to do next. It does not block.
func (s *Session) Next() Step {
	step, own := s.take()
	if own != nil {
		step.Response = own.message()
	}
	return step
}

// Wake makes the sender call Next again.
func (s *Session) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take is Next with the hub locked. If only this session sends the next message, take returns its
// changes as own, so that the message is made with the hub unlocked.
func (s *Session) take() (step Step, own *batch) {
	h := s.hub
	h.mutex.Lock()
	defer h.mutex.Unlock()
	now, before := h.config.Now(), s.sent
	defer func() {
		if s.sent > before {
			h.arrived(s, before)
		}
	}()
	left := min(s.ends.Sub(now), s.heardAt.Add(s.silence).Sub(now))
	switch {
	case s.closed, s.over:
		return Step{Last: true}, nil
	case h.stopping, left <= 0, s.outdated():
		s.over = true
		return Step{Response: goodbye, Last: true}, nil
	case s.first != nil:
		step.Response, s.first = s.first, nil
	case s.unlike, s.next < h.ring.start:
		step.Response = s.reset()
	// A mark or a pong does not wait for changes after its revision: they may come without end.
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
	if s.next == h.ring.end && !s.unlike && !s.unmarked() && !s.unanswered() {
		step.Wait, step.Within = s.wake, left
	}
	return step, own
}

// outdated reports whether the client was welcomed with an S that is not the present one. It gets no more
// leases: other processes no longer wait for leases of that length (R9). The hub is locked.
func (s *Session) outdated() bool { return s.staleness != s.hub.staleness }

// goodbye is the last message of every session.
var goodbye = &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Goodbye{Goodbye: &keysvcv1.SyncGoodbye{}}}

// unanswered reports whether the ping can be answered now, because every change up to its
// barrier was sent (S2). The hub is locked.
func (s *Session) unanswered() bool { return s.nonce != 0 && s.sent >= s.barrier }

// unmarked reports whether an awaited revision was sent, and the client neither got a mark for
// it nor applied it. The hub is locked.
func (s *Session) unmarked() bool {
	return s.awaited > max(s.marked, s.applied) && s.sent >= s.awaited
}

// mark notes that the client is sent a mark, and returns the mark's revision. If no mark is due, it
// returns 0 and changes nothing. The hub is locked.
func (s *Session) mark() int64 {
	if !s.unmarked() {
		return 0
	}
	s.marked = s.awaited
	s.allowance = min(burst, s.allowance+1) // for the Applied that the mark asks for
	return s.marked
}

// reset moves the session to the newest revision, and tells the client what it sees from there. The hub is locked.
func (s *Session) reset() *keysvcv1.SyncResponse {
	h := s.hub
	s.next, s.sent, s.unlike = h.ring.end, h.revision, false
	reset := &keysvcv1.SyncReset{Revision: s.sent, VisibleWorkspaces: s.visible.Fingerprint()}
	reset.AuditHash, reset.HashRevision = h.newest()
	h.config.Observer.SessionReset()
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Reset_{Reset_: reset}}
}

// batch is a number of changes, complete up to a revision, and the mark that goes with them.
type batch struct {
	events         []event
	revision, mark int64
}

// changes takes the next changes. It returns the message that all sessions at this index share,
// or a batch that is made into a message with the hub unlocked. The hub is locked.
func (s *Session) changes() (common *keysvcv1.SyncResponse, own *batch) {
	h := s.hub
	begin, end := s.next, min(h.ring.end, s.next+maxBatch)
	s.next, s.sent = end, h.ring.at(end-1).revision
	taken := batch{revision: s.sent, mark: s.mark()}
	common = h.shared.message
	small := s.visible.IsAll() && end-begin <= maxShared
	if small && common != nil && h.shared.begin == begin && h.shared.end == end && common.GetEvents().GetMark() == taken.mark {
		return common, nil
	}
	taken.events = make([]event, 0, end-begin)
	for index := begin; index < end; index++ {
		if change := h.ring.at(index); sees(s.visible, change.workspaceID()) {
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

// Close ends the session. gaveUp reports whether the client closed its half of the stream, and
// so gave up its lease. A client that did not give up may go on answering until its lease ends,
// and Await waits for that (S3). Closing again does nothing.
func (s *Session) Close(gaveUp bool) {
	h := s.hub
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	delete(h.sessions, s)
	h.arrived(s, s.sent)
	if gaveUp {
		s.holder.GiveUp()
	} else {
		s.holder.Leave(h.config.Now())
	}
	h.config.Observer.SessionEnded(gaveUp)
	s.Wake()
}
