package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/server"
)

// Backup implements keysvcv1.BackupServiceServer.
func (f *fake) Backup(request *keysvcv1.BackupRequest, stream keysvcv1.BackupService_BackupServer) error {
	return f.backup(request, stream)
}

var copied = bytes.Repeat([]byte("a copy "), 1000)

func backupHeader(size int) *keysvcv1.BackupResponse {
	return &keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Header{Header: &keysvcv1.BackupHeader{Size: int64(size), Epoch: "e", Revision: 7}}}
}

func backupChunk(chunk []byte) *keysvcv1.BackupResponse {
	return &keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Chunk{Chunk: chunk}}
}

func backupTrailer(of []byte) *keysvcv1.BackupResponse {
	sum := sha256.Sum256(of)
	return &keysvcv1.BackupResponse{Part: &keysvcv1.BackupResponse_Trailer{Trailer: &keysvcv1.BackupTrailer{Sha256: sum[:]}}}
}

// backupsOf returns a command with a server that sends responses and then returns an error. Check
// returns unsound.
func backupsOf(t *testing.T, unsound, failed error, responses ...*keysvcv1.BackupResponse) command {
	t.Helper()
	return command{
		addr: start(t, &fake{backup: func(_ *keysvcv1.BackupRequest, stream keysvcv1.BackupService_BackupServer) error {
			for _, response := range responses {
				if err := stream.Send(response); err != nil {
					return err
				}
			}
			return failed
		}}),
		hooks: cli.Hooks{Check: func(_ context.Context, file string, _ server.Outside, out io.Writer) error {
			if content, err := os.ReadFile(file); err != nil || !bytes.Equal(content, copied) {
				t.Errorf("checked is a file of %d bytes, %v", len(content), err)
			}
			if unsound != nil {
				_, _ = io.WriteString(out, "problem: page 7")
			}
			return unsound
		}},
	}
}

// TestBackupIsKeptOnlyIfAllOfItCame: whatever is wrong with what comes, no file is left.
func TestBackupIsKeptOnlyIfAllOfItCame(t *testing.T) {
	header, first, second, trailer := backupHeader(len(copied)), backupChunk(copied[:5000]), backupChunk(copied[5000:]), backupTrailer(copied)
	for name, test := range map[string]struct {
		command command
		status  int
		stderr  string
	}{
		"complete":       {backupsOf(t, nil, nil, header, first, second, trailer), 0, ""},
		"not sound":      {backupsOf(t, errors.New("not sound"), nil, header, first, second, trailer), 1, "problem: page 7"},
		"no trailer":     {backupsOf(t, nil, nil, header, first, second), 1, "before its end"},
		"cut off":        {backupsOf(t, nil, status.Error(codes.Unavailable, "stopping"), header, first), 8, "UNAVAILABLE"},
		"another digest": {backupsOf(t, nil, nil, header, first, second, backupTrailer(copied[1:])), 1, "SHA-256"},
		"too short":      {backupsOf(t, nil, nil, header, first, backupTrailer(copied[:5000])), 1, "before its end"},
		"no header":      {backupsOf(t, nil, nil, first, second, trailer), 1, "does not know"},
		"unknown part":   {backupsOf(t, nil, nil, header, &keysvcv1.BackupResponse{}, first, second, trailer), 1, "does not know"},
		"nothing":        {backupsOf(t, nil, nil), 1, "before its end"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			r := test.command.run(t, "backup", filepath.Join(folder, "copy.db"))
			if r.status != test.status || !strings.Contains(r.stderr, test.stderr) {
				t.Errorf("%+v, want status %d and %q", r, test.status, test.stderr)
			}
			entries, err := os.ReadDir(folder)
			if err != nil || (len(entries) == 1) != (test.status == 0) || len(entries) > 1 {
				t.Errorf("left are %v, %v", entries, err)
			}
			if want := fmt.Sprintf("revision  7\nepoch     e\nbytes     7000\nsha256    %x\n", sha256.Sum256(copied)); test.status == 0 && !strings.HasSuffix(r.stdout, want) {
				t.Errorf("got %q, want %q", r.stdout, want)
			}
		})
	}
}

// TestBackupToStandardOutputFailsIfItIsNotComplete: the bytes went already, so the status says it.
func TestBackupToStandardOutputFailsIfItIsNotComplete(t *testing.T) {
	whole := backupsOf(t, nil, nil, backupHeader(len(copied)), backupChunk(copied), backupTrailer(copied)).run(t, "backup", "-")
	if whole.status != 0 || whole.stdout != string(copied) || !strings.HasPrefix(whole.stderr, "file      -\nrevision  7\n") {
		t.Errorf("status %d, %d bytes, %q", whole.status, len(whole.stdout), whole.stderr)
	}
	if cut := backupsOf(t, nil, nil, backupHeader(len(copied)), backupChunk(copied)).run(t, "backup", "-"); cut.status != 1 {
		t.Errorf("without a trailer: status %d", cut.status)
	}
}
