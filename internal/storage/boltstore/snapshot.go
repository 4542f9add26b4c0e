package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// copyPiece is how many bytes of a store are copied at a time.
	copyPiece = 256 << 10
	// roomBesideCopy is how many bytes of the disk stay free beside a snapshot and the reserve, for the
	// changes that are made while there is a snapshot.
	roomBesideCopy = maxGrowth
)

// snapshotPrefix begins the name that a snapshot has for a moment.
const snapshotPrefix = ".keysvc-snapshot-"

// removeSnapshots removes what a crash has left in a folder between making the file of a snapshot and
// taking its name away: an empty file.
func removeSnapshots(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), snapshotPrefix) {
			continue
		}
		path := filepath.Join(folder, entry.Name())
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > 0 {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Snapshot implements storage.Snapshotter.
//
// A read transaction keeps every page that it sees, and the file grows by what is changed meanwhile.
// So the transaction lasts only while the pages are copied to the same disk, and not while somebody
// reads the copy. The pages are read and written, and not shared with the copy as some file systems
// can (reflinks): the next change of a shared page would need a new place on the disk, so that the
// reserve would be none.
func (s *Store) Snapshot(ctx context.Context) (storage.Snapshot, error) {
	// 1. Make a file without a name, which no crash leaves behind.
	file, err := newSnapshotFile(filepath.Dir(s.path))
	if err != nil {
		return storage.Snapshot{}, fmt.Errorf("making the file of a snapshot: %w", err)
	}
	taken := &snapshotFile{file: file, room: s.room}
	// 2. Allocate its disk space before the transaction, which is short then.
	if _, err = s.read(ctx, nil, func(tx *bolt.Tx) error { taken.size = tx.Size(); return nil }); err == nil {
		err = s.room.allocateCopy(taken.file, taken.size)
	}
	// 3. Copy the pages.
	var position storage.Position
	if err == nil {
		var served *opened
		position, err = s.read(ctx, func(*fileIndex) { served = s.file }, func(tx *bolt.Tx) error {
			taken.size = tx.Size()
			return taken.copyFrom(ctx, tx, func() error { return s.isServed(served) })
		})
	}
	if err != nil {
		return storage.Snapshot{}, errors.Join(err, taken.Close())
	}
	return storage.Snapshot{Content: taken, Size: taken.size, Epoch: s.epoch, Position: position}, nil
}

// isServed returns ErrUnavailable if the store has gone down, or over to another handle: it can be
// opened again only when the transactions of the handle before have ended. isServed does not wait: a
// commit that holds state may wait for the transaction that it is called in.
func (s *Store) isServed(file *opened) error {
	if s.config.copying != nil {
		s.config.copying()
	}
	if !s.state.TryEnter() {
		return nil
	}
	defer s.state.RUnlock()
	if s.file != file {
		return storage.ErrUnavailable
	}
	return nil
}

// newSnapshotFile makes a file in a folder, with mode 0600, and takes its name away.
func newSnapshotFile(folder string) (*os.File, error) {
	file, err := os.CreateTemp(folder, snapshotPrefix+"*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// snapshotFile is the copy of a store.
type snapshotFile struct {
	file *os.File
	room *reserve
	// size is how many bytes the copy has, and read how many of them were read.
	size, read int64
}

// copyFrom writes the pages of a transaction into the file. It ends with the error of goOn, which is
// called for each piece.
func (f *snapshotFile) copyFrom(ctx context.Context, tx *bolt.Tx, goOn func() error) error {
	gentle := &gentleWriter{ctx: ctx, work: giveway.From(ctx), to: f.file, goOn: goOn}
	buffered := bufio.NewWriterSize(gentle, copyPiece)
	if _, err := tx.WriteTo(buffered); err != nil {
		return noSpace(err)
	}
	if err := buffered.Flush(); err != nil {
		return noSpace(err)
	}
	_, err := f.file.Seek(0, io.SeekStart)
	return err
}

// Read implements io.Reader.
func (f *snapshotFile) Read(into []byte) (int, error) {
	if f.room.full.Load() {
		return 0, fmt.Errorf("%w: it filled up while the copy was read", storage.ErrNoSpace)
	}
	if left := f.size - f.read; int64(len(into)) > left {
		into = into[:left]
	}
	if len(into) == 0 {
		return 0, io.EOF
	}
	read, err := f.file.Read(into)
	f.read += int64(read)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return read, err
}

// Close implements io.Closer.
func (f *snapshotFile) Close() error { return f.file.Close() }

// gentleWriter gives way to validations, and ends with its context or by goOn.
type gentleWriter struct {
	ctx  context.Context //nolint:containedctx // that of one copy
	work *giveway.Work
	to   io.Writer
	goOn func() error
}

// Write implements io.Writer.
func (w *gentleWriter) Write(piece []byte) (int, error) {
	if err := w.goOn(); err != nil {
		return 0, err
	}
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	w.work.GiveWay()
	return w.to.Write(piece)
}

// allocateCopy allocates disk space for a copy of a size, if enough is left beside it.
func (r *reserve) allocateCopy(file *os.File, size int64) error {
	if r.full.Load() {
		return storage.ErrNoSpace
	}
	var disk syscall.Statfs_t
	if err := syscall.Fstatfs(int(file.Fd()), &disk); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	free, needed := int64(disk.Bavail)*int64(disk.Bsize), size+r.bytes+roomBesideCopy //nolint:gosec,unconvert // other systems have other types
	if free < needed {
		return fmt.Errorf("%w: it needs %d MiB, so that room is left for changes, and %d MiB are free",
			storage.ErrNoSpace, needed>>20, free>>20)
	}
	return noSpace(r.allocate(file, 0, size))
}

// noSpace returns an ErrNoSpace for the error of a full disk, and any other error as it is.
func noSpace(err error) error {
	if isNoRoom(err) {
		return fmt.Errorf("%w: %w", storage.ErrNoSpace, err)
	}
	return err
}

// OpenCopy returns a copy of the store in a file that no process serves, which is read from that
// file. Its pages are checked as far as a start does. Until the copy is closed, no process can serve
// the file. Errors: ErrLocked, ErrNewer, ErrDamaged, the context's, or those of the file system.
func OpenCopy(ctx context.Context, path string) (storage.Snapshot, error) {
	file, err := openPages(ctx, path, Config{}.withDefaults())
	if err != nil {
		return storage.Snapshot{}, err
	}
	var size int64
	err = guard(func() error {
		return file.database.View(func(tx *bolt.Tx) error {
			size = tx.Size()
			return file.readHeader(tx)
		})
	})
	if err != nil {
		return storage.Snapshot{}, errors.Join(fmt.Errorf("%s: %w", path, err), file.close())
	}
	return storage.Snapshot{
		Content: &openedCopy{Reader: io.NewSectionReader(file.file, 0, size), file: file},
		Size:    size, Epoch: file.header.GetEpoch(), Position: file.position,
	}, nil
}

// openedCopy reads a file that nobody changes.
type openedCopy struct {
	io.Reader
	file *opened
}

// Close implements io.Closer.
func (c *openedCopy) Close() error { return c.file.close() }
