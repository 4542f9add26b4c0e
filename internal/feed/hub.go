// Package feed tells near-caches what has changed, and knows which of them may still answer from
// before a change, that is, without reflecting it. docs/coherence.md has the protocol; S1 and so on
// are its rules for the server.
//
// A Hub holds the newest changes in one ring, and each Session is an index into it. So a
// session costs little, and a client that reads slowly keeps nothing in memory: once its index
// has fallen out of the ring, the session is reset.
//
// The package knows no gRPC and starts no goroutine: the caller asks a session what to send
// next. So a simulation can drive it step by step.
package feed

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/lease"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// DefaultRingSize is how many changes a Hub keeps by default: as many as the stored change log.
const DefaultRingSize = 65536

// MaxHistory is how many changes are enough for Config.History. They are for clients that knew an
// earlier process and come back within seconds; a client that missed more is reset.
const MaxHistory = 8192

// The errors of a Hub and its sessions.
var (
	// ErrTooMany is returned by Open if there are Config.MaxSessions sessions.
	ErrTooMany = errors.New("feed: too many sessions")
	// ErrStopping is returned by Open after Stop was called.
	ErrStopping = errors.New("feed: stopping")
	// ErrNoStaleness is returned by Open while S is not known.
	ErrNoStaleness = errors.New("feed: the staleness bound is not known")
	// ErrNotPublished is returned by Await for a revision that was not published yet.
	ErrNotPublished = errors.New("feed: the revision is not published yet")
	// ErrBeyond is returned if a client claims to have applied a revision that was not sent to
	// it.
	ErrBeyond = errors.New("feed: applied beyond what was sent")
	// ErrTooFast is returned if a client sends far more messages than it has to.
	ErrTooFast = errors.New("feed: too fast")
	// ErrClosed is returned by the methods of a closed session.
	ErrClosed = errors.New("feed: the session is closed")
)

// Observer is told what happens, for metrics. Its methods are called with the hub locked: they
// must return at once and must not call the hub.
type Observer interface {
	// SessionBegan is called when a session was opened. resumed reports whether it went on from
	// an earlier one.
	SessionBegan(resumed bool)
	// SessionReset is called when a session's index has fallen out of the ring, or its visible
	// workspaces have changed.
	SessionReset()
	// SessionEnded is called when a session was closed. gaveUp reports whether its client gave
	// up the lease.
	SessionEnded(gaveUp bool)
	// ChangeDelivered is called when a change was sent to the last of the sessions that were open when
	// it was published, or the last of these has ended, with the time since Publish. While one change
	// is on its way, those after it are not measured.
	ChangeDelivered(after time.Duration)
}

// noObserver ignores everything.
type noObserver struct{}

// SessionBegan implements Observer.
func (noObserver) SessionBegan(bool) {}

// SessionReset implements Observer.
func (noObserver) SessionReset() {}

// SessionEnded implements Observer.
func (noObserver) SessionEnded(bool) {}

// ChangeDelivered implements Observer.
func (noObserver) ChangeDelivered(time.Duration) {}

// Config is what a Hub begins with.
type Config struct {
	// Epoch of the store. Required.
	Epoch string
	// Revision is the store's revision when it was loaded. Publish is called with later changes
	// only.
	Revision int64
	// History are the newest changes that the store has kept, in revision order and without
	// gaps. Changes after Revision are ignored. If the last change up to Revision is not that
	// of Revision itself, the whole history is ignored.
	History []*storagev1.FeedRecord
	// Started is when this process took over the store. Required.
	Started time.Time
	// Staleness is S, the length of a lease. Required, more than 0.
	Staleness time.Duration
	// PreviousStaleness is a larger S that was in force before, and under which leases may still hold; 0 if
	// there is none.
	PreviousStaleness time.Duration
	// Shared is set if other processes over the same store may give leases (R9 of docs/replication.md).
	// Await then waits for these as well. Each call of it must follow a barrier of the store.
	Shared bool
	// RingSize is how many changes are kept. Default: DefaultRingSize.
	RingSize int
	// MaxSessions is how many sessions there may be at a time. Default: 1,500.
	MaxSessions int
	// MaxAge is after how long a session ends with Goodbye. Each session draws its own age, up
	// to a tenth more or less. Default: 1 h.
	MaxAge time.Duration
	// MaxSilence is after how long without a message of its client a session ends with Goodbye,
	// like MaxAge up to a tenth more or less. A cache that nobody asks is silent, and connects again.
	// Default: 5 min.
	MaxSilence time.Duration
	// Random returns a number in [0, 1). Default: the generator of math/rand/v2.
	Random func() float64
	// Now is the clock of the leases. Its times should have a monotonic part. Without one,
	// setting the wall clock makes Await wait too long or not long enough. Default: time.Now.
	Now func() time.Time
	// Observer is told what happens. Default: nothing is told.
	Observer Observer
}

func (c Config) withDefaults() Config {
	if c.RingSize == 0 {
		c.RingSize = DefaultRingSize
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 1500
	}
	if c.MaxAge == 0 {
		c.MaxAge = time.Hour
	}
	if c.MaxSilence == 0 {
		c.MaxSilence = 5 * time.Minute
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

// Hub holds the newest changes and the sessions. A process has one. Its methods may be called
// from many goroutines. Locks: mutex is taken before the mutex of the lease table.
type Hub struct {
	config Config
	leases *lease.Table

	mutex sync.Mutex
	ring  ring
	// revision is the newest published one.
	revision int64
	// staleness is S; 0 if it is not known.
	staleness time.Duration
	sessions  map[*Session]struct{}
	// ahead counts the clients whose hello was ahead of the store.
	ahead    int64
	stopping bool
	shared   shared
	// opened is how many sessions were ever opened, and underway the change whose delivery is measured.
	opened   int64
	underway delivery
}

// delivery is a change on its way to the sessions.
type delivery struct {
	revision int64
	since    time.Time
	// opened is Hub.opened at the publication, and left how many of those sessions were not sent the
	// change yet. If left is 0, no change is on its way.
	opened int64
	left   int
}

// shared is the newest message that several sessions send, for the changes with the indexes
// begin to end-1.
type shared struct {
	message    *keysvcv1.SyncResponse
	begin, end int64
}

// New returns a Hub without sessions.
func New(config Config) *Hub {
	config = config.withDefaults()
	hub := &Hub{
		config:   config,
		leases:   lease.NewTable(lease.Config{Started: config.Started, Length: config.Staleness, Longest: config.PreviousStaleness, Shared: config.Shared}),
		ring:     ring{size: config.RingSize},
		revision: config.Revision, staleness: config.Staleness,
		sessions: make(map[*Session]struct{}),
	}
	hub.config.History = nil
	last := int64(0)
	for _, record := range config.History {
		if record.GetRevision() > config.Revision {
			break
		}
		if record.GetRevision() <= last {
			hub.ring.clear() // not in revision order, so none of it is used
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

// Publish adds the next change. It is called for each change, in revision order, before the
// change is acknowledged and before a validation can see it (S1). It does not wake the
// sessions; Announce does.
func (h *Hub) Publish(change *storage.Committed) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if change.Feed.GetRevision() <= h.revision {
		h.restart(h.revision) // out of order: changes may be missing
		return
	}
	next := eventOf(change.Feed)
	if !change.Time.IsZero() {
		next.time = change.Time.UnixNano()
	}
	h.ring.add(next)
	h.revision = change.Feed.GetRevision()
	if h.underway.left == 0 && len(h.sessions) > 0 {
		h.underway = delivery{revision: h.revision, since: h.config.Now(), opened: h.opened, left: len(h.sessions)}
	}
}

// arrived notes that a session was sent more, or was closed. before is what it had been sent until
// then. mutex is held.
func (h *Hub) arrived(session *Session, before int64) {
	way := &h.underway
	if way.left == 0 || session.number > way.opened || before >= way.revision || session.sent < way.revision && !session.closed {
		return
	}
	if way.left--; way.left == 0 {
		h.config.Observer.ChangeDelivered(h.config.Now().Sub(way.since))
	}
}

// Announce wakes the sessions, to send what was published. It is separate from Publish, because
// thousands of sessions would otherwise run before the caller of the change has its answer.
func (h *Hub) Announce() {
	h.mutex.Lock()
	sessions := slices.Collect(maps.Keys(h.sessions))
	h.mutex.Unlock()
	// The hub is not locked here, because the goroutines that are woken lock it.
	for _, session := range sessions {
		session.Wake()
	}
}

// Restart notes that the store was loaded again at a revision, and that the changes up to that
// revision are not known. It resets all sessions. Like Publish, it is called before a validation
// can see that revision.
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

// Stop makes all sessions end with Goodbye, and Open return ErrStopping.
func (h *Hub) Stop() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.stopping = true
	h.wakeAll()
}

// wakeAll wakes all sessions. mutex is held.
func (h *Hub) wakeAll() {
	for session := range h.sessions {
		session.Wake()
	}
}

// Epoch returns the epoch of the revisions.
func (h *Hub) Epoch() string { return h.config.Epoch }

// Staleness returns S, the length of a lease; 0 if it is not known.
func (h *Hub) Staleness() time.Duration {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.staleness
}

// SetStaleness changes S (R9 of docs/replication.md). previous is the larger S that leases of other
// processes may have had until now; 0 if there is none. The sessions that were welcomed with another S
// get no more Pongs, and end with Goodbye; their clients connect again and resume. Like Publish, it is
// called before a validation can see the revision of the change. If staleness is 0, S is not known:
// all sessions end, Open returns ErrNoStaleness, and Await waits for storage.MaxStaleness.
func (h *Hub) SetStaleness(staleness, previous time.Duration) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.staleness = staleness
	if staleness == 0 {
		staleness, previous = storage.MaxStaleness, storage.MaxStaleness
	}
	h.leases.SetLength(staleness, previous, h.config.Now())
	h.wakeAll()
}

// Now returns the time of the clock of the leases.
func (h *Hub) Now() time.Time { return h.config.Now() }

// OldestLease returns the age of the oldest lease that holds; 0 if none does.
func (h *Hub) OldestLease() time.Duration { return h.leases.Oldest(h.config.Now()) }

// Revision returns the newest published revision.
func (h *Hub) Revision() int64 {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.revision
}

// newest returns the hash and the revision of the newest change; nil and 0 if the ring is
// empty. mutex is held.
func (h *Hub) newest() (hash []byte, revision int64) {
	if h.ring.start == h.ring.end {
		return nil, 0
	}
	last := h.ring.at(h.ring.end - 1)
	return []byte(last.hash()), last.revision
}

// maxUnseen is how many changes that a client may not see resumes looks at. A client that was away
// for longer is reset, because a look at the whole ring would hold up the changes of everybody.
const maxUnseen = 4096

// resumes returns the index at which a client's session goes on (S5). ok reports whether it is
// certain that the client has seen every change before that index, and keeps nothing of workspaces
// whose changes it was not told (S7).
func (h *Hub) resumes(hello *keysvcv1.SyncHello, visible access.Workspaces) (index int64, ok bool) {
	if hello.GetEpoch() != h.config.Epoch || hello.GetRevision() > h.revision ||
		hello.GetHashRevision() > hello.GetRevision() || len(hello.GetAuditHash()) == 0 {
		return 0, false
	}
	if !bytes.Equal(hello.GetVisibleWorkspaces(), visible.Fingerprint()) {
		return 0, false
	}
	index = h.ring.after(hello.GetRevision())
	// The change with the client's hash must be in the ring, and after it no change that the
	// client should have seen. Hashes are chained per workspace: another history may agree on
	// this change and differ in later changes of other workspaces.
	for before := index - 1; before >= max(h.ring.start, index-maxUnseen); before-- {
		seen := h.ring.at(before)
		if seen.revision == hello.GetHashRevision() {
			return index, seen.hash() == string(hello.GetAuditHash())
		}
		if seen.revision < hello.GetHashRevision() || sees(visible, seen.workspaceID()) {
			return 0, false
		}
	}
	return 0, false
}

// Open begins a session, and resumes at the client's revision if it can (S5). The revisions of
// hello are not negative. visible are the workspaces that the client may hear of; every client
// hears of the policy. Session.See changes them. Errors: ErrTooMany, ErrStopping,
// ErrNoStaleness.
func (h *Hub) Open(hello *keysvcv1.SyncHello, visible access.Workspaces) (*Session, error) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	switch {
	case h.stopping:
		return nil, ErrStopping
	case h.staleness == 0:
		return nil, ErrNoStaleness
	case len(h.sessions) >= h.config.MaxSessions:
		return nil, ErrTooMany
	}
	session := newSession(h, visible)
	if hello.GetEpoch() == h.config.Epoch && hello.GetRevision() > h.revision {
		session.ahead = true
		h.ahead++
	}
	h.opened++
	session.number = h.opened
	index, resumed := h.resumes(hello, visible)
	session.welcome(index, resumed, hello)
	h.sessions[session] = struct{}{}
	h.config.Observer.SessionBegan(resumed)
	return session, nil
}

// Snapshot is the state of a Hub, for troubleshooting.
type Snapshot struct {
	// Sessions is the number of sessions.
	Sessions int
	// Revision is the newest published revision.
	Revision int64
	// Changes is the number of changes in the ring, and Oldest the revision of the oldest one;
	// 0 if the ring is empty.
	Changes int
	Oldest  int64
	// Unread is how many changes the slowest session has not been sent yet. Unapplied is the
	// lowest revision that a client has reported as applied. It is Revision if every client
	// that has reported one is up to date.
	Unread    int
	Unapplied int64
	// Ahead counts the sessions, ended ones included, whose client had applied a revision of
	// this epoch that the store did not have. More than 0 means that the store was rolled back,
	// or that a caller lies.
	Ahead int64
	// Stopping reports whether Stop was called.
	Stopping bool
}

// Snapshot returns the state of the hub.
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
