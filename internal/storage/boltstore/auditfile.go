package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strconv"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// AuditFile reads the audit events in the file of a store that no process serves. It changes
// nothing.
type AuditFile struct {
	file   *opened
	pruned int64
}

// OpenAudit opens a file, and checks its pages. The caller closes it. Errors: ErrLocked,
// ErrNewer, ErrDamaged, the context's, or that of the file system.
func OpenAudit(ctx context.Context, path string) (*AuditFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, err := openPages(ctx, path, Config{}.withDefaults())
	if err != nil {
		return nil, err
	}
	pruned := int64(0)
	err = guard(func() error {
		return file.database.View(func(tx *bolt.Tx) error {
			if err := file.readHeader(tx); err != nil {
				return err
			}
			pruned, _ = revisionMark(tx, namePruned) // Check reports an unreadable one
			return nil
		})
	})
	if err != nil {
		_ = file.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &AuditFile{file: file, pruned: pruned}, nil
}

// Close closes the file.
func (f *AuditFile) Close() error { return f.file.close() }

// Epoch returns the identity of the store's history.
func (f *AuditFile) Epoch() string { return f.file.header.GetEpoch() }

// Newest returns the revision of the newest change.
func (f *AuditFile) Newest() int64 { return f.file.position.Revision }

// Pruned returns the revision up to which events may be missing because they are old.
func (f *AuditFile) Pruned() int64 { return f.pruned }

// SinkPath returns the path of the audit sink that the file had when it was served last, empty if
// it had none.
func (f *AuditFile) SinkPath() string { return f.file.header.GetSink() }

// EncodedEvent returns the stored bytes of the event of a revision, nil if the file has no such event. Errors:
// DamagedError.
func (f *AuditFile) EncodedEvent(revision int64) (encoded []byte, err error) {
	name := number(revision)
	err = guard(func() error {
		return f.file.database.View(func(tx *bolt.Tx) error {
			value := tx.Bucket([]byte(bucketAudit)).Get([]byte(name))
			if value == nil {
				return nil
			}
			payload, err := storage.Unframe("audit event", frameName(bucketAudit, name), value)
			if err == nil && len(payload) < numberLength {
				err = &storage.DamagedError{Kind: "audit event", Name: strconv.FormatInt(revision, 10), Problem: "too short"}
			}
			if err == nil {
				encoded = bytes.Clone(payload[numberLength:])
			}
			return err
		})
	})
	return encoded, err
}

// HeadSequences returns the sequence of the newest event of each workspace, 0 if its head is
// damaged; "" is the policy's.
func (f *AuditFile) HeadSequences() (map[string]int64, error) {
	heads := make(map[string]int64)
	err := guard(func() error {
		return f.file.database.View(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte(bucketHeads)).ForEach(func(name, value []byte) error {
				record := &storagev1.HeadRecord{}
				_, err := decodeHead(string(name), value, record)
				if err != nil {
					record.AuditSequence = 0 // Check reports the damage
				}
				heads[parseHeadName(string(name))] = record.GetAuditSequence()
				return nil
			})
		})
	})
	return heads, err
}

// ScanAuditEvents reads a page of audit events, as Store.ScanAuditEvents does.
func (f *AuditFile) ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	query = query.Bounded()
	start := int64(math.MaxInt64)
	if query.Before > 0 {
		start = query.Before - 1
	}
	var page storage.AuditScan
	err := guard(func() error {
		return f.file.database.View(func(tx *bolt.Tx) (err error) {
			page, err = scanAudit(ctx, tx.Bucket([]byte(bucketAudit)).Cursor(), query, start)
			return err
		})
	})
	if err != nil {
		return storage.AuditScan{}, err
	}
	page.Revision = f.file.position.Revision
	return page, ctx.Err()
}

// ListRefusals reads a page of what was refused, as Store.ListRefusals does.
func (f *AuditFile) ListRefusals(ctx context.Context, query storage.Query) (storage.RefusalPage, error) {
	query = query.Bounded()
	before, err := parseCursor(query.Cursor, math.MaxInt64)
	if err != nil {
		return storage.RefusalPage{}, err
	}
	var page storage.RefusalPage
	err = guard(func() error {
		return f.file.database.View(func(tx *bolt.Tx) (err error) {
			page, err = listRefusals(ctx, tx, query, before)
			return err
		})
	})
	if err != nil {
		return storage.RefusalPage{}, err
	}
	page.Revision = f.file.position.Revision
	return page, nil
}
