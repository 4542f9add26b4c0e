package nearcache

import (
	"slices"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
)

// roamer is a client process with a near-cache, which has its session with one replica after the other, and
// asks any of them.
type roamer struct {
	core       *Core
	connection *wire
	hits       []pendingHit
	fills      []*pendingFill
}

// wire is a connection between a client and a replica. Either side may believe that it is open when the
// other one has closed it.
type wire struct {
	client   *roamer
	replica  *replica
	session  *feed.Session
	toServer []*keysvcv1.SyncRequest
	toClient []*keysvcv1.SyncResponse
	// busy is set while the replica handles a message. left is set once the client has closed the
	// connection, and dead once the replica has.
	busy, left, dead bool
}

// stepClient lets a client do something.
func (c *cluster) stepClient(client *roamer) {
	switch pick := c.random.IntN(100); {
	case pick < 8:
		c.connect(client)
	case pick < 40:
		c.receive(client)
	case pick < 70:
		c.fill(client)
	case pick < 98 || c.chance(60):
		c.hit(client)
	case client.connection != nil:
		c.leave(client)
	}
}

// connect begins a session at any replica, or sends a ping in the present one.
func (c *cluster) connect(client *roamer) {
	if client.connection == nil {
		opened := &wire{client: client, replica: c.replicas[c.random.IntN(replicaCount)]}
		opened.toServer = []*keysvcv1.SyncRequest{{Kind: &keysvcv1.SyncRequest_Hello{Hello: client.core.Hello()}}}
		opened.replica.connections = append(opened.replica.connections, opened)
		client.connection = opened
		return
	}
	if client.core.awaitsPong(c.now) {
		return
	}
	ping := client.core.Ping(c.now)
	client.connection.toServer = append(client.connection.toServer, &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: ping}})
}

// leave closes the client's side of its connection.
func (c *cluster) leave(client *roamer) {
	client.connection.left = true
	client.connection = nil
}

// receive delivers a message of the server.
func (c *cluster) receive(client *roamer) {
	connection := client.connection
	switch {
	case connection == nil:
		return
	case len(connection.toClient) == 0:
		if connection.dead && c.chance(30) {
			c.leave(client)
		}
		return
	}
	next := connection.toClient[0]
	connection.toClient = connection.toClient[1:]
	switch kind := next.GetKind().(type) {
	case *keysvcv1.SyncResponse_Welcome:
		client.core.Welcome(kind.Welcome)
		c.note("welcome by replica %d at %d, reset %t", connection.replica.number, kind.Welcome.GetRevision(), kind.Welcome.GetReset_())
	case *keysvcv1.SyncResponse_Events:
		client.core.Events(kind.Events)
		if kind.Events.GetMark() != 0 {
			client.applied()
		}
		c.note("events up to %d applied", kind.Events.GetRevision())
	case *keysvcv1.SyncResponse_Pong:
		fresh := client.core.Pong(kind.Pong)
		c.note("pong of replica %d at %d: %t", connection.replica.number, kind.Pong.GetRevision(), fresh)
	case *keysvcv1.SyncResponse_Mark:
		client.applied()
	case *keysvcv1.SyncResponse_Reset_:
		client.core.Reset(kind.Reset_)
	}
}

func (c *roamer) applied() {
	c.connection.toServer = append(c.connection.toServer, &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: c.core.Applied()}})
}

// stepConnection lets a replica read or send a message of a connection; nil stands for any one.
func (c *cluster) stepConnection(r *replica, connection *wire) {
	if r.still > 0 || len(r.connections) == 0 {
		return
	}
	if connection == nil {
		connection = r.connections[c.random.IntN(len(r.connections))]
	}
	switch {
	case connection.left && c.chance(20):
		c.hangUp(connection)
	case c.chance(50) && !connection.busy && len(connection.toServer) > 0 && !connection.left:
		next := connection.toServer[0]
		connection.toServer = connection.toServer[1:]
		connection.busy = true
		r.operations = append(r.operations, &handling{connection: connection, request: next, arrived: c.now, fresh: c.fresh(r)})
	case connection.session != nil:
		step := connection.session.Next()
		if step.Response != nil {
			connection.toClient = append(connection.toClient, step.Response)
		}
		if step.Last {
			c.hangUp(connection)
		}
	}
}

// hangUp closes the replica's side of a connection.
func (c *cluster) hangUp(connection *wire) {
	if connection.session != nil {
		connection.session.Close(false)
	}
	connection.dead = true
	r := connection.replica
	r.connections = slices.DeleteFunc(r.connections, func(other *wire) bool { return other == connection })
}

// handling is a message of a session that a replica handles.
type handling struct {
	connection *wire
	request    *keysvcv1.SyncRequest
	arrived    time.Time
	fresh      *fresh
}

func (h *handling) step(c *cluster, r *replica) (over bool) {
	connection := h.connection
	if connection.dead {
		return true
	}
	hello, ping := h.request.GetHello(), h.request.GetPing()
	if applied := h.request.GetApplied(); applied != nil {
		connection.busy = false
		if connection.session == nil || connection.session.Applied(applied.GetRevision()) != nil {
			c.hangUp(connection)
		}
		return true
	}
	if !(hello != nil && c.breaks(helloAtOnce)) && !(ping != nil && c.breaks(pongAtOnce)) {
		done, err := h.fresh.poll(c, r)
		switch {
		case err != nil:
			if !connection.dead {
				c.hangUp(connection)
			}
			return true
		case !done:
			return false
		}
	}
	connection.busy = false
	if hello != nil {
		session, err := r.hub.Open(hello, access.All())
		if err != nil {
			c.hangUp(connection)
			return true
		}
		if session.Ahead() && c.rolledBack.IsZero() {
			c.violate("a session at %d was reset by a replica that was behind, at %d", hello.GetRevision(), r.applied.revision)
		}
		connection.session = session
		return true
	}
	if connection.session == nil || connection.session.Ping(ping.GetNonce(), ping.GetRevision(), h.arrived) != nil {
		c.hangUp(connection)
	}
	return true
}

// hit begins a validation that memory may answer, or ends one.
func (c *cluster) hit(client *roamer) {
	if len(client.hits) > 0 && (c.chance(60) || len(client.hits) > 4) {
		index := c.random.IntN(len(client.hits))
		last := client.hits[index]
		client.hits = slices.Delete(client.hits, index, index+1)
		if last.found.Confirm(c.now) {
			c.note("hit confirmed")
			c.allowed("hit", last.key, c.now, c.awaitedAt(last.awaited))
		}
		return
	}
	key := c.random.IntN(simulatedKeys)
	if found, ok := client.core.Find(simulatedQuestion(key)); ok {
		client.hits = append(client.hits, pendingHit{key: key, found: found, awaited: c.awaited})
	}
}

// awaitedAt returns a revision that was awaited, or the newest one if the store has lost it.
func (c *cluster) awaitedAt(revision int) int { return min(revision, len(c.log)-1) }

// fill moves one question forward: asked, sent to a replica, answered.
func (c *cluster) fill(client *roamer) {
	if len(client.fills) == 0 || len(client.fills) < 3 && c.chance(35) {
		key := c.random.IntN(simulatedKeys)
		asked := waiter{started: c.now, awaited: c.awaited}
		for _, fill := range client.fills {
			if fill.key == key && !fill.sent {
				fill.waiters = append(fill.waiters, asked)
				return
			}
		}
		client.fills = append(client.fills, &pendingFill{key: key, waiters: []waiter{asked}})
		return
	}
	index := c.random.IntN(len(client.fills))
	fill := client.fills[index]
	switch {
	case !fill.sent:
		fill.fill, fill.sent, fill.sentAt = client.core.BeginFill(c.now), true, c.now
		c.validate(c.replicas[c.random.IntN(replicaCount)], fill.key, fill)
	case !fill.decided && c.chance(95):
		// The answer is awaited, unless the deadline passes.
	default:
		client.fills = slices.Delete(client.fills, index, index+1)
		if fill.reply == nil {
			return // UNAVAILABLE
		}
		verdict := client.core.EndFill(fill.fill, simulatedQuestion(fill.key), fill.reply, fill.answer, c.now)
		c.note("fill of %d from %d: %v, verdict %d", fill.key, fill.reply.GetRevision(), fill.answer.Decision, verdict)
		if verdict == AskAgain || fill.answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			return
		}
		for _, waiting := range fill.waiters {
			c.allowed("answer", fill.key, waiting.started, c.awaitedAt(waiting.awaited))
		}
	}
}

// allowed checks P1 and P2 for a validation that started at a time and was answered ALLOWED.
func (c *cluster) allowed(how string, key int, started time.Time, awaited int) {
	if !c.rolledBack.IsZero() && !started.After(c.rolledBack.Add(longestStaleness)) {
		return // the protocol cannot know what the store has lost
	}
	oldest := awaited
	for revision := len(c.log) - 1; revision > oldest; revision-- {
		if at := c.log[revision].acked; !at.IsZero() && started.After(at.Add(c.bound(at))) {
			oldest = revision
		}
	}
	for _, each := range c.log[oldest:] {
		if each.allowed[key] {
			return
		}
	}
	c.violate("a %s that started at %d ms allowed key %d, which is not allowed since %d (awaited %d)",
		how, started.Sub(simulationStart).Milliseconds(), key, oldest, awaited)
}

// bound returns S for a change that was acknowledged at a time: the largest S that was in force since S
// before that time.
func (c *cluster) bound(acked time.Time) time.Duration {
	largest := c.newest().staleness
	for index, each := range c.log[1:] {
		if before := c.log[index].staleness; before != each.staleness && each.committed.Add(before).After(acked) {
			largest = max(largest, before)
		}
	}
	return largest
}
