package nearcache

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/lease"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var (
	schedules = flag.Int("schedules", race.Rounds(3000, 150), "how many schedules the simulation runs")
	seedFlag  = flag.Uint64("seed", 1, "the first schedule's seed; each next one has the next")
)

const (
	simulatedStaleness = time.Second
	stepsPerSchedule   = 220
	simulatedKeys      = 3
)

// truth is what the store holds: at each revision, which keys are allowed and until when. A key
// ends at that time without an event, as an old secret does at the end of its overlap.
type truth struct {
	allowed [][simulatedKeys]bool // by revision
	until   [][simulatedKeys]time.Time
	records []*storagev1.FeedRecord
	acked   []time.Time // when each revision was acknowledged; zero if it was not
}

// simulation is one server with its store, two clients, and the messages between them. Its
// clock moves between the steps.
type simulation struct {
	random *rand.Rand
	now    time.Time
	// broken are the rules that this run breaks.
	broken faults
	// limited is set if the rights of the callers change. tells is how probable it is, in percent,
	// that a session learns of that in a step.
	limited bool
	tells   int

	truth truth
	hub   *feed.Hub
	// published is the revision of the projection, which validations are answered from.
	published int
	// unacknowledged are changes that are published and not yet acknowledged.
	unacknowledged []int
	history        int // tells histories apart after a rollback
	// rolledBack is when the store was last rolled back.
	rolledBack time.Time
	awaits     []pendingAwait
	// awaited is the newest revision that a finished AwaitRevision was for.
	awaited int

	clients []*simulated
	trace   []string
	// violation describes the first promise that was broken; empty as long as all are kept.
	violation string
}

type pendingAwait struct {
	revision int
	wait     *feed.Await
	hub      *feed.Hub
}

// simulated is a client process and its connection.
type simulated struct {
	core *Core
	// session is the server's side of the connection; nil while not connected. Messages wait in
	// the queues until they are delivered.
	session  *feed.Session
	hub      *feed.Hub
	toServer []*keysvcv1.SyncRequest
	toClient []*keysvcv1.SyncResponse
	// stale is a barrier that was read too early, for barrierBeforePing. nonce is the newest
	// ping's, for answerAnyNonce.
	stale int64
	nonce uint64
	up    bool // the client believes that it has a connection
	hits  []pendingHit
	fills []*pendingFill

	// sleeps chooses the fault of the client's clock: if it is set, the machine sleeps at times;
	// otherwise somebody sets the clock. C3 covers one fault at a time.
	sleeps bool
	// rights are the workspaces that the caller may validate in. told are those that its session
	// has learnt of.
	rights, told access.Workspaces
	// off is how far the wall clock is ahead. slept is how far the monotonic clock is behind.
	off, slept time.Duration
}

type pendingHit struct {
	key int
	// wrong is set if the answer must be no, because of another scope or another secret.
	wrong   bool
	found   Found
	awaited int
	read    time.Time // for clockReadFirst
}

type pendingFill struct {
	key     int
	fill    Fill
	sentAt  time.Time
	sent    bool
	decided bool
	answer  keyauth.Answer
	reply   *keysvcv1.ValidateKeyResponse
	waiters []waiter
}

type waiter struct {
	started time.Time
	awaited int
}

func newSimulation(seed uint64, broken faults) *simulation {
	s := &simulation{
		random: rand.New(rand.NewPCG(seed, 1)), now: simulationStart, broken: broken,
	}
	s.truth.allowed = [][simulatedKeys]bool{{true, true, true}}
	s.truth.until = make([][simulatedKeys]time.Time, 1)
	s.truth.records = []*storagev1.FeedRecord{nil}
	s.truth.acked = []time.Time{s.now}
	s.limited, s.tells = s.chance(50), 2
	if s.chance(50) {
		s.tells = 20
	}
	s.startServer()
	for range 2 {
		client := &simulated{sleeps: s.chance(50), rights: access.All()}
		if s.breaks(wallClockOnly) || s.breaks(monotonicOnly) {
			client.sleeps = s.breaks(monotonicOnly)
		}
		s.clients = append(s.clients, client)
		s.startClient(client)
	}
	return s
}

func (s *simulation) startClient(client *simulated) {
	client.core = NewCore(2, 1<<20)
	client.up, client.hits, client.fills, client.toServer, client.toClient = false, nil, nil, nil, nil
}

// clock returns the reading of a client's clock, with both parts.
func (s *simulation) clock(client *simulated) time.Time {
	since := s.now.Sub(simulationStart) - client.slept
	switch {
	case s.breaks(wallClockOnly):
		return s.now.Add(client.off)
	case s.breaks(monotonicOnly):
		return bothClocks(simulationStart.Add(since), since)
	}
	return bothClocks(s.now.Add(client.off), since)
}

// bothClocks returns a time as time.Now does, with a wall part and a monotonic part. No
// function of package time makes a time whose parts differ.
func bothClocks(wall time.Time, monotonic time.Duration) time.Time {
	const (
		hasMonotonic   = 1 << 63
		from1885       = (1884*365 + 1884/4 - 1884/100 + 1884/400) * 86400
		unixFromYear1  = (1969*365 + 1969/4 - 1969/100 + 1969/400) * 86400
		nanosecondBits = 30
	)
	inside := struct {
		wall uint64
		ext  int64
		loc  *time.Location
	}{
		wall: hasMonotonic | uint64(wall.Unix()+unixFromYear1-from1885)<<nanosecondBits | uint64(wall.Nanosecond()),
		ext:  int64(monotonic),
	}
	return *(*time.Time)(unsafe.Pointer(&inside))
}

func TestBothClocksSetsBothPartsOfATime(t *testing.T) {
	before := bothClocks(simulationStart, time.Hour)
	after := bothClocks(simulationStart.Add(-time.Second), time.Hour+time.Minute)
	if got := after.Sub(before); got != time.Minute {
		t.Errorf("by the monotonic part %s", got)
	}
	if got := after.Round(0).Sub(before.Round(0)); got != -time.Second || !before.Round(0).Equal(simulationStart) {
		t.Errorf("by the wall part %s, from %s", got, before)
	}
	if got := lease.Elapsed(before, after); got != time.Minute {
		t.Errorf("elapsed %s", got)
	}
}

// simulationStart is when every schedule begins.
var simulationStart = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func (s *simulation) note(format string, arguments ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%6d ms  ", s.now.UnixMilli()%1_000_000)+fmt.Sprintf(format, arguments...))
}

func (s *simulation) chance(percent int) bool { return s.random.IntN(100) < percent }

// startServer starts a server process on the present store.
func (s *simulation) startServer() {
	started := s.now
	if s.breaks(forgetEarlier) {
		started = started.Add(-time.Hour)
	}
	newest := len(s.truth.allowed) - 1
	s.hub = feed.New(feed.Config{
		Epoch: "epoch", Revision: int64(newest), History: s.truth.records[1:], Started: started, Staleness: simulatedStaleness,
		RingSize: 4, Now: func() time.Time { return s.now }, Random: s.random.Float64,
	})
	s.published = newest
}

// simulatedOwner returns the owner of a key. Two keys share a workspace and a member.
func simulatedOwner(key int) keyauth.Principal {
	return [simulatedKeys]keyauth.Principal{
		{KeyID: "k0", WorkspaceID: "w0", MemberID: "m0", Role: "r"},
		{KeyID: "k1", WorkspaceID: "w0", MemberID: "m0", Role: "r"},
		{KeyID: "k2", WorkspaceID: "w1", MemberID: "m1", Role: "r"},
	}[key]
}

// wrongQuestion returns a question that must never be allowed: for another scope, or with
// another secret of the key.
func (s *simulation) wrongQuestion(key int) *keyauth.Question {
	question := simulatedQuestion(key)
	if s.chance(50) {
		question.Requirement = keyauth.Scope("a:c")
	} else {
		question.Token += "-another"
	}
	return question
}

func simulatedQuestion(key int) *keyauth.Question {
	return &keyauth.Question{Token: fmt.Sprint("token", key), Requirement: keyauth.Scope("a:b"), WorkspaceID: simulatedOwner(key).WorkspaceID}
}

// changeRights gives a caller other workspaces. Validations are answered by them at once. The
// session learns of them later, as when the connection of a session is judged after another one.
func (s *simulation) changeRights(client *simulated) {
	client.rights = [...]access.Workspaces{
		access.All(), access.Only("w0", "w1"), access.Only("w0"), access.Only("w1"), {},
	}[s.random.IntN(5)]
	s.note("a caller may validate in %v", client.rights)
}

// tellRights lets the session of a caller learn of the caller's workspaces.
func (s *simulation) tellRights(client *simulated) {
	switch {
	case client.session == nil || client.told.Equal(client.rights):
		return
	case client.rights.IsEmpty():
		s.disconnect(client)
		return
	case s.breaks(otherRightsAtOnce):
		// From now on the other events are left out; see seen.
	default:
		client.session.See(client.rights)
	}
	client.told = client.rights
	s.note("the session learns that")
}

// open begins a session on the server.
func (s *simulation) open(client *simulated, hello *keysvcv1.SyncHello) (*feed.Session, error) {
	if client.rights.IsEmpty() {
		return nil, errors.New("the caller may not validate")
	}
	client.told = client.rights
	switch {
	case s.breaks(otherRightsAtOnce):
		// The hub tells everything, and seen leaves out what the caller may not see.
		if bytes.Equal(hello.GetVisibleWorkspaces(), client.told.Fingerprint()) {
			hello.VisibleWorkspaces = nil
		} else {
			hello.Epoch = "" // not resumed
		}
		return s.hub.Open(hello, access.All())
	case s.breaks(ignoreRights):
		hello.VisibleWorkspaces = client.told.Fingerprint()
	}
	return s.hub.Open(hello, client.told)
}

// seen returns a message as the client is sent it. Only otherRightsAtOnce changes it.
func (s *simulation) seen(client *simulated, message *keysvcv1.SyncResponse) *keysvcv1.SyncResponse {
	if !s.breaks(otherRightsAtOnce) {
		return message
	}
	message = proto.CloneOf(message)
	switch kind := message.GetKind().(type) {
	case *keysvcv1.SyncResponse_Welcome:
		kind.Welcome.VisibleWorkspaces = client.told.Fingerprint()
	case *keysvcv1.SyncResponse_Reset_:
		kind.Reset_.VisibleWorkspaces = client.told.Fingerprint()
	case *keysvcv1.SyncResponse_Events:
		kind.Events.Events = slices.DeleteFunc(kind.Events.Events, func(event *keysvcv1.SyncEvent) bool {
			return event.GetWorkspaceId() != "" && !client.told.Has(event.GetWorkspaceId())
		})
	}
	return message
}

// change commits a change: of one key, its member, its workspace, the policy, or of a kind that
// the clients do not know.
func (s *simulation) change() {
	key := s.random.IntN(simulatedKeys)
	owner := simulatedOwner(key)
	next := s.truth.allowed[len(s.truth.allowed)-1]
	until := s.truth.until[len(s.truth.until)-1]
	revision := int64(len(s.truth.allowed))
	record := &storagev1.FeedRecord{Revision: revision, WorkspaceId: owner.WorkspaceID, AuditHash: fmt.Appendf(nil, "%d/%d", s.history, revision)}
	flip := func(concerned func(other keyauth.Principal) bool) {
		value := !next[key]
		for other := range next {
			if concerned(simulatedOwner(other)) {
				next[other] = value
			}
		}
	}
	switch s.random.IntN(7) {
	case 6:
		// A rotation: the old secret works until the end of the overlap.
		record.Kind, record.Subject = storagev1.FeedKind_FEED_KIND_KEY, owner.KeyID
		next[key], until[key] = true, s.now.Add(time.Duration(s.random.IntN(4000))*time.Millisecond)
	case 0:
		record.Kind, record.Subject = storagev1.FeedKind_FEED_KIND_MEMBER, owner.MemberID
		flip(func(other keyauth.Principal) bool { return other.MemberID == owner.MemberID })
	case 1:
		record.Kind = storagev1.FeedKind_FEED_KIND_WORKSPACE
		flip(func(other keyauth.Principal) bool { return other.WorkspaceID == owner.WorkspaceID })
	case 2:
		record.Kind, record.WorkspaceId = storagev1.FeedKind_FEED_KIND_POLICY, ""
		flip(func(keyauth.Principal) bool { return true })
	case 3:
		record.Kind = 77
		flip(func(other keyauth.Principal) bool { return other.KeyID == owner.KeyID })
	default:
		record.Kind, record.Subject = storagev1.FeedKind_FEED_KIND_KEY, owner.KeyID
		flip(func(other keyauth.Principal) bool { return other.KeyID == owner.KeyID })
	}
	for other := range next {
		if !next[other] {
			until[other] = time.Time{}
		}
	}
	s.truth.allowed, s.truth.until = append(s.truth.allowed, next), append(s.truth.until, until)
	s.truth.records = append(s.truth.records, record)
	s.truth.acked = append(s.truth.acked, time.Time{})
	s.note("commit %d: %v %s → %v", revision, record.GetKind(), record.GetSubject(), next)
	if s.breaks(acknowledgeFirst) && s.chance(70) {
		s.acknowledge(int(revision))
		s.unacknowledged = append(s.unacknowledged, int(revision)) // it is published later
		return
	}
	s.publish(int(revision))
	s.unacknowledged = append(s.unacknowledged, int(revision))
}

func (s *simulation) publish(revision int) {
	if revision != s.published+1 {
		return
	}
	s.hub.Publish(&storage.Committed{Revision: int64(revision), Feed: s.truth.records[revision]})
	s.published = revision
}

func (s *simulation) acknowledge(revision int) {
	if s.truth.acked[revision].IsZero() {
		s.truth.acked[revision] = s.now
		s.note("acknowledge %d", revision)
	}
}

// step makes one random step.
func (s *simulation) step() {
	if s.chance(60) {
		s.now = s.now.Add(time.Duration(s.random.IntN(120)) * time.Millisecond)
	} else if s.chance(4) {
		s.now = s.now.Add(time.Duration(s.random.IntN(3000)) * time.Millisecond)
	}
	client := s.clients[s.random.IntN(len(s.clients))]
	if s.chance(2) {
		s.troubleClock(client)
	}
	if s.limited && s.chance(3) {
		s.changeRights(client)
	}
	if s.limited && s.chance(s.tells) {
		s.tellRights(client)
	}
	switch pick := s.random.IntN(200); {
	case pick < 10:
		if len(s.unacknowledged) == 0 {
			s.change()
		}
	case pick < 24:
		if len(s.unacknowledged) > 0 {
			revision := s.unacknowledged[0]
			s.unacknowledged = s.unacknowledged[1:]
			s.publish(revision)
			s.acknowledge(revision)
		}
	case pick < 30:
		s.await()
	case pick < 40:
		s.connect(client)
	case pick < 55:
		s.deliverToServer(client)
	case pick < 75:
		s.deliverToClient(client)
	case pick < 95:
		// A round trip at once, or most of it, because most faults need a lease to show.
		s.connect(client)
		for range 3 + s.random.IntN(12) {
			s.deliverToServer(client)
			s.deliverToClient(client)
		}
	case pick < 110:
		for range 4 {
			s.fill(client)
		}
	case pick < 130:
		s.fill(client)
	case pick < 193:
		s.hit(client)
	case pick < 196:
		s.disconnect(client)
	case pick < 198:
		s.leave(client)
	default:
		s.restart()
	}
	s.poll()
}

// troubleClock lets a client's machine sleep, or sets its clock.
func (s *simulation) troubleClock(client *simulated) {
	by := time.Duration(s.random.IntN(4000)) * time.Millisecond
	if client.sleeps {
		s.now = s.now.Add(by)
		client.slept += by
		s.note("a client slept for %s", by)
		return
	}
	client.off += by - 2*time.Second
	s.note("a client's clock is off by %s", client.off)
}

// leave ends a client in order, and starts it again (C11).
func (s *simulation) leave(client *simulated) {
	if s.breaks(closesFirst) {
		if client.session != nil {
			client.session.Close(true)
			client.session, client.up, client.toServer, client.toClient = nil, false, nil, nil
			s.note("a client says that it ends, and does not")
		}
		return
	}
	client.core.GiveUp()
	if client.session != nil {
		client.session.Close(true)
		client.session = nil
	}
	s.startClient(client)
	s.note("a client ended and was started anew")
}

// connect begins a session, or sends a ping in the present one.
func (s *simulation) connect(client *simulated) {
	if !client.up {
		client.up = true
		client.toServer = []*keysvcv1.SyncRequest{{Kind: &keysvcv1.SyncRequest_Hello{Hello: client.core.Hello()}}}
		client.toClient = nil
		return
	}
	if client.session == nil && len(client.toServer) > 0 {
		return // the hello is on its way
	}
	ping := client.core.Ping(s.clock(client))
	client.stale, client.nonce = s.hub.Revision(), ping.GetNonce()
	s.note("ping %d sent at %d", ping.GetNonce(), ping.GetRevision())
	client.toServer = append(client.toServer, &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: ping}})
}

func (s *simulation) deliverToServer(client *simulated) {
	if len(client.toServer) == 0 || !client.up {
		return
	}
	message := client.toServer[0]
	client.toServer = client.toServer[1:]
	switch kind := message.GetKind().(type) {
	case *keysvcv1.SyncRequest_Hello:
		if s.breaks(ignoreHash) && kind.Hello.GetRevision() > 0 && kind.Hello.GetRevision() <= s.hub.Revision() && kind.Hello.GetHashRevision() > 0 {
			kind.Hello.AuditHash = s.truth.records[kind.Hello.GetHashRevision()].GetAuditHash()
		}
		session, err := s.open(client, kind.Hello)
		if err != nil {
			s.disconnect(client)
			return
		}
		client.session, client.hub = session, s.hub
		s.note("session opened at %d", kind.Hello.GetRevision())
	case *keysvcv1.SyncRequest_Ping:
		if client.session == nil {
			return
		}
		switch {
		case s.breaks(barrierBeforePing):
			// The barrier from the time of sending, answered at once.
			if client.session.Ping(kind.Ping.GetNonce(), kind.Ping.GetRevision(), s.now) != nil {
				s.disconnect(client)
				return
			}
			client.toClient = append(client.toClient, pong(kind.Ping.GetNonce(), client.stale))
		case s.breaks(pongBeforeEvents):
			if client.session.Ping(kind.Ping.GetNonce(), kind.Ping.GetRevision(), s.now) != nil {
				s.disconnect(client)
				return
			}
			client.toClient = append(client.toClient, pong(kind.Ping.GetNonce(), s.hub.Revision()))
		default:
			if client.session.Ping(kind.Ping.GetNonce(), kind.Ping.GetRevision(), s.now) != nil {
				s.disconnect(client)
			}
		}
	case *keysvcv1.SyncRequest_Applied:
		if client.session != nil && client.session.Applied(kind.Applied.GetRevision()) != nil {
			s.disconnect(client)
		}
	}
}

func pong(nonce uint64, revision int64) *keysvcv1.SyncResponse {
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Pong{Pong: &keysvcv1.SyncPong{Nonce: nonce, Revision: revision}}}
}

// deliverToClient lets the server send a message, or delivers one.
func (s *simulation) deliverToClient(client *simulated) {
	if client.session != nil && s.chance(50) {
		step := client.session.Next()
		if step.Last {
			s.disconnect(client)
			return
		}
		if step.Response != nil {
			if s.breaks(loseEvents) && step.Response.GetEvents() != nil && s.chance(20) {
				s.note("events up to %d lost", step.Response.GetEvents().GetRevision())
				return
			}
			client.toClient = append(client.toClient, s.seen(client, step.Response))
		}
		return
	}
	if len(client.toClient) == 0 {
		return
	}
	message := client.toClient[0]
	client.toClient = client.toClient[1:]
	switch kind := message.GetKind().(type) {
	case *keysvcv1.SyncResponse_Welcome:
		s.dropping(client, func() { client.core.Welcome(kind.Welcome) })
		s.note("welcome at %d, reset %t", kind.Welcome.GetRevision(), kind.Welcome.GetReset_())
	case *keysvcv1.SyncResponse_Events:
		events := proto.CloneOf(kind.Events) // sessions may share the message
		for _, each := range events.GetEvents() {
			if each.GetKind() == keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED {
				each.Kind = 77 // a kind of a newer server
				if s.breaks(overlookUnknown) {
					each.Kind = keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE // which concerns no entry
				}
			}
		}
		client.core.Events(events)
		if events.GetMark() != 0 {
			client.applied()
		}
		s.note("events up to %d applied", kind.Events.GetRevision())
	case *keysvcv1.SyncResponse_Pong:
		nonce := kind.Pong.GetNonce()
		switch {
		case s.breaks(leaseFromReceipt):
			nonce = client.core.freshness.Ask(s.clock(client))
		case s.breaks(answerAnyNonce):
			nonce = client.nonce
		}
		fresh := client.core.Pong(&keysvcv1.SyncPong{Nonce: nonce, Revision: kind.Pong.GetRevision()})
		s.note("pong %d at %d: %t", kind.Pong.GetNonce(), kind.Pong.GetRevision(), fresh)
	case *keysvcv1.SyncResponse_Mark:
		client.applied()
	case *keysvcv1.SyncResponse_Reset_:
		s.dropping(client, func() { client.core.Reset(kind.Reset_) })
		s.note("reset at %d", kind.Reset_.GetRevision())
	case *keysvcv1.SyncResponse_Goodbye:
	}
}

// applied answers a mark.
func (c *simulated) applied() {
	c.toServer = append(c.toServer, &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: c.core.Applied()}})
}

// disconnect cuts a connection. Messages on their way are lost, and both sides notice.
func (s *simulation) disconnect(client *simulated) {
	if client.session != nil {
		client.session.Close(s.breaks(forgetDeparted))
		client.session = nil
	}
	client.up = false
	client.toServer = nil
	client.toClient = nil
	s.note("disconnected")
}

// restart kills the server and starts another one, sometimes on a file that was rolled back.
// Some clients notice at once, and others later.
func (s *simulation) restart() {
	for _, client := range s.clients {
		if client.session != nil {
			client.session = nil // the process has ended, and its lease table with it
		}
		if s.chance(70) {
			client.up, client.toServer, client.toClient = false, nil, nil
		} else {
			client.toServer = nil // messages that the server sent before are still delivered
		}
		for _, fill := range client.fills {
			if fill.sent && !fill.decided {
				fill.decided, fill.reply = true, nil
			}
		}
	}
	s.awaits = nil
	s.unacknowledged = nil // no call is answered any more
	if back := s.random.IntN(4); s.chance(25) && back > 0 && len(s.truth.allowed)-back > s.awaited {
		keep := len(s.truth.allowed) - back
		if keep >= 1 {
			s.truth.allowed, s.truth.until = s.truth.allowed[:keep], s.truth.until[:keep]
			s.truth.records, s.truth.acked = s.truth.records[:keep], s.truth.acked[:keep]
			s.history++
			s.rolledBack = s.now
			s.note("rolled back to %d", keep-1)
		}
	}
	s.startServer()
	s.note("server restarted at %d", s.published)
}

func (s *simulation) await() {
	revision := len(s.truth.acked) - 1
	for ; revision > 0 && s.truth.acked[revision].IsZero(); revision-- {
	}
	if wait, err := s.hub.Await(int64(revision)); err == nil {
		s.note("await %d", revision)
		s.awaits = append(s.awaits, pendingAwait{revision: revision, wait: wait, hub: s.hub})
	}
}

func (s *simulation) poll() {
	var open []pendingAwait
	for _, pending := range s.awaits {
		if _, over, _, _ := pending.wait.Poll(); !over {
			open = append(open, pending)
			continue
		}
		s.note("awaited %d", pending.revision)
		s.awaited = max(s.awaited, pending.revision)
	}
	s.awaits = open
}

// allowed checks P1 and P2 for a validation that started at a time and was answered ALLOWED.
func (s *simulation) allowed(how string, key int, started time.Time, awaited int) {
	if !s.rolledBack.IsZero() && !started.After(s.rolledBack.Add(simulatedStaleness)) {
		return // the protocol cannot know what the store has lost
	}
	oldest := min(awaited, len(s.truth.allowed)-1)
	for revision, at := range s.truth.acked {
		if revision > oldest && !at.IsZero() && started.After(at.Add(simulatedStaleness)) {
			oldest = revision
		}
	}
	for revision := oldest; revision < len(s.truth.allowed); revision++ {
		if until := s.truth.until[revision][key]; s.truth.allowed[revision][key] && (until.IsZero() || started.Before(until)) {
			return
		}
	}
	s.violation = fmt.Sprintf("a %s that started at %d ms allowed key %d, which is not allowed since %d (awaited %d)",
		how, started.UnixMilli()%1_000_000, key, oldest, awaited)
}

// runSchedules runs schedules until one breaks a promise. It returns the seed of that schedule,
// the violation and the steps.
func runSchedules(count int, first uint64, broken faults) (seed uint64, how string, trace []string) {
	for index := range count {
		s := newSimulation(first+uint64(index), broken)
		for range stepsPerSchedule {
			s.step()
			if s.violation != "" {
				return first + uint64(index), s.violation, s.trace
			}
		}
	}
	return 0, "", nil
}

func TestSimulationKeepsP1AndP2(t *testing.T) {
	if seed, how, trace := runSchedules(*schedules, *seedFlag, 0); how != "" {
		t.Fatalf("schedule %d: %s\n%s", seed, how, strings.Join(trace, "\n"))
	}
}
