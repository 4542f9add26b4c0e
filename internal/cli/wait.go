package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const waitHelp = `With --wait the command ends when no near-cache answers from before the change any
more, which takes at most the server's --staleness.`

func waitFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("wait", false, "wait until no near-cache answers from before the change")
}

// position is the position of a change, which every answer to a change has.
type position interface {
	GetRevision() int64
	GetEpoch() string
}

// change is the answer to a change.
type change interface {
	proto.Message
	position
}

// changed writes the answer to a change and then, if wait is set, waits for the caches.
func (s *session) changed(ctx context.Context, wait bool, response change, table func() error) error {
	if err := s.out.answer(response, table); err != nil {
		return err
	}
	return s.await(ctx, wait, response)
}

// If wanted is set, await waits until no near-cache answers from before a change, and reports that
// on standard error.
func (s *session) await(ctx context.Context, wanted bool, at position) error {
	if !wanted {
		return nil
	}
	began := s.Now()
	response, err := s.sync.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: at.GetRevision(), Epoch: at.GetEpoch()})
	if err != nil {
		return advise(err, func(call *callError) string {
			call.afterChange = true
			return fmt.Sprintf("the change was made, at revision %d; only waiting for the caches failed", at.GetRevision())
		})
	}
	return s.note("no near-cache answers from before revision %d any more (%d applied, %d lapsed, %d ms)",
		at.GetRevision(), response.GetApplied(), response.GetLapsed(), s.Now().Sub(began)/time.Millisecond)
}
