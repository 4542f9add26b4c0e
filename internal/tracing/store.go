package tracing

import (
	"context"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Store is the part of a store that calls ask.
type Store interface {
	storage.Committer
	storage.KeyReader
	storage.MemberReader
	storage.AuditReader
}

// Store returns a store that makes a span for each call of another one. A nil Tracing returns the
// other one.
func (t *Tracing) Store(store Store) Store {
	if t == nil {
		return store
	}
	return &tracedStore{store, t.tracer}
}

type tracedStore struct {
	store  Store
	tracer trace.Tracer
}

// Unwrap implements storage.Wrapper.
func (s *tracedStore) Unwrap() any { return s.store }

// begin begins a span, if the call is traced. end ends it.
func (s *tracedStore) begin(ctx context.Context, method string) (_ context.Context, end func(error)) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, func(error) {}
	}
	ctx, span := s.tracer.Start(ctx, "store."+method)
	return ctx, func(err error) {
		if err != nil {
			// The text of an error may name records. The log has it.
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}

// Commit implements storage.Committer.
func (s *tracedStore) Commit(ctx context.Context, change *storage.Change) (revision int64, err error) {
	ctx, end := s.begin(ctx, "Commit")
	revision, err = s.store.Commit(ctx, change)
	end(err)
	return revision, err
}

// Fence implements storage.Fencer, for stores that have it.
func (s *tracedStore) Fence(ctx context.Context, workspaceID string, head storage.Head) (revision int64, err error) {
	ctx, end := s.begin(ctx, "Fence")
	fencer, _ := storage.As[storage.Fencer](s.store)
	revision, err = fencer.Fence(ctx, workspaceID, head)
	end(err)
	return revision, err
}

// ReadUsage implements storage.UsageReader, for stores that have it.
func (s *tracedStore) ReadUsage(ctx context.Context, keyIDs []string) ([]storage.Usage, error) {
	ctx, end := s.begin(ctx, "ReadUsage")
	reader, _ := storage.As[storage.UsageReader](s.store)
	uses, err := reader.ReadUsage(ctx, keyIDs)
	end(err)
	return uses, err
}

// GetKey implements storage.KeyReader.
func (s *tracedStore) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	ctx, end := s.begin(ctx, "GetKey")
	record, revision, err := s.store.GetKey(ctx, workspaceID, keyID)
	end(err)
	return record, revision, err
}

// FindRequest implements storage.KeyReader.
func (s *tracedStore) FindRequest(ctx context.Context, workspaceID, requestID string) (keyID string, revision int64, err error) {
	ctx, end := s.begin(ctx, "FindRequest")
	keyID, revision, err = s.store.FindRequest(ctx, workspaceID, requestID)
	end(err)
	return keyID, revision, err
}

// ListKeys implements storage.KeyReader.
func (s *tracedStore) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	ctx, end := s.begin(ctx, "ListKeys")
	page, err := s.store.ListKeys(ctx, query)
	end(err)
	return page, err
}

// GetMember implements storage.MemberReader.
func (s *tracedStore) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	ctx, end := s.begin(ctx, "GetMember")
	record, revision, err := s.store.GetMember(ctx, workspaceID, memberID)
	end(err)
	return record, revision, err
}

// ListMembers implements storage.MemberReader.
func (s *tracedStore) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	ctx, end := s.begin(ctx, "ListMembers")
	page, err := s.store.ListMembers(ctx, query)
	end(err)
	return page, err
}

// ListAuditEvents implements storage.AuditReader.
func (s *tracedStore) ListAuditEvents(ctx context.Context, query storage.Query) (storage.AuditPage, error) {
	ctx, end := s.begin(ctx, "ListAuditEvents")
	page, err := s.store.ListAuditEvents(ctx, query)
	end(err)
	return page, err
}

// ScanAuditEvents implements storage.AuditReader.
func (s *tracedStore) ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	ctx, end := s.begin(ctx, "ScanAuditEvents")
	scan, err := s.store.ScanAuditEvents(ctx, query)
	end(err)
	return scan, err
}
