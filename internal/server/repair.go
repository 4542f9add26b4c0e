package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// RepairClock repairs a store that was changed while the clock was ahead. It sets back those times
// of records, and of the store itself, that lie in the future. No server may have the file open,
// and the clock must be right now. RepairClock writes its findings to out. If apply is false it
// changes nothing.
func RepairClock(ctx context.Context, file string, outside Outside, apply bool, out io.Writer) error {
	return repairClock(ctx, file, outside, apply, out, time.Now)
}

func repairClock(ctx context.Context, file string, outside Outside, apply bool, out io.Writer, now func() time.Time) error {
	if _, err := os.Stat(file); err != nil { // without a file there is nothing to repair
		return err
	}
	last, repaired, err := repairRecords(ctx, file, outside, apply, now)
	if err != nil {
		return err
	}
	at := now().UTC()
	if _, err := fmt.Fprintf(out, `now           %s
last change   %s
keys          %d
members       %d
workspaces    %d
`, at.Format(time.RFC3339), last.Format(time.RFC3339), repaired.Keys, repaired.Members, repaired.Workspaces); err != nil {
		return err
	}
	if !apply {
		_, err := fmt.Fprintln(out, "nothing was changed: with --yes the times that lie in the future are set back")
		return err
	}
	// The store's own time comes last. Until it is set back every start is refused, so that
	// a repair that broke off half-way cannot be served unnoticed.
	uses, err := boltstore.RepairTime(file, at)
	if err != nil {
		return err
	}
	outcome := "the times that lay in the future were set back"
	if uses == 0 && repaired == (keys.Repaired{}) && !last.After(at) {
		outcome = "no time lies in the future: nothing was changed"
	}
	_, err = fmt.Fprintf(out, "last-used     %d\n%s\n", uses, outcome)
	return err
}

// repairRecords repairs the records. It returns the time of the store's last change, and
// how many records were repaired or would be.
func repairRecords(ctx context.Context, file string, outside Outside, apply bool, now func() time.Time) (last time.Time, repaired keys.Repaired, err error) {
	if outside.Sink == "" {
		outside.Sink = boltstore.SinkAsBefore
	}
	store, err := boltstore.Open(file, boltstore.Config{Now: now, Anchor: outside.Anchor, Sink: outside.Sink})
	if err != nil {
		return last, repaired, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	records := projection.New(store, nil)
	position, err := records.Load(ctx)
	if err != nil {
		return last, repaired, err
	}
	following, stop := context.WithCancel(ctx)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer stop()
	follower.Go(func() { _ = records.Follow(following) }) // calls that wait for the projection get its error
	repaired, err = keys.New(keys.Config{Store: store, Projection: records, Now: now}).RepairTimes(ctx, systemActor, apply)
	return position.Time, repaired, err
}
