package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// backupSilence is how long a server may send nothing during a backup: it copies its store first.
const backupSilence = 5 * time.Minute

// toStdout is the FILE that stands for standard output.
const toStdout = "-"

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the store of a running server, or a store's file, into a file",
		Long: `Copy the store of a running server into FILE. The server goes on as usual, and the
copy is as of one revision. FILE appears when all of it has come, its digest is
the server's, and it was checked as "keysvc check" does. It has mode 0600: it
contains hashes of secrets, and names. Keep it like the store.

The caller needs the right administer for all workspaces. One backup is made at a
time.

If FILE is -, the copy goes to standard output and what was copied to standard
error. It is then not checked, and incomplete unless the status is 0.

With --file the copy is of a store's file that no server has open.`,
		Example: `  keysvc backup /backup/keysvc-$(date +%F).db
  keysvc backup - --rate 1048576 | age -r RECIPIENT >keysvc.db.age
  keysvc backup --file /var/lib/keysvc/keysvc.db /backup/keysvc.db`,
		Args: positional("FILE"),
	}
	flags := cmd.Flags()
	store := flags.String("file", "", "copy a store's file, which no server may have open, in place of asking a server")
	rate := flags.Int64("rate", 0, "how many bytes a second to copy at most, from 65536 on (default: the server's backup-rate)")
	force := flags.Bool("force", false, "replace FILE if it exists")
	cmd.MarkFlagsMutuallyExclusive("file", "rate")
	cmd = a.clientCommand(cmd, nil, func(ctx context.Context, s *session, args []string) error {
		target := &backupTarget{app: a, cmd: cmd, path: args[0], force: *force}
		if err := target.allowed(); err != nil {
			return err
		}
		received, end, err := s.receiveBackup(ctx, *rate)
		if err != nil {
			return err
		}
		defer end()
		return target.write(ctx, received)
	})
	ask := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *store == "" {
			return ask(cmd, args)
		}
		target := &backupTarget{app: a, cmd: cmd, path: args[0], force: *force}
		if err := target.allowed(); err != nil {
			return err
		}
		return a.onFile(cmd, *store, func(ctx context.Context) (err error) {
			opened, err := boltstore.OpenCopy(ctx, *store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, opened.Content.Close()) }()
			return target.write(ctx, copyOf(opened))
		})
	}
	return cmd
}

// storeCopy is a copy of a store that comes piece by piece.
type storeCopy struct {
	size     int64
	epoch    string
	revision int64
	// next returns the next piece, which is valid until the next call, and io.EOF after the last one
	// if all of it has come.
	next   func() ([]byte, error)
	digest hash.Hash
}

// copyOf returns the copy in a file.
func copyOf(opened storage.Snapshot) *storeCopy {
	c := &storeCopy{size: opened.Size, epoch: opened.Epoch, revision: opened.Position.Revision, digest: sha256.New()}
	piece := make([]byte, backup.ChunkBytes)
	c.next = func() ([]byte, error) {
		read, err := io.ReadFull(opened.Content, piece)
		if read > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		return piece[:read], err
	}
	return c
}

// receiveBackup asks the server for a copy. The caller calls end.
func (s *session) receiveBackup(ctx context.Context, rate int64) (received *storeCopy, end func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(backupSilence, func() {
		cancel(&silence{fmt.Sprintf("the server has sent nothing for %s", backupSilence)})
	})
	end = func() { late.Stop(); cancel(nil) }
	stream, err := s.backups.Backup(ctx, &keysvcv1.BackupRequest{BytesPerSecond: rate})
	if err != nil {
		end()
		return nil, nil, err
	}
	receive := func() (*keysvcv1.BackupResponse, error) {
		response, err := stream.Recv()
		late.Reset(backupSilence)
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
			return nil, cause
		}
		return response, err
	}
	first, err := receive()
	switch {
	case errors.Is(err, io.EOF):
		err = errCutBackup
	case err == nil && first.GetHeader() == nil:
		err = errOddBackup
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	header := first.GetHeader()
	received = &storeCopy{size: header.GetSize(), epoch: header.GetEpoch(), revision: header.GetRevision(), digest: sha256.New()}
	received.next = func() ([]byte, error) {
		response, err := receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errCutBackup
		case err != nil:
			return nil, err
		}
		switch part := response.GetPart().(type) {
		case *keysvcv1.BackupResponse_Chunk:
			return part.Chunk, nil
		case *keysvcv1.BackupResponse_Trailer:
			if subtle.ConstantTimeCompare(part.Trailer.GetSha256(), received.digest.Sum(nil)) != 1 {
				return nil, errOtherDigest
			}
			return nil, io.EOF
		}
		return nil, errOddBackup
	}
	return received, end, nil
}

var (
	errOddBackup   = errors.New("the server has sent what this version of the command does not know: nothing was kept")
	errCutBackup   = errors.New("the server has ended the backup before its end: nothing was kept")
	errOtherDigest = errors.New("what has come is not what the server has sent, by their SHA-256: nothing was kept")
)

// backupTarget is where a copy goes.
type backupTarget struct {
	*app
	cmd   *cobra.Command
	path  string
	force bool
}

// allowed returns an error if the copy could not be put in its place, before anything is copied.
func (t *backupTarget) allowed() error {
	if t.path == toStdout {
		if isTerminal(t.Stdout) {
			return usageError(t.cmd, "standard output is a terminal; redirect it, or name a FILE")
		}
		return nil
	}
	if t.hooks.Check == nil {
		return errNoHook
	}
	info, err := os.Lstat(t.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return usageError(t.cmd, "%s is a folder", t.path)
	case !t.force:
		return &refusal{t.path + " exists, and nothing was changed; --force replaces it"}
	}
	if _, err := os.Lstat(boltstore.AnchorOf(t.path)); err == nil {
		return &refusal{t.path + " has an anchor, so it is a store that is served, and not a backup: nothing was changed"}
	}
	return nil
}

// write writes a copy to its place, and says what was copied.
func (t *backupTarget) write(ctx context.Context, c *storeCopy) error {
	if t.path == toStdout {
		if err := t.copy(ctx, c, t.Stdout); err != nil {
			return err
		}
		return t.say(t.Stderr, c)
	}
	file, err := backup.Create(filepath.Dir(t.path), ".keysvc-backup-")
	if err != nil {
		return err
	}
	err = t.copy(ctx, c, file)
	if err == nil {
		err = file.Finish(t.path, t.force, func(path string) error {
			var findings bytes.Buffer
			if err := t.hooks.Check(ctx, path, server.Outside{}, &findings); err != nil {
				return errors.Join(fmt.Errorf("the copy is not kept, because it is not sound: %w", err), errors.New(findings.String()))
			}
			return nil
		})
	}
	if err = errors.Join(err, file.Discard()); err != nil {
		return err
	}
	return t.say(t.Stdout, c)
}

// copy writes all pieces of a copy.
func (t *backupTarget) copy(ctx context.Context, c *storeCopy, to io.Writer) error {
	bar := t.newProgress(c.size)
	defer bar.end()
	written := int64(0)
	for {
		piece, err := c.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		c.digest.Write(piece)
		if _, err := to.Write(piece); err != nil {
			return err
		}
		written += int64(len(piece))
		bar.show(written)
	}
	if written != c.size {
		return errCutBackup
	}
	return nil
}

// say says what was copied.
func (t *backupTarget) say(to io.Writer, c *storeCopy) error {
	_, err := fmt.Fprintf(to, "file      %s\nrevision  %d\nepoch     %s\nbytes     %d\nsha256    %x\n", t.path, c.revision, c.epoch, c.size, c.digest.Sum(nil))
	return err
}
