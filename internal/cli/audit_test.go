package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// eventsOf returns events with revisions.
func eventsOf(revisions ...int64) []*keysvcv1.AuditEvent {
	var events []*keysvcv1.AuditEvent
	for _, revision := range revisions {
		events = append(events, &keysvcv1.AuditEvent{
			Revision: revision, WorkspaceId: "acme", Sequence: revision, KeyId: testID, MemberId: "ann",
			Action: keysvcv1.AuditAction_AUDIT_ACTION_KEY_REVOKED, Caller: "web", CallerCredential: "uid 7", ActorMemberId: "bo\x1bb",
			Time:   timestamppb.New(time.Date(2027, time.March, 1, 12, 0, int(revision), 0, time.UTC)),
			Fields: []*keysvcv1.AuditFieldChange{{Field: "revoke_time", After: []string{"2027-03-01T12:00:00Z"}}},
		})
	}
	return events
}

// script returns a server that answers one call to ListAuditEvents after the other, and the calls. When
// it has no answer left it calls end.
func script(t *testing.T, end func(context.Context) error, answers ...*keysvcv1.ListAuditEventsResponse) (*fake, *[]string) {
	t.Helper()
	calls := new([]string)
	return &fake{listEvents: func(ctx context.Context, r *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
		if len(answers) == len(*calls) {
			return nil, end(ctx)
		}
		*calls = append(*calls, fmt.Sprintf("after %d, page %q", r.GetAfterRevision(), r.GetPageToken()))
		return answers[len(*calls)-1], nil
	}}, calls
}

// TestFollowShowsEachEventOnce: events come oldest first, and each question is about what is newer than
// the answer before.
func TestFollowShowsEachEventOnce(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		ctx, cancel := context.WithCancel(t.Context())
		server, calls := script(t, func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() },
			&keysvcv1.ListAuditEventsResponse{Events: eventsOf(7, 6), NextPageToken: "a", Revision: 7, Epoch: "e"},
			&keysvcv1.ListAuditEventsResponse{Events: eventsOf(4), NextPageToken: "more than the limit", Revision: 8, Epoch: "e"},
			&keysvcv1.ListAuditEventsResponse{Events: eventsOf(10), NextPageToken: "b", Revision: 11, Epoch: "e"},
			&keysvcv1.ListAuditEventsResponse{Events: eventsOf(9, 8), Revision: 12, Epoch: "e"},
			&keysvcv1.ListAuditEventsResponse{Revision: 11, Epoch: "e"},
		)
		var stdout, stderr bytes.Buffer
		status := command{addr: start(t, server)}.runTo(ctx, &stdout, &stderr,
			"audit", "list", "--workspace", "acme", "--follow", "--limit", "3", "--interval", "1ms", "-o", format)
		if status != 0 || stderr.Len() > 0 {
			t.Errorf("status %d, %q", status, stderr.String())
		}
		golden(t, "audit_follow_"+format+".txt", stdout.String())
		want := []string{`after 0, page ""`, `after 0, page "a"`, `after 7, page ""`, `after 7, page "b"`, `after 11, page ""`}
		if !slices.Equal(*calls, want) {
			t.Errorf("%q, want %q", *calls, want)
		}
	}
}

// TestFollowEndsWithAnErrorOfTheServer: it does not go on in another history, and tells an error.
func TestFollowEndsWithAnErrorOfTheServer(t *testing.T) {
	server, _ := script(t, nil,
		&keysvcv1.ListAuditEventsResponse{Revision: 7, Epoch: "e"}, &keysvcv1.ListAuditEventsResponse{Events: eventsOf(8), Revision: 8, Epoch: "other"})
	r := command{addr: start(t, server)}.run(t, "audit", "list", "--follow", "--interval", "1ms", "-o", "json")
	if r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "another store now") {
		t.Errorf("%+v", r)
	}
	server, _ = script(t, func(context.Context) error { return failure(t, codes.Unavailable, "stopping") },
		&keysvcv1.ListAuditEventsResponse{Revision: 7, Epoch: "e"})
	if r := (command{addr: start(t, server)}).run(t, "audit", "list", "--follow", "--interval", "1ms", "-o", "json"); r.status != 8 {
		t.Errorf("%+v", r)
	}
}

// TestAuditTablesShowEverythingThatTheyShould compares the tables with committed ones.
func TestAuditTablesShowEverythingThatTheyShould(t *testing.T) {
	refusal := &keysvcv1.AuditEvent{
		Revision: 3, Time: timestamppb.New(now), Action: keysvcv1.AuditAction_AUDIT_ACTION_CHANGE_REFUSED, Caller: "web", WorkspaceId: "acme", KeyId: testID,
		Refusal: &keysvcv1.AuditRefusal{
			Method: "keysvc.v1.KeyService/RevokeKey", Code: "NOT_FOUND", Reason: "KEY_NOT_FOUND", Peer: "192.0.2.7", Count: 12, LastTime: timestamppb.New(now),
		},
	}
	policy := &keysvcv1.AuditEvent{
		Revision: 2, Sequence: 2, Time: timestamppb.New(now), Action: keysvcv1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, Caller: "ops", PreviousHash: []byte{1, 2},
		Hash:    []byte{3, 4},
		Details: map[string]string{"digest": "d2", "changed": "roles"},
		Records: []*keysvcv1.AuditedRecord{{Kind: keysvcv1.AuditedRecordKind_AUDITED_RECORD_KIND_POLICY, Added: true}},
	}
	raised := &keysvcv1.AuditEvent{
		Revision: 4, Sequence: 3, Time: timestamppb.New(now), Action: keysvcv1.AuditAction_AUDIT_ACTION_UPGRADE_FINISHED, Caller: "ops",
	}
	purged := &keysvcv1.AuditEvent{
		Revision: 1, WorkspaceId: "acme", Time: timestamppb.New(now), Action: keysvcv1.AuditAction(77), Caller: "system",
		Records: []*keysvcv1.AuditedRecord{
			{Kind: keysvcv1.AuditedRecordKind_AUDITED_RECORD_KIND_KEY, Name: testID, Deleted: true},
			{Kind: keysvcv1.AuditedRecordKind_AUDITED_RECORD_KIND_MEMBER, Name: "ann", Deleted: true},
		},
	}
	event := eventsOf(5)[0]
	event.Fields = append(event.Fields, &keysvcv1.AuditFieldChange{Field: "scopes", Before: []string{"a:b", "c:d"}, After: []string{"a:b"}})
	f := &fake{}
	c := command{addr: start(t, f)}
	for file, test := range map[string]struct {
		events []*keysvcv1.AuditEvent
		args   string
	}{
		"audit_list.txt":           {[]*keysvcv1.AuditEvent{event, raised, policy, purged}, "list"},
		"audit_list_wide.txt":      {[]*keysvcv1.AuditEvent{event, policy, purged}, "list -o wide"},
		"audit_list_refused.txt":   {[]*keysvcv1.AuditEvent{refusal}, "list --refused"},
		"audit_list_refused_w.txt": {[]*keysvcv1.AuditEvent{refusal}, "list --refused -o wide"},
		"audit_show.txt":           {[]*keysvcv1.AuditEvent{event}, "show 5"},
		"audit_show_policy.txt":    {[]*keysvcv1.AuditEvent{policy}, "show 2"},
		"audit_show_purged.txt":    {[]*keysvcv1.AuditEvent{purged}, "show 1"},
		"audit_show_refused.txt":   {[]*keysvcv1.AuditEvent{refusal}, "show 3 --refused"},
	} {
		f.listEvents = func(context.Context, *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
			return &keysvcv1.ListAuditEventsResponse{Events: test.events, Revision: 9}, nil
		}
		r := c.run(t, append([]string{"audit"}, strings.Fields(test.args)...)...)
		if r.status != 0 {
			t.Errorf("%s: %+v", test.args, r)
		}
		golden(t, file, r.stdout)
	}
}
