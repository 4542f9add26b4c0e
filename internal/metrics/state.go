package metrics

import (
	"time"

	"github.com/scribe-mail/keysvc/internal/counters"
)

// State is how a server is at one moment, apart from what Metrics count.
type State struct {
	// Serving reports whether health is SERVING.
	Serving bool
	// Revision is what validations are answered from.
	Revision int64
	// Keys are the keys in memory.
	Keys Keys
	// Members and Workspaces are how many the projection has, removed ones included until they are
	// purged.
	Members, Workspaces int64

	// Work is each kind of work.
	Work []Work
	// HalfOpen is how many calls wait for their request.
	HalfOpen int64
	// HeldBytes is how many bytes of messages calls hold, BytesLimit how many they may, and WithoutRoom
	// how many calls found no room, since the start.
	HeldBytes, BytesLimit, WithoutRoom int64
	// CallersRefused are calls with a token that proves nothing, and OwnerCalls those of the owner of
	// the process past the callers file, since the start.
	CallersRefused, OwnerCalls int64
	// Tokens and Digests are the forms in which tokens were presented, since the start.
	Tokens, Digests int64

	// Connections are those that are open, Young the ones of them that have not begun, LargestSource
	// the most that one address or user has, and Streams the open calls on all of them.
	Connections, Young, LargestSource, Streams int64

	// Feed is the state of the sessions of near-caches.
	Feed Feed
	// Loads is how often the whole store was read into memory.
	Loads int64
	// Store is nil if the store tells nothing.
	Store *Store
	// StoreMembers are the members of the cluster that has the store; none for a store in a file.
	StoreMembers []StoreMember
	// ClusterFull reports whether only narrowing changes are made, for lack of room in the cluster.
	ClusterFull bool
	// Ending are the active keys that end soon.
	Ending []Ending
	// Notices is nil if the settings name no receiver of notices.
	Notices *Notices
	// Certificate is nil if the server has none.
	Certificate *Certificate
	// Backups are those that this process knows.
	Backups Backups
	// Problems are what is wrong now.
	Problems []Problem
}

// Backups is how backups went.
type Backups struct {
	// Last is when the newest complete one was made, or zero if none is known. Failures is how many have
	// failed since, or since the start.
	Last     time.Time
	Failures int64
}

// Problem is a kind of problem, with its severity: "error" or "warning".
type Problem struct{ ID, Severity string }

// Keys counts the keys by state. Each key is in one state.
type Keys struct {
	Active, Suspended, Held, Expired, Revoked, Damaged int64
	// Within7Days and Within30Days are the active keys that expire so soon.
	Within7Days, Within30Days int64
}

// Work is one kind of calls.
type Work struct {
	// Name is the kind.
	Name string
	// InFlight is how many there are, Limit how many there may be, and Refused how many found no
	// slot, since the start.
	InFlight, Limit, Refused int64
}

// Feed is the state of the sessions of near-caches.
type Feed struct {
	Sessions int64
	// Unread is how many changes the slowest session was not sent yet, and Unapplied how many
	// revisions the slowest client is behind.
	Unread, Unapplied int64
	// OldestLease is the age of the oldest lease that holds; 0 if none does. Staleness is the length
	// of a lease.
	OldestLease, Staleness time.Duration
	// Ahead counts the clients that knew a revision that the store does not have.
	Ahead int64
}

// Store is the state of a store in a file.
type Store struct {
	// Commit is how long transactions took, Sync how long the disk took of that, and Queue how long
	// changes waited for their transaction.
	Commit, Sync, Queue counters.Durations
	// FileBytes is the length of the file, UsedBytes the part of it that has pages, and FreeBytes the
	// pages of it that are free.
	FileBytes, UsedBytes, FreeBytes int64
	// ReserveBytes is the room behind the pages, and ReserveWanted what is kept for narrowing changes.
	ReserveBytes, ReserveWanted int64
	// Full reports whether only narrowing changes are made, for lack of room.
	Full bool
	// DiskFree and DiskSize are of the disk of the file; 0 if that is not known.
	DiskFree, DiskSize int64
	// SinkFailing and AnchorFailing report whether the last write of the audit sink, or of the anchor,
	// failed or takes too long.
	SinkFailing, AnchorFailing bool
}

// StoreMember is a member of the cluster that has the store.
type StoreMember struct {
	// Up reports whether the member answers. Otherwise the numbers are those of its last answer.
	Up bool
	// DatabaseBytes is the size of its database, FreeBytes the part of it that is free, and QuotaBytes the
	// size that it may have; 0 if that is not known.
	DatabaseBytes, FreeBytes, QuotaBytes int64
}

// Ending are the active keys that end within a time, those that were used lately and the others.
type Ending struct {
	Within        time.Duration
	InUse, Unused int64
}

// Notices is how sending notices goes.
type Notices struct {
	// Waiting is how many wait, Failures how many attempts have failed since the last that succeeded.
	Waiting, Failures int64
	// Sent and Failed count attempts since the start.
	Sent, Failed int64
}

// Certificate is the server's own.
type Certificate struct{ NotBefore, NotAfter time.Time }
