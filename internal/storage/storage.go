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
	"context"
	"iter"
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

// Store is one backend. All methods may be called from many goroutines, honour
// their context, and return ErrUnavailable when the store is closed or being
// reopened.
type Store interface {
	// Epoch returns the identity of the store's history. It changes when a store
	// is created or restored, never while it is open.
	Epoch() string

	// Load calls visit for every record that the projection needs, all as of one
	// revision, and returns that revision: first the policy if there is one, then
	// workspaces, members, heads and keys, a workspace's keys by ascending sequence.
	// A record that is damaged, missing, or not the one that its newest audit event put,
	// is visited as Damaged. An error of visit ends Load and is returned. visit must not
	// call the store.
	//
	// A backend that went down after a failed commit is reopened by Load. Until a Load has
	// visited everything, every other method but Barrier is ErrUnavailable: nobody reads or
	// changes what no projection has seen.
	Load(ctx context.Context, visit func(Item) error) (Position, error)

	// Watch yields every change after the given revision, in revision order and
	// without gaps, each only once it is durable. It ends with an error: the
	// context's, ErrGap, or ErrUnavailable, after which Load begins anew.
	Watch(ctx context.Context, after int64) iter.Seq2[*Committed, error]

	// Barrier returns how far the change log has come: at least as far as the newest change
	// that was acknowledged anywhere before the call began. It is linearizable. A backend
	// that serves one process answers from memory, also while it is down: with the newest
	// change that it gave to watchers. Errors: ErrUnavailable, ErrHistoryChanged, or the
	// context's.
	Barrier(ctx context.Context) (Barrier, error)

	// Commit makes one change and returns its revision once it is durable and handed
	// to the watchers. It lists in the change's event what it put and deleted, with the
	// hashes before and after. Errors: a ConflictError, an ExistsError, ErrInvalidChange,
	// ErrFull, ErrUnavailable, ErrDamaged (the head is, or a record that would be replaced or
	// deleted), ErrOutcomeUnknown, or the context's if
	// it ended before the commit had begun. In all cases but ErrOutcomeUnknown nothing
	// was changed. If several of them apply, any one is returned.
	Commit(ctx context.Context, change *Change) (int64, error)

	// GetKey reads one key, of any workspace if workspaceID is empty, and the revision
	// it was read at. Errors: ErrNotFound, of the returned revision too; ErrDamaged.
	GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error)

	// FindRequest returns the key that a request id was used for in a workspace, and the
	// revision it was read at. Errors: ErrNotFound, of the returned revision too.
	FindRequest(ctx context.Context, workspaceID, requestID string) (keyID string, revision int64, err error)

	// ListKeys reads a page of keys, newest first: of one workspace by descending
	// sequence, of all of them by descending time of commit, as far as the backend
	// can tell. A damaged record in the page is ErrDamaged. An unknown workspace has no
	// keys.
	ListKeys(ctx context.Context, query Query) (KeyPage, error)

	// GetMember reads one member, removed or not, and the revision it was read at.
	// Errors: ErrNotFound, of the returned revision too; ErrDamaged.
	GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error)

	// ListMembers reads a page of a workspace's members, removed or not, by ascending
	// member id. A damaged record in the page is ErrDamaged.
	ListMembers(ctx context.Context, query Query) (MemberPage, error)

	// PutUsage records when keys were last used, outside revisions, audit and Watch. The
	// later of the given and the stored time stays. Keys that are not there are passed
	// over. Errors: ErrFull, ErrUnavailable, ErrOutcomeUnknown, or the context's; some of the
	// times may have been recorded then, which does no harm.
	PutUsage(ctx context.Context, uses []Usage) error

	// ListAuditEvents reads a page of one workspace's audit events, newest first; the
	// empty workspace's are those of the policy.
	ListAuditEvents(ctx context.Context, query Query) (AuditPage, error)

	// ListFeed returns the newest entries of the change log, at most limit of them, in
	// revision order and with none missing between them; the last is that of the store's
	// revision at some time during the call. It may return fewer, or none, when older ones
	// are not kept, or an entry is damaged.
	ListFeed(ctx context.Context, limit int) ([]*storagev1.FeedRecord, error)

	// Close waits for the commits under way, ends all watches, and gives the store
	// back. Changes that have not begun are ErrUnavailable. Closing again is no error;
	// it waits as well.
	Close() error
}

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

// LocalBarrier is implemented by stores whose Barrier reads memory alone: it neither
// waits nor fails, so nothing is gained by sharing it.
type LocalBarrier interface {
	// LocalBarrier is Barrier.
	LocalBarrier() Barrier
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
