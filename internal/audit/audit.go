// Package audit says what an audit event holds: who changed what, when, and on whose
// behalf. Each change carries exactly one event, which is committed with it and
// linked to the workspace's event before it.
package audit

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// Actor is who makes a change.
type Actor struct {
	// Caller is the identity of the caller of keysvc, authenticated.
	Caller string
	// MemberID is the member on whose behalf the caller acts: recorded, not
	// authorised. Nil if none was named.
	MemberID *string
	// RequestID is the one under which the server logged the call.
	RequestID string
}

// NewEvent returns an event that says who does what, and when. What it is done to
// is the caller's to fill in; linking it to the chain is done at commit.
func NewEvent(actor Actor, action storagev1.AuditAction, now time.Time, workspaceID string) *storagev1.AuditRecord {
	event := &storagev1.AuditRecord{
		WorkspaceId: workspaceID,
		Time:        timestamppb.New(now),
		Action:      action,
		Caller:      actor.Caller,
		RequestId:   actor.RequestID,
	}
	if actor.MemberID != nil {
		event.ActorMemberId = *actor.MemberID
	}
	return event
}
