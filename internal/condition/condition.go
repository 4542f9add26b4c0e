// Package condition is how a server is, and what is wrong with it, in words. It decides and does
// nothing else: package server collects the facts.
package condition

import (
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// Condition is how a server is. It names no key, no member and no workspace.
type Condition struct {
	// Version is the build that runs.
	Version string
	// Started is when the server took over its store. Now is the time of its clock.
	Started, Now time.Time
	// Epoch is the store's, and Revision what validations reflect.
	Epoch    string
	Revision int64
	// Schema is the store's, NewestSchema the newest that this program reads, and StoreKind what the store is
	// kept in.
	Schema, NewestSchema int32
	StoreKind            string
	// LastCommit is the time of the newest change, and LastBackup that of the newest backup. Zero if
	// there was none, or if that is not known.
	LastCommit, LastBackup time.Time
	// Keys, Members and Workspaces are how many records there are, whatever their state.
	Keys, Members, Workspaces int64
	// States are the keys by state; nil if they are not counted.
	States *States
	// Damaged is how many records cannot be read. PolicyDamaged is set if the policy is one of them.
	Damaged       int64
	PolicyDamaged bool
	// Sessions are those of near-caches.
	Sessions Sessions
	// Store is how the store is; nil if the store cannot tell.
	Store *storage.Status
	// Clock is the server's.
	Clock Clock
	// Certificate is the server's own; nil without TLS.
	Certificate *Certificate
	// Authorities are those that verify the certificates of clients: of each file, the one that ends last.
	Authorities []Authority
	// BackupFailures is how many backups have failed since the newest that was complete.
	BackupFailures int64
	// NoticesWaiting is about how many notices that keys end wait, and NoticeFailures how many attempts to
	// send one have failed since the last that succeeded.
	NoticesWaiting, NoticeFailures int64
	// FilesRefused are the files, in words, whose changed content is not used because of a mistake in it.
	FilesRefused []string
	// ReadOnly is set while every change is refused, because the settings say so.
	ReadOnly bool
	// Stopping is set once the stop has begun.
	Stopping bool
}

// States are the keys by state. Each key that can be read is in one of the first five.
type States struct {
	Active, Suspended, Held, Expired, Revoked int64
	// Within7Days and Within30Days are the active keys that expire so soon.
	Within7Days, Within30Days int64
}

// Sessions are the sessions of near-caches.
type Sessions struct {
	// Open is how many there are, and Limit how many there may be.
	Open, Limit int64
	// Leased is how many of them may answer from memory now. Behind is how many of these have not
	// confirmed the newest change.
	Leased, Behind int64
	// Unconfirmed is the largest number of changes that one with a lease has not confirmed, and Lag
	// how long ago the oldest of them was made.
	Unconfirmed int64
	Lag         time.Duration
	// Staleness is the length of a lease.
	Staleness time.Duration
	// Ahead is how many near-caches knew of later changes than the store has.
	Ahead int64
}

// Clock is a server's clock.
type Clock struct {
	// Jumped is set from the first jump of the wall clock on.
	Jumped bool
	// WallAhead is how far the wall clock is ahead of the server's.
	WallAhead time.Duration
	// Apart is how far the clocks of the other servers are ahead of this server's, negative if they are
	// behind it, if this server has shown that its clock differs from all of them; 0 if not.
	Apart time.Duration
	// Purges is set unless the server began so long after the newest change that it purges nothing.
	Purges bool
}

// Certificate is how long a certificate holds.
type Certificate struct{ Start, End time.Time }

// Authority is an authority of clients.
type Authority struct {
	// TrustDomain is the SPIFFE trust domain; empty for clients without a SPIFFE id.
	TrustDomain string
	Certificate
}

// name names the authority in a sentence.
func (a *Authority) name() string {
	if a.TrustDomain == "" {
		return "clients without a SPIFFE id"
	}
	return "the trust domain " + a.TrustDomain
}

// endsSoon returns how much of a certificate's life is left, and reports whether that is little.
func (c *Certificate) endsSoon(now time.Time) (left time.Duration, soon bool) {
	left, life := c.End.Sub(now), c.End.Sub(c.Start)
	return left, left > 0 && left < min(renewal, life/renewalShare)
}

// Severity is how bad a problem is. The numbers are those of the API.
type Severity int32

// The severities.
const (
	// Warning: nobody is refused yet.
	Warning Severity = iota + 1
	// Error: callers are refused, or a promise does not hold now.
	Error
)

// Problem is one thing that is wrong.
type Problem struct {
	// ID names the kind of problem, and never changes.
	ID string
	// Severity is how bad it is.
	Severity Severity
	// Description is what is wrong and what follows from it, and Action what to do.
	Description, Action string
}

// Problems returns what is wrong, errors first.
func (c *Condition) Problems() []Problem {
	var wrong []Problem
	for _, severity := range []Severity{Error, Warning} {
		for _, kind := range kinds {
			if kind.severity != severity {
				continue
			}
			if text := kind.describe(c); text != "" {
				wrong = append(wrong, Problem{ID: kind.id, Severity: severity, Description: text, Action: kind.action})
			}
		}
	}
	return wrong
}

// Kinds returns the ids of all kinds of problems, in the order in which they are reported.
func Kinds() []string {
	var ids []string
	for _, kind := range kinds {
		ids = append(ids, kind.id)
	}
	return ids
}
