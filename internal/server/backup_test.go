package server_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// fetchBackup makes a backup, and returns its header and the path of the file.
func (b *bench) fetchBackup(t *testing.T, request *keysvcv1.BackupRequest) (*keysvcv1.BackupHeader, string, error) {
	t.Helper()
	stream, err := keysvcv1.NewBackupServiceClient(b.conn).Backup(testContext(t), request)
	if err != nil {
		return nil, "", err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, "", err
	}
	header, digest, path := first.GetHeader(), sha256.New(), filepath.Join(t.TempDir(), "copy.db")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var trailer *keysvcv1.BackupTrailer
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return header, "", err
		}
		if trailer != nil {
			t.Error("something follows on the trailer")
		}
		trailer = response.GetTrailer()
		if _, err := io.MultiWriter(file, digest).Write(response.GetChunk()); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := file.Stat(); err != nil || info.Size() != header.GetSize() || !slices.Equal(trailer.GetSha256(), digest.Sum(nil)) {
		t.Errorf("%d bytes came, of %d: %v", info.Size(), header.GetSize(), err)
	}
	return header, path, nil
}

// sound fails the test if a backup is not what its header says.
func sound(t *testing.T, header *keysvcv1.BackupHeader, path string) {
	t.Helper()
	report, err := boltstore.Check(t.Context(), path)
	if err != nil || len(report.Problems) > 0 || report.Position.Revision != header.GetRevision() || report.Epoch != header.GetEpoch() {
		t.Errorf("the backup has %+v, %v; its header is %v", report, err, header)
	}
}

// TestBackupIsTheStoreAtOneRevision makes backups while keys are created and revoked, and one at rest,
// which is compared with the store record by record.
func TestBackupIsTheStoreAtOneRevision(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	for number := range 4 {
		b.putMember(t, fmt.Sprint("w", number), "ann", "owner")
	}
	stop := make(chan struct{})
	var changing sync.WaitGroup
	for number := range 4 {
		changing.Go(func() {
			workspace := fmt.Sprint("w", number)
			for {
				select {
				case <-stop:
					return
				default:
				}
				key := b.create(t, workspace, "ann", "emails:read").GetKey().GetKeyId()
				if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: key}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	before := int64(0)
	for range race.Rounds(5, 2) {
		header, path, err := b.fetchBackup(t, &keysvcv1.BackupRequest{})
		if err != nil {
			t.Error(err)
			break
		}
		sound(t, header, path)
		if header.GetRevision() < before {
			t.Errorf("a backup of revision %d after one of %d", header.GetRevision(), before)
		}
		before = header.GetRevision()
	}
	close(stop)
	changing.Wait()
	header, path, err := b.fetchBackup(t, &keysvcv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, header, path)
	opened, err := boltstore.Open(path, boltstore.Config{Unanchored: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if !slices.Equal((&bench{store: opened}).dump(t), b.dump(t)) {
		t.Error("the backup is not the store")
	}
}

// TestBackupIsLoggedWithItsCaller, and what breaks off as well.
func TestBackupIsLoggedWithItsCaller(t *testing.T) {
	t.Parallel()
	done := make(chan events.Backup, 8)
	b := start(t, options{hooks: events.Hooks{BackupDone: func(backup events.Backup) { done <- backup }}})
	b.putMember(t, "acme", "ann", "owner")
	if _, _, err := b.fetchBackup(t, &keysvcv1.BackupRequest{}); err != nil {
		t.Fatal(err)
	}
	if made := waitFor(t, done, "the backup"); made.Caller != "local" || made.RequestID == "" || made.Error != nil || made.Revision != 2 || len(made.SHA256) != 64 {
		t.Errorf("the event is %+v", made)
	}
	lines := b.log.lines("a backup was made")
	if len(lines) != 1 || !strings.Contains(lines[0], "caller=local") || !strings.Contains(lines[0], "revision=2") || !strings.Contains(lines[0], "sha256=") {
		t.Errorf("the log has %q", lines)
	}
	if calls := b.log.lines("Backup by local OK"); len(calls) != 1 {
		t.Errorf("the log has %q of the call", calls)
	}
}

// TestBackupThatIsCutMakesRoomForTheNext: after a client has gone, its backup ends, and another begins.
// Meanwhile a second one is refused, and changes and validations go on.
func TestBackupThatIsCutMakesRoomForTheNext(t *testing.T) {
	t.Parallel()
	done := make(chan events.Backup, 8)
	b := start(t, options{hooks: events.Hooks{BackupDone: func(backup events.Backup) { done <- backup }}})
	b.putMember(t, "acme", "ann", "owner")
	for range 150 { // the file is larger than a flow-control window, and the client reads nothing
		b.create(t, "acme", "ann", "emails:read")
	}
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := keysvcv1.NewBackupServiceClient(b.conn).Backup(ctx, &keysvcv1.BackupRequest{BytesPerSecond: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetHeader().GetSize() <= 2*(64<<10) {
		t.Fatalf("%v, %v; the test needs a larger file", first, err)
	}
	_, _, err = b.fetchBackup(t, &keysvcv1.BackupRequest{})
	expectError(t, err, codes.FailedPrecondition, "BACKUP_RUNNING")
	created := b.create(t, "acme", "ann", "emails:read")
	b.expectAllowed(t, created.GetToken(), "emails:read")
	cancel()
	if broken := waitFor(t, done, "the end of the backup"); broken.Error == nil || broken.Caller != "local" {
		t.Errorf("the event is %+v", broken)
	}
	header, path, err := b.fetchBackup(t, &keysvcv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, header, path)
	mustHaveOnly(t, filepath.Dir(b.file), "keysvc.db", "keysvc.db.anchor")
}

// mustHaveOnly fails the test if a folder has other files.
func mustHaveOnly(t *testing.T, folder string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(names, entry.Name()) {
			t.Errorf("%s is left", entry.Name())
		}
	}
}

// TestStopEndsABackup: a stop does not wait for a slow client.
func TestStopEndsABackup(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	for range 150 {
		b.create(t, "acme", "ann", "emails:read")
	}
	stream, err := keysvcv1.NewBackupServiceClient(b.conn).Backup(testContext(t), &keysvcv1.BackupRequest{BytesPerSecond: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	b.stop(t, patience)
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Error("the backup came to its end")
	}
}

// TestScheduledBackupsAreMadeCheckedAndDeleted runs a server with a folder that has older backups.
func TestScheduledBackupsAreMadeCheckedAndDeleted(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, old := range []string{"keysvc-20260101T120000Z-000000000001.db", "keysvc-20260102T120000Z-000000000002.db", "keysvc-20260103T120000Z-000000000003.db"} {
		if err := os.WriteFile(filepath.Join(folder, old), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done, deleted := make(chan events.Backup, 8), make(chan events.BackupsDeleted, 8)
	b := start(t, options{
		settings: func(s *config.Settings) { s.BackupDir, s.BackupKeep = folder, 2 },
		hooks: events.Hooks{
			BackupDone:     func(backup events.Backup) { done <- backup },
			BackupsDeleted: func(files events.BackupsDeleted) { deleted <- files },
		},
	})
	made := waitFor(t, done, "the backup")
	if made.Error != nil || !made.Scheduled || made.Caller != "" || filepath.Dir(made.Path) != folder {
		t.Fatalf("the event is %+v", made)
	}
	if gone := waitFor(t, deleted, "the deletion"); gone.Error != nil || len(gone.Files) != 2 {
		t.Errorf("deleted were %+v", gone)
	}
	report, err := boltstore.Check(t.Context(), made.Path)
	if err != nil || len(report.Problems) > 0 || report.Position.Revision != made.Revision {
		t.Errorf("the backup has %+v, %v", report, err)
	}
	if info, err := os.Stat(made.Path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	mustHaveOnly(t, folder, "keysvc-20260103T120000Z-000000000003.db", filepath.Base(made.Path))
	if state := b.server.Backups(); state.Last.Path != made.Path || state.Failures != 0 {
		t.Errorf("the state is %+v", state)
	}
}

// TestBackupsOfEarlierProcessesAreKnown by the names of their files.
func TestBackupsOfEarlierProcessesAreKnown(t *testing.T) {
	t.Parallel()
	folder, made := t.TempDir(), testTime.Add(-time.Hour)
	if err := os.WriteFile(filepath.Join(folder, backup.NameOf(backup.Header{Time: made, Revision: 3})), []byte("a copy"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, options{settings: func(s *config.Settings) { s.BackupDir = folder }})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		status, err := keysvcv1.NewStatusServiceClient(b.conn).GetStatus(testContext(t), &keysvcv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if last := status.GetLastBackupTime(); last != nil && last.AsTime().Equal(made) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the last backup is %v, want %v", status.GetLastBackupTime(), made)
		}
	}
}

// TestScheduledBackupThatFailsIsAnError in the log, with the reason, and in the state; the server goes on.
func TestScheduledBackupThatFailsIsAnError(t *testing.T) {
	t.Parallel()
	done := make(chan events.Backup, 8)
	b := start(t, options{
		settings: func(s *config.Settings) {
			s.BackupDir, s.BackupInterval = filepath.Join(t.TempDir(), "not-mounted"), time.Hour
		},
		hooks: events.Hooks{BackupDone: func(backup events.Backup) { done <- backup }},
	})
	if failed := waitFor(t, done, "the backup"); !errors.Is(failed.Error, os.ErrNotExist) || failed.Failures != 1 {
		t.Errorf("the event is %+v", failed)
	}
	if lines := b.log.lines("a scheduled backup failed"); len(lines) != 1 || !strings.Contains(lines[0], "ERROR") || !strings.Contains(lines[0], "not-mounted") {
		t.Errorf("the log has %q", lines)
	}
	b.putMember(t, "acme", "ann", "owner")
}

// TestBackupEndsWithTheRight: when the right is taken away, or is only for some workspaces from then on,
// a backup that is being sent ends with a status.
func TestBackupEndsWithTheRight(t *testing.T) {
	t.Parallel()
	for name, less := range map[string]string{"taken away": mayValidate, "for a workspace": "- {name: all, loopback: true, rights: [administer], workspaces: [acme]}\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startCallers(t, mayAll)
			b.putMember(t, "acme", "ann", "owner")
			for range 150 {
				b.create(t, "acme", "ann", "emails:read")
			}
			stream, err := keysvcv1.NewBackupServiceClient(b.conn).Backup(testContext(t), &keysvcv1.BackupRequest{BytesPerSecond: 64 << 10})
			if err != nil {
				t.Fatal(err)
			}
			if first, err := stream.Recv(); err != nil || first.GetHeader().GetSize() <= 2*(64<<10) {
				t.Fatalf("%v, %v; the test needs a larger file", first, err)
			}
			b.change(t, less)
			for err == nil {
				_, err = stream.Recv()
			}
			expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		})
	}
}
