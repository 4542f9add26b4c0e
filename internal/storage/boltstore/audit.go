package boltstore

import (
	"bytes"
	"context"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// ListAuditEvents implements storage.Store. It follows the workspace's events back from the
// head. Its cursor is the revision of the next event.
func (s *Store) ListAuditEvents(ctx context.Context, query storage.Query) (storage.AuditPage, error) {
	query = query.Bounded()
	revision, err := parseCursor(query.Cursor, 0)
	if err != nil {
		return storage.AuditPage{}, err
	}
	var page storage.AuditPage
	var damagedHead error
	position, err := s.read(ctx, func(index *fileIndex) {
		if workspace := index.workspaces[query.WorkspaceID]; workspace != nil && revision == 0 {
			revision, damagedHead = workspace.headRevision, workspace.damagedHead
		}
	}, func(tx *bolt.Tx) error {
		if damagedHead != nil {
			return damagedHead
		}
		bucket, total := tx.Bucket([]byte(bucketAudit)), 0
		for revision > 0 {
			name := number(revision)
			value := bucket.Get([]byte(name))
			if query.Full(len(page.Events), total, len(value)) {
				page.Next = strconv.FormatInt(revision, 10)
				return nil
			}
			total += len(value)
			if value == nil && len(page.Events) == 0 && query.Cursor != "" {
				return storage.ErrInvalidCursor
			}
			event, previous, err := decodeAudit(name, value)
			if err != nil {
				return err
			}
			if event.Record.GetWorkspaceId() != query.WorkspaceID {
				if len(page.Events) == 0 && query.Cursor != "" {
					return storage.ErrInvalidCursor
				}
				return &storage.DamagedError{Kind: "audit event", Name: strconv.FormatInt(revision, 10), Problem: "it is of another workspace"}
			}
			if previous >= revision {
				return &storage.DamagedError{Kind: "audit event", Name: strconv.FormatInt(revision, 10), Problem: "does not point back"}
			}
			page.Events = append(page.Events, event)
			revision = previous
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return storage.AuditPage{}, err
	}
	page.Revision = position.Revision
	return page, nil
}

// decodeAudit decodes a stored audit event. It also returns the revision of the workspace's
// event before it, 0 for the first.
func decodeAudit(name string, value []byte) (storage.AuditEvent, int64, error) {
	revision, err := parseNumber([]byte(name))
	if err != nil {
		return storage.AuditEvent{}, 0, &storage.DamagedError{Kind: "audit event", Problem: err.Error()}
	}
	title := strconv.FormatInt(revision, 10)
	if value == nil {
		return storage.AuditEvent{}, 0, &storage.DamagedError{Kind: "audit event", Name: title, Problem: "missing"}
	}
	payload, err := storage.Unframe("audit event", frameName(bucketAudit, name), value)
	if err != nil {
		return storage.AuditEvent{}, 0, &storage.DamagedError{Kind: "audit event", Name: title, Problem: problemOf(err)}
	}
	previous, err := parseNumber(payload)
	if err != nil {
		return storage.AuditEvent{}, 0, &storage.DamagedError{Kind: "audit event", Name: title, Problem: err.Error()}
	}
	encoded := bytes.Clone(payload[numberLength:]) // the payload is bbolt's memory
	event := storage.AuditEvent{Record: &storagev1.AuditRecord{}, Encoded: encoded}
	if err := proto.Unmarshal(encoded, event.Record); err != nil {
		return storage.AuditEvent{}, 0, &storage.DamagedError{Kind: "audit event", Name: title, Problem: "not a record"}
	}
	return event, previous, nil
}

// eventHash returns the hash of the audit event of a revision, zero for revision 0. Errors:
// DamagedError.
func eventHash(tx *bolt.Tx, revision int64) (hash [32]byte, err error) {
	if revision == 0 {
		return hash, nil
	}
	name := number(revision)
	if value := tx.Bucket([]byte(bucketAudit)).Get([]byte(name)); value != nil {
		event, _, err := decodeAudit(name, value)
		if err != nil {
			return hash, err
		}
		return storage.HashAudit(event.Encoded), nil
	}
	// An event may have been pruned. The feed entry has the same hash.
	record := &storagev1.FeedRecord{}
	if err := get(tx, "feed entry", bucketFeed, name, record); err != nil {
		return hash, damagedIfMissing(err, "audit event")
	}
	copy(hash[:], record.GetAuditHash())
	return hash, nil
}
