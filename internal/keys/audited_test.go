package keys_test

import (
	"errors"
	"slices"
	"testing"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// TestAuditEventHasActorAndFields calls a verb with plain values, as an import does. Events are
// compared by what they say, so their text must not change with the names of the domain.
func TestAuditEventHasActorAndDetails(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	manager := w.Verbs.Manager
	for state, text := range map[keys.MemberState]string{
		keys.MemberActive: "MEMBER_STATE_ACTIVE", keys.MemberSuspended: "MEMBER_STATE_SUSPENDED",
	} {
		member, position, err := manager.PutMember(t.Context(), audit.Actor{Caller: "import", Credential: "uid 7", MemberID: new("eve"), RequestID: "r1", Workspaces: access.All()},
			keys.MemberSpec{WorkspaceID: "acme", MemberID: "ann", Role: "owner", State: state})
		if err != nil || member.State != state || position != (keys.Position{Revision: w.Projection.Revision(), Epoch: w.Store.Epoch()}) {
			t.Fatalf("PutMember: %+v at %+v, %v", member, position, err)
		}
		page, err := w.Store.ListAuditEvents(t.Context(), storage.Query{WorkspaceID: "acme", Limit: storage.MaxPage})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, event := range page.Events {
			found = found || event.Record.GetCaller() == "import" && event.Record.GetCallerCredential() == "uid 7" &&
				event.Record.GetActorMemberId() == "eve" && event.Record.GetMemberId() == "ann" &&
				slices.ContainsFunc(event.Record.GetFields(), func(field *storagev1.FieldChange) bool {
					return field.GetField() == "member.state" && slices.Equal(field.GetAfter(), []string{text})
				})
		}
		if !found {
			t.Errorf("%s: no event says so", text)
		}
	}
}

// TestActorMemberIsNilOrAnID: an empty id is not "no member": the caller meant to name one.
func TestActorMemberIsNilOrAnID(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, id := range []string{"", "no id"} {
		_, err := w.Verbs.Manager.RemoveWorkspace(t.Context(), audit.Actor{Caller: "import", MemberID: &id, Workspaces: access.All()}, "acme", nil)
		var told *problem.Error
		if !errors.As(err, &told) || len(told.Violations) != 1 || told.Violations[0].Field != "actor_member_id" {
			t.Errorf("%q: %v, want a violation of actor_member_id", id, err)
		}
	}
}
