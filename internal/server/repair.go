package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
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
	return finishRepair(last, repaired, apply, out, now, func(at time.Time) (int, error) { return boltstore.RepairTime(file, at) })
}

// RepairClockEtcd is RepairClock for the store in etcd that the settings name. Stop all servers first: a server goes on with the
// time that it knows.
func RepairClockEtcd(ctx context.Context, settings config.Settings, apply bool, out io.Writer) (err error) {
	cluster, err := connectEtcd(ctx, settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	store, err := etcdstore.New(ctx, etcdstore.Config{Members: cluster.Members(), Connect: cluster.Dial, Prefix: settings.EtcdPrefix, Create: etcdstore.CreateNever})
	if err != nil {
		return cluster.Explain(ctx, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	last, repaired, err := repairIn(ctx, store, apply, time.Now)
	if err != nil {
		return err
	}
	return finishRepair(last, repaired, apply, out, time.Now, func(at time.Time) (int, error) { return store.RepairTime(ctx, at) })
}

// finishRepair says what was found in the records and, if apply is set, sets back the times of the store itself.
func finishRepair(last time.Time, repaired keys.Repaired, apply bool, out io.Writer, now func() time.Time, repairTime func(time.Time) (int, error)) error {
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
	uses, err := repairTime(at)
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
	return repairIn(ctx, store, apply, now)
}

// repairIn repairs the records of a store.
func repairIn(ctx context.Context, store storage.Store, apply bool, now func() time.Time) (last time.Time, repaired keys.Repaired, err error) {
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
