package sink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

const (
	// MaxBatch is how many bytes of lines a caller of Append writes at a time, and one line more.
	MaxBatch = 1 << 20
	// reserveStep is how much disk space is allocated at a time, in addition to the reserve.
	reserveStep = 4 << 20
	// DefaultReserve is the disk space behind the last line that is kept for narrowing changes, in
	// bytes: room for 10,000 of 3.2 KiB each.
	DefaultReserve = 32 << 20
)

// ErrReplaced is returned by Append if the file that it wrote to was deleted, or if the path names
// another file.
var ErrReplaced = errors.New("sink: the file was deleted or replaced")

// Disk is how a File reaches the disk. A nil field is the real one. Tests inject faults.
type Disk struct {
	// Write writes data at an offset of file.
	Write func(file *os.File, data []byte, offset int64) (int, error)
	// Sync makes the content of file durable.
	Sync func(file *os.File) error
	// Allocate allocates the blocks of file between two offsets, and leaves its length as it is.
	// If the file system cannot do that, the error is errors.ErrUnsupported.
	Allocate func(file *os.File, from, to int64) error
}

func (d Disk) withDefaults() Disk {
	if d.Write == nil {
		d.Write = func(file *os.File, data []byte, offset int64) (int, error) { return file.WriteAt(data, offset) }
	}
	if d.Sync == nil {
		d.Sync = anchor.SyncData
	}
	if d.Allocate == nil {
		d.Allocate = allocate
	}
	return d
}

// Options say how a File is opened. The zero value is useful.
type Options struct {
	// Reserve is the disk space behind the last line that is allocated ahead, in bytes. Default:
	// DefaultReserve; negative for none.
	Reserve int64
	// Disk is how the file reaches the disk.
	Disk Disk
	// Now stamps anchors. Default: time.Now.
	Now func() time.Time
}

// File is a sink that is open for writing. Only one method may be called at a time.
type File struct {
	path    string
	options Options
	file    *os.File
	info    fs.FileInfo
	// size is the length of the durable part of the file, and mark the position of its last line.
	size int64
	mark anchor.Mark
	// allocated is up to where disk space is allocated.
	allocated int64
	// unsupported reports whether the file system cannot allocate.
	unsupported bool
	// full reports whether the reserve could not be kept.
	full bool
}

// Open opens the sink at path, with mode 0600 if it makes it. tail is what ReadTail returned for
// this file, or the zero value if it is absent or has no line: then the first line becomes the
// anchor of mark. Otherwise mark must be tail.Last. What follows on tail.End is cut. Errors: those
// of the file system.
func Open(path string, tail Tail, mark anchor.Mark, options Options) (*File, error) {
	if options.Reserve == 0 {
		options.Reserve = DefaultReserve
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	options.Disk = options.Disk.withDefaults()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, options: options, file: file, size: tail.End, mark: mark}
	if f.info, err = file.Stat(); err == nil && !f.info.Mode().IsRegular() {
		err = fmt.Errorf("sink: %s is not a regular file", path)
	}
	if isNew := tail.Last.Epoch == ""; err == nil {
		if err = f.begin(isNew); err != nil && isNew {
			// The lines go on in another file, so a start must not take this one for the newest.
			err = errors.Join(err, file.Truncate(0))
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return f, nil
}

// begin cuts the file after its last whole line and makes it durable. If isNew is true, it writes the first
// line.
func (f *File) begin(isNew bool) error {
	if f.info.Size() != f.size {
		if err := f.file.Truncate(f.size); err != nil {
			return err
		}
	}
	f.allocated = f.size
	f.Reserve()
	if isNew {
		line, err := AnchorLine(f.mark, f.options.Now()).Append(nil)
		if err != nil {
			return err
		}
		if err := f.Append(line, f.mark, nil); err != nil {
			return err
		}
	} else if err := f.options.Disk.Sync(f.file); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Mark returns the position of the last durable line.
func (f *File) Mark() anchor.Mark { return f.mark }

// Path returns the path that the file was opened with.
func (f *File) Path() string { return f.path }

// Full reports whether the disk space that is kept for narrowing changes could not be allocated.
func (f *File) Full() bool { return f.full }

// Supported reports whether the file system can allocate disk space ahead. If it cannot, nothing
// is kept.
func (f *File) Supported() bool { return !f.unsupported }

// Reserve allocates disk space behind the last line, if less than the reserve is allocated.
func (f *File) Reserve() {
	if f.options.Reserve < 0 || f.unsupported {
		return
	}
	if f.allocated >= f.size+f.options.Reserve {
		f.full = false
		return
	}
	to := f.size + f.options.Reserve + reserveStep
	err := f.options.Disk.Allocate(f.file, f.allocated, to)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// As much as the disk has, so that narrowing changes have what there is.
		for more := to - f.allocated; more >= 64<<10; more /= 2 {
			if f.options.Disk.Allocate(f.file, f.allocated, f.allocated+more) == nil {
				f.allocated += more
			}
		}
		f.full = f.allocated < f.size+f.options.Reserve
		return
	}
	switch {
	case err == nil:
		f.allocated, f.full = to, false
	case errors.Is(err, errors.ErrUnsupported):
		f.unsupported, f.full = true, false
	default:
		f.full = true
	}
}

// Append appends whole lines, the last of which has the position mark, and makes them durable. If
// confirm is not nil, it is called then, and the lines count only if it returns nil. After an error
// only Reopen may be called. Errors: ErrReplaced, that of confirm, and those of the file system.
func (f *File) Append(lines []byte, mark anchor.Mark, confirm func() error) error {
	if written, err := f.options.Disk.Write(f.file, lines, f.size); err != nil {
		return err
	} else if written < len(lines) {
		return fmt.Errorf("sink: a write of %d bytes, of %d", written, len(lines))
	}
	if err := f.options.Disk.Sync(f.file); err != nil {
		return err
	}
	if f.Moved() {
		return fmt.Errorf("%w: %s", ErrReplaced, f.path)
	}
	if confirm != nil {
		if err := confirm(); err != nil {
			return err
		}
	}
	f.size, f.mark = f.size+int64(len(lines)), mark
	f.Reserve()
	return nil
}

// BeginEpoch appends an anchor's line with another epoch: the lines after it are those of a store that
// a person has accepted, or restored, at the mark's revision. After an error only Reopen may be called.
// Errors: those of Append.
func (f *File) BeginEpoch(mark anchor.Mark) error {
	line, err := AnchorLine(mark, f.options.Now()).Append(nil)
	if err != nil {
		return err
	}
	return f.Append(line, mark, nil)
}

// Moved reports whether the file was deleted, or its path names another one. A file that was only
// renamed is written on until Rotate.
func (f *File) Moved() bool {
	named, err := os.Stat(f.path)
	if err == nil {
		return !os.SameFile(named, f.info)
	}
	return f.deleted()
}

// Reopen opens the file again after a failed Append. What the failed Append may have written is
// cut: a failed sync can leave bytes that readers see and the disk does not have. If the path
// names no file or another one, the next file begins there, as in Rotate. Errors: those of the file
// system.
func (f *File) Reopen() error {
	err := f.file.Truncate(f.size)
	if err != nil && !f.deleted() {
		return err
	}
	named, err := os.Stat(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || !os.SameFile(named, f.info) {
		return f.Rotate()
	}
	tail, err := ReadTail(f.path)
	if err != nil {
		return err
	}
	if tail.Last != f.mark || tail.End != f.size {
		return fmt.Errorf("sink: the end of %s is not what was written: revision %d, expected %d", f.path, tail.Last.Revision, f.mark.Revision)
	}
	return f.replace(tail)
}

// deleted reports whether no name leads to the file any more.
func (f *File) deleted() bool {
	held, err := f.file.Stat()
	if err != nil {
		return false
	}
	stat, known := held.Sys().(*syscall.Stat_t)
	return known && stat.Nlink == 0
}

// Rotate goes over to the file that the path names now, after the present one was renamed. It
// makes the file if it is absent, and the first line of the file repeats the position of the last
// line. If the path names the present file, nothing changes. After an error the present file stays
// in use. Errors: those of the file system.
func (f *File) Rotate() error {
	named, err := os.Stat(f.path)
	switch {
	case err == nil && os.SameFile(named, f.info):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	tail := Tail{}
	if err == nil {
		if tail, err = ReadTail(f.path); err != nil {
			return err
		}
	}
	if tail.Newest.Epoch != "" && tail.Newest != f.mark {
		return fmt.Errorf("sink: %s has lines already, up to revision %d", f.path, tail.Newest.Revision)
	}
	return f.replace(tail)
}

// rolledName is what Roll appends to the name of a file, with the time of the renaming.
const rolledName = ".20060102T150405.000000000Z"

// Size returns the length of the durable part of the file.
func (f *File) Size() int64 { return f.size }

// Roll renames the file to its name with the present time, and goes over to the next file, as Rotate
// does. If the path names no file any more, Roll only does the second. After an error the present file
// stays in use. Errors: fs.ErrExist if there is a file of the new name; those of the file system.
func (f *File) Roll() error {
	switch named, err := os.Stat(f.path); {
	case err == nil && os.SameFile(named, f.info):
		name := f.path + f.options.Now().UTC().Format(rolledName)
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("sink: %s: %w", name, fs.ErrExist), err)
		}
		if err := os.Rename(f.path, name); err != nil {
			return err
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return f.Rotate()
}

// replace goes over to the file that the path names.
func (f *File) replace(tail Tail) error {
	next, err := Open(f.path, tail, f.mark, f.options)
	if err != nil {
		return err
	}
	if !os.SameFile(next.info, f.info) && f.allocated > f.size {
		_ = f.file.Truncate(f.size) // gives back the disk space behind the last line
	}
	_ = f.file.Close() // each write was synced, or is written again
	*f = *next
	return nil
}

// Close closes the file. It keeps the disk space behind the last line, for the next start.
func (f *File) Close() error { return f.file.Close() }
