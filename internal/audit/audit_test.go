package audit_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
)

func TestNewEventHasActorActionTimeAndWorkspace(t *testing.T) {
	now := time.Date(2026, time.March, 1, 12, 0, 0, 123456789, time.UTC)
	got := audit.NewEvent(
		audit.Actor{Caller: "local", MemberID: proto.String("ann"), RequestID: "r1"},
		storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, now, "acme")
	// It has no subject and no position in the chain: others set these.
	want := &storagev1.AuditRecord{
		WorkspaceId: "acme", Time: timestamppb.New(now), Action: storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED,
		Caller: "local", ActorMemberId: "ann", RequestId: "r1",
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNewEventWithoutActorHasEmptyFields(t *testing.T) {
	got := audit.NewEvent(audit.Actor{}, storagev1.AuditAction_AUDIT_ACTION_PURGED, time.Unix(1, 0), "")
	if got.GetCaller() != "" || got.GetActorMemberId() != "" || got.GetRequestId() != "" || got.GetWorkspaceId() != "" {
		t.Errorf("got %v", got)
	}
}
