// Package feed tells near-caches what has changed, and keeps account of who may still be
// answering from before a change. docs/coherence.md has the protocol; S1 and so on are
// its rules for the server.
//
// A Hub holds the newest changes in one ring, and each Session is a position in it. So a
// session costs little, and one that reads slowly keeps nothing in memory: once its
// position has fallen out of the ring, it is Reset.
//
// Nothing here knows gRPC or starts a goroutine: a session is asked what to send next.
// That lets a simulation drive it step by step.
package feed

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/lease"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// DefaultRingSize is how many changes a Hub keeps unless it is told otherwise: as many as
// the stored change log.
const DefaultRingSize = 65536

// The errors of a Hub and its sessions.
var (
	// ErrTooMany is returned by Open if there are as many sessions as allowed.
	ErrTooMany = errors.New("feed: too many sessions")
	// ErrStopping is returned by Open once Stop was called.
	ErrStopping = errors.New("feed: stopping")
	// ErrNotPublished is returned by Await for a revision that is still to come.
	ErrNotPublished = errors.New("feed: the revision is not published yet")
	// ErrBeyond is returned to a client that says it has applied what it was not sent.
	ErrBeyond = errors.New("feed: applied beyond what was sent")
	// ErrTooFast is returned to a client that speaks far more often than it has to.
	ErrTooFast = errors.New("feed: too fast")
	// ErrClosed is returned by the methods of a session that was closed.
	ErrClosed = errors.New("feed: the session is closed")
)

// Observer is told what happens, for metrics. Its methods are called with the hub locked:
// they must return at once and not call the hub.
type Observer interface {
	// SessionBegan says that a session was opened, and whether it was resumed.
	SessionBegan(resumed bool)
	// SessionReset says that a session lost its place.
	SessionReset()
	// SessionEnded says that a session was closed, and whether its lease was given up.
	SessionEnded(gaveUp bool)
}

// nobody observes nothing.
type noObserver struct{}

// SessionBegan implements Observer.
func (noObserver) SessionBegan(bool) {}

// SessionReset implements Observer.
func (noObserver) SessionReset() {}

// SessionEnded implements Observer.
func (noObserver) SessionEnded(bool) {}

// Config is what a Hub begins with.
type Config struct {
	// Epoch of the store. Required.
	Epoch string
	// Revision up to which the store had come when it was loaded; what is published
	// comes after it.
	Revision int64
	// History are the newest changes that the store has kept, in revision order and with
	// none missing between them. Those after Revision are passed over; those up to it do
	// not count unless the last of them is Revision's.
	History []*storagev1.FeedRecord
	// Started is when this process took the store over. Required.
	Started time.Time
	// Staleness is how long a lease lasts, S. Required, more than 0.
	Staleness time.Duration
	// RingSize is how many changes are kept. Default: DefaultRingSize.
	RingSize int
	// MaxSessions is how many sessions there may be. Default: 16,384.
	MaxSessions int
	// MaxAge is how old a session may become; each has its own, up to a tenth more or
	// less. Default: 1 h.
	MaxAge time.Duration
	// Random yields numbers from 0 up to 1. Default: the generator of math/rand/v2.
	Random func() float64
	// Now is the clock of the leases. It should have a monotonic part; wall clocks that
	// are set by hand make Await wait longer, or less. Default: time.Now.
	Now func() time.Time
	// Observer is told what happens. Default: nobody is.
	Observer Observer
}

func (c Config) withDefaults() Config {
	if c.RingSize == 0 {
		c.RingSize = DefaultRingSize
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 16384
	}
	if c.MaxAge == 0 {
		c.MaxAge = time.Hour
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Observer == nil {
		c.Observer = noObserver{}
	}
	return c
}

// Hub has the newest changes and the sessions. There is one in a process. Its methods
// may be called from many goroutines.
type Hub struct {
	config Config
	leases *lease.Table

	mutex sync.Mutex
	ring  ring
	// revision is the newest that was published.
	revision int64
	sessions map[*Session]struct{}
	// ahead counts the hellos of clients that were ahead of the store.
	ahead    int64
	stopping bool
	shared   shared
}

// shared is the newest message that sessions share, and the places of its changes: it
// begins with the one, and ends before the other.
type shared struct {
	message    *keysvcv1.SyncResponse
	begin, end int64
}

// New returns a Hub without sessions.
func New(config Config) *Hub {
	config = config.withDefaults()
	hub := &Hub{
		config:   config,
		leases:   lease.NewTable(config.Started, config.Staleness),
		ring:     ring{size: config.RingSize},
		revision: config.Revision,
		sessions: make(map[*Session]struct{}),
	}
	hub.config.History = nil
	last := int64(0)
	for _, record := range config.History {
		if record.GetRevision() > config.Revision {
			break
		}
		if record.GetRevision() <= last {
			hub.ring.clear() // not a history: know nothing rather than something wrong
			return hub
		}
		last = record.GetRevision()
		hub.ring.add(eventOf(record))
	}
	if last != config.Revision {
		hub.ring.clear()
	}
	return hub
}

// Publish puts in the next change. It is called for each of them, in revision order,
// before the change is acknowledged and before a validation can see it (S1). Sessions are
// woken by Announce.
func (h *Hub) Publish(change *storage.Committed) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if change.Feed.GetRevision() <= h.revision {
		h.restart(h.revision) // something is wrong with the order: nothing is known any more
		return
	}
	next := eventOf(change.Feed)
	if !change.Time.IsZero() {
		next.time = change.Time.UnixNano()
	}
	h.ring.add(next)
	h.revision = change.Feed.GetRevision()
}

// Announce wakes the sessions to send what was published. It is apart from Publish, so
// that a thousand of them do not run before the one who made the change has its answer.
func (h *Hub) Announce() {
	h.mutex.Lock()
	sessions := slices.Collect(maps.Keys(h.sessions))
	h.mutex.Unlock()
	// Unlocked, as who is woken wants the lock.
	for _, session := range sessions {
		session.Wake()
	}
}

// Restart says that the store was loaded anew, at a revision, and that it is not known
// what has changed up to it: all sessions are Reset. Like Publish it is called before a
// validation can see that revision.
func (h *Hub) Restart(revision int64) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.restart(max(revision, h.revision))
}

// restart is Restart. mutex is held.
func (h *Hub) restart(revision int64) {
	h.revision = revision
	h.ring.clear()
	h.wakeAll()
}

// Stop ends all sessions with Goodbye, and lets no new ones in.
func (h *Hub) Stop() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.stopping = true
	h.wakeAll()
}

// wakeAll lets all sessions look for what there is to send. mutex is held.
func (h *Hub) wakeAll() {
	for session := range h.sessions {
		session.Wake()
	}
}

// Epoch returns the epoch that the revisions belong to.
func (h *Hub) Epoch() string { return h.config.Epoch }

// Staleness returns S, how long a lease lasts.
func (h *Hub) Staleness() time.Duration { return h.config.Staleness }

// Now returns what the clock of the leases shows.
func (h *Hub) Now() time.Time { return h.config.Now() }

// Revision returns the newest revision that was published.
func (h *Hub) Revision() int64 {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.revision
}

// newest returns the hash of the newest change, and its revision; nothing if it is not
// known. mutex is held.
func (h *Hub) newest() (hash []byte, revision int64) {
	if h.ring.start == h.ring.end {
		return nil, 0
	}
	last := h.ring.at(h.ring.end - 1)
	return []byte(last.hash), last.revision
}

// resumes returns the index at which a session goes on (S5). It says no if it cannot be
// known that the client has seen every change before that.
func (h *Hub) resumes(hello *keysvcv1.SyncHello, visible func(string) bool) (index int64, ok bool) {
	if hello.GetEpoch() != h.config.Epoch || hello.GetRevision() > h.revision ||
		hello.GetHashRevision() > hello.GetRevision() || len(hello.GetAuditHash()) == 0 {
		return 0, false
	}
	index = h.ring.after(hello.GetRevision())
	// The change whose hash it is must be there, and after it none that the client
	// should have seen: hashes are chained per workspace, so another history may agree on
	// this change and differ in those.
	for before := index - 1; before >= h.ring.start; before-- {
		seen := h.ring.at(before)
		if seen.revision == hello.GetHashRevision() {
			return index, seen.hash == string(hello.GetAuditHash())
		}
		if seen.revision < hello.GetHashRevision() || visible == nil || visible(seen.workspaceID) {
			return 0, false
		}
	}
	return 0, false
}

// Open begins a session, or goes on with one (S5). The hello is well-formed: revisions
// are not negative. visible says which workspaces the client may hear of, the policy's,
// which is "", included; nil means all. It is called with the hub locked, and must return
// at once. Errors: ErrTooMany, ErrStopping.
func (h *Hub) Open(hello *keysvcv1.SyncHello, visible func(workspaceID string) bool) (*Session, error) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	switch {
	case h.stopping:
		return nil, ErrStopping
	case len(h.sessions) >= h.config.MaxSessions:
		return nil, ErrTooMany
	}
	session := newSession(h, visible)
	if hello.GetEpoch() == h.config.Epoch && hello.GetRevision() > h.revision {
		session.ahead = true
		h.ahead++
	}
	index, resumed := h.resumes(hello, visible)
	session.welcome(index, resumed, hello)
	h.sessions[session] = struct{}{}
	h.config.Observer.SessionBegan(resumed)
	return session, nil
}

// Snapshot is how a Hub stands, for people who look for what is wrong.
type Snapshot struct {
	// Sessions is how many there are.
	Sessions int
	// Revision is the newest that was published.
	Revision int64
	// Changes is how many changes the ring holds, and Oldest the revision of the first of
	// them, 0 if there is none.
	Changes int
	Oldest  int64
	// Unread is how many changes the session that is furthest behind has still to be
	// sent, and Unapplied the lowest revision that the client of a session said it has
	// applied: Revision if all who said something are up to date.
	Unread    int
	Unapplied int64
	// Ahead is how many sessions began with a client that had applied, in this epoch, what
	// the store does not have. Anything but 0 means that the store was rolled back, or that
	// a caller does not tell the truth.
	Ahead int64
	// Stopping says that Stop was called.
	Stopping bool
}

// Snapshot returns how the hub stands.
func (h *Hub) Snapshot() Snapshot {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	snapshot := Snapshot{
		Sessions: len(h.sessions), Revision: h.revision, Changes: int(h.ring.end - h.ring.start),
		Unapplied: h.revision, Ahead: h.ahead, Stopping: h.stopping,
	}
	if snapshot.Changes > 0 {
		snapshot.Oldest = h.ring.at(h.ring.start).revision
	}
	for session := range h.sessions {
		snapshot.Unread = max(snapshot.Unread, int(h.ring.end-session.next))
		if session.applied > 0 {
			snapshot.Unapplied = min(snapshot.Unapplied, session.applied)
		}
	}
	return snapshot
}
