package server

import (
	"context"
	"encoding/hex"
	"errors"
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
	snapshotter, _ := storage.As[storage.Snapshotter](s.config.Store)
	urgent := s.slots.of(callers.Validation).begun.Load
	s.backups = backup.New(backup.Config{
		Store: snapshotter, Rate: int64(s.config.Settings.BackupRate), Urgent: urgent, Now: s.clock.Now,
		Check: func(ctx context.Context, path string) error {
			return checkBackup(giveway.NewBackground(ctx, urgent), path)
		},
	})
	return nil
}

// checkBackup examines a backup as a start would. A check as that of `keysvc check` would take memory that
// a server does not have.
func checkBackup(ctx context.Context, path string) error {
	_, err := boltstore.Verify(ctx, path)
	switch {
	case errors.Is(err, storage.ErrDamaged):
		return fmt.Errorf("the backup is not sound, and neither may the store be: %w", err)
	case err != nil:
		return fmt.Errorf("checking the backup: %w", err)
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
		Save: s.backups.Save, Fail: s.backups.Fail, Found: s.backups.Found, Now: s.clock.Now,
		Jitter: func(most time.Duration) time.Duration { return rand.N(most + 1) }, //nolint:gosec // jitter is no secret
		Done:   func(made backup.Made, err error) { s.backupDone(made, err, events.Backup{Scheduled: true}) },
		Deleted: func(names []string, err error) {
			s.hooks.BackupsDeleted(events.BackupsDeleted{Files: names, Error: err})
		},
	}.Run(ctx)
	return nil
}

// backupRead reports a backup that a caller has read.
func (s *Server) backupRead(ctx context.Context, made backup.Made, err error) {
	s.backupDone(made, err, events.Backup{Caller: callers.FromContext(ctx).CallerName(), RequestID: requestIDOf(ctx)})
}

// backupDone reports a backup. done has what is known of it besides.
func (s *Server) backupDone(made backup.Made, err error, done events.Backup) {
	done.Path, done.Revision, done.Bytes = made.Path, made.Revision, made.Size
	done.Copying, done.Duration = made.Copying, made.Took
	done.Failures, done.Error = s.backups.State().Failures, err
	if err == nil {
		done.SHA256 = hex.EncodeToString(made.SHA256[:])
	}
	s.hooks.BackupDone(done)
}

// Backups returns which backups are known.
func (s *Server) Backups() backup.State { return s.backups.State() }
