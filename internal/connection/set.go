package connection

import (
	"container/list"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Config configures a Set.
type Config struct {
	// Judge decides who a peer is. Required. It is called while the set's lock is held, so it must
	// answer from memory, and must not call the Set.
	Judge callers.Judge
	// MaxConnections is the max. number of connections. Required.
	MaxConnections int
	// MaxPerSource is the max. number of connections of one address, of one /64 network of IPv6,
	// or of one user on unix sockets. It must be 0, which means no bound, if addresses are those
	// of a proxy.
	MaxPerSource int
	// MaxStreams and MaxHeaderBytes are what gRPC allows on a connection. Required.
	MaxStreams, MaxHeaderBytes int
	// MaxFailed is how many streams of all connections may have failed lately before a connection that
	// has more than its share of them is read more slowly; half of it is forgotten each second. 0
	// means no bound, for streams that wait for an answer neither.
	MaxFailed int
	// Silence is the longest time that a client may leave unconfirmed what was sent to it.
	// Required.
	Silence time.Duration
	// Now is the wall clock, by which credentials end. Required.
	Now func() time.Time
	// Elapsed returns the time that has passed since some moment. It never goes back. Required.
	Elapsed func() time.Duration
	// Closed is called for connections that the server refuses or ends by itself: at once for
	// the first for a reason, then once a second. It must return at once, and must not call
	// the Set.
	Closed func(Closed)
}

const (
	// sweepInterval is the time between two sweeps.
	sweepInterval = time.Second
	// ownersReserve is how many connections the user of this process may have on unix sockets
	// beside MaxConnections: it must get in while others fill the server.
	ownersReserve = 64
	// youngShare is the part of MaxConnections that may be young: a quarter. A connection is young
	// until its client has sent SETTINGS.
	youngShare = 4
	minYoung   = 64
	// youngPatience is the age from which a young connection is closed to make room for another.
	youngPatience = time.Second
	// refillTime is the time in which as many connections may begin as may be open.
	refillTime = 10 * time.Second
	// maxSources bounds the number of sources that are remembered.
	maxSources = 1 << 16
	// drainLead is how long before the end of its credential a connection is drained; at most
	// half of what was left of the credential's life at the handshake.
	drainLead = time.Minute
)

// Set has the live connections of a process.
type Set struct {
	config Config
	owner  uint32
	// swept is the number of sweeps.
	swept atomic.Int64
	// streams is the number of open streams of all connections.
	streams atomic.Int64
	pace    *pace
	// handshakes are the turns of those that compute.
	handshakes *turns

	mu    sync.Mutex
	conns map[*Conn]struct{}
	// young are the connections whose client has not sent SETTINGS yet, the oldest first.
	young *list.List
	// begun counts connections, and sources those of each source.
	begun   bucket
	sources map[source]*sourceState

	reports reports
}

// sourceState is what a Set knows of a source.
type sourceState struct {
	// open is how many connections the source has, and young how many of them are young.
	open, young int
	// begun counts connections against the rate of the source, and part against its part of the rate of
	// all.
	begun, part bucket
}

// New returns a Set without connections.
func New(config Config) *Set {
	return &Set{
		config: config, owner: uint32(os.Geteuid()), //nolint:gosec // a user id has 32 bits; -1 is nobody's
		conns: make(map[*Conn]struct{}), young: list.New(), sources: make(map[source]*sourceState),
		reports: newReports(config.Closed), pace: newPace(config.MaxFailed), handshakes: newTurns(),
	}
}

// Listen returns a listener whose Accept returns only connections that the Set lets in.
func (s *Set) Listen(inner net.Listener, listener *Listener) net.Listener {
	return &admission{Listener: inner, set: s, listener: listener}
}

// admission is a net.Listener of a Set.
type admission struct {
	net.Listener
	set      *Set
	listener *Listener
}

// Accept implements net.Listener. It closes connections that are too many.
func (a *admission) Accept() (net.Conn, error) {
	for {
		raw, err := a.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := a.set.begin(raw, a.listener); c != nil {
			return c, nil
		}
	}
}

// begin lets a connection in; nil if it was refused, and closed.
func (s *Set) begin(raw net.Conn, listener *Listener) *Conn {
	peer, from, err := listener.peerOf(raw)
	if err != nil {
		s.refuse(raw, from, ClosedUnknown, err.Error())
		return nil
	}
	now := s.config.Elapsed()
	c := &Conn{
		set: s, listener: listener, source: from, raw: raw, peer: peer, accepted: now,
		guard: newGuard(s.config.Elapsed, s.config.MaxStreams, s.config.MaxHeaderBytes), wakes: make(chan struct{}, 1),
	}
	c.guard.total, c.guard.pace = &s.streams, s.pace
	reason, ends := s.add(c, now)
	for _, each := range ends {
		each.c.End(each.reason, "room was needed for another one")
	}
	if reason != "" {
		s.refuse(raw, from, reason, "")
		return nil
	}
	boundSilence(raw, s.config.Silence)
	return c
}

// ending is a connection that must be ended to make room, and why.
type ending struct {
	c      *Conn
	reason Reason
}

// add adds a connection, if there is room for it; otherwise reason says why not. ends must be ended to
// make room.
func (s *Set) add(c *Conn, now time.Duration) (reason Reason, ends []ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	isOwner := s.isOwner(c)
	most := s.config.MaxConnections
	if isOwner {
		most += ownersReserve
	}
	state := s.sourceOf(c.source)
	// 1. What the source may have, and how fast.
	if state != nil && !isOwner {
		if s.config.MaxPerSource > 0 && state.open >= s.config.MaxPerSource {
			return ClosedSourceFull, nil
		}
		if !state.begun.take(rateOf(s.config.MaxPerSource), now, 1) {
			state.begun.give(1)
			return ClosedSourceFast, nil
		}
	}
	if !isOwner && !s.mayBegin(state, now) {
		return ClosedFast, nil
	}
	// 2. Room among all, and among the young. A source that has more than the newcomer's makes room.
	if len(s.conns) >= most {
		largest := s.ofLargestSource(state)
		if largest == nil {
			return ClosedFull, nil
		}
		ends = append(ends, ending{largest, ClosedFull})
	}
	if s.young.Len() >= max(minYoung, s.config.MaxConnections/youngShare) {
		oldest := s.youngToEnd(state, now)
		if oldest == nil {
			return ClosedFast, nil
		}
		s.grown(oldest)
		ends = append(ends, ending{oldest, ClosedSlow})
	}
	// 3. The connection is in.
	if c.state = state; state != nil {
		state.open++
		state.young++
	}
	c.young = s.young.PushBack(c)
	s.conns[c] = struct{}{}
	s.pace.connections.Add(1)
	return "", ends
}

// isOwner reports whether the user of this process is at the other end of a unix socket.
func (s *Set) isOwner(c *Conn) bool { return c.source.unix && c.source.userID == s.owner }

// mayBegin counts a new connection of a source. A source may have as much of the rate of all as is left
// besides: so some sources that connect as fast as they can leave something to others. s.mu must be held.
func (s *Set) mayBegin(state *sourceState, now time.Duration) bool {
	rate := rateOf(s.config.MaxConnections)
	may := s.begun.take(rate, now, 1)
	if state == nil {
		if !may {
			s.begun.give(1)
		}
		return may
	}
	state.part.take(s.partOf(rate), now, 1)
	if may && state.part.spent <= rate.burst*times-s.begun.spent {
		return true
	}
	s.begun.give(1)
	state.begun.give(1)
	state.part.give(1)
	return false
}

// partOf returns the part of a source of the rate of all. All parts come back as fast as the whole does. If
// they came back faster, each source would seem to have had little, and the fastest would get what is left.
// s.mu must be held.
func (s *Set) partOf(rate limit) limit {
	return limit{burst: rate.burst, perSecond: max(1, rate.perSecond/int64(max(1, len(s.sources))))}
}

// ofLargestSource returns a connection of the source that has the most; nil if no source would still have
// more than the newcomer's after that connection's end. s.mu must be held.
func (s *Set) ofLargestSource(newcomer *sourceState) *Conn {
	if newcomer == nil {
		return nil
	}
	var largest *Conn
	for c := range s.conns {
		if c.state != nil && !s.isOwner(c) && c.state.open > newcomer.open+1 && (largest == nil || c.state.open > largest.state.open) {
			largest = c
		}
	}
	return largest
}

// youngToEnd returns the oldest young connection of the source that has the most of them. If no source has
// more than the newcomer's, it returns the oldest of those sources that have as many; nil if that
// one may still begin. s.mu must be held.
func (s *Set) youngToEnd(newcomer *sourceState, now time.Duration) *Conn {
	var largest, oldest *Conn
	for element := s.young.Front(); element != nil; element = element.Next() {
		c, _ := element.Value.(*Conn)
		if newcomer != nil && c.state != nil && c.state.young > newcomer.young+1 && (largest == nil || c.state.young > largest.state.young) {
			largest = c
		}
		if oldest == nil && (newcomer == nil || c.state == nil || c.state.young >= newcomer.young) {
			oldest = c
		}
	}
	switch {
	case largest != nil:
		return largest
	case oldest == nil || now-oldest.accepted < youngPatience:
		return nil
	}
	return oldest
}

// grown takes a connection from the young, if it is one of them. s.mu must be held.
func (s *Set) grown(c *Conn) {
	if c.young == nil {
		return
	}
	s.young.Remove(c.young)
	c.young = nil
	if c.state != nil {
		c.state.young--
	}
}

// rateOf returns how many connections may begin, of which so many may be open.
func rateOf(most int) limit {
	return limit{burst: int64(most), perSecond: max(1, int64(most)/int64(refillTime/time.Second))}
}

// sourceOf returns the state of a source; nil if the source is not counted. s.mu must be held.
func (s *Set) sourceOf(from source) *sourceState {
	if from == (source{}) || s.config.MaxPerSource == 0 {
		return nil
	}
	state := s.sources[from]
	if state == nil && len(s.sources) < maxSources {
		state = &sourceState{}
		s.sources[from] = state
	}
	return state
}

// refuse closes a connection that was not let in. It is counted before its client can see the end.
func (s *Set) refuse(raw net.Conn, from source, reason Reason, detail string) {
	if socket, isTCP := raw.(*net.TCPConn); isTCP {
		_ = socket.SetLinger(0)
	}
	s.report(reason, nameOf(from, raw), detail)
	_ = raw.Close()
}

// forget forgets a connection that was closed.
func (s *Set) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, has := s.conns[c]; !has {
		return
	}
	delete(s.conns, c)
	s.pace.connections.Add(-1)
	c.guard.end()
	s.grown(c)
	if c.state != nil {
		c.state.open--
	}
}

// settle notes that the client of a connection has sent SETTINGS.
func (s *Set) settle(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grown(c)
	c.settled.Store(true)
}

// admit judges the peer of a connection for the first time. The error says why the peer may not
// come in.
func (s *Set) admit(c *Conn) error {
	// While the lock is held no Rejudge runs. So the identity is not older than the last Rejudge,
	// and the next one finds the connection.
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, has := s.conns[c]; !has {
		return net.ErrClosed
	}
	identity, err := s.judge(&c.peer)
	if err != nil && !c.needsNoIdentity() {
		return err
	}
	c.judged = true
	if identity != nil && !identity.NotAfter.IsZero() {
		c.drainLead = min(drainLead, identity.NotAfter.Sub(s.config.Now())/2)
	}
	c.identity.Store(identity) // from here on Sweep looks at the fields of the connection
	return nil
}

// judge returns who a peer is, or an error.
func (s *Set) judge(peer *callers.Peer) (*callers.Identity, error) {
	identity, err := s.config.Judge.Connection(peer)
	switch {
	case err != nil:
		return nil, err
	case identity == nil:
		return nil, errNobody
	case !identity.NotAfter.IsZero() && !s.config.Now().Before(identity.NotAfter):
		return nil, errExpired
	}
	return identity, nil
}

var errExpired = errors.New("the credential of the client has ended")

// needsNoIdentity reports whether the connection may be open without an identity of its own.
func (c *Conn) needsNoIdentity() bool { return c.listener.Bearers || c.listener.Anonymous }

// Rejudge asks the judge again who the peers of all live connections are, and changes their
// identities. It closes the connections whose peer is not known any more. When it returns, no call
// that begins later has an identity of before.
func (s *Set) Rejudge() {
	type gone struct {
		c      *Conn
		detail string
	}
	var unknown []gone
	s.mu.Lock()
	for c := range s.conns {
		if !c.judged {
			continue
		}
		identity, err := s.judge(&c.peer)
		c.identity.Store(identity)
		if err != nil && !c.needsNoIdentity() {
			unknown = append(unknown, gone{c, err.Error()})
		}
	}
	s.mu.Unlock()
	for _, each := range unknown {
		each.c.End(ClosedRemoved, each.detail)
	}
}

// Run sweeps until the context ends.
func (s *Set) Run(ctx context.Context) {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.Sweep()
		case <-ctx.Done():
			return
		}
	}
}

// Sweep ends the connections whose credential has ended, and those whose client does not read
// its answers. It drains those whose credential ends soon. Run calls it once a second.
func (s *Set) Sweep() {
	now, wall := s.config.Elapsed(), s.config.Now()
	sweep := s.swept.Add(1)
	for _, c := range s.snapshot(now) {
		since := c.writingSince.Load()
		switch ends := c.endOfCredential(); {
		case !ends.IsZero() && !wall.Before(ends):
			s.expire(c)
		case since != 0 && sweep-since >= unreadLooks:
			c.End(ClosedUnread, "it reads nothing")
		case c.guard.unread():
			c.End(ClosedUnread, "its flow-control window stays closed")
		case !ends.IsZero() && ends.Sub(wall) <= c.drainLead:
			c.Drain()
		}
	}
	s.reports.flush(now)
}

// snapshot returns the live connections, and forgets sources of which nothing must be remembered.
func (s *Set) snapshot(now time.Duration) []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for from, state := range s.sources {
		if state.open == 0 && state.begun.isFull(rateOf(s.config.MaxPerSource), now) && state.part.isFull(s.partOf(rateOf(s.config.MaxConnections)), now) {
			delete(s.sources, from)
		}
	}
	all := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// expire takes the identity of a connection whose credential has ended.
func (s *Set) expire(c *Conn) {
	s.mu.Lock()
	c.identity.Store(nil)
	s.mu.Unlock()
	if !c.needsNoIdentity() {
		c.End(ClosedExpired, "")
	}
}

// Counts says how many connections there are.
type Counts struct {
	// Open is the number of connections, and Young how many of them have not sent SETTINGS yet.
	Open, Young int
	// Sources is how many sources are known, and Largest the number of connections of the one
	// with the most.
	Sources, Largest int
}

// Counts returns how many connections there are.
func (s *Set) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := Counts{Open: len(s.conns), Young: s.young.Len(), Sources: len(s.sources)}
	for _, state := range s.sources {
		counts.Largest = max(counts.Largest, state.open)
	}
	return counts
}

// Streams returns how many streams are open on all connections, without those that are apart.
func (s *Set) Streams() int64 { return s.streams.Load() }

// Each calls a function for each live connection. The function may end the connection.
func (s *Set) Each(call func(*Conn)) {
	for _, c := range s.snapshot(s.config.Elapsed()) {
		call(c)
	}
}

// report reports a connection that the server has closed.
func (s *Set) report(reason Reason, peer, detail string) {
	s.reports.add(reason, peer, detail, s.config.Elapsed())
}
