package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/restore"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// AcceptEtcd gives the store in etcd that the settings name a new epoch, and makes it the truth as it is. A person calls it
// after etcd was restored from a snapshot. sinkPath is the path of the audit sink that goes on, empty if none
// does. AcceptEtcd writes its findings to out, calls confirm, and changes nothing if confirm returns an error. A server that
// uses the store meanwhile ends.
func AcceptEtcd(ctx context.Context, settings config.Settings, sinkPath string, out io.Writer, confirm func() error) error {
	return renewEtcd(ctx, settings, func(r *etcdstore.Renewal) error {
		former, newest, err := r.Origin(ctx)
		if err != nil {
			return err
		}
		ends, err := endOfSink(sinkPath)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "epoch       %s\nrevision    %d\naudit sink  %s\n", former, newest.Revision, ends.text(former, newest)); err != nil {
			return err
		}
		if err := confirm(); err != nil {
			return err
		}
		epoch, err := r.Begin(ctx, false)
		if err != nil {
			return err
		}
		if err := ends.goOn(ctx, r, former, newest); err != nil {
			return err
		}
		if err := r.Finish(ctx); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "Accepted at revision %d, with the new epoch %s.\n", newest.Revision, epoch)
		return err
	})
}

// RestoreEtcd is Restore for the store in etcd that the settings name, after etcd was restored from a
// snapshot: the store gets a new epoch, and what the audit sink says was taken away since the snapshot is taken away
// again. Backup, Data and Anchor of the options are not used. The sink gets a line that says so, and goes on. A server that uses the
// store meanwhile ends, and none starts before RestoreEtcd has returned nil. After an error it can be called again;
// then it may hold more keys than need be.
func RestoreEtcd(ctx context.Context, settings config.Settings, options RestoreOptions) (result *Restored, err error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	err = renewEtcd(ctx, settings, func(r *etcdstore.Renewal) error {
		restoring := &restoring{RestoreOptions: options, now: options.Now(), target: "the store in etcd under " + settings.EtcdPrefix}
		former, newest, err := r.Origin(ctx)
		if err != nil {
			return err
		}
		restoring.epoch = former
		ends, err := endOfSink(options.Sink)
		if err != nil {
			return err
		}
		if err := restoring.planEtcd(ctx, r, anchor.Mark{Epoch: former, Revision: newest.Revision, Hash: newest.Hash}); err != nil {
			return err
		}
		if !options.DryRun {
			if restoring.fresh, err = r.Begin(ctx, restoring.planned.Holds()); err != nil {
				return err
			}
			if err := restoring.planned.Apply(ctx, r, func(held int64) { restoring.progress("keys held", held) }); err != nil {
				return fmt.Errorf("changing the store: %w", err)
			}
			if err := ends.goOn(ctx, r, former, newest); err != nil {
				return err
			}
			barrier, err := r.Barrier(ctx)
			if err != nil {
				return err
			}
			restoring.revision = barrier.Revision
			if err := r.Finish(ctx); err != nil {
				return err
			}
		}
		result = restoring.result()
		return nil
	})
	return result, err
}

// planEtcd plans the restore of a store in etcd from the position of its newest audit event.
func (r *restoring) planEtcd(ctx context.Context, records restore.Records, from anchor.Mark) (err error) {
	var files []string
	if r.Sink != "" {
		if files, err = sink.Files(r.Sink); err != nil {
			return fmt.Errorf("reading the audit sink: %w", err)
		}
	}
	r.since, err = restore.FollowSparse(ctx, files, from, func(lines int64) { r.progress("lines of the audit sink read", lines) })
	if err != nil {
		return fmt.Errorf("reading the audit sink: %w", err)
	}
	r.planned, err = restore.Make(ctx, records, r.since, restore.Options{SinkIsComplete: r.SinkIsComplete, Now: r.now})
	if err == nil {
		r.position = r.planned.Position()
		r.position.Revision = from.Revision
	}
	return err
}

// renewEtcd calls renew with the store that the settings name.
func renewEtcd(ctx context.Context, settings config.Settings, renew func(*etcdstore.Renewal) error) (err error) {
	cluster, err := connectEtcd(ctx, settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	r, err := etcdstore.OpenRenewal(ctx, etcdstore.Config{Members: cluster.Members(), Connect: cluster.Dial, Prefix: settings.EtcdPrefix})
	if err != nil {
		return cluster.Explain(ctx, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	err = renew(r)
	if errors.Is(err, storage.ErrLocked) {
		err = fmt.Errorf("etcd: %s", err.Error()) // no file is locked
	}
	return err
}

// sinkEnd is the end of an audit sink. Its path is empty if there is no sink.
type sinkEnd struct {
	path string
	// name is the file with the last line, and tail its end.
	name string
	tail sink.Tail
}

// endOfSink reads the end of the sink that is written at a path. A path without a file is an error, because it is a mistake in
// writing as a rule.
func endOfSink(path string) (sinkEnd, error) {
	if path == "" || path == boltstore.SinkOff {
		return sinkEnd{}, nil
	}
	name, tail, err := sink.Newest(path)
	if err != nil {
		return sinkEnd{}, fmt.Errorf("reading the audit sink: %w", err)
	}
	return sinkEnd{path, name, tail}, nil
}

// text says how the end of the sink compares with the newest event of a store.
func (e sinkEnd) text(epoch string, newest storage.Barrier) string {
	mark := e.tail.Newest
	switch {
	case e.path == "":
		return "none: the next one begins anew, with all events"
	case mark.Epoch != epoch:
		return "of another epoch: the next line begins a new file, with all events"
	case mark.Revision > newest.Revision:
		return fmt.Sprintf("it has changes up to revision %d, which the store does not have", mark.Revision)
	case mark.Revision < newest.Revision:
		return fmt.Sprintf("it ends at revision %d: the events after it follow", mark.Revision)
	}
	return "it ends where the store does"
}

// goOn writes an anchor's line with the new epoch to the sink, so that it goes on with the events that follow
// on the newest one that the store and the sink have. former is the epoch of the lines before.
func (e sinkEnd) goOn(ctx context.Context, r *etcdstore.Renewal, former string, newest storage.Barrier) (err error) {
	before := e.tail.Newest
	if e.path == "" || before.Epoch != former {
		return nil // the writer of the sink begins a new file
	}
	if before.Revision < newest.Revision {
		newest = storage.Barrier{Revision: before.Revision, Hash: before.Hash}
	}
	mark := anchor.Mark{Epoch: r.Epoch(), Revision: newest.Revision, Hash: newest.Hash}
	tail, last := e.tail, e.tail.Last
	if e.name != e.path { // the file was renamed, and the next one was not begun
		tail, last = sink.Tail{}, before
	}
	file, err := sink.Open(e.path, tail, last, sink.Options{})
	if err != nil {
		return fmt.Errorf("writing the audit sink: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.BeginEpoch(mark); err != nil {
		return fmt.Errorf("writing the audit sink: %w", err)
	}
	return r.PutSinkPosition(ctx, newest)
}

// sinkHint says what to do about a store in etcd that does not have what its audit sink has.
const sinkHint = "keysvc restore --store etcd takes away again what was revoked since, and gives the store a new epoch"
