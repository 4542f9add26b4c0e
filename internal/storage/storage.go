// Package storage says what a store of keysvc must do. It is shaped by what etcd
// can do in one transaction, so that bbolt and etcd serve it alike; it knows no
// backend and no gRPC.
//
// # Model
//
// A store holds records (the policy, workspaces, members, keys), and for each
// workspace a head and a chain of audit events. It has an epoch, which identifies
// its history, and a revision, which grows with every committed change.
//
// A change is one transaction: records, index entries, audit event, head and feed
// entry commit together or not at all. It names the head that it was checked
// against; that one comparison serialises the changes of a workspace, so that
// whatever was checked on the projection at that head (limits, member state,
// uniqueness within the workspace) still holds when the change commits.
//
// Deciding never reads the store: it reads a projection, which starts from Load
// and follows Watch. The other reads are for people, and linearizable.
//
// Records are shared, not copied: nobody changes a record after handing it to a
// store or getting it from one. The one exception is Commit, which completes the audit
// event of its change.
//
// Every record names the event that put it (change_sequence), and every event lists the
// hashes of the records that its change put or deleted. So a store can tell a record
// that is stale, put back or left over from one that is true, and answers ErrDamaged.
package storage

import (
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// Bounds of one change. They are etcd's defaults (128 operations, 1.5 MiB) with
// room for what the backend adds itself.
const (
	// MaxOperations is how many operations a change may have: one for each record that is
	// put, member that is deleted, id that must be absent or is freed; one more for a
	// new key, and DeleteOperations for each key that is deleted. It counts what a
	// backend writes and compares that keeps its indexes in the store.
	MaxOperations = 100
	// MaxChangeBytes is how large the records of a change may be together.
	MaxChangeBytes = 512 << 10
)

// Bounds of a page.
const (
	// MaxPage is how many records a page read gives at most.
	MaxPage = 1000
	// MaxPageBytes is how large they may be together, as they are stored: a quarter of what
	// a gRPC client takes unless told otherwise. A page has one record all the same.
	MaxPageBytes = 1 << 20
)

const (
	// MaxIDBytes is how long the id of a workspace, a member or a request may be. An id
	// is not empty and holds no NUL byte; what else it may hold is for the callers.
	MaxIDBytes = 128
	// KeyIDLength is how long a key's id is.
	KeyIDLength = 16
)

// Position is how far a store has come.
type Position struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Time is the latest wall time of any change, zero in a new store. It is the newest
	// change's, unless the clock went back.
	Time time.Time
	// Hash is that of the newest change's audit event; zero if it is not known.
	Hash [32]byte
}

// Barrier is a point of a store's change log.
type Barrier struct {
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Hash is that of this change's audit event; zero if it is not known.
	Hash [32]byte
}

// Head serialises the changes of one workspace. It is compared by value; the zero
// Head is that of a workspace without changes.
type Head struct {
	// Sequence is that of the workspace's newest audit event; the first has 1.
	Sequence int64
	// Hash is the hash of that event, which covers the one before it.
	Hash [32]byte
	// Fence grows when a change whose outcome is unknown is defeated for good.
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
	// Head is that of one workspace.
	Head *WorkspaceHead
	// Usage is when a key was last used; it comes after the key.
	Usage *Usage
	// Damaged stands for a record that cannot be read, is stale, or is missing.
	Damaged *Damaged
}

// Usage is when a key was last used.
type Usage struct {
	// KeyID is the key.
	KeyID string
	// Time is when; it is kept to the nanosecond.
	Time time.Time
}

// WorkspaceHead is the head of one workspace.
type WorkspaceHead struct {
	// WorkspaceID names the workspace; empty is the policy's.
	WorkspaceID string
	// Head is its head.
	Head Head
}

// Damaged says which record cannot be read, or is not the one that should be there, as far
// as its name tells. Everything that depends on it must be refused with DATA_LOSS.
type Damaged struct {
	// WorkspaceID is the record's workspace.
	WorkspaceID string
	// KeyID is set if it is a key's record.
	KeyID string
	// MemberID is set if it is a member's record.
	MemberID string
	// Head is set if it is the workspace's head; without KeyID, MemberID and Head it
	// is the workspace's own record.
	Head bool
	// Err says what is wrong; it is a DamagedError.
	Err error
}

// Change is one transaction of one workspace, or of the policy. It holds puts and
// deletes, at least one, each of another record; MaxOperations bounds them.
type Change struct {
	// WorkspaceID names the workspace; empty is the policy's.
	WorkspaceID string
	// Expect is the head that the change was checked against.
	Expect Head
	// ExpectPolicy is the policy's head that the change was checked against. It is compared
	// as Expect is; nil compares nothing, for changes that no policy bears on.
	ExpectPolicy *Head
	// Event is the change's audit event. Sequence and previous_hash must follow on
	// Expect. Commit sets its list of record changes, whatever it was.
	Event *storagev1.AuditRecord
	// Kind and Subject make up the entry of the change log.
	Kind    storagev1.FeedKind
	Subject string

	// Narrows says that the change only takes away: access, or what is stored. Such
	// changes are committed while the disk is full; any other is ErrFull then.
	Narrows bool

	// AbsentKeyIDs must not be there, in any workspace. New keys are among them.
	AbsentKeyIDs []string
	// AbsentRequestIDs must not be there in this workspace. All that a key gets with this
	// change are among them.
	AbsentRequestIDs []string

	// FreedRequestIDs are forgotten: keys that are put here had them until now. All that
	// a key loses by this change, and is not deleted, are among them.
	FreedRequestIDs []string

	// PutPolicy, PutWorkspace, PutMembers and PutKeys add or replace records. All have
	// the sequence of Event as their change_sequence. A key keeps its sequence for life;
	// a new one has the sequence of Event.
	PutPolicy    *storagev1.PolicyRecord
	PutWorkspace *storagev1.WorkspaceRecord
	PutMembers   []*storagev1.MemberRecord
	PutKeys      []*storagev1.KeyRecord
	// DeleteKeys and DeleteMembers remove records, given as they are stored.
	DeleteKeys    []*storagev1.KeyRecord
	DeleteMembers []*storagev1.MemberRecord
}

// Committed is a change as watchers see it. There may be some that put and delete
// nothing: a fence was raised, and only the head is another one.
type Committed struct {
	// Revision of the change.
	Revision int64
	// Time is the change's, from its audit event; zero for a fence, which has none.
	Time time.Time
	// Head is the workspace's after the change.
	Head WorkspaceHead
	// Feed is the change's entry in the change log.
	Feed *storagev1.FeedRecord
	// Put are the records that were added or replaced, without the head.
	Put []Item
	// DeletedKeys and DeletedMembers were removed.
	DeletedKeys    []*storagev1.KeyRecord
	DeletedMembers []*storagev1.MemberRecord
}

// Query asks for a page.
type Query struct {
	// WorkspaceID limits the page to one workspace. Only ListKeys takes an empty one
	// for all of them.
	WorkspaceID string
	// Cursor is the Next of the page before, empty for the first page.
	Cursor string
	// Limit is how many records to give at most, 1 to MaxPage; what lies outside is
	// taken for the nearest.
	Limit int
	// MaxBytes is how large the records may be together, as they are stored, 1 to
	// MaxPageBytes; what lies outside is taken for MaxPageBytes. The first record of a page
	// is given whatever its size.
	MaxBytes int
}

// Bounded returns the query with its limits inside the bounds. Every backend calls
// it first.
func (q Query) Bounded() Query {
	q.Limit = max(1, min(q.Limit, MaxPage))
	if q.MaxBytes < 1 || q.MaxBytes > MaxPageBytes {
		q.MaxBytes = MaxPageBytes
	}
	return q
}

// Full reports whether a page that has so many records, of so many bytes together, is
// full before the next one, of next bytes, is added.
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
