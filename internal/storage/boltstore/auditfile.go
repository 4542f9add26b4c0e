package boltstore

import (
	"context"
	"fmt"
	"math"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// AuditFile reads the audit events in the file of a store that no process serves. It changes
// nothing.
type AuditFile struct{ file *opened }

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
	err = guard(func() error { return file.database.View(file.readHeader) })
	if err != nil {
		_ = file.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &AuditFile{file: file}, nil
}

// Close closes the file.
func (f *AuditFile) Close() error { return f.file.close() }

// Epoch returns the identity of the store's history.
func (f *AuditFile) Epoch() string { return f.file.header.GetEpoch() }

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
