package boltstore

import (
	"bytes"
	"context"
	"math"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/giveway"
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
		if query.Cursor != "" && bucket.Get([]byte(number(revision))) == nil {
			var err error
			if revision, err = behindPruned(ctx, tx, query.WorkspaceID, revision); err != nil {
				return err
			}
		}
		for revision > 0 {
			name := number(revision)
			value := bucket.Get([]byte(name))
			if query.Full(len(page.Events), total, len(value)) {
				page.Next = strconv.FormatInt(revision, 10)
				return nil
			}
			total += len(value)
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

// behindPruned returns the revision of a workspace's newest event before the one of a cursor, which is
// not there, or 0. If that event was not pruned, the error is ErrInvalidCursor.
func behindPruned(ctx context.Context, tx *bolt.Tx, workspaceID string, revision int64) (int64, error) {
	pruned, err := revisionMark(tx, namePruned)
	if err != nil {
		return 0, err
	}
	if revision > pruned {
		return 0, storage.ErrInvalidCursor
	}
	cursor := tx.Bucket([]byte(bucketAudit)).Cursor()
	for name, value := atOrBefore(cursor, revision); name != nil; name, value = cursor.Prev() {
		event, _, err := decodeAudit(string(name), value)
		if err != nil {
			return 0, err
		}
		if event.Record.GetWorkspaceId() == workspaceID {
			return parseNumber(name)
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// ScanAuditEvents implements storage.Store. It visits at most storage.MaxPage events.
func (s *Store) ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	query = query.Bounded()
	start := int64(math.MaxInt64)
	if query.Before > 0 {
		start = query.Before - 1
	}
	var page storage.AuditScan
	var damagedHead error
	position, err := s.read(ctx, func(index *fileIndex) {
		if query.All {
			return
		}
		newest := int64(0)
		if workspace := index.workspaces[query.WorkspaceID]; workspace != nil {
			newest, damagedHead = workspace.headRevision, workspace.damagedHead
		}
		start = min(start, newest)
	}, func(tx *bolt.Tx) (err error) {
		if damagedHead != nil {
			return damagedHead
		}
		page, err = scanAudit(ctx, tx.Bucket([]byte(bucketAudit)).Cursor(), query, start)
		return err
	})
	if err != nil {
		return storage.AuditScan{}, err
	}
	page.Revision = position.Revision
	return page, nil
}

// scanAudit reads a page of events from the revision start downwards. In the events of one
// workspace it follows the links from each event to the one before. If that one was pruned, it
// visits the events of all workspaces until it finds one of this workspace.
func scanAudit(ctx context.Context, cursor *bolt.Cursor, query storage.AuditQuery, start int64) (storage.AuditScan, error) {
	var page storage.AuditScan
	total, work := 0, giveway.From(ctx)
	for visited := 0; start > query.After; visited++ {
		work.GiveWay()
		name, value := atOrBefore(cursor, start)
		if name == nil {
			return page, nil
		}
		revision, err := parseNumber(name)
		switch {
		case err != nil:
			return page, &storage.DamagedError{Kind: "audit event", Problem: err.Error()}
		case revision <= query.After:
			return page, nil
		case visited == storage.MaxPage || query.Full(len(page.Events), total, len(value)):
			page.Next = revision + 1
			return page, nil
		}
		event, previous, err := decodeAudit(string(name), value)
		if err != nil {
			return page, err
		}
		if event.Record.GetWorkspaceId() == query.WorkspaceID || query.All {
			event.Revision = revision
			page.Events = append(page.Events, event)
			total += len(value)
		} else {
			previous = revision - 1
		}
		if start = revision - 1; !query.All {
			start = min(start, previous)
		}
		if err := ctx.Err(); err != nil {
			return page, err
		}
	}
	return page, nil
}

// atOrBefore moves a cursor to the last value whose name is that of a revision or of one before
// it. The name is nil if no value has such a name.
func atOrBefore(cursor *bolt.Cursor, revision int64) (name, value []byte) {
	wanted := []byte(number(revision))
	name, value = cursor.Seek(wanted)
	switch {
	case name == nil:
		return cursor.Last()
	case !bytes.Equal(name, wanted):
		return cursor.Prev()
	}
	return name, value
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
