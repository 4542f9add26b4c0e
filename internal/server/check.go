package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// Outside is what a store's file is compared with.
type Outside struct {
	// Anchor is the path of the file's anchor; "" is the anchor beside the file.
	Anchor string
	// Sink is the path of the file's audit sink; "" is the one that the file had when it was served
	// last, and "off" stands for no sink.
	Sink string
}

// Check examines a store's file, which no server may have open, and writes its findings to
// out. Check returns an error if the file cannot be examined or is not sound.
func Check(ctx context.Context, file string, outside Outside, out io.Writer) error {
	sound, err := examine(ctx, file, outside, out)
	if err == nil && !sound {
		return fmt.Errorf("%s is not sound", file)
	}
	return err
}

// examine writes its findings in a file to out, and reports whether the file is sound.
func examine(ctx context.Context, file string, outside Outside, out io.Writer) (sound bool, err error) {
	if outside.Sink == boltstore.SinkOff {
		outside.Sink = ""
	}
	report, err := boltstore.CheckAnchored(ctx, file, outside.Anchor, outside.Sink)
	if err != nil {
		return false, err
	}
	pruned := ""
	if report.Pruned > 0 {
		pruned = fmt.Sprintf(" (old ones were deleted, up to revision %d)", report.Pruned)
	}
	_, err = fmt.Fprintf(out, `schema        %d
epoch         %s
revision      %d
workspaces    %d
members       %d
keys          %d
audit events  %d%s
feed entries  %d
anchor        %s
audit sink    %s
`, report.Schema, report.Epoch, report.Position.Revision,
		report.Workspaces, report.Members, report.Keys, report.AuditEvents, pruned, report.FeedEntries, report.Anchor, report.Sink)
	for _, problem := range report.Problems {
		_, more := fmt.Fprintln(out, "problem:", problem)
		err = errors.Join(err, more)
	}
	return len(report.Problems) == 0, err
}

// AcceptAnchor makes a store's file the truth after it did not agree with its anchor or its audit
// sink. No server may have the file open. AcceptAnchor writes its findings to out, calls confirm, and
// changes nothing if confirm returns an error.
func AcceptAnchor(ctx context.Context, file string, outside Outside, out io.Writer, confirm func() error) error {
	// Problems that examine finds are written to out and are no error: opening the file below
	// decides whether it can be served.
	if _, err := examine(ctx, file, outside, out); err != nil {
		return err
	}
	if err := confirm(); err != nil {
		return err
	}
	accepted, err := boltstore.AcceptAnchor(file, boltstore.Config{Anchor: outside.Anchor, Sink: outside.Sink})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Accepted at revision %d, with the new epoch %s.\n", accepted.Position.Revision, accepted.Epoch)
	return err
}
