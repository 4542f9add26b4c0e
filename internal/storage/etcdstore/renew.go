package etcdstore

import (
	"bytes"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// A Renewal gives a store whose data was put back a new epoch, in these steps:
//
//  1. One transaction puts the new epoch into the header, and the record of the renewal. From then on nobody
//     who opened the store before commits anything, because each commit compares the header, and nobody
//     opens the store, because the record is there.
//  2. Each head gets a tag for the new epoch. A head of which a tag is right in neither epoch keeps the tag that it has:
//     damage that was found must not become valid.
//  3. The caller changes what it has to change.
//  4. The record is deleted.
//
// A renewal that ends at any moment is gone on with by the next one.

// Renewal is a store in etcd that gets a new epoch. Until Finish nobody else opens the store.
type Renewal struct {
	*Store
	// record is the record of the renewal, and stored its stored form. They are nil and empty before Begin.
	record *storagev1.RestoredRecord
	stored string
}

// OpenRenewal opens a store that exists, to give it a new epoch. No process should serve the store: one that
// does ends once the renewal begins. Errors: those of New, and ErrAbsent if nothing is stored under the prefix.
func OpenRenewal(ctx context.Context, config Config) (*Renewal, error) {
	r := &Renewal{Store: newStore(ctx, config)}
	if err := r.reopen(ctx); err != nil {
		r.close()
		return nil, fmt.Errorf("%s: %w", r.config.Prefix, err)
	}
	return r, nil
}

// reopen reads header and record.
func (r *Renewal) reopen(ctx context.Context) error {
	response, err := r.read(ctx, r.get(nameHeader), r.get(nameMigration), r.get(nameSettings), r.get(nameRenewal))
	switch {
	case err != nil:
		return err
	case first(response, 1) != nil:
		return errMigration
	case first(response, 0) == nil:
		return r.missing(ctx)
	}
	if err := r.openHeader(response); err != nil {
		return err
	}
	r.record, r.stored, r.former = nil, "", ""
	if pair := first(response, 3); pair != nil {
		record := &storagev1.RestoredRecord{}
		if err := storage.Decode("renewal", nameRenewal, pair.Value, record); err != nil {
			return err
		}
		r.record, r.stored, r.former = record, string(pair.Value), record.GetEpoch()
	}
	return nil
}

// Begun reports whether an earlier renewal has begun, and not finished.
func (r *Renewal) Begun() bool { return r.record != nil }

// Origin returns the epoch of the store before the renewal, and the position of its newest audit event then. An unfinished renewal
// has them from its beginning.
func (r *Renewal) Origin(ctx context.Context) (epoch string, newest storage.Barrier, err error) {
	if r.record != nil {
		newest.Revision = r.record.GetRevision()
		copy(newest.Hash[:], r.record.GetHash())
		return r.record.GetEpoch(), newest, nil
	}
	page, err := r.ScanAuditEvents(ctx, storage.AuditQuery{All: true, Limit: 1})
	if err == nil && len(page.Events) > 0 {
		newest = storage.Barrier{Revision: page.Events[0].Revision, Hash: storage.HashAudit(page.Events[0].Encoded)}
	}
	return r.epoch, newest, err
}

// Begin begins the new epoch, or goes on with an unfinished one, and returns the epoch. holds is set if keys will be held: programs that do
// not know that refuse the store. Afterwards the store can be changed through r. Errors: ErrLocked if another process does the
// same, those of Load, ErrUnavailable, ErrFull, or the context's.
func (r *Renewal) Begin(ctx context.Context, holds bool) (epoch string, err error) {
	// 1. The header. From here on nobody else changes the store.
	if err := r.putHeader(ctx, holds); err != nil {
		return "", err
	}
	// 2. Add up what is stored, and find what is damaged.
	if _, err := r.Load(ctx, func(storage.Item) error { return nil }); err != nil {
		return "", err
	}
	// 3. The heads.
	for range maxAttempts {
		left, err := r.renewHeads(ctx)
		if err != nil || left == 0 {
			return r.epoch, err
		}
	}
	return "", fmt.Errorf("%w: somebody else changes the heads", storage.ErrLocked)
}

// putHeader puts the new header and the record, unless they are there.
func (r *Renewal) putHeader(ctx context.Context, holds bool) error {
	position, _, err := r.position(ctx)
	if err != nil {
		return err
	}
	header, record := &storagev1.HeaderRecord{}, r.record
	if err := storage.Decode("header", nameHeader, []byte(r.header), header); err != nil {
		return err
	}
	if record == nil {
		epoch, newest, err := r.Origin(ctx)
		if err != nil {
			return err
		}
		record = &storagev1.RestoredRecord{Time: timestamppb.New(r.config.Now()), Epoch: epoch, Revision: newest.Revision, Hash: newest.Hash[:]}
		if header.Epoch, err = randomText(r.config.Random); err != nil {
			return err
		}
		header.Restored = proto.CloneOf(record)
	}
	if holds {
		header.Schema = max(header.GetSchema(), storage.SchemaHeld)
	}
	encodedHeader, err := storage.Encode(header)
	if err != nil {
		return err
	}
	encodedRecord, err := storage.Encode(record)
	if err != nil {
		return err
	}
	newHeader := string(storage.Frame(nameHeader, encodedHeader))
	compares := []clientv3.Cmp{r.holds(nameHeader, "=", r.header), r.isAbsent(nameRenewal)}
	if r.record != nil {
		compares[1] = r.holds(nameRenewal, "=", r.stored)
	} else { // nobody has changed the store since its newest event was read
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(r.config.Prefix+nameFeedHead), "=", position.Revision))
	}
	response, err := r.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(compares...).
			Then(r.put(nameHeader, newHeader), r.putFrame(nameRenewal, encodedRecord)).
			Else(r.get(nameHeader)).Commit()
	})
	if err != nil {
		return err
	}
	if !response.Succeeded && string(first(response, 0).GetValue()) != newHeader { // else an earlier attempt was executed
		return fmt.Errorf("%w: another process gives the store a new epoch, or changes it", storage.ErrLocked)
	}
	if err := r.reopen(ctx); err != nil {
		return err
	}
	if r.record == nil { // the header is the same, but the store is open to everybody
		return fmt.Errorf("%w: another process has ended the renewal", storage.ErrLocked)
	}
	return nil
}

// renewHeads puts the tag of the new epoch into each head that does not have it, and returns how many heads it
// tried to put and did not.
func (r *Renewal) renewHeads(ctx context.Context) (left int, err error) {
	_, at, err := r.position(ctx)
	if err != nil {
		return 0, err
	}
	var compares []clientv3.Cmp
	var parts []clientv3.Op
	flush := func() error {
		if len(parts) == 0 {
			return nil
		}
		compares = append(compares, r.holds(nameHeader, "=", r.header), r.holds(nameRenewal, "=", r.stored))
		response, err := r.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
			return member.Txn(ctx).If(compares...).Then(parts...).Else(r.get(nameHeader)).Commit()
		})
		if err != nil {
			return err
		}
		if !response.Succeeded { // an earlier attempt may have been executed: the next look shows it
			left += len(parts)
			err = r.checkHeader(response)
		}
		compares, parts = nil, nil
		return err
	}
	m := r.memory.Load()
	err = r.stream(ctx, folderHeads, endOf(folderHeads), at, func(some *chunk) error {
		defer some.release()
		for _, found := range some.pairs {
			name := string(found.name)
			workspaceID := name[len(folderHeads):]
			head, err := decodeHead(workspaceID, found.value)
			entry := m.workspaces[workspaceID]
			if err != nil || entry == nil || entry.damagedHead != nil || entry.damaged != nil {
				continue // it stays what it is: damaged
			}
			if !entry.isAt(head) {
				continue // a change of another process that goes on with the renewal: its head has the new tag
			}
			value, err := frameHead(workspaceID, head, r.tagOf(workspaceID, head, entry.sum))
			if err != nil {
				return err
			}
			if value == string(found.value) {
				continue
			}
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(r.config.Prefix+name), "=", found.modified))
			if parts = append(parts, r.put(name, value)); len(parts) == gets {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	return left, err
}

// Finish ends the renewal, so that the store can be served.
func (r *Renewal) Finish(ctx context.Context) error {
	response, err := r.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(r.holds(nameHeader, "=", r.header), r.holds(nameRenewal, "=", r.stored)).
			Then(r.delete(nameRenewal)).Else(r.get(nameHeader), r.get(nameRenewal)).Commit()
	})
	if err != nil || response.Succeeded {
		return err
	}
	if err := r.checkHeader(response); err != nil {
		return err
	}
	if first(response, 1) != nil {
		return fmt.Errorf("%w: another process gives the store a new epoch", storage.ErrLocked)
	}
	return nil // an earlier attempt was executed
}

// isTag reports whether a tag is the one of a head over the sum of a workspace's records. During a renewal it may be
// that of the former epoch.
func (s *Store) isTag(tag []byte, workspaceID string, head storage.Head, sum integrity.Sum) bool {
	return bytes.Equal(tag, s.tagOf(workspaceID, head, sum)) ||
		s.former != "" && bytes.Equal(tag, tagOf(s.former, workspaceID, head, sum))
}
