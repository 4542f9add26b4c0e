package server

import (
	"context"
	"net"
	"sync/atomic"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/refusals"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// refusedChanges are the codes of changes that are refused because of what they would change.
// INVALID_ARGUMENT is not one of them: such a call is a mistake of its program.
var refusedChanges = map[string]bool{
	"PERMISSION_DENIED": true, "NOT_FOUND": true, "ALREADY_EXISTS": true, "FAILED_PRECONDITION": true, "ABORTED": true,
}

// refusedConnections are the reasons of connections that are refused or ended because of who called.
var refusedConnections = map[string]bool{
	string(connection.ClosedHandshake): true, string(connection.ClosedUnknown): true,
	string(connection.ClosedRemoved): true, string(connection.ClosedExpired): true,
}

// collectRefusals makes the collector of refusals. Without it refusals are in the log only, as with
// a store that keeps none.
func (s *Server) collectRefusals(context.Context) error {
	if kept, has := storage.As[storage.RefusalStore](s.config.Store); has {
		s.refusals.Store(refusals.New(kept, s.clock.Now, s.log))
	}
	return nil
}

// flushRefusals writes refusals about once a second.
func (s *Server) flushRefusals(ctx context.Context) error {
	if collector := s.refusals.Load(); collector != nil {
		collector.Run(ctx)
	}
	return nil
}

// flushLastRefusals writes the refusals since the last write; see flushLastUses.
func (s *Server) flushLastRefusals(ctx context.Context) error {
	if collector := s.refusals.Load(); collector != nil {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		_ = collector.Flush(flush, true) // it logs its error, and the stop goes on
	}
	return nil
}

// refusalHooks returns hooks that pass what was refused to a collector, once there is one. Of a
// request they pass on only ids of what exists: anything else may be a secret that was sent in the
// wrong field.
func refusalHooks(to *atomic.Pointer[refusals.Collector]) events.Hooks {
	call := func(call events.Call) {
		collector, kind := to.Load(), kindOfRefusal(call)
		if collector == nil || kind == storagev1.RefusalKind_REFUSAL_KIND_UNSPECIFIED {
			return
		}
		collector.Add(refusals.Refusal{
			Kind: kind, Method: call.Service + "/" + call.Method,
			Caller: call.Caller, Credential: call.Credential, Actor: call.Actor, Peer: withoutPort(call.Peer),
			WorkspaceID: call.Subject.WorkspaceID, KeyID: call.Subject.KeyID, MemberID: call.Subject.MemberID,
			Code: call.Code, Reason: call.Reason,
		}, call.RequestID, 1)
	}
	return events.Hooks{
		CallFinished:      call,
		ValidationRefused: call,
		ConnectionsClosed: func(closed events.ConnectionsClosed) {
			if collector := to.Load(); collector != nil && refusedConnections[closed.Reason] {
				collector.Add(refusals.Refusal{
					Kind: storagev1.RefusalKind_REFUSAL_KIND_CONNECTION, Peer: withoutPort(closed.Peer), Reason: closed.Reason,
				}, "", closed.Count)
			}
		},
	}
}

// kindOfRefusal returns what was refused with the answer of a call; REFUSAL_KIND_UNSPECIFIED if it
// is no refusal that is kept, or a call of a method that does not exist.
func kindOfRefusal(call events.Call) storagev1.RefusalKind {
	method := callers.Of("/" + call.Service + "/" + call.Method)
	switch {
	case call.Reason == "":
		// gRPC, and not keysvc, has answered.
	case call.Code == "UNAUTHENTICATED", call.Reason == "CALLER_NOT_ALLOWED":
		return storagev1.RefusalKind_REFUSAL_KIND_CALLER
	case method.Work == callers.Change && refusedChanges[call.Code]:
		return storagev1.RefusalKind_REFUSAL_KIND_CHANGE
	}
	return storagev1.RefusalKind_REFUSAL_KIND_UNSPECIFIED
}

// withoutPort returns the address of a peer without its port, which differs with each connection.
func withoutPort(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
