package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Export reads all that a store has while no replica changes it.
type Export struct {
	store *Store
	// shared is set if somebody else closes the store.
	shared bool
}

var _ storage.Exporter = (*Export)(nil)

// OpenExport opens a store that exists. Errors: those of New, and ErrAbsent if nothing is stored under
// the prefix.
func OpenExport(ctx context.Context, config Config) (*Export, error) {
	store := newStore(ctx, config)
	if err := store.open(ctx); err != nil {
		if err == errNoHeader { //nolint:errorlint // it is that value
			err = store.missing(ctx)
		}
		store.close()
		return nil, fmt.Errorf("%s: %w", store.config.Prefix, err)
	}
	return &Export{store: store}, nil
}

// Close implements storage.Exporter.
func (e *Export) Close() error {
	if e.shared {
		return nil
	}
	return e.store.Close()
}

// Origin implements storage.Exporter.
func (e *Export) Origin(ctx context.Context) (storage.Origin, error) {
	position, _, err := e.store.position(ctx)
	if err != nil {
		return storage.Origin{}, err
	}
	folders := []string{namePolicy, nameSettings, folderWorkspaces, folderMembers, folderKeys, folderUsage, folderAudit, folderHeads}
	parts := make([]clientv3.Op, 0, len(folders)+1)
	for _, folder := range folders {
		parts = append(parts, e.store.get(folder, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	}
	response, err := e.store.read(ctx, append(parts, e.store.get(nameSettings))...)
	if err != nil {
		return storage.Origin{}, err
	}
	origin := storage.Origin{Epoch: e.store.epoch, Schema: e.store.schema, Position: position}
	if origin.Pruned, _, err = e.store.prunedMark(ctx); err != nil {
		return storage.Origin{}, err
	}
	// The schema may have been raised since the store was opened.
	if pair := first(response, len(folders)); pair != nil {
		settings := &storagev1.SettingsRecord{}
		if err := storage.Decode("settings", nameSettings, pair.Value, settings); err != nil {
			return storage.Origin{}, err
		}
		origin.Schema = max(origin.Schema, storage.SchemaOf(settings))
	}
	for index := range folders {
		origin.Parts += found(response, index).GetCount()
	}
	return origin, nil
}

// Export implements storage.Exporter. It reads folders at one revision, and single pairs as they are
// newest, because etcd may compact the revision meanwhile. The caller compares the Origin before and after.
func (e *Export) Export(ctx context.Context, visit func(storage.Portable) error) error {
	ctx, done, err := e.store.beginRead(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, at, err := e.store.position(ctx)
	if err != nil {
		return err
	}
	x := &exporting{store: e.store, ctx: ctx, at: at, visit: visit, numbers: make(map[string]uint32)}
	if x.pruned, _, err = e.store.prunedMark(ctx); err != nil {
		return err
	}
	for _, part := range []func() error{
		func() error { return x.each(namePolicy, x.record(storage.PortablePolicy)) },
		func() error { return x.each(nameSettings, x.record(storage.PortableSettings)) },
		func() error { return x.each(folderWorkspaces, x.record(storage.PortableWorkspace)) },
		func() error { return x.each(folderMembers, x.record(storage.PortableMember)) },
		x.keys,
		x.events,
		func() error { return x.each(folderHeads, x.head) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// exporting is one Export.
type exporting struct {
	store *Store
	ctx   context.Context //nolint:containedctx // that of one call
	at    int64           // the etcd revision at which folders are read
	// pruned is Origin.Pruned.
	pruned int64
	visit  func(storage.Portable) error
	// workspaces are the ids of workspaces, and numbers their indexes, so that lists of a million names
	// stay small.
	workspaces []string
	numbers    map[string]uint32
}

// each visits the pairs in a folder, or of one name, in the order of the names.
func (x *exporting) each(folder string, visit func(name string, pair *mvccpb.KeyValue) error) error {
	return x.store.piped(x.ctx, folder, endOf(folder), x.at, func(*chunk) {}, func(some *chunk) error {
		defer some.release()
		for _, found := range some.pairs {
			name := string(found.name)
			stored := &mvccpb.KeyValue{
				Key: []byte(x.store.config.Prefix + name), Value: found.value, CreateRevision: found.created, ModRevision: found.modified,
			}
			if err := visit(name, stored); err != nil {
				return err
			}
		}
		return nil
	})
}

// named reads pairs by name, and visits them in the order of the names. A name that is not there has a nil pair.
func (x *exporting) named(names []string, visit func(name string, pair *mvccpb.KeyValue) error) error {
	for some := range slices.Chunk(names, gets) {
		parts := make([]clientv3.Op, len(some))
		for index, name := range some {
			parts[index] = x.store.get(name)
		}
		response, err := x.store.read(x.ctx, parts...)
		if err != nil {
			return err
		}
		for index, name := range some {
			if err := visit(name, first(response, index)); err != nil {
				return err
			}
		}
	}
	return nil
}

// record returns what visits the records of a kind.
func (x *exporting) record(kind storage.PortableKind) func(name string, pair *mvccpb.KeyValue) error {
	return func(name string, pair *mvccpb.KeyValue) error {
		if item := decodeItem(name, pair.Value); item.Damaged != nil {
			return item.Damaged.Err
		}
		part := storage.Portable{Kind: kind, Payload: storage.Payload(pair.Value)}
		switch kind { //nolint:exhaustive // policy and settings have no name
		case storage.PortableWorkspace:
			part.WorkspaceID = name[len(folderWorkspaces):]
		case storage.PortableMember:
			part.WorkspaceID, part.Name, _ = parseMemberName(name)
		}
		return x.visit(part)
	}
}

// number returns the index of a workspace's id.
func (x *exporting) number(workspaceID string) uint32 {
	number, known := x.numbers[workspaceID]
	if !known {
		number = uint32(len(x.workspaces)) //nolint:gosec // G115: a store has fewer workspaces
		x.workspaces = append(x.workspaces, workspaceID)
		x.numbers[workspaceID] = number
	}
	return number
}

// exportedKey is where a key is in the order of all keys, in less memory than an orderKey.
type exportedKey struct {
	rank, created, sequence int64
	workspace               uint32
	keyID                   [storage.KeyIDLength]byte
}

// keys visits the keys in the order of their creation, each with its last use.
func (x *exporting) keys() error {
	// 1. Read the order. Names are listed newest first, and keys of one rank by their ids.
	var order []exportedKey
	err := x.each(folderOrder, func(_ string, pair *mvccpb.KeyValue) error {
		where, err := x.store.decodeOrder(pair)
		if err != nil {
			return err
		}
		workspaceID, sequence, keyID, ok := parseKeyName(where.name)
		if !ok || keyID != where.keyID {
			return &storage.DamagedError{Kind: "order", Name: where.keyID, Problem: "it names another key's record"}
		}
		rank, _ := parseComplement(where.rank)
		key := exportedKey{rank: rank, created: where.created, sequence: sequence, workspace: x.number(workspaceID)}
		copy(key.keyID[:], keyID)
		order = append(order, key)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(order, func(a, b exportedKey) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.created, b.created), slices.Compare(b.keyID[:], a.keyID[:]))
	})
	// 2. Read the records in that order.
	seen := int64(0)
	for some := range slices.Chunk(order, gets/2) {
		names := make([]string, 0, 2*len(some))
		for _, key := range some {
			keyID := string(key.keyID[:])
			names = append(names, keyName(x.workspaces[key.workspace], key.sequence, keyID), usageName(keyID))
		}
		if err := x.named(names, x.key); err != nil {
			return err
		}
		seen += int64(len(some))
	}
	// 3. A record without an index entry would be left out.
	response, err := x.store.read(x.ctx, x.store.get(folderKeys, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err == nil && found(response, 0).GetCount() != seen {
		err = &storage.DamagedError{Kind: "order", Name: "all keys", Problem: fmt.Sprintf("it has %d keys, and there are %d records", seen, found(response, 0).GetCount())}
	}
	return err
}

// key visits a key's record, or a key's last use.
func (x *exporting) key(name string, pair *mvccpb.KeyValue) error {
	if strings.HasPrefix(name, folderUsage) {
		if pair == nil {
			return nil
		}
		keyID := name[len(folderUsage):]
		use, err := decodeUsage(name, keyID, pair.Value)
		if err != nil || use.Time.IsZero() {
			return nil //nolint:nilerr // as in a load, a damaged time is left out
		}
		return x.visit(storage.Portable{Kind: storage.PortableUsage, Name: keyID, Usage: *use})
	}
	workspaceID, _, keyID, _ := parseKeyName(name)
	if pair == nil {
		return &storage.DamagedError{Kind: "key", Name: keyID, Problem: "missing"}
	}
	if err := decodeKey(name, pair.Value, &storagev1.KeyRecord{}); err != nil {
		return err
	}
	return x.visit(storage.Portable{Kind: storage.PortableKey, WorkspaceID: workspaceID, Name: keyID, Payload: storage.Payload(pair.Value)})
}

// eventPlace is where an event is in the order of all events.
type eventPlace struct {
	revision int64
	time     time.Time
	sequence int64
	// workspace is compared as text: numbers differ from export to export.
	workspace string
}

// compare is negative if a's change is older than b's. Events of one revision were imported together;
// an import puts only events into one transaction that are in this order.
func (a eventPlace) compare(b eventPlace) int {
	return cmp.Or(cmp.Compare(a.revision, b.revision), a.time.Compare(b.time), cmp.Compare(a.workspace, b.workspace), cmp.Compare(a.sequence, b.sequence))
}

// placeOf returns the place of an event that was read.
func placeOf(revision int64, event *storagev1.AuditRecord) eventPlace {
	place := eventPlace{revision: revision, workspace: event.GetWorkspaceId(), sequence: event.GetSequence()}
	if event.GetTime() != nil {
		place.time = event.GetTime().AsTime()
	}
	return place
}

// events visits all audit events in the order of their changes.
func (x *exporting) events() error {
	var order []eventPlace
	decode := func(name string, pair *mvccpb.KeyValue) (storage.AuditEvent, error) {
		workspaceID, sequence, ok := parseAuditName(name)
		switch {
		case !ok:
			return storage.AuditEvent{}, &storage.DamagedError{Kind: "audit event", Name: name, Problem: "not the name of an audit event"}
		case pair == nil:
			return storage.AuditEvent{}, missingEvent(workspaceID, sequence)
		}
		return decodeAudit(workspaceID, name, sequence, pair.Value)
	}
	err := x.each(folderAudit, func(name string, pair *mvccpb.KeyValue) error {
		event, err := decode(name, pair)
		if err != nil {
			return err
		}
		place := placeOf(pair.ModRevision, event.Record)
		place.workspace = x.intern(place.workspace)
		order = append(order, place)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(order, eventPlace.compare)
	for some := range slices.Chunk(order, gets) {
		names := make([]string, len(some))
		for index, place := range some {
			names[index] = auditName(place.workspace, place.sequence)
		}
		err := x.named(names, func(name string, pair *mvccpb.KeyValue) error {
			event, err := decode(name, pair)
			if err != nil {
				return err
			}
			place := placeOf(0, event.Record)
			return x.visit(storage.Portable{
				Old:  pair.ModRevision <= x.pruned,
				Kind: storage.PortableEvent, WorkspaceID: place.workspace, Sequence: place.sequence, Time: place.time, Payload: event.Encoded,
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// intern returns one copy of a workspace's id, so that a million places do not have a million.
func (x *exporting) intern(workspaceID string) string { return x.workspaces[x.number(workspaceID)] }

func (x *exporting) head(name string, pair *mvccpb.KeyValue) error {
	workspaceID := name[len(folderHeads):]
	head, err := decodeHead(workspaceID, pair.Value)
	if err != nil || head.Sequence == 0 { // a fence of a workspace that has no change yet
		return err
	}
	head.Fence = 0
	return x.visit(storage.Portable{Kind: storage.PortableHead, WorkspaceID: workspaceID, Head: head})
}

// rankBits is how far a rank counts finer than revisions, so that imported keys have ranks of their own,
// before those of every later key.
const rankBits = 20

// rankAfter returns the rank of a key that is created when a revision was seen.
func rankAfter(revision int64) string {
	return complement(min(revision, math.MaxInt64>>rankBits) << rankBits)
}
