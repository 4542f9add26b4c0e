package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// Check examines a store's file, which no server may have open, and writes its findings to
// out. anchor is the path of the file's anchor; "" is the anchor beside the file. Check
// returns an error if the file cannot be examined or is not sound.
func Check(ctx context.Context, file, anchor string, out io.Writer) error {
	sound, err := examine(ctx, file, anchor, out)
	if err == nil && !sound {
		return fmt.Errorf("%s is not sound", file)
	}
	return err
}

// examine writes its findings in a file to out, and reports whether the file is sound.
func examine(ctx context.Context, file, anchor string, out io.Writer) (sound bool, err error) {
	if anchor == "" {
		anchor = boltstore.AnchorOf(file)
	}
	report, err := boltstore.CheckAnchored(ctx, file, anchor)
	if err != nil {
		return false, err
	}
	_, err = fmt.Fprintf(out, `schema        %d
epoch         %s
revision      %d
workspaces    %d
members       %d
keys          %d
audit events  %d
feed entries  %d
anchor        %s
`, report.Schema, report.Epoch, report.Position.Revision,
		report.Workspaces, report.Members, report.Keys, report.AuditEvents, report.FeedEntries, report.Anchor)
	for _, problem := range report.Problems {
		_, more := fmt.Fprintln(out, "problem:", problem)
		err = errors.Join(err, more)
	}
	return len(report.Problems) == 0, err
}

// AcceptAnchor makes a store's file the truth after it did not agree with its anchor. No
// server may have the file open. AcceptAnchor writes its findings to out, calls confirm, and
// changes nothing if confirm returns an error.
func AcceptAnchor(ctx context.Context, file, anchor string, out io.Writer, confirm func() error) error {
	// Problems that examine finds are written to out and are no error: opening the file decides
	// whether it can
	// be served.
	if _, err := examine(ctx, file, anchor, out); err != nil {
		return err
	}
	if err := confirm(); err != nil {
		return err
	}
	accepted, err := boltstore.AcceptAnchor(file, boltstore.Config{Anchor: anchor})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Accepted at revision %d, with the new epoch %s.\n", accepted.Position.Revision, accepted.Epoch)
	return err
}
