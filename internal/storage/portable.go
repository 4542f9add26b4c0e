package storage

import (
	"context"
	"fmt"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// PortableKind is what a Portable is. The values are in the order in which a store is exported,
// except that the last use of a key comes right after the key.
type PortableKind int

// The kinds.
const (
	PortablePolicy PortableKind = iota + 1
	PortableSettings
	PortableWorkspace
	PortableMember
	PortableKey
	PortableUsage
	PortableEvent
	PortableRefusal
	PortableHead
)

// PortableKinds lists all kinds in the order of an export.
var PortableKinds = []PortableKind{
	PortablePolicy, PortableSettings, PortableWorkspace, PortableMember, PortableKey, PortableUsage,
	PortableEvent, PortableRefusal, PortableHead,
}

// String names the kind for people.
func (k PortableKind) String() string {
	switch k {
	case PortablePolicy:
		return "policy"
	case PortableSettings:
		return "settings"
	case PortableWorkspace:
		return "workspace"
	case PortableMember:
		return "member"
	case PortableKey:
		return "key"
	case PortableUsage:
		return "last use"
	case PortableEvent:
		return "audit event"
	case PortableRefusal:
		return "refusal"
	case PortableHead:
		return "head"
	}
	return "unknown part"
}

// Portable is one part of a store on its way to another store.
type Portable struct {
	Kind PortableKind
	// WorkspaceID is the workspace of a record, an event or a head; empty is the policy's.
	WorkspaceID string
	// Name is the id of a member or of a key, also for the key's last use.
	Name string
	// Sequence is that of an event or a refusal.
	Sequence int64
	// Time is that of an event.
	Time time.Time
	// Old reports whether an event is so old that the events of its workspace before it may have been deleted.
	Old bool
	// Payload is what is stored of a record, an event or a refusal, without what the backend adds. It
	// is valid until the next part is asked for.
	Payload []byte
	// Usage is the last use of the key Name.
	Usage Usage
	// Head is a head, without its fence, which is of no use elsewhere.
	Head Head
}

// String names the part for people.
func (p Portable) String() string {
	switch p.Kind { //nolint:exhaustive // the others are named by the workspace
	case PortablePolicy, PortableSettings:
		return p.Kind.String()
	case PortableKey, PortableUsage:
		return fmt.Sprintf("%v %s", p.Kind, p.Name)
	case PortableMember:
		return fmt.Sprintf("member %q of workspace %q", p.Name, p.WorkspaceID)
	case PortableEvent:
		return fmt.Sprintf("audit event %d of workspace %q", p.Sequence, p.WorkspaceID)
	case PortableRefusal:
		return fmt.Sprintf("refusal %d", p.Sequence)
	}
	return fmt.Sprintf("%v %q", p.Kind, p.WorkspaceID)
}

// Origin is which store, and which state of it, an export is of.
type Origin struct {
	// Epoch, Schema and Position are the store's.
	Epoch    string
	Schema   int32
	Position Position
	// Pruned is the revision up to which old audit events may have been deleted; 0 if there are all.
	Pruned int64
	// Parts is how many parts an export has.
	Parts int64
}

// IsOf reports whether a migration that was begun is one from this origin.
func (o Origin) IsOf(record *storagev1.MigrationRecord) bool {
	return record.GetSourceEpoch() == o.Epoch && record.GetSourceRevision() == o.Position.Revision &&
		string(record.GetSourceHash()) == string(o.Position.Hash[:]) && record.GetSchema() == o.Schema
}

// IsRestored reports whether a store was made from this origin, by what its header says.
func (o Origin) IsRestored(record *storagev1.RestoredRecord) bool {
	return record.GetEpoch() == o.Epoch && record.GetRevision() == o.Position.Revision &&
		string(record.GetHash()) == string(o.Position.Hash[:])
}

// Exporter reads a store that nobody changes, to copy it into one of another backend.
type Exporter interface {
	// Origin returns what Export would export now. Errors: ErrDamaged, ErrUnavailable, or the
	// context's.
	Origin(ctx context.Context) (Origin, error)
	// Export calls visit for each part of the store, in an order that depends on what is stored alone:
	// the kinds in the order of PortableKinds; workspaces, members and heads by their ids; keys in the
	// order of their creation over all workspaces, each with its last use behind it; events in the order
	// of their changes; refusals by ascending sequence. An error of visit ends Export and is returned.
	// A part that cannot be read is ErrDamaged.
	Export(ctx context.Context, visit func(Portable) error) error
	// Close releases what the Exporter holds.
	Close() error
}

// Begun is how far a migration is.
type Begun struct {
	// Copied is how many parts are stored.
	Copied int64
	// Complete is set if Importer.Complete was done, and Released if Importer.Release was as well.
	Complete, Released bool
}

// Importer fills a store with the parts of another one. Until Release the store is not served:
// opening it is ErrUnfinished. An Importer that ends at any moment, with its process or without, leaves
// what the next one goes on with.
type Importer interface {
	// Keeps reports whether the store keeps parts of a kind. Put is not called for others.
	Keeps(kind PortableKind) bool
	// Begin begins to fill a store with a new epoch, or goes on. Errors: ErrPresent if there is a store
	// that was not made from this origin, ErrSourceChanged if the migration was begun from another state
	// of the source, ErrLocked if another process fills the store, ErrUnavailable, ErrFull, those of the
	// file system, and the context's.
	Begin(ctx context.Context, origin Origin) (Begun, error)
	// Put takes the next part. The first parts, as many as Begin said, are stored already: Put only looks
	// at them. Errors: ErrLocked, ErrUnavailable, ErrFull, those of the file system, and the context's.
	Put(ctx context.Context, part Portable) error
	// Complete stores what is left, so that the store can be exported and checked.
	Complete(ctx context.Context) error
	// Exporter reads what was stored, after Complete. The caller closes it.
	Exporter(ctx context.Context) (Exporter, error)
	// Check returns what is wrong with the store, after Complete; nothing if it is sound.
	Check(ctx context.Context) ([]string, error)
	// Release makes a store that can be served, and returns its epoch and revision.
	Release(ctx context.Context) (epoch string, revision int64, err error)
	// Discard removes what an unfinished migration from any origin has written, instead of Begin. Until it has returned nil,
	// opening the store is ErrUnfinished. progress is called with how many names of all are removed. Errors: ErrPresent if there
	// is a store that can be served, which is left as it is; ErrAbsent if no migration was begun; ErrLocked if another process
	// fills the store, or has begun to remove it as well; ErrUnavailable, those of the file system, and the context's.
	Discard(ctx context.Context, progress func(done, total int64)) error
	// Close releases what the Importer holds.
	Close() error
}

// FeedOf returns kind and subject of the feed entry of an event. The subject of a FEED_KIND_PURGE is
// not known.
func FeedOf(event *storagev1.AuditRecord) (kind storagev1.FeedKind, subject string) {
	return feedOf(event)
}
