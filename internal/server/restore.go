package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/scribe-mail/keysvc/internal/restore"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// RestoreOptions say what Restore restores.
type RestoreOptions struct {
	// Backup is the path of the backup, which is only read.
	Backup string
	// Data is the folder that the store is made in. It is made if it is not there.
	Data string
	// Sink is the path of the audit sink that the store had when it was lost. What the file was renamed
	// to is found beside it. Empty if there is no sink. The sink is only read.
	Sink string
	// SinkIsComplete is the person's word that the sink has lost none of its last lines.
	SinkIsComplete bool
	// Anchor is the path of the anchor's file that the store had; empty if there is no such file. It can only
	// show that lines of the sink are missing.
	Anchor string
	// DryRun plans, and makes nothing.
	DryRun bool
	// Progress, if not nil, is called with the number of lines that were read, or of keys that were
	// held.
	Progress func(what string, count int64)
	// Now is the time. Default: time.Now.
	Now func() time.Time
}

// RestoreLine is a record of which a restore says what becomes of it.
type RestoreLine = restore.Line

// Restored is what Restore did, or would do.
type Restored struct {
	*restore.Plan

	// BackupEpoch, BackupRevision and BackupTime are those of the backup.
	BackupEpoch    string    `json:"backup_epoch"`
	BackupRevision int64     `json:"backup_revision"`
	BackupTime     time.Time `json:"backup_time"`
	// SinkFiles are the files of the sink, in their order, and SinkRevision is that of the last line.
	SinkFiles    []string `json:"sink_files"`
	SinkRevision int64    `json:"sink_revision"`
	// File is the store that was made, Epoch its new epoch and Revision its revision. Epoch and
	// Revision are empty after a dry run.
	File     string `json:"file"`
	Epoch    string `json:"epoch,omitempty"`
	Revision int64  `json:"revision,omitempty"`
}

// Restore makes a store in a folder from a backup, with a new epoch. What the audit sink says was taken
// away since the backup is taken away again. If it is not known what was taken away, the keys that it
// may concern are held. The store appears complete, or not at all. Errors: ErrPresent if the folder has
// a store, or an anchor; ErrDamaged for a backup that is not sound; ErrLocked; restore.ErrNewerTime;
// those of the file system, and the context's.
func Restore(ctx context.Context, options RestoreOptions) (*Restored, error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	r := &restoring{RestoreOptions: options, now: options.Now(), target: filepath.Join(options.Data, storeFile)}
	// 1. Nothing that is there is replaced.
	for _, path := range []string{r.target, boltstore.AnchorOf(r.target)} {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%w: %s; name an empty folder", storage.ErrPresent, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if options.DryRun {
		err := r.plan(ctx, options.Backup)
		return r.result(), err
	}
	// 2. Work in a folder of our own, on the disk of the store. A restore that is killed leaves the
	// folder, which is no store.
	if err := makeFolder(options.Data); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	folder, err := os.MkdirTemp(options.Data, restoreFolder+"*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder) //nolint:errcheck // only what is left after an error
	if err := r.make(ctx, filepath.Join(folder, storeFile)); err != nil {
		return nil, err
	}
	return r.result(), nil
}

// restoreFolder begins the name of the folder that a restore works in.
const restoreFolder = ".keysvc-restore-"

// restoring is one restore.
type restoring struct {
	RestoreOptions
	now    time.Time
	target string

	planned  *restore.Plan
	since    *restore.Since
	position storage.Position
	epoch    string // of the backup
	fresh    string // the new epoch
	revision int64
}

func (r *restoring) result() *Restored {
	if r.planned == nil {
		return nil
	}
	return &Restored{
		Plan: r.planned, BackupEpoch: r.epoch, BackupRevision: r.position.Revision, BackupTime: r.position.Time,
		SinkFiles: r.since.Files, SinkRevision: r.since.Newest.Revision,
		File: r.target, Epoch: r.fresh, Revision: r.revision,
	}
}

// make makes the store in a file whose folder is our own, and gives it its name.
func (r *restoring) make(ctx context.Context, file string) error {
	// 1. Copy the backup, and upgrade the copy if it has an older schema.
	if err := r.copy(ctx, file); err != nil {
		return fmt.Errorf("copying the backup: %w", err)
	}
	if err := r.plan(ctx, file); errors.Is(err, boltstore.ErrOlder) {
		upgraded, err := boltstore.Open(file, boltstore.Config{Unanchored: true, Reserve: -1, Now: r.Now})
		if err != nil {
			return err
		}
		if err := errors.Join(upgraded.Close(), r.plan(ctx, file)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// 2. The new epoch comes before the changes: the first change of the new history must not have a
	// position of the old one.
	sunk := anchor.Mark{}
	if len(r.since.Files) > 0 {
		sunk = r.since.Newest
	}
	var err error
	if r.fresh, err = boltstore.BeginRestored(file, boltstore.Config{Reserve: -1, Now: r.Now}, sunk, r.planned.Holds()); err != nil {
		return err
	}
	if err := r.apply(ctx, file); err != nil {
		return fmt.Errorf("changing the copy: %w", err)
	}
	// 3. Examine what was made, make it durable, and only then give it its name.
	position, err := boltstore.Verify(ctx, file)
	if err != nil {
		return err
	}
	r.revision = position.Revision
	if err := errors.Join(syncFile(file), ctx.Err()); err != nil {
		return err
	}
	if err := os.Link(file, r.target); err != nil {
		if _, there := os.Lstat(r.target); !errors.Is(there, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(file, r.target); err != nil { // some file systems have no links
			return err
		}
	}
	return syncFolder(r.Data)
}

// copy copies the backup into a file.
func (r *restoring) copy(ctx context.Context, file string) (err error) {
	opened, err := boltstore.OpenCopy(ctx, r.Backup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Content.Close()) }()
	to, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, opened.Content)
	return errors.Join(err, to.Close())
}

// plan reads the records in a file, and the sink.
func (r *restoring) plan(ctx context.Context, file string) (err error) {
	records, err := boltstore.OpenRecords(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	r.epoch, r.position = records.Epoch(), records.Position()
	var files []string
	if r.Sink != "" {
		if files, err = sink.Files(r.Sink); err == nil && len(files) == 0 {
			err = &fs.PathError{Op: "open", Path: r.Sink, Err: fs.ErrNotExist}
		}
		if err != nil {
			return fmt.Errorf("reading the audit sink: %w", err)
		}
	}
	from := anchor.Mark{Epoch: r.epoch, Revision: r.position.Revision, Hash: r.position.Hash}
	r.since, err = restore.Follow(ctx, files, from, func(lines int64) { r.progress("lines of the audit sink read", lines) })
	if err != nil {
		return fmt.Errorf("reading the audit sink: %w", err)
	}
	if r.Anchor != "" {
		mark, err := anchor.Read(r.Anchor)
		if err != nil {
			return fmt.Errorf("reading the anchor %s: %w", r.Anchor, err)
		}
		r.since.MustReach(mark)
	}
	r.planned, err = restore.Make(ctx, records, r.since, restore.Options{SinkIsComplete: r.SinkIsComplete, Now: r.now})
	return err
}

// apply makes the changes of the plan.
func (r *restoring) apply(ctx context.Context, file string) (err error) {
	store, err := boltstore.Open(file, boltstore.Config{Unanchored: true, Unsynced: true, Reserve: -1, Now: r.Now})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return r.planned.Apply(ctx, store, func(held int64) { r.progress("keys held", held) })
}

func (r *restoring) progress(what string, count int64) {
	if r.Progress != nil {
		r.Progress(what, count)
	}
}

// syncFile flushes a file to the disk.
func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
