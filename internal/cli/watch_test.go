package cli_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// feedOf returns a server whose Sync sends messages and then returns what end returns.
func feedOf(t *testing.T, end func(context.Context) error, messages ...*keysvcv1.SyncResponse) *fake {
	t.Helper()
	return &fake{sync: func(stream grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error {
		hello, err := stream.Recv()
		if err != nil || !proto.Equal(hello.GetHello(), &keysvcv1.SyncHello{}) {
			t.Errorf("first came %v, %v", hello, err)
		}
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return end(stream.Context())
	}}
}

func welcomed() *keysvcv1.SyncResponse {
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: &keysvcv1.SyncWelcome{Epoch: "e1", Revision: 6, Reset_: true}}}
}

func events(events ...*keysvcv1.SyncEvent) *keysvcv1.SyncResponse {
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Events{Events: &keysvcv1.SyncEvents{Events: events}}}
}

func TestWatchShowsEachChangeOnALine(t *testing.T) {
	messages := []*keysvcv1.SyncResponse{
		welcomed(),
		events(
			&keysvcv1.SyncEvent{Revision: 7, WorkspaceId: "acme", Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, Subject: testID, AuditHash: []byte{1, 2}, Time: timestamppb.New(time.Date(2027, time.March, 1, 12, 0, 0, 7_000_000, time.UTC))},
			&keysvcv1.SyncEvent{Revision: 8, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY},
		),
		{Kind: &keysvcv1.SyncResponse_Mark{Mark: &keysvcv1.SyncMark{Revision: 8}}},
		{},
		events(),
		events(&keysvcv1.SyncEvent{Revision: 10, WorkspaceId: "a\x1b", Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER, Subject: "ann"}),
		{Kind: &keysvcv1.SyncResponse_Reset_{Reset_: &keysvcv1.SyncReset{Revision: 11}}},
		events(&keysvcv1.SyncEvent{Revision: 12, WorkspaceId: "acme", Kind: 77}),
		{Kind: &keysvcv1.SyncResponse_Goodbye{Goodbye: &keysvcv1.SyncGoodbye{}}},
	}
	c := command{addr: start(t, feedOf(t, func(context.Context) error { return nil }, messages...))}
	const notes = "changes after revision 6; Ctrl-C ends it\nchanges up to revision 11 may be missing here\n" +
		"error: the server has ended the session, as it stops or the session has become old: run the command again\n"
	for file, args := range map[string][]string{"watch.txt": nil, "watch.json": {"-o", "json"}} {
		r := c.run(t, append([]string{"watch"}, args...)...)
		golden(t, file, r.stdout)
		if r.status != 1 || r.stderr != notes {
			t.Errorf("%v: status %d, %q", args, r.status, r.stderr)
		}
	}
}

// TestWatchShowsNoticesOnLinesOfTheirOwn, page after page, from now on.
func TestWatchShowsNoticesOnLinesOfTheirOwn(t *testing.T) {
	for file, args := range map[string][]string{"watch_notices.txt": nil, "watch_notices.json": {"-o", "json"}} {
		ctx, cancel := context.WithCancel(t.Context())
		var asked []*keysvcv1.ListNoticesRequest
		server := feedOf(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, welcomed())
		server.listNotices = func(_ context.Context, r *keysvcv1.ListNoticesRequest) (*keysvcv1.ListNoticesResponse, error) {
			asked = append(asked, r)
			switch len(asked) {
			case 1:
				return &keysvcv1.ListNoticesResponse{NextPageToken: "second", More: true, Notices: []*keysvcv1.Notice{
					{NoticeId: "n1", Days: 30, DueTime: timestamppb.New(time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)), InUse: true, Key: testKey()},
					{NoticeId: "n2", Days: 1, DueTime: timestamppb.New(time.Date(2027, time.March, 1, 12, 0, 1, 0, time.UTC)), Key: testKey()},
				}}, nil
			case 2:
				return &keysvcv1.ListNoticesResponse{NextPageToken: "third", More: true}, nil
			}
			return nil, failure(t, codes.PermissionDenied, "no right", &errdetails.ErrorInfo{Reason: "CALLER_NOT_ALLOWED", Domain: "keysvc"})
		}
		var stdout bytes.Buffer
		stderr := &cancelOn{text: "no right", cancel: cancel}
		status := command{addr: start(t, server)}.runTo(ctx, &stdout, stderr, append([]string{"watch"}, args...)...)
		cancel()
		golden(t, file, stdout.String())
		if status != 0 || stderr.String() != "changes after revision 6; Ctrl-C ends it\nnotices that keys end are not shown: PERMISSION_DENIED (CALLER_NOT_ALLOWED): no right\n" {
			t.Errorf("%v: status %d, %q", args, status, stderr.String())
		}
		if len(asked) != 3 || asked[0].GetDueAfter() == nil || asked[0].GetPageToken() != "" || asked[1].GetPageToken() != "second" || asked[2].GetPageToken() != "third" {
			t.Errorf("asked %v", asked)
		}
	}
}

// cancelOn ends a command once it has written a text.
type cancelOn struct {
	bytes.Buffer

	text   string
	cancel context.CancelFunc
}

// Write implements io.Writer.
func (c *cancelOn) Write(text []byte) (int, error) {
	n, err := c.Buffer.Write(text)
	if strings.Contains(c.String(), c.text) {
		c.cancel()
	}
	return n, err
}

// TestWatchEndsWellOnlyWhenInterrupted: after Ctrl-C the status is 0; otherwise the error of the
// server is shown.
func TestWatchEndsWellOnlyWhenInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := start(t, feedOf(t, func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}, welcomed()))
	var stderr bytes.Buffer
	status := command{addr: addr}.runTo(ctx, io.Discard, &stderr, "watch")
	if status != 0 || strings.Contains(stderr.String(), "error") {
		t.Errorf("status %d, %q", status, stderr.String())
	}

	tooMany := failure(t, codes.ResourceExhausted, "too many", &errdetails.ErrorInfo{Reason: "TOO_MANY_REQUESTS", Domain: "keysvc"})
	addr = start(t, feedOf(t, func(context.Context) error { return tooMany }))
	command{addr: addr}.run(t, "watch").want(t, 7, "", "error: RESOURCE_EXHAUSTED (TOO_MANY_REQUESTS): too many\n")

	addr = start(t, feedOf(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }))
	command{addr: addr}.run(t, "watch", "--timeout", "50ms").want(t, 8, "", "error: the server has not begun a session within 50ms\n")
}

// TestWaitAwaitsTheRevisionOfTheChange: each command with --wait awaits the revision of its own change.
func TestWaitAwaitsTheRevisionOfTheChange(t *testing.T) {
	var awaited *keysvcv1.AwaitRevisionRequest
	var fails error
	f := &fake{
		revokeKey: func(context.Context, *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
			return &keysvcv1.RevokeKeyResponse{Key: testKey(), Revision: 11, Epoch: "e1"}, nil
		},
		revokeToken: func(context.Context, *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
			return &keysvcv1.RevokeTokenResponse{KeyId: testID, WorkspaceId: "acme", Revision: 12, Epoch: "e1"}, nil
		},
		putMember: func(context.Context, *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
			return &keysvcv1.PutMemberResponse{Member: testMember("ann"), Revision: 13, Epoch: "e1"}, nil
		},
		getMember: func(context.Context, *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			return &keysvcv1.GetMemberResponse{Member: testMember("ann")}, nil
		},
		remove: func(context.Context, *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
			return &keysvcv1.RemoveMemberResponse{Revision: 14, Epoch: "e1"}, nil
		},
		removeAll: func(context.Context, *keysvcv1.RemoveWorkspaceRequest) (*keysvcv1.RemoveWorkspaceResponse, error) {
			return &keysvcv1.RemoveWorkspaceResponse{Revision: 15, Epoch: "e1"}, nil
		},
		updateKey: func(context.Context, *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
			return &keysvcv1.UpdateKeyResponse{Key: testKey(), Revision: 16, Epoch: "e1"}, nil
		},
		finish: func(context.Context, *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
			return &keysvcv1.FinishRotationResponse{Key: testKey(), Revision: 17, Epoch: "e1"}, nil
		},
		rotateKey: func(context.Context, *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
			return &keysvcv1.RotateKeyResponse{Key: testKey(), Token: testToken, Revision: 18, Epoch: "e1"}, nil
		},
		await: func(_ context.Context, r *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
			awaited = r
			return &keysvcv1.AwaitRevisionResponse{Applied: 12, Lapsed: 1, Revision: 99, Epoch: "e1"}, fails
		},
	}
	c := command{addr: start(t, f)}
	for revision, line := range map[string]string{
		"11": "key revoke " + testID + " --workspace acme --yes",
		"12": "key revoke --token-stdin --yes",
		"13": "member put ann --workspace acme --role manager",
		"14": "member remove ann --workspace acme --yes",
		"15": "workspace remove acme --yes",
		"16": "key update " + testID + " --workspace acme --name new",
		"17": "key finish-rotation " + testID + " --workspace acme",
		"18": "key rotate " + testID + " --workspace acme --overlap 0 --yes",
	} {
		awaited = nil
		for _, more := range []string{"", " --wait", " --wait -o json"} {
			c.stdin = strings.NewReader(testToken)
			r := c.run(t, strings.Fields(line+more)...)
			want := ""
			if more != "" {
				want = "no near-cache answers from before revision " + revision + " any more (12 applied, 1 lapsed, 0 ms)\n"
			}
			if strings.HasPrefix(line, "key rotate") { // it also shows the key
				r.stderr = r.stderr[max(0, len(r.stderr)-len(want)):]
			}
			if r.status != 0 || r.stdout == "" || r.stderr != want || (awaited != nil) != (more != "") {
				t.Errorf("%s: %+v, awaited %v", line+more, r, awaited)
			}
			if more != "" && awaited.GetEpoch() != "e1" {
				t.Errorf("%s: awaited %v", line+more, awaited)
			}
		}
	}
	fails = failure(t, codes.Unavailable, "not reached", &errdetails.ErrorInfo{Reason: "REVISION_NOT_REACHED", Domain: "keysvc"})
	r := c.run(t, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--wait")
	const want = "error: UNAVAILABLE (REVISION_NOT_REACHED): not reached\n  the change was made, at revision 13; only waiting for the caches failed\n"
	if r.status != 1 || r.stderr != want {
		t.Errorf("%+v", r)
	}

	ctx, cancel := context.WithCancel(t.Context())
	f.await = func(ctx context.Context, _ *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
		cancel()
		<-ctx.Done()
		return nil, errors.New("cancelled")
	}
	var stderr bytes.Buffer
	status := c.runTo(ctx, io.Discard, &stderr, "member", "put", "ann", "--workspace", "acme", "--role", "manager", "--wait")
	if text := "error: interrupted\n  the change was made, at revision 13; only waiting for the caches failed\n"; status != 1 || stderr.String() != text {
		t.Errorf("status %d, %q", status, stderr.String())
	}
}
