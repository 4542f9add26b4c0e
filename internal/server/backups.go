package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// prepareBackups makes what copies the store.
func (s *Server) prepareBackups(context.Context) error {
	snapshotter, _ := storage.SnapshotterOf(s.config.Store)
	urgent := s.slots.of(callers.Validation).begun.Load
	s.backups = backup.New(backup.Config{
		Store: snapshotter, Rate: int64(s.config.Settings.BackupRate), Urgent: urgent, Now: s.clock.Now,
		Check: func(ctx context.Context, path string) error {
			return checkBackup(giveway.NewContext(ctx, urgent), path)
		},
	})
	return nil
}

// checkBackup examines a backup as `keysvc check` does. Its error names what is wrong first.
func checkBackup(ctx context.Context, path string) error {
	report, err := boltstore.Check(ctx, path)
	switch {
	case err != nil:
		return fmt.Errorf("checking the backup: %w", err)
	case len(report.Problems) > 0:
		return fmt.Errorf("%w: the backup is not sound, and neither may the store be: %s", storage.ErrDamaged, report.Problems[0])
	}
	return nil
}

// backUp makes scheduled backups, if the settings name a folder for them.
func (s *Server) backUp(ctx context.Context) error {
	settings := s.config.Settings
	if settings.BackupDir == "" {
		return nil
	}
	backup.Schedule{
		Folder: settings.BackupDir, Interval: settings.BackupInterval, Keep: settings.BackupKeep,
		Save: s.backups.Save, Fail: s.backups.Fail, Now: s.clock.Now,
		Jitter: func(most time.Duration) time.Duration { return rand.N(most + 1) }, //nolint:gosec // jitter is no secret
		Done:   func(made backup.Made, err error) { s.backupDone(made, err, "", "") },
		Deleted: func(names []string, err error) {
			s.hooks.BackupsDeleted(events.BackupsDeleted{Files: names, Error: err})
		},
	}.Run(ctx)
	return nil
}

// backupRead reports a backup that a caller has read.
func (s *Server) backupRead(ctx context.Context, made backup.Made, err error) {
	s.backupDone(made, err, callers.FromContext(ctx).CallerName(), requestIDOf(ctx))
}

func (s *Server) backupDone(made backup.Made, err error, caller, requestID string) {
	done := events.Backup{
		Caller: caller, RequestID: requestID, Path: made.Path, Revision: made.Revision, Bytes: made.Size,
		Copying: made.Copying, Duration: made.Took, Failures: s.backups.State().Failures, Error: err,
	}
	if err == nil {
		done.SHA256 = hex.EncodeToString(made.SHA256[:])
	}
	s.hooks.BackupDone(done)
}

// Backups returns which backups were made since the start.
func (s *Server) Backups() backup.State { return s.backups.State() }
