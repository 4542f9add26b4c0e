package service

import (
	"context"
	"errors"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// BackupService implements keysvcv1.BackupServiceServer.
type BackupService struct {
	keysvcv1.UnimplementedBackupServiceServer
	backups *backup.Backups
	errors  Errors
	done    func(context.Context, backup.Made, error)
}

// NewBackup returns the service that copies the store. done is called with the outcome of each backup
// that was allowed and begun.
func NewBackup(backups *backup.Backups, errors Errors, done func(context.Context, backup.Made, error)) *BackupService {
	return &BackupService{backups: backups, errors: errors, done: done}
}

// Backup implements keysvcv1.BackupServiceServer.
func (s *BackupService) Backup(request *keysvcv1.BackupRequest, stream keysvcv1.BackupService_BackupServer) error {
	ctx := stream.Context()
	err := s.backup(ctx, request, stream)
	if _, isStatus := status.FromError(err); isStatus { // Send has failed, or nothing has
		return err
	}
	return s.errors.Status(ctx, s.problem(ctx, err))
}

func (s *BackupService) backup(ctx context.Context, request *keysvcv1.BackupRequest, stream keysvcv1.BackupService_BackupServer) error {
	// 1. The copy has every workspace, so the right is needed for all of them, and as long as the stream
	// lasts.
	live := callers.LiveFromContext(ctx)
	allowed := func() error {
		if identity, _ := live.Watch(); !identity.For(callers.Needs(keysvcv1.BackupService_Backup_FullMethodName)).IsAll() {
			return problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, "a backup needs the right administer for all workspaces")
		}
		return nil
	}
	if err := allowed(); err != nil {
		return err
	}
	var fields problem.Fields
	if rate := request.GetBytesPerSecond(); rate != 0 && (rate < backup.MinRate || rate > backup.MaxRate) {
		fields.Add("bytes_per_second", "is %d, allowed are %d to %d, and 0 for the server's own", rate, backup.MinRate, int64(backup.MaxRate))
	}
	if err := fields.Err(); err != nil {
		return err
	}
	// 2. Copy.
	made, err := s.backups.Stream(ctx, request.GetBytesPerSecond(), func(header backup.Header) error {
		return stream.Send(&keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Header{Header: &keysvcv1.BackupHeader{
			Size: header.Size, Epoch: header.Epoch, Revision: header.Revision, CreateTime: timestamppb.New(header.Time),
		}}})
	}, func(piece []byte) error {
		if err := allowed(); err != nil {
			return err
		}
		// Send encodes the message before it returns.
		return stream.Send(&keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Chunk{Chunk: piece}})
	})
	// 3. A client that has the trailer has all of it.
	if err == nil {
		err = stream.Send(&keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Trailer{Trailer: &keysvcv1.BackupTrailer{Sha256: made.SHA256[:]}}})
	}
	if !errors.Is(err, backup.ErrRunning) && !errors.Is(err, backup.ErrUnsupported) {
		s.done(ctx, made, err)
	}
	return err
}

// problem returns what a caller is told of an error.
func (s *BackupService) problem(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, backup.ErrRunning):
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_BACKUP_RUNNING, "%s; try again after it", backup.ErrRunning)
	case errors.Is(err, backup.ErrUnsupported):
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_NOT_IMPLEMENTED, "%s", backup.ErrUnsupported)
	case errors.Is(err, storage.ErrNoSpace):
		s.errors.Log.WarnContext(ctx, "there is no room for a backup", "error", err)
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_STORE_FULL,
			"the disk of the store has no room for a copy of it, or filled up meanwhile; the server's log says how much is needed")
	}
	return err
}
