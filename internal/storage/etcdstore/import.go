package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

const (
	// importOps and importBytes bound one transaction of an import. etcd takes 128 operations, one of
	// which is the put of the migration's record, and 1.5 MiB.
	importOps   = 120
	importBytes = 1 << 20
	// importPatience is how long one transaction of an import is tried.
	importPatience = time.Minute
)

// Import fills a store with the parts of another store. While it does, the store has a record of
// the migration, which each transaction compares and replaces. So a transaction that is executed late
// changes nothing, and two processes do not fill one store.
type Import struct {
	store  *Store
	random io.Reader
	origin storage.Origin

	// record is the stored record of the migration, and stored its stored form.
	record *storagev1.MigrationRecord
	stored string
	// released is set if the store is served, or may be.
	released bool
	// seen is how many parts Put has taken.
	seen int64

	// ops are what the next transaction puts, bytes is how large they are, and newest the place of the
	// last event among them.
	ops       []clientv3.Op
	bytes     int
	newest    eventPlace
	hasEvent  bool
	lastEvent []byte // the newest event of all, encoded
	// newestOld is the name of the newest event before which events may be missing, because the source has pruned
	// them; empty if there is no such event. No younger event has the same revision.
	newestOld string
	isOld     bool // the event put last is old

	// What is counted over all parts: the keys, the last sequence and the sum of each workspace.
	keys      int64
	sequences map[string]int64
	sums      map[string]integrity.Sum
	hasher    *integrity.Hasher
}

var _ storage.Importer = (*Import)(nil)

// NewImport returns an Import into the store under a prefix.
func NewImport(ctx context.Context, config Config) *Import {
	store := newStore(ctx, config)
	return &Import{
		store: store, random: store.config.Random, sequences: make(map[string]int64),
		sums: make(map[string]integrity.Sum), hasher: integrity.NewHasher(),
	}
}

// Keeps implements storage.Importer. A store in etcd keeps no refusals.
func (i *Import) Keeps(kind storage.PortableKind) bool { return kind != storage.PortableRefusal }

// Begin implements storage.Importer.
func (i *Import) Begin(ctx context.Context, origin storage.Origin) (storage.Begun, error) {
	i.origin = origin
	for {
		begun, again, err := i.begin(ctx)
		if !again {
			return begun, err
		}
	}
}

// begin tries once to begin. again reports that somebody else was faster.
func (i *Import) begin(ctx context.Context) (_ storage.Begun, again bool, _ error) {
	s := i.store
	response, err := s.read(ctx, s.get(nameMigration), s.get(nameHeader), s.get("", clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return storage.Begun{}, false, err
	}
	record := &storagev1.MigrationRecord{}
	var compare clientv3.Cmp
	switch stored := first(response, 0); {
	case stored == nil && found(response, 2).GetCount() > 0:
		return i.present(ctx, first(response, 1))
	case stored == nil:
		compare = clientv3.Compare(clientv3.CreateRevision(s.config.Prefix).WithPrefix(), "=", 0)
		if record, err = i.newRecord(); err != nil {
			return storage.Begun{}, false, err
		}
	default:
		if err := storage.Decode("migration", nameMigration, stored.Value, record); err != nil {
			return storage.Begun{}, false, err
		}
		if record.GetSourceEpoch() == "" {
			return storage.Begun{}, false, fmt.Errorf("%w: its removal has begun; run keysvc migrate --discard again", storage.ErrUnfinished)
		}
		if !i.origin.IsOf(record) {
			return storage.Begun{}, false, fmt.Errorf("%w: the migration into %s was begun from revision %d of %s",
				storage.ErrSourceChanged, s.config.Prefix, record.GetSourceRevision(), record.GetSourceEpoch())
		}
		compare = s.holds(nameMigration, "=", string(stored.Value))
	}
	// From here on a transaction of an earlier run, which may be executed late, compares in vain.
	if record.Run, err = randomText(rand.Reader); err != nil {
		return storage.Begun{}, false, err
	}
	taken, err := i.commit(ctx, compare, nil, record)
	if err != nil || !taken {
		return storage.Begun{}, err == nil, err
	}
	begun := storage.Begun{Copied: record.GetCopied(), Complete: record.GetComplete()}
	if begun.Complete {
		begun.Copied = i.origin.Parts
		err = i.openHeader(ctx)
	}
	return begun, false, err
}

// present answers for a prefix with something other than an unfinished migration.
func (i *Import) present(ctx context.Context, stored *mvccpb.KeyValue) (_ storage.Begun, again bool, _ error) {
	header := &storagev1.HeaderRecord{}
	err := errNoHeader
	if stored != nil {
		err = storage.Decode("header", nameHeader, stored.Value, header)
	}
	if err == nil && !i.origin.IsRestored(header.GetRestored()) {
		err = errors.New("it was not made from this source")
	}
	if err != nil {
		return storage.Begun{}, false, fmt.Errorf("%w: something is stored under %s: %w", storage.ErrPresent, i.store.config.Prefix, err)
	}
	i.released = true
	return storage.Begun{Copied: i.origin.Parts, Complete: true, Released: true}, false, i.openHeader(ctx)
}

func (i *Import) newRecord() (*storagev1.MigrationRecord, error) {
	epoch, err := randomText(i.random)
	return &storagev1.MigrationRecord{
		Epoch: epoch, BeginTime: timestamppb.New(i.store.config.Now()), Schema: i.origin.Schema,
		SourceEpoch: i.origin.Epoch, SourceRevision: i.origin.Position.Revision, SourceHash: i.origin.Position.Hash[:],
	}, err
}

// randomText returns 12 random bytes in hexadecimal.
func randomText(random io.Reader) (string, error) {
	text := make([]byte, 12)
	if _, err := io.ReadFull(random, text); err != nil {
		return "", fmt.Errorf("drawing an epoch: %w", err)
	}
	return hex.EncodeToString(text), nil
}

// openHeader takes the header that Complete has stored.
func (i *Import) openHeader(ctx context.Context) error {
	response, err := i.store.read(ctx, i.store.get(nameHeader), i.store.get(nameMigration), i.store.get(nameSettings))
	if err != nil {
		return err
	}
	return i.store.openHeader(response)
}

// Put implements storage.Importer.
func (i *Import) Put(ctx context.Context, part storage.Portable) error {
	i.seen++
	isStored := i.seen <= i.record.GetCopied()
	ops, err := i.operations(part)
	if err != nil || isStored {
		return errors.Join(err, ctx.Err())
	}
	size := 0
	for _, op := range ops {
		size += len(op.KeyBytes()) + len(op.ValueBytes())
	}
	place := eventPlace{time: part.Time, workspace: part.WorkspaceID, sequence: part.Sequence}
	isEvent := part.Kind == storage.PortableEvent
	// Events of one transaction are put in order by what they say.
	isBefore := isEvent && i.hasEvent && (place.compare(i.newest) < 0 || i.isOld && !part.Old)
	if len(i.ops)+len(ops) > importOps || i.bytes+size > importBytes || isBefore {
		if err := i.flush(ctx, i.seen-1); err != nil {
			return err
		}
	}
	i.ops, i.bytes = append(i.ops, ops...), i.bytes+size
	if isEvent {
		i.newest, i.hasEvent, i.isOld = place, true, part.Old
	}
	return nil
}

// operations returns the puts of a part, and counts what all parts are needed for.
func (i *Import) operations(part storage.Portable) ([]clientv3.Op, error) {
	s := i.store
	switch part.Kind {
	case storage.PortablePolicy:
		return i.putPart(part, integrity.KindPolicy, namePolicy), nil
	case storage.PortableSettings:
		return i.putPart(part, integrity.KindSettings, nameSettings), nil
	case storage.PortableWorkspace:
		return i.putPart(part, integrity.KindWorkspace, workspaceName(part.WorkspaceID)), nil
	case storage.PortableMember:
		return i.putPart(part, integrity.KindMember, memberName(part.WorkspaceID, part.Name)), nil
	case storage.PortableKey:
		return i.key(part)
	case storage.PortableUsage:
		name, use := usageName(part.Name), part.Usage
		use.KeyID = part.Name
		return []clientv3.Op{s.put(name, encodeUsage(name, use))}, nil
	case storage.PortableEvent:
		if part.Sequence != i.sequences[part.WorkspaceID]+1 && !part.Old {
			return nil, missingEvent(part.WorkspaceID, i.sequences[part.WorkspaceID]+1)
		}
		if part.Old {
			i.newestOld = auditName(part.WorkspaceID, part.Sequence)
		}
		i.sequences[part.WorkspaceID] = part.Sequence
		i.lastEvent = append(i.lastEvent[:0], part.Payload...)
		return []clientv3.Op{s.putFrame(auditName(part.WorkspaceID, part.Sequence), part.Payload)}, nil
	case storage.PortableHead:
		head, err := i.frameHead(part.WorkspaceID, part.Head)
		return []clientv3.Op{s.put(headName(part.WorkspaceID), head)}, err
	case storage.PortableRefusal:
	}
	return nil, fmt.Errorf("%w: a store in etcd keeps no %v", storage.ErrInvalidChange, part)
}

// frameHead returns the stored form of an imported head. i.sums has the sum of the workspace's records.
func (i *Import) frameHead(workspaceID string, head storage.Head) (string, error) {
	return frameHead(workspaceID, head, tagOf(i.record.GetEpoch(), workspaceID, head, i.sums[workspaceID]))
}

// putPart returns the put of a record, and adds its element to the sum of its workspace.
func (i *Import) putPart(part storage.Portable, kind, name string) []clientv3.Op {
	element := i.hasher.Element(kind, part.WorkspaceID, part.Name, integrity.HashPayload(part.Payload))
	i.sums[part.WorkspaceID] = i.sums[part.WorkspaceID].Add(element)
	return []clientv3.Op{i.store.putFrame(name, part.Payload)}
}

// key returns the puts of a key and its index entries. The rank is the number of the key, which is before
// the rank of every key that is created later.
func (i *Import) key(part storage.Portable) ([]clientv3.Op, error) {
	s, record := i.store, &storagev1.KeyRecord{}
	if err := proto.Unmarshal(part.Payload, record); err != nil {
		return nil, &storage.DamagedError{Kind: "key", Name: part.Name, Problem: "not a record"}
	}
	i.keys++
	rank := complement(i.keys)
	name := keyName(part.WorkspaceID, record.GetSequence(), part.Name)
	ops := append(i.putPart(part, integrity.KindKey, name),
		s.putFrame(idName(part.Name), idEntry{rank: rank, name: name}.encode()),
		s.putFrame(orderName(rank, part.Name), []byte(name)))
	for _, requestID := range record.GetRequestIds() {
		ops = append(ops, s.putFrame(requestName(part.WorkspaceID, requestID), []byte(part.Name)))
	}
	return ops, nil
}

// flush commits what was collected. copied is how many parts are stored then.
func (i *Import) flush(ctx context.Context, copied int64) error {
	next := proto.CloneOf(i.record)
	next.Copied = copied
	ops := i.ops
	i.ops, i.bytes, i.hasEvent = nil, 0, false
	return i.step(ctx, ops, next)
}

// step commits a transaction that replaces the record of the migration.
func (i *Import) step(ctx context.Context, ops []clientv3.Op, next *storagev1.MigrationRecord) error {
	taken, err := i.commit(ctx, i.store.holds(nameMigration, "=", i.stored), ops, next)
	if err == nil && !taken {
		err = errOthersMigrate
	}
	return err
}

// commit sends a transaction until its outcome is known, and reports whether it was executed. The put of
// the record, which no two transactions have in common, shows the outcome if the answer was lost.
func (i *Import) commit(ctx context.Context, compare clientv3.Cmp, ops []clientv3.Op, next *storagev1.MigrationRecord) (taken bool, err error) {
	payload, err := storage.Encode(next)
	if err != nil {
		return false, err
	}
	s, stored := i.store, string(storage.Frame(nameMigration, payload))
	limited, cancel := context.WithTimeout(ctx, importPatience)
	defer cancel()
	retries, members := newBackoff(), s.config.Members
	for attempt := 0; ; attempt++ {
		own, end := context.WithTimeout(limited, s.config.Timeout)
		response, err := members[attempt%len(members)].Txn(own).If(compare).
			Then(append(slices.Clip(ops), s.put(nameMigration, stored))...).
			Else(s.get(nameMigration)).Commit()
		end()
		switch {
		case err == nil && (response.Succeeded || string(first(response, 0).GetValue()) == stored):
			i.record, i.stored = next, stored
			raise(&s.seen, response.Header.GetRevision())
			return true, nil
		case err == nil:
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case isFull(err):
			return false, fmt.Errorf("%w: the quota of etcd is used up", storage.ErrFull)
		case isRefusal(err) || !retries.Wait(limited):
			return false, unavailable(err)
		}
	}
}

// Complete implements storage.Importer.
func (i *Import) Complete(ctx context.Context) error {
	if i.released || i.record.GetComplete() {
		return ctx.Err()
	}
	if len(i.ops) > 0 {
		if err := i.flush(ctx, i.seen); err != nil {
			return err
		}
	}
	// 1. The header. The record of the migration still keeps everybody from opening the store.
	header, err := storage.Encode(i.header())
	if err != nil {
		return err
	}
	if err := i.step(ctx, []clientv3.Op{
		i.store.put(nameTime, encodeTime(nameTime, i.origin.Position.Time)),
		i.store.putFrame(nameHeader, header),
	}, proto.CloneOf(i.record)); err != nil {
		return err
	}
	// 2. The feed head, in a later revision than the header's, as in each store. The epoch is new, so
	// every near-cache begins anew.
	next := proto.CloneOf(i.record)
	next.Complete = true
	var ops []clientv3.Op
	if i.newestOld != "" { // events may be missing up to there, and nowhere else
		response, err := i.store.read(ctx, i.store.get(i.newestOld, clientv3.WithKeysOnly()))
		if err != nil {
			return err
		}
		ops = append(ops, i.store.putFrame(namePruned, []byte(number(first(response, 0).GetModRevision()))))
	}
	if len(i.lastEvent) > 0 {
		event := &storagev1.AuditRecord{}
		if err := proto.Unmarshal(i.lastEvent, event); err != nil {
			return &storage.DamagedError{Kind: "audit event", Name: event.GetWorkspaceId(), Problem: "not a record"}
		}
		change := &storage.Change{WorkspaceID: event.GetWorkspaceId()}
		change.Kind, change.Subject = storage.FeedOf(event)
		feed, err := storage.Encode(change.Feed(0, storage.HashAudit(i.lastEvent)))
		if err != nil {
			return err
		}
		ops = append(ops, i.store.putFrame(nameFeedHead, feed))
	}
	if err := i.step(ctx, ops, next); err != nil {
		return err
	}
	return i.openHeader(ctx)
}

// header returns the header of the store.
func (i *Import) header() *storagev1.HeaderRecord {
	return &storagev1.HeaderRecord{
		Schema: i.origin.Schema, Epoch: i.record.GetEpoch(), CreateTime: i.record.GetBeginTime(),
		Restored: &storagev1.RestoredRecord{
			Time: i.record.GetBeginTime(), Epoch: i.origin.Epoch,
			Revision: i.origin.Position.Revision, Hash: i.origin.Position.Hash[:],
		},
	}
}

// Exporter implements storage.Importer.
func (i *Import) Exporter(context.Context) (storage.Exporter, error) {
	return &Export{store: i.store, shared: true}, nil
}

// Check implements storage.Importer.
func (i *Import) Check(ctx context.Context) ([]string, error) {
	var report Report
	err := i.store.checkOpened(ctx, &report, &checker{})
	if errors.Is(err, storage.ErrDamaged) {
		return append(report.Problems, err.Error()), nil
	}
	return report.Problems, err
}

// Release implements storage.Importer.
func (i *Import) Release(ctx context.Context) (epoch string, revision int64, err error) {
	position, _, err := i.store.position(ctx)
	if err != nil || i.released {
		return i.store.epoch, position.Revision, err
	}
	// If the answer is lost, the record is gone, or it is not: then it is deleted again. Without the header, another
	// process discards what was compared.
	response, err := i.store.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(i.store.holds(nameMigration, "=", i.stored), i.store.holds(nameHeader, "=", i.store.header)).
			Then(i.store.delete(nameMigration)).Else(i.store.get(nameHeader), i.store.get(nameMigration)).Commit()
	})
	if err != nil {
		return "", 0, err
	}
	if !response.Succeeded && (first(response, 1) != nil || i.store.checkHeader(response) != nil) {
		return "", 0, errOthersMigrate
	}
	i.released = true
	return i.store.epoch, position.Revision, nil
}

// Close implements storage.Importer.
func (i *Import) Close() error { return i.store.Close() }
