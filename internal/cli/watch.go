package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) watchCommand() *cobra.Command {
	return a.clientCommand(&cobra.Command{
		Use:   "watch",
		Short: "Show changes as near-caches hear of them",
		Long: `Show changes as near-caches hear of them, until Ctrl-C. Each change is a line with
its time, revision and kind, the workspace, and the key or member. The new content
is not shown.

The command ends with an error when the server stops, or when the session has become
old. --timeout bounds only the wait for the session to begin.

With -o json each change is one line of JSON: the API's own SyncEvent.`,
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

// watch shows changes until the stream ends, and returns why it ended.
func (s *session) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
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
	for {
		response, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		switch kind := response.GetKind().(type) {
		case *keysvcv1.SyncResponse_Welcome:
			late.Stop()
			err = s.note("changes after revision %d; Ctrl-C ends it", kind.Welcome.GetRevision())
			lines.add("TIME", "REVISION", "KIND", "WORKSPACE", "SUBJECT")
		case *keysvcv1.SyncResponse_Events:
			err = s.showEvents(kind.Events.GetEvents(), lines)
		case *keysvcv1.SyncResponse_Reset_:
			err = s.note("changes up to revision %d may be missing here", kind.Reset_.GetRevision())
		case *keysvcv1.SyncResponse_Goodbye:
			return errGoodbye
		}
		if err != nil {
			return err
		}
	}
}

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
			made = event.GetTime().AsTime().Format("2006-01-02T15:04:05.000Z")
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
