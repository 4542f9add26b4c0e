package storage

import (
	"context"
	"io"
	"iter"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/flat"
)

// Store is what a backend implements: the sum of the roles below. A package that uses a
// store names the roles that it needs and no others.
//
// All methods may be called from many goroutines, honour their context, and return
// ErrUnavailable while the store is closed or being reopened.
//
// # Optional behaviour
//
// A backend may offer more than Store, as an interface of its own that is declared in this package:
// AuditFollower, AuditPruner, Elector, Fencer, LocalBarrierReader, RefusalStore, Resumer, SettingsKeeper,
// SinkReopener, SinkTrimmer, Snapshotter, StatsReader, StatusReader, UsageReader and ViewLoader. An optional behaviour never
// changes what Store promises. Users find it with As, and work without it if the store has none. A
// type that wraps a store must be a Wrapper, so that As finds what the store inside offers.
type Store interface {
	Source
	Committer
	KeyReader
	MemberReader
	AuditReader
	FeedReader
	UsageWriter

	// Closer releases the store. Close waits for the commits in progress and ends all watches.
	// A commit that has not begun returns ErrUnavailable. Closing a closed store waits as well,
	// and is not an error.
	io.Closer
}

// Source is what a projection starts from and follows.
type Source interface {
	// Epoch returns the identity of the store's history. It never changes while the store is
	// open. A new store draws one, and so does `keysvc anchor accept`. A file that was put back
	// together with its anchor keeps its epoch, so the epoch alone does not show that changes
	// were lost: compare the hash of a Barrier.
	Epoch() string

	// Load calls visit for every record that the projection needs, all as of one
	// revision, and returns that revision. The order is: the policy if there is one, the settings if
	// there are any, then workspaces, members, heads and keys; a workspace's keys by ascending sequence.
	// A record that is damaged, missing, or not the one that its newest audit event put,
	// is visited as Damaged. An error of visit ends Load and is returned. visit must not
	// call the store.
	//
	// Load reopens a backend that went down after a failed commit. Until a Load has visited
	// everything, every method except Load and Barrier returns ErrUnavailable, so that nobody
	// reads or changes what no projection has seen.
	Load(ctx context.Context, visit func(Item) error) (Position, error)

	// Watch yields every change after a point of the change log that the caller has loaded or
	// applied, in revision order and without gaps, each only once it is durable. If the hash of the
	// point is zero, only its revision counts. Watch ends with an error: the context's; ErrGap or
	// ErrUnavailable, after which the caller calls Load again; ErrHistoryChanged if the store has
	// fewer changes or had another one at that point, after which the caller must not go on with
	// what it has.
	Watch(ctx context.Context, after Barrier) iter.Seq2[*Committed, error]

	BarrierReader
}

// ViewLoader is the optional behaviour of a Source that loads a million keys in a moment, because
// it neither decodes nor copies their records.
type ViewLoader interface {
	// LoadViews is Load, with these differences. Before the first item, expect is called; if it is called
	// again, the load begins anew, and what was visited before does not count. Keys may come as
	// Item.KeyView. What visit gets is valid until it returns, and may be used again for the next item.
	// visit may be called from several goroutines, though never from two at once.
	LoadViews(ctx context.Context, expect func(Expected), visit func(Item) error) (Position, error)
}

// Expected is what a load will visit.
type Expected struct {
	// Keys is about how many keys will come.
	Keys int
	// Members is about how many members will come; 0 if the store does not know.
	Members int
	// IDs are the numbers that the store's own directory gives to keys. The projection uses the same
	// numbers, so that the process has one index of ids and not two. Nil if the store does not
	// share them.
	IDs *flat.IDs
}

// BarrierReader reads the newest point of the change log.
type BarrierReader interface {
	// Barrier returns a point of the change log that is not before the newest change that
	// any process acknowledged before the call began. It is linearizable. A backend that
	// serves one process answers from memory, even while it is down: it returns the newest
	// change that was handed to the watchers. Errors: ErrUnavailable, ErrHistoryChanged, or
	// the context's.
	Barrier(ctx context.Context) (Barrier, error)
}

// LocalBarrierReader is an optional behaviour of stores whose Barrier reads memory only:
// it neither waits nor fails, so sharing one read between callers saves nothing.
type LocalBarrierReader interface {
	// LocalBarrier returns what Barrier returns.
	LocalBarrier() Barrier
}

// Resumer is an optional behaviour of stores whose watches go on after they broke off.
type Resumer interface {
	// OnResume sets what is called whenever a watch was opened anew, before it yields another change.
	// The store may have been replaced by an older copy in between, which has everything that the watch has
	// yielded so far. resumed must return at once.
	OnResume(resumed func())
}

// SinkReopener is an optional behaviour of stores that write an audit sink.
type SinkReopener interface {
	// ReopenSink goes over to the file that the path of the audit sink names, after the present file
	// was renamed. It returns before that is done, and does nothing if there is no sink.
	ReopenSink()
}

// Elector is an optional behaviour of stores that several processes serve at a time.
type Elector interface {
	// Lead calls work once this process is the one that does the work which one process does at a time, and
	// again whenever it has become that after it was not. The context of work ends when the process may not
	// be the one any more; work then returns soon. A process that ends or hangs is replaced within about
	// 15 s. For a moment two processes may work, so nothing may rest on there being one. Lead returns when ctx
	// ends, after it has made room for another process, or when the store is closed.
	Lead(ctx context.Context, work func(ctx context.Context))
}

// AuditFollower is an optional behaviour of stores that do not write an audit sink themselves. Another part
// of the process writes it, after the answers of changes.
type AuditFollower interface {
	// FollowAudit yields every audit event after a revision, in the order of revisions and without gaps, each
	// only once it is durable. Events that cannot be read are left out, and in the log. It ends with an error:
	// the context's, ErrUnavailable or ErrHistoryChanged. It may be called again to go on.
	FollowAudit(ctx context.Context, after int64) iter.Seq2[AuditEvent, error]
	// SinkPosition returns how far an audit sink has the events durably; zero if there is no sink, and
	// in another history. PruneAudit deletes no event after it. Errors: ErrUnavailable, ErrDamaged, or the context's.
	SinkPosition(ctx context.Context) (Barrier, error)
	// PutSinkPosition stores that a sink has all events up to a position durably. It never goes back. It is outside
	// revisions, audit and Watch. Errors: ErrFull, ErrUnavailable, or the context's.
	PutSinkPosition(ctx context.Context, position Barrier) error
}

// AuditPruner is an optional behaviour of stores that can let go of old audit events.
type AuditPruner interface {
	// PruneAudit deletes audit events of before a time that the store's audit sink has, and returns
	// how many. These stay: the last event of each record that exists, and events that the store needs
	// to check itself. Without a sink all stay. PruneAudit yields to commits, and may be called again
	// after it broke off. Errors: ErrFull, ErrUnavailable, ErrOutcomeUnknown, ErrDamaged, or the
	// context's. After an error some of the events may have been deleted.
	PruneAudit(ctx context.Context, before time.Time) (int64, error)
}

// SinkTrimmer is an optional behaviour of stores that write an audit sink.
type SinkTrimmer interface {
	// TrimSink deletes the files that the sink's file was renamed to and whose lines are all older
	// than a time, and returns their names. Errors: those of the file system; some of the files may
	// have been deleted.
	TrimSink(ctx context.Context, before time.Time) ([]string, error)
}

// Snapshotter is an optional behaviour of stores that can copy themselves while they are served.
type Snapshotter interface {
	// Snapshot copies the store as of one revision into a file on the disk of the store, and returns
	// that copy. However slowly the copy is then read, the store is not held up. The copy has no name,
	// so it is gone when it is closed, and when the process ends. If ctx has a giveway.Work, Snapshot
	// gives way. Errors: ErrNoSpace, ErrUnavailable, ErrDamaged, the context's, and those of the file
	// system.
	Snapshot(ctx context.Context) (Snapshot, error)
}

// Snapshot is a copy of a store.
type Snapshot struct {
	// Content is the copy: Size bytes of a file as the backend keeps it. Closing it deletes the copy.
	// Read returns ErrNoSpace when the disk has no room for changes any more: then the copy must make
	// room.
	Content io.ReadCloser
	Size    int64
	// Epoch and Position are those of the store when it was copied.
	Epoch    string
	Position Position
}

// SettingsKeeper is an optional behaviour of stores that several processes share: they keep the settings
// that all of these must agree on. Such a store takes Change.PutSettings, and its Load and Watch have
// Item.Settings.
type SettingsKeeper interface {
	// GetSettings returns the settings and the revision at which they were read. It is linearizable.
	// Errors: ErrNotFound, with the revision at which there were none; ErrDamaged.
	GetSettings(ctx context.Context) (*storagev1.SettingsRecord, int64, error)
}

// Committer makes changes.
type Committer interface {
	// Commit makes one change and returns its revision once it is durable and handed
	// to the watchers. It lists in the change's event what it put and deleted, with the
	// hashes before and after.
	//
	// Errors: a ConflictError, an ExistsError, ErrInvalidChange, ErrFull, ErrSink, ErrUnavailable,
	// ErrDamaged (of the head, or of a record to be replaced or deleted),
	// ErrOutcomeUnknown, or the context's if it ended before the commit had begun. After
	// ErrOutcomeUnknown the change may have taken effect. After any other error nothing was
	// changed. If several errors apply, any one of them is returned.
	Commit(ctx context.Context, change *Change) (int64, error)
}

// Fencer is an optional behaviour of stores that several processes share. There, a transaction whose
// answer was lost may be executed later, and only the process that sent it knows of it.
type Fencer interface {
	// Fence raises the fence of a workspace whose head is still head, and returns the revision of
	// that change. After that no change can commit that was built on head. So a call that finds
	// nothing to change calls Fence before it answers (R5 of docs/replication.md). If another call
	// has raised the fence of head meanwhile, Fence has nothing to do, and returns the revision of
	// the newest raise. The empty workspace is the policy's.
	//
	// Errors: a ConflictError if the head is another one; ErrUnavailable, ErrFull, ErrDamaged (of
	// the head), or the context's. After an error the fence may have been raised, which does no harm
	// except that a change that was built on head is a conflict.
	Fence(ctx context.Context, workspaceID string, head Head) (revision int64, err error)
}

// KeyReader reads keys, for people and for the verbs; deciding does not read the store.
// Its reads are linearizable.
type KeyReader interface {
	// GetKey returns one key and the revision at which it was read. If workspaceID is empty,
	// the key may be of any workspace. Errors: ErrNotFound, with the revision at which there
	// was no such key; ErrDamaged.
	GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error)

	// FindRequest returns the id of the key that a request id was used for in a workspace, and
	// the revision at which it was read. Errors: ErrNotFound, with the revision at which the
	// request id was unused.
	FindRequest(ctx context.Context, workspaceID, requestID string) (keyID string, revision int64, err error)

	// ListKeys reads a page of keys, newest first: of one workspace by descending
	// sequence, of all of them by descending time of commit, as far as the backend
	// can tell. A damaged record in the page is ErrDamaged. An unknown workspace has no
	// keys.
	ListKeys(ctx context.Context, query Query) (KeyPage, error)
}

// MemberReader reads members. Its reads are linearizable.
type MemberReader interface {
	// GetMember returns one member, removed or not, and the revision at which it was read.
	// Errors: ErrNotFound, with the revision at which there was no such member; ErrDamaged.
	GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error)

	// ListMembers reads a page of a workspace's members, removed or not, by ascending
	// member id. A damaged record in the page is ErrDamaged.
	ListMembers(ctx context.Context, query Query) (MemberPage, error)
}

// AuditReader reads audit events. Its reads are linearizable.
type AuditReader interface {
	// ListAuditEvents reads a page of one workspace's audit events, newest first. The events
	// of the policy are those of the empty workspace.
	ListAuditEvents(ctx context.Context, query Query) (AuditPage, error)

	// ScanAuditEvents reads a page of audit events by descending revision: of one workspace, of
	// the policy, or of all. It goes on behind events that are missing, because old ones may have
	// been pruned. A damaged event in the page is ErrDamaged.
	ScanAuditEvents(ctx context.Context, query AuditQuery) (AuditScan, error)
}

// FeedReader reads the end of the change log.
type FeedReader interface {
	// ListFeed returns the newest feed entries, at most limit, in revision order and without a
	// gap. The last one was the newest of the store at some time during the call. ListFeed may
	// return fewer entries, or none, if older entries are not kept or one of them is damaged.
	ListFeed(ctx context.Context, limit int) ([]*storagev1.FeedRecord, error)
}

// UsageWriter records when keys were last used.
type UsageWriter interface {
	// PutUsage records when keys were last used, outside revisions, audit and Watch. If a
	// later time is stored, it stays, and a store with a UsageReader also leaves a time that is less
	// than UsageGranularity older. The same holds for the time of each secret; secrets that a later
	// use does not name are forgotten. Keys that do not exist are skipped. Errors: ErrFull,
	// ErrUnavailable, ErrOutcomeUnknown, or the context's. After an error some of the times may
	// have been recorded, which does no harm.
	PutUsage(ctx context.Context, uses []Usage) error
}

// UsageGranularity is how much older than a use the stored time of a key may be that a store with a
// UsageReader leaves as it is. So a key that is used all the time costs one write an hour, however many
// processes record its uses.
const UsageGranularity = time.Hour

// UsageReader is an optional behaviour of stores that several processes record uses in: none of them
// has the uses of all of them in memory.
type UsageReader interface {
	// ReadUsage returns when keys were last used, as it is stored now. Keys that were never used, do not
	// exist, or whose time is damaged, are left out. Errors: ErrUnavailable, or the context's.
	ReadUsage(ctx context.Context, keyIDs []string) ([]Usage, error)
}

// MaxRefusals is how many refusals a store keeps: the newest ones.
const MaxRefusals = 10_000

// RefusalStore is an optional behaviour of stores that keep what was refused.
type RefusalStore interface {
	RefusalWriter
	RefusalReader
}

// RefusalWriter records what was refused.
type RefusalWriter interface {
	// PutRefusals appends refusals to the stream and sets their sequences. It is outside
	// revisions, audit and Watch. Of the stream, the newest MaxRefusals are kept. Errors: ErrFull
	// on a full disk, as for a change that does not narrow; ErrUnavailable, ErrOutcomeUnknown,
	// ErrDamaged, or the context's. After ErrOutcomeUnknown the refusals may have been recorded;
	// after any other error none was.
	PutRefusals(ctx context.Context, refusals []*storagev1.RefusalRecord) error
}

// RefusalReader reads what was refused.
type RefusalReader interface {
	// ListRefusals reads a page of refusals, newest first: of one workspace, or all of them if
	// query.WorkspaceID is empty. A cursor is a sequence in decimal digits: the page has the
	// refusals below it. A damaged record in the page is ErrDamaged.
	ListRefusals(ctx context.Context, query Query) (RefusalPage, error)
}
