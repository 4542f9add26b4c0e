// Package storage defines what a store of keysvc must do. Its shape follows what etcd
// can do in one transaction, so that bbolt and etcd can both implement it. It knows no
// backend and no gRPC. How to write a backend is described in docs/new-backend.md.
//
// # Model
//
// A store holds records (the policy, workspaces, members, keys), and for each
// workspace a head and a chain of audit events. It has an epoch, which identifies
// its history, and a revision, which grows with every committed change.
//
// A change is one transaction: records, index entries, audit event, head and feed
// entry commit together or not at all. A change names the head that it was checked
// against. The comparison of this head serialises the changes of a workspace, so that
// everything that was checked on the projection at that head (limits, member state,
// uniqueness within the workspace) still holds when the change commits.
//
// Deciding never reads the store. It reads a projection, which starts from Load
// and follows Watch. The other reads are for people, and linearizable.
//
// Records are shared, not copied: nobody changes a record after passing it to a
// store or getting it from one. The only exception is Commit, which completes the audit
// event of its change.
//
// Every record names the event that put it (change_sequence), and every event lists the
// hashes of the records that its change put or deleted. So a store can detect a record
// that is stale, put back or left over, and returns ErrDamaged for it.
package storage

import (
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// Bounds of one change. They are etcd's default limits (128 operations, 1.5 MiB), less
// what a backend adds itself.
const (
	// MaxOperations is the max number of operations of a change. Each record that is put, each
	// member that is deleted, and each id that must be absent or is freed is one operation. A
	// new key is one more. A key that is deleted is DeleteOperations. A backend that stores its
	// indexes as well writes or compares this many names.
	MaxOperations = 100
	// MaxChangeBytes is the max size of the records of a change together.
	MaxChangeBytes = 512 << 10
)

// Bounds of a page.
const (
	// MaxPage is the max number of records of a page.
	MaxPage = 1000
	// MaxPageBytes is the max size of the records of a page together, in their stored form: a
	// quarter of the default limit of a gRPC client. A page has at least one record, whatever
	// its size.
	MaxPageBytes = 1 << 20
)

// Bounds of SettingsRecord.staleness.
const (
	MinStaleness = 100 * time.Millisecond
	MaxStaleness = time.Minute
)

// Lengths of ids.
const (
	// MaxIDBytes is the max length of the id of a workspace, a member or a request. An id
	// is not empty and has no NUL byte. Callers may restrict ids further.
	MaxIDBytes = 128
	// KeyIDLength is the length of a key's id, in bytes.
	KeyIDLength = 16
)

// Position is how far a store has come.
type Position struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Time is the latest wall time of any change, zero in a new store. It is the time of the
	// newest change, except after the clock went back.
	Time time.Time
	// Hash is the hash of the newest change's audit event; zero if it is not known.
	Hash [32]byte
}

// Barrier is a point of a store's change log.
type Barrier struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Hash is the hash of this change's audit event, or what its feed entry has in the place of one;
	// zero if it is not known.
	Hash [32]byte
}

// Differs reports whether two points of one revision are known to be of different histories.
func (b Barrier) Differs(other Barrier) bool {
	return b.Revision == other.Revision && b.Hash != other.Hash && b.Hash != [32]byte{} && other.Hash != [32]byte{}
}

// Barrier returns the point of the change log that a position is.
func (p Position) Barrier() Barrier { return Barrier{Revision: p.Revision, Hash: p.Hash} }

// Barrier returns the point of the change log that a change is.
func (c *Committed) Barrier() Barrier {
	point := Barrier{Revision: c.Revision}
	copy(point.Hash[:], c.Feed.GetAuditHash())
	return point
}

// Head serialises the changes of one workspace. It is compared by value. A workspace without
// changes has the zero Head.
type Head struct {
	// Sequence is the sequence of the workspace's newest audit event. The first event has 1.
	Sequence int64
	// Hash is the hash of that event, which covers the hash of the event before it.
	Hash [32]byte
	// Fence is raised to keep a change whose outcome is unknown from committing later: that
	// change still expects the lower fence.
	Fence int64
}

// Item is one stored record. Exactly one field is set.
type Item struct {
	// Policy is the active policy.
	Policy *storagev1.PolicyRecord
	// Settings are the settings that all processes over the store share.
	Settings *storagev1.SettingsRecord
	// Workspace, Member and Key are records of those kinds.
	Workspace *storagev1.WorkspaceRecord
	Member    *storagev1.MemberRecord
	Key       *storagev1.KeyRecord
	// KeyView is a key as ViewLoader visits it, in the place of Key.
	KeyView *KeyView
	// Head is the head of one workspace.
	Head *WorkspaceHead
	// Usage is when a key was last used. Load visits it after the key.
	Usage *Usage
	// Damaged stands for a record that is unreadable, stale, left over or missing.
	Damaged *Damaged
}

// Usage is when a key was last used.
type Usage struct {
	// KeyID is the id of the key.
	KeyID string
	// Time of the last use, to the nanosecond.
	Time time.Time
	// Secrets are the last uses of the key's secrets, if they do not follow from Time. An entry with
	// tag 0 is empty.
	Secrets [2]SecretUse
}

// SecretUse is when one secret of a key was last used.
type SecretUse struct {
	// Tag is the token.ShortHash.Tag of the secret.
	Tag uint32
	// Time of the last use, to the nanosecond; zero if it was never used.
	Time time.Time
}

// WorkspaceHead is the head of one workspace.
type WorkspaceHead struct {
	// WorkspaceID names the workspace; empty is the policy's.
	WorkspaceID string
	// Head is its head.
	Head Head
}

// Damaged names a record that is damaged, as far as its name is known. Everything that
// depends on the record must be refused with DATA_LOSS.
type Damaged struct {
	// WorkspaceID is the record's workspace.
	WorkspaceID string
	// KeyID is set if the record is a key.
	KeyID string
	// MemberID is set if the record is a member.
	MemberID string
	// Head is set if the record is the workspace's head, and Settings if it is the settings. If KeyID,
	// MemberID, Head and Settings are all unset, the record is the workspace's own, or the policy if
	// WorkspaceID is empty.
	Head, Settings bool
	// Err is a DamagedError that says what is wrong.
	Err error
}

// Change is one transaction of one workspace, of the policy, or of the settings. It puts or deletes at least
// one record, and no record twice. MaxOperations and MaxChangeBytes bound it.
type Change struct {
	// WorkspaceID names the workspace; empty is that of the policy and of the settings, which have one
	// head and one chain of events. A change puts one of the two.
	WorkspaceID string
	// Expect is the head that the change was checked against.
	Expect Head
	// ExpectPolicy is the policy's head that the change was checked against. It is compared
	// like Expect. It is nil for changes that do not depend on the policy.
	ExpectPolicy *Head
	// Event is the change's audit event. Its sequence and previous_hash must continue the
	// chain that ends in Expect. Commit overwrites its list of record changes.
	Event *storagev1.AuditRecord
	// Kind and Subject are those of the feed entry.
	Kind    storagev1.FeedKind
	Subject string

	// Narrows reports whether the change only takes something away: access, or stored records.
	// Such a change is committed even while the disk is full. Any other change is ErrFull then.
	Narrows bool

	// AbsentKeyIDs must not exist in any workspace. They include the ids of all new keys.
	AbsentKeyIDs []string
	// AbsentRequestIDs must not exist in this workspace. They include all request ids that a
	// key gets by this change.
	AbsentRequestIDs []string

	// FreedRequestIDs can be used again after this change. They are all request ids that a key
	// in PutKeys loses by it.
	FreedRequestIDs []string

	// PutPolicy, PutSettings, PutWorkspace, PutMembers and PutKeys add or replace records. Only a
	// SettingsKeeper takes PutSettings; elsewhere it is ErrInvalidChange. The
	// change_sequence of each record is the sequence of Event. The sequence of a key is the
	// sequence of the Event that created the key, and never changes.
	PutPolicy    *storagev1.PolicyRecord
	PutSettings  *storagev1.SettingsRecord
	PutWorkspace *storagev1.WorkspaceRecord
	PutMembers   []*storagev1.MemberRecord
	PutKeys      []*storagev1.KeyRecord
	// DeleteKeys and DeleteMembers delete these records, which are given as they are stored.
	DeleteKeys    []*storagev1.KeyRecord
	DeleteMembers []*storagev1.MemberRecord
}

// Committed is a change as watchers see it. If it puts and deletes nothing, it raised a fence:
// only the head has changed.
type Committed struct {
	// Revision of the change.
	Revision int64
	// Time of the change's audit event; zero for a fence, which has no event.
	Time time.Time
	// Head is the workspace's head after the change.
	Head WorkspaceHead
	// Feed is the change's feed entry.
	Feed *storagev1.FeedRecord
	// Put are the records that were added or replaced, without the head.
	Put []Item
	// DeletedKeys and DeletedMembers are the records that were removed.
	DeletedKeys    []*storagev1.KeyRecord
	DeletedMembers []*storagev1.MemberRecord
}

// Query asks for a page.
type Query struct {
	// WorkspaceID limits the page to one workspace. In ListKeys, an empty WorkspaceID means
	// all workspaces.
	WorkspaceID string
	// Cursor is Next of the previous page, empty for the first page.
	Cursor string
	// Limit is the max number of records, 1 to MaxPage. Bounded replaces any other value by the
	// nearer of these two.
	Limit int
	// MaxBytes is the max size of the records together, in their stored form, 1 to
	// MaxPageBytes. Bounded replaces any other value by MaxPageBytes. A page has at least one
	// record, whatever its size.
	MaxBytes int
}

// Bounded returns the query with its limits inside the bounds. Every backend calls it
// first.
func (q Query) Bounded() Query {
	q.Limit = max(1, min(q.Limit, MaxPage))
	if q.MaxBytes < 1 || q.MaxBytes > MaxPageBytes {
		q.MaxBytes = MaxPageBytes
	}
	return q
}

// Full reports whether a page has no room for another record. The page has count records of
// size bytes together, and the other record has next bytes.
func (q Query) Full(count, size, next int) bool {
	return count >= q.Limit || count > 0 && size+next > q.MaxBytes
}

// KeyPage is a page of keys.
type KeyPage struct {
	// Keys in the order that ListKeys promises.
	Keys []*storagev1.KeyRecord
	// Next is the cursor of the next page; empty on the last.
	Next string
	// Revision that the page was read at.
	Revision int64
}

// MemberPage is a page of members.
type MemberPage struct {
	// Members by ascending id.
	Members []*storagev1.MemberRecord
	// Next is the cursor of the next page; empty on the last.
	Next string
	// Revision that the page was read at.
	Revision int64
}

// AuditPage is a page of audit events.
type AuditPage struct {
	// Events, newest first.
	Events []AuditEvent
	// Next is the cursor of the next page; empty on the last.
	Next string
	// Revision that the page was read at.
	Revision int64
}

// AuditQuery asks for a page of audit events by descending revision.
type AuditQuery struct {
	// All asks for the events of all workspaces and of the policy. Without it the page is of
	// WorkspaceID, which is empty for the policy.
	All         bool
	WorkspaceID string
	// Before and After limit the page to events with a revision below and above these; 0 is no
	// limit.
	Before, After int64
	// Limit and MaxBytes are those of Query.
	Limit, MaxBytes int
}

// Bounded returns the query with its limits inside the bounds. Every backend calls it first.
func (q AuditQuery) Bounded() AuditQuery {
	bounded := Query{Limit: q.Limit, MaxBytes: q.MaxBytes}.Bounded()
	q.Limit, q.MaxBytes = bounded.Limit, bounded.MaxBytes
	return q
}

// Full is Query.Full.
func (q AuditQuery) Full(count, size, next int) bool {
	return Query{Limit: q.Limit, MaxBytes: q.MaxBytes}.Full(count, size, next)
}

// AuditScan is a page of audit events by descending revision. It may have fewer events than it
// has room for, or none, though another page follows.
type AuditScan struct {
	// Events by descending revision.
	Events []AuditEvent
	// Next is Before of the next page; 0 on the last.
	Next int64
	// Revision that the page was read at.
	Revision int64
}

// RefusalPage is a page of refusals.
type RefusalPage struct {
	// Refusals, newest first.
	Refusals []*storagev1.RefusalRecord
	// Next is the cursor of the next page; empty on the last.
	Next string
	// Revision that the page was read at. Refusals have no revision.
	Revision int64
}

// AuditEvent is a stored audit event with the bytes that its hash covers.
type AuditEvent struct {
	// Revision of the event's change. ScanAuditEvents sets it; ListAuditEvents leaves it 0.
	Revision int64
	// Record is the event.
	Record *storagev1.AuditRecord
	// Encoded is the event as it was stored.
	Encoded []byte
}
