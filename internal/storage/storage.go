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
	// MaxOperations is the max number of operations of a change. An operation is each record
	// that is put, member that is deleted, and id that must be absent or is freed; a new key
	// is one more, and a key that is deleted is DeleteOperations. This is what a backend with
	// its indexes in the store writes and compares.
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

const (
	// MaxIDBytes is the max length of the id of a workspace, a member or a request. An id
	// is not empty and holds no NUL byte. Callers may restrict ids further.
	MaxIDBytes = 128
	// KeyIDLength is the length of a key's id, in bytes.
	KeyIDLength = 16
)

// Position is how far a store has come.
type Position struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Time is the latest wall time of any change, zero in a new store. It is that of the newest
	// change, except if the clock went back.
	Time time.Time
	// Hash is the hash of the newest change's audit event; zero if it is not known.
	Hash [32]byte
}

// Barrier is a point of a store's change log.
type Barrier struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Hash is the hash of this change's audit event; zero if it is not known.
	Hash [32]byte
}

// Head serialises the changes of one workspace. It is compared by value. The zero Head is
// that of a workspace without changes.
type Head struct {
	// Sequence is that of the workspace's newest audit event. The first event has 1.
	Sequence int64
	// Hash is the hash of that event, which covers the hash of the event before it.
	Hash [32]byte
	// Fence is increased to make sure that a change whose outcome is unknown cannot commit
	// later.
	Fence int64
}

// Item is one stored record. Exactly one field is set.
type Item struct {
	// Policy is the active policy.
	Policy *storagev1.PolicyRecord
	// Workspace, Member and Key are records of those kinds.
	Workspace *storagev1.WorkspaceRecord
	Member    *storagev1.MemberRecord
	Key       *storagev1.KeyRecord
	// Head is the head of one workspace.
	Head *WorkspaceHead
	// Usage is when a key was last used. It comes after the key.
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
	// Head is set if the record is the workspace's head. Without KeyID, MemberID and Head the
	// record is the workspace's own.
	Head bool
	// Err is a DamagedError that says what is wrong.
	Err error
}

// Change is one transaction of one workspace, or of the policy. It holds at least one put
// or delete, each of another record; MaxOperations and MaxChangeBytes bound it.
type Change struct {
	// WorkspaceID names the workspace; empty is the policy's.
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

	// Narrows is whether the change only takes away: access, or stored records. Such
	// changes are committed while the disk is full. Any other change is ErrFull then.
	Narrows bool

	// AbsentKeyIDs must not exist in any workspace. They include the ids of all new keys.
	AbsentKeyIDs []string
	// AbsentRequestIDs must not exist in this workspace. They include all request ids that a
	// key gets by this change.
	AbsentRequestIDs []string

	// FreedRequestIDs are forgotten. They are all request ids that a key in PutKeys loses by
	// this change.
	FreedRequestIDs []string

	// PutPolicy, PutWorkspace, PutMembers and PutKeys add or replace records. All of them have
	// the sequence of Event as their change_sequence. A key keeps its sequence for life, which
	// is the sequence of the Event that created it.
	PutPolicy    *storagev1.PolicyRecord
	PutWorkspace *storagev1.WorkspaceRecord
	PutMembers   []*storagev1.MemberRecord
	PutKeys      []*storagev1.KeyRecord
	// DeleteKeys and DeleteMembers remove records. They are the records as they are stored.
	DeleteKeys    []*storagev1.KeyRecord
	DeleteMembers []*storagev1.MemberRecord
}

// Committed is a change as watchers see it. A change that puts and deletes nothing raised a
// fence: only the head has changed.
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
	// Limit is the max number of records, 1 to MaxPage. Bounded replaces another value by the
	// nearest of these.
	Limit int
	// MaxBytes is the max size of the records together, in their stored form, 1 to
	// MaxPageBytes. Bounded replaces another value by MaxPageBytes. A page has its first
	// record whatever the size.
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

// Full reports whether a page with records of bytes together has no room for the next
// record, of next bytes.
func (q Query) Full(records, bytes, next int) bool {
	return records >= q.Limit || records > 0 && bytes+next > q.MaxBytes
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

// AuditEvent is a stored audit event with the bytes that its hash covers.
type AuditEvent struct {
	// Record is the event.
	Record *storagev1.AuditRecord
	// Encoded is the event as it was stored.
	Encoded []byte
}
