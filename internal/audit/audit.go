// Package audit makes audit events: who changed what, when, and on whose behalf. Each change
// has exactly one event, which is committed with the change and linked to the workspace's
// previous event.
package audit

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
)

// Actor identifies the source of a change, and says where it may change something. The zero Actor
// may change nothing.
type Actor struct {
	// Caller is the authenticated identity of the caller of keysvc.
	Caller string
	// Credential is what the caller has proved its identity with, for example "uid 1000". It is no
	// secret.
	Credential string
	// MemberID is the member on whose behalf the caller acts. It is recorded, but keysvc does
	// not check what the member may do. Nil if the caller named no member.
	MemberID *string
	// RequestID is the request id that the server logged the call with.
	RequestID string
	// Workspaces are those for which the caller has the right that the change needs. They are not
	// recorded.
	Workspaces access.Workspaces
}

// NewEvent returns an event with actor, action, time and workspace. The caller adds the subject of
// the change. storage.Change.Link links the event to the chain.
func NewEvent(actor Actor, action storagev1.AuditAction, now time.Time, workspaceID string) *storagev1.AuditRecord {
	event := &storagev1.AuditRecord{
		WorkspaceId: workspaceID,
		Time:        timestamppb.New(now),
		Action:      action,
		Caller:      actor.Caller,
		RequestId:   actor.RequestID,

		CallerCredential: actor.Credential,
	}
	if actor.MemberID != nil {
		event.ActorMemberId = *actor.MemberID
	}
	return event
}

// ChangedBy returns the actor as records have it.
func ChangedBy(actor Actor) *storagev1.ChangedByRecord {
	by := &storagev1.ChangedByRecord{Caller: actor.Caller}
	if actor.MemberID != nil {
		by.ActorMemberId = *actor.MemberID
	}
	return by
}
