package etcdstore

import (
	"context"
	"crypto/sha256"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// listed is a record of a change, with what the event says about it.
type listed struct {
	change *storagev1.RecordChange
	name   string // under which the record is stored
	isNew  bool   // a key that must be absent
}

// listRecords returns every record of a change, with the hashes of records that are put.
func listRecords(change *storage.Change) ([]listed, error) {
	var records []listed
	var problem error
	add := func(kind storagev1.RecordKind, id, name string, record proto.Message) {
		added := listed{change: &storagev1.RecordChange{Kind: kind, Name: id}, name: name}
		if record != nil {
			payload, err := storage.Encode(record)
			if err != nil {
				problem = notEncodable(err)
			}
			hash := sha256.Sum256(payload)
			added.change.After = hash[:]
		}
		records = append(records, added)
	}
	if change.PutPolicy != nil {
		add(storagev1.RecordKind_RECORD_KIND_POLICY, "", namePolicy, change.PutPolicy)
	}
	if change.PutSettings != nil {
		add(storagev1.RecordKind_RECORD_KIND_SETTINGS, "", nameSettings, change.PutSettings)
	}
	if change.PutWorkspace != nil {
		add(storagev1.RecordKind_RECORD_KIND_WORKSPACE, "", workspaceName(change.WorkspaceID), change.PutWorkspace)
	}
	member := func(record *storagev1.MemberRecord, put proto.Message) {
		add(storagev1.RecordKind_RECORD_KIND_MEMBER, record.GetMemberId(), memberName(change.WorkspaceID, record.GetMemberId()), put)
	}
	for _, record := range change.PutMembers {
		member(record, record)
	}
	for _, record := range change.DeleteMembers {
		member(record, nil)
	}
	key := func(record *storagev1.KeyRecord, put proto.Message) {
		add(storagev1.RecordKind_RECORD_KIND_KEY, record.GetKeyId(), keyName(change.WorkspaceID, record.GetSequence(), record.GetKeyId()), put)
	}
	for _, record := range change.PutKeys {
		key(record, record)
		records[len(records)-1].isNew = change.IsNew(record)
	}
	for _, record := range change.DeleteKeys {
		key(record, nil)
	}
	return records, problem
}

// completeEvent reads the records that the change replaces or deletes, and lists their hashes
// in the change's event. It returns the ranks of the keys that are deleted. It reads the head in
// the same transaction: if the head is the expected one both now and at the commit, no change
// came in between. Because it compares the head first, a stale change is a ConflictError even if
// its records are no longer there.
func (s *Store) completeEvent(ctx context.Context, m *memory, change *storage.Change) (ranks map[string]string, err error) {
	records, err := listRecords(change)
	if err != nil {
		return nil, err
	}
	if err := s.remember(ctx, m, change.WorkspaceID, change.Expect); err != nil {
		return nil, err
	}
	change.Event.Changes = nil
	parts := []clientv3.Op{s.get(headName(change.WorkspaceID))}
	for _, record := range records {
		change.Event.Changes = append(change.Event.Changes, record.change)
		if !record.isNew {
			parts = append(parts, s.get(record.name))
		}
	}
	if len(parts) == 1 {
		return nil, nil // everything is new
	}
	for _, key := range change.DeleteKeys {
		parts = append(parts, s.get(idName(key.GetKeyId())))
	}
	response, err := s.read(ctx, parts...)
	if err != nil {
		return nil, err
	}
	head := first(response, 0)
	if err := judgeHead(change.WorkspaceID, change.Expect, head); err != nil {
		return nil, err
	}
	next := 1
	for _, record := range records {
		if record.isNew {
			continue
		}
		stored := first(response, next)
		next++
		if stored == nil {
			if record.change.GetKind() == storagev1.RecordKind_RECORD_KIND_MEMBER && len(record.change.GetAfter()) == 0 {
				return nil, fmt.Errorf("%w: member %s to delete is not there", storage.ErrInvalidChange, record.change.GetName())
			}
			if record.change.GetKind() == kindKey {
				if err := s.checkPlace(ctx, record.name, record.change.GetName()); err != nil {
					return nil, err
				}
			}
			continue
		}
		payload, err := storage.Unframe("record", record.name, stored.Value)
		if err != nil {
			return nil, err
		}
		if problem := storage.Unread(record.change.GetKind(), payload); problem != "" {
			return nil, &storage.DamagedError{Kind: "record", Name: record.name, Problem: problem}
		}
		hash := sha256.Sum256(payload)
		record.change.Before = hash[:]
	}
	ranks = make(map[string]string, len(change.DeleteKeys))
	for index, key := range change.DeleteKeys {
		keyID := key.GetKeyId()
		pair := first(response, next+index)
		if pair == nil {
			return nil, fmt.Errorf("%w: key %s to delete is not there", storage.ErrInvalidChange, keyID)
		}
		where, err := decodeID(keyID, pair.Value)
		if err != nil {
			return nil, err
		}
		if where.name != keyName(change.WorkspaceID, key.GetSequence(), keyID) {
			return nil, fmt.Errorf("%w: key %s to delete has another workspace or sequence", storage.ErrInvalidChange, keyID)
		}
		ranks[keyID] = where.rank
	}
	return ranks, nil
}
