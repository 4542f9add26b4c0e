package server

import (
	"context"
	"errors"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// ListAuditEvents answers as the RPC does.
type ListAuditEvents = func(context.Context, *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error)

// AuditFile opens a store's file, which no server may have open, and calls use with a function that
// lists the audit events in the file. Nothing is changed.
func AuditFile(ctx context.Context, path string, use func(ListAuditEvents) error) (err error) {
	file, err := boltstore.OpenAudit(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return use(func(ctx context.Context, request *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
		return service.ReadAuditLog(ctx, file, file.Epoch(), request)
	})
}
