package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) watchCommand() *cobra.Command {
	return a.clientCommand(&cobra.Command{
		Use:   "watch",
		Short: "Show changes as near-caches hear of them",
		Long: `Show changes as near-caches hear of them, until Ctrl-C. Each change is a line with
its time, revision and kind, the workspace, and the key or member. The new content
is not shown. A key that ends in 30, 7 or 1 days is a line of its own, when that
falls due, for callers that may read keys.

The command ends with an error when the server stops, or when the session has become
old. --timeout bounds only the wait for the session to begin.

With -o json each change is one line of JSON: the API's own SyncEvent, or its Notice
for a key that ends.`,
		Example: `  keysvc watch
  keysvc watch -o json | jq -r 'select(.kind == "SYNC_EVENT_KIND_KEY").subject'`,
	}, formatsOfEvents, func(ctx context.Context, s *session, _ []string) error {
		err := s.watch(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // Ctrl-C is how it ends
		}
		return err
	})
}

var errGoodbye = errors.New("the server has ended the session, as it stops or the session has become old: run the command again")

// watched is what watch hears of: a message of the session, or notices that keys end, or why either
// broke off.
type watched struct {
	response *keysvcv1.SyncResponse
	err      error
	notices  []*keysvcv1.Notice
	// noNotices says why no notices follow.
	noNotices error
}

// watch shows changes until the stream ends, and returns why it ended.
func (s *session) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	stream, err := s.sync.Sync(ctx)
	if err != nil {
		return err
	}
	hello := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
	// If Send fails, Recv returns the reason.
	_ = stream.Send(hello)
	late := time.AfterFunc(s.timeout, func() { cancel(&silence{fmt.Sprintf("the server has not begun a session within %s", s.timeout)}) })
	defer late.Stop()
	lines := newTable([]column{
		{title: "TIME"}, {title: "REVISION"}, {title: "KIND"}, {title: "WORKSPACE", cutTo: 9}, {title: "SUBJECT", cutTo: 16},
	}, false, s.out.width)
	lines.rows = nil // the header comes with the welcome
	heard := make(chan watched)
	tell := func(what watched) bool {
		select {
		case heard <- what:
			return what.err == nil
		case <-ctx.Done():
			return false
		}
	}
	running.Go(func() {
		for {
			if response, err := stream.Recv(); !tell(watched{response: response, err: err}) {
				return
			}
		}
	})
	for {
		var next watched
		select {
		case next = <-heard:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch kind := next.response.GetKind().(type) {
		case *keysvcv1.SyncResponse_Welcome:
			late.Stop()
			err = s.note("changes after revision %d; Ctrl-C ends it", kind.Welcome.GetRevision())
			lines.add("TIME", "REVISION", "KIND", "WORKSPACE", "SUBJECT")
			running.Go(func() { s.watchNotices(ctx, tell) })
		case *keysvcv1.SyncResponse_Events:
			err = s.showEvents(kind.Events.GetEvents(), lines)
		case *keysvcv1.SyncResponse_Reset_:
			err = s.note("changes up to revision %d may be missing here", kind.Reset_.GetRevision())
		case *keysvcv1.SyncResponse_Goodbye:
			return errGoodbye
		default:
			err = s.showNotices(next, lines)
		}
		switch {
		case next.err != nil && context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case next.err != nil:
			return next.err
		case err != nil:
			return err
		}
	}
}

// noticeInterval is how often watch asks for notices.
const noticeInterval = time.Minute

// watchNotices asks for notices that fall due from now on, until tell returns false or the server has
// none for the caller.
func (s *session) watchNotices(ctx context.Context, tell func(watched) bool) {
	request := &keysvcv1.ListNoticesRequest{DueAfter: timestamppb.New(s.Now())}
	for {
		page, err := s.keys.ListNotices(ctx, request)
		switch status.Code(err) {
		case codes.OK:
			if request.PageToken = page.GetNextPageToken(); !tell(watched{notices: page.GetNotices()}) {
				return
			}
			if page.GetMore() {
				continue
			}
		case codes.Unimplemented: // the server is older than notices
			return
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted: // later
		default:
			tell(watched{noNotices: err})
			return
		}
		select {
		case <-time.After(noticeInterval):
		case <-ctx.Done():
			return
		}
	}
}

// showNotices shows notices, or why none follow.
func (s *session) showNotices(next watched, lines *table) error {
	if next.noNotices != nil {
		return s.note("notices that keys end are not shown: %v", next.noNotices)
	}
	for _, notice := range next.notices {
		if s.out.format == formatJSON {
			if err := s.out.jsonLine(notice); err != nil {
				return err
			}
			continue
		}
		what := "ends in " + count(int64(notice.GetDays()), "day")
		if !notice.GetInUse() {
			what += ", unused"
		}
		lines.add(notice.GetDueTime().AsTime().Format(watchTime), "-", what, orDash(notice.GetKey().GetWorkspaceId()), orDash(notice.GetKey().GetKeyId()))
	}
	if len(next.notices) == 0 || s.out.format == formatJSON {
		return nil
	}
	return s.out.write([]byte(lines.take()))
}

// watchTime is how watch shows times, in UTC.
const watchTime = "2006-01-02T15:04:05.000Z"

func (s *session) showEvents(events []*keysvcv1.SyncEvent, lines *table) error {
	for _, event := range events {
		if s.out.format == formatJSON {
			if err := s.out.jsonLine(event); err != nil {
				return err
			}
			continue
		}
		made := "-"
		if event.GetTime() != nil {
			made = event.GetTime().AsTime().Format(watchTime)
		}
		lines.add(made, fmt.Sprint(event.GetRevision()), enumWord(event.GetKind(), "SYNC_EVENT_KIND_"),
			orDash(event.GetWorkspaceId()), orDash(event.GetSubject()))
	}
	if s.out.format == formatJSON {
		return nil
	}
	return s.out.write([]byte(lines.take()))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
