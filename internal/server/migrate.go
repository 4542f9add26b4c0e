package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/migrate"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// ErrDiffers is the error of Migrate if the target is not what the source is.
var ErrDiffers = migrate.ErrDiffers

// MigrateOptions say what Migrate copies where.
type MigrateOptions struct {
	// File is the path of the store's file.
	File string
	// ToFile is set if File is made from the store in etcd. Otherwise the store in etcd is made from
	// File, which is only read.
	ToFile bool
	// Settings say where the store in etcd is.
	Settings config.Settings
	// Progress, if not nil, is called with how many parts of all parts of a stage are done.
	Progress func(stage string, done, total int64)
}

// Migrated is what Migrate did.
type Migrated struct {
	// SourceEpoch, SourceRevision and SourceTime are those of the source.
	SourceEpoch    string    `json:"source_epoch"`
	SourceRevision int64     `json:"source_revision"`
	SourceTime     time.Time `json:"source_time"`
	// Epoch is the new epoch of the target, and Revision its revision; empty if it is not finished.
	Epoch    string `json:"epoch,omitempty"`
	Revision int64  `json:"revision,omitempty"`
	// Resumed is how many parts an earlier run had copied; Finished is set if an earlier run had done
	// everything, so that this one only compared.
	Resumed  int64 `json:"resumed"`
	Finished bool  `json:"finished_before"`
	// Alike are the parts that source and target have alike, and Left those that the target does not
	// keep.
	Alike []MigratedParts `json:"alike"`
	Left  []MigratedParts `json:"left"`
	// Problems say where the target differs; the first ones.
	Problems []string `json:"problems"`
}

// MigratedParts is a number of parts of one kind, for example "key".
type MigratedParts struct {
	Kind  string `json:"kind"`
	Count int64  `json:"count"`
}

// Migrate copies a store from a file into etcd, or back, and compares the two. The target gets a new epoch.
// An interrupted migration is gone on with. Errors: ErrDiffers, with Problems; storage.ErrPresent if there
// is another store; storage.ErrSourceChanged; storage.ErrLocked if the file is served; ErrUnavailable,
// ErrFull, ErrDamaged, those of the file system, and the context's.
func Migrate(ctx context.Context, options MigrateOptions) (result *Migrated, err error) {
	err = options.inEtcd(ctx, func(stored etcdstore.Config) (err error) {
		source, target, err := options.open(ctx, stored)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, target.Close(), source.Close()) }()
		run := migrate.Options{Source: source, Target: target}
		if options.Progress != nil {
			run.Progress = func(stage migrate.Stage, done, total int64) { options.Progress(string(stage), done, total) }
		}
		report, err := migrate.Run(ctx, run)
		result = migratedOf(report)
		if !options.ToFile {
			err = notOfTheFile(err)
		}
		return err
	})
	return result, err
}

// DiscardMigration removes what an unfinished migration has written to its target. The source is not looked at. Errors:
// storage.ErrPresent if the target is a store that can be served, storage.ErrAbsent if there is no unfinished migration,
// storage.ErrLocked if another process works on it, ErrUnavailable, those of the file system, and the context's. After
// others than the first two it can be called again.
func DiscardMigration(ctx context.Context, options MigrateOptions) (err error) {
	progress := func(done, total int64) {
		if options.Progress != nil {
			options.Progress("removing", done, total)
		}
	}
	if options.ToFile {
		target := boltstore.NewImport(options.File, boltstore.Config{})
		return errors.Join(target.Discard(ctx, progress), target.Close())
	}
	return options.inEtcd(ctx, func(stored etcdstore.Config) error {
		target := etcdstore.NewImport(ctx, stored)
		return notOfTheFile(errors.Join(target.Discard(ctx, progress), target.Close()))
	})
}

// notOfTheFile returns an error of a target in etcd, which does not say that a file is locked.
func notOfTheFile(err error) error {
	if errors.Is(err, storage.ErrLocked) {
		err = fmt.Errorf("etcd: %s", err.Error())
	}
	return err
}

// inEtcd calls use with the config of the store in etcd.
func (o MigrateOptions) inEtcd(ctx context.Context, use func(etcdstore.Config) error) (err error) {
	cluster, err := connectEtcd(ctx, o.Settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	err = use(etcdstore.Config{Members: cluster.Members(), Connect: cluster.Dial, Prefix: o.Settings.EtcdPrefix})
	if errors.Is(err, storage.ErrUnavailable) {
		err = cluster.Explain(ctx, err)
	}
	return err
}

// open opens source and target.
func (o MigrateOptions) open(ctx context.Context, stored etcdstore.Config) (storage.Exporter, storage.Importer, error) {
	if !o.ToFile {
		source, err := boltstore.OpenExport(ctx, o.File)
		if err != nil {
			return nil, nil, err
		}
		return source, etcdstore.NewImport(ctx, stored), nil
	}
	if err := makeFolder(filepath.Dir(o.File)); err != nil {
		return nil, nil, fmt.Errorf("making the data folder: %w", err)
	}
	source, err := etcdstore.OpenExport(ctx, stored)
	if err != nil {
		return nil, nil, fmt.Errorf("etcd: %w", err)
	}
	return source, boltstore.NewImport(o.File, boltstore.Config{}), nil
}

func migratedOf(report *migrate.Report) *Migrated {
	origin := report.Origin
	result := &Migrated{
		SourceEpoch: origin.Epoch, SourceRevision: origin.Position.Revision, SourceTime: origin.Position.Time,
		Epoch: report.Epoch, Revision: report.Revision, Resumed: report.Resumed, Finished: report.Finished,
		Alike: partsOf(report.Counts), Left: partsOf(report.Left), Problems: report.Problems,
	}
	return result
}

func partsOf(counts map[storage.PortableKind]int64) []MigratedParts {
	parts := []MigratedParts{}
	for _, kind := range storage.PortableKinds {
		if count := counts[kind]; count > 0 {
			parts = append(parts, MigratedParts{kind.String(), count})
		}
	}
	return parts
}
