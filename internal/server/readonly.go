package server

import (
	"context"
	"errors"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// setReadOnly makes the server refuse all changes, or make them again. When it returns, all changes that
// were made before are in the store, and no other one follows.
func (s *Server) setReadOnly(on bool) {
	s.refusesChanges.Store(on)
	if on {
		if manager := s.changing.Load(); manager != nil { // nil before the store is loaded
			manager.Settle()
		}
	}
	s.readOnly.Store(on)
}

// errPostponed is the error of a write of last-used times while the server is read-only.
var errPostponed = errors.New("the server is read-only: last-used times are written later")

// postponedUses writes last-used times, except while the server is read-only.
type postponedUses struct {
	storage.UsageWriter
	server *Server
}

// Unwrap implements storage.Wrapper.
func (p postponedUses) Unwrap() any { return p.UsageWriter }

// PutUsage implements storage.UsageWriter.
func (p postponedUses) PutUsage(ctx context.Context, uses []storage.Usage) error {
	if p.server.refusesChanges.Load() {
		return errPostponed
	}
	return p.UsageWriter.PutUsage(ctx, uses)
}
