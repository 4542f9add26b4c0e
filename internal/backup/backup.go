// Package backup copies a store while it is served, one copy at a time: to somebody who reads it, or
// into a file, also on a schedule.
package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// ChunkBytes is the max. size of one piece of a copy.
	ChunkBytes = 64 << 10
	// MinRate is the least number of bytes a second that a copy may be read with.
	MinRate = 64 << 10
	// MaxRate is the greatest.
	MaxRate = 1 << 30
	// longest bounds a copy, because a copy that is read so slowly keeps disk space from the store.
	longest = 24 * time.Hour
)

// Errors of Backups; compare with errors.Is.
var (
	// ErrRunning is returned while another backup is made.
	ErrRunning = errors.New("another backup is being made")
	// ErrUnsupported is returned if the store cannot copy itself.
	ErrUnsupported = errors.New("the store cannot copy itself while it is served")
)

// Config configures Backups.
type Config struct {
	// Store is copied; nil for a store that cannot copy itself.
	Store storage.Snapshotter
	// Rate is how many bytes a second are read if nobody says otherwise: MinRate to MaxRate.
	Rate int64
	// Urgent returns how many validations have begun so far. Copies give way to them. Nil if nothing is
	// urgent.
	Urgent func() int64
	// Now is the clock. Required.
	Now func() time.Time
	// Check examines the store in a file, which is not served. Required for Save.
	Check func(ctx context.Context, path string) error
}

// Backups makes backups. Its methods may be called from many goroutines.
type Backups struct {
	config Config
	// turn holds one value while a backup is made.
	turn chan struct{}

	mu    sync.Mutex
	state State
}

// State says which backups there are, as far as this process knows.
type State struct {
	// Running reports whether one is being made.
	Running bool
	// Last is the newest backup that is complete, made since the start or found then; the zero Made if
	// no backup is known.
	Last Made
	// Failures is how many have failed since Last, and Failed says when the newest of them did and
	// Error why.
	Failures int
	Failed   time.Time
	Error    error
}

// Header describes a copy.
type Header struct {
	// Size is its size in bytes, and Epoch and Revision are those of the store in it.
	Size     int64
	Epoch    string
	Revision int64
	// Time is when it was begun.
	Time time.Time
}

// Made is a complete backup.
type Made struct {
	Header
	// Path is its file; "" if it was read by a caller.
	Path string
	// SHA256 is that of all its bytes.
	SHA256 [sha256.Size]byte
	// Copying is how long the store was copied, and Took how long all of it took.
	Copying, Took time.Duration
}

// New returns Backups.
func New(config Config) *Backups { return &Backups{config: config, turn: make(chan struct{}, 1)} }

// State returns which backups were made.
func (b *Backups) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	state := b.state
	state.Running = len(b.turn) > 0
	return state
}

// Stream copies the store, calls begin, and then send with each piece, which send must not keep. rate
// is the max. number of bytes a second; 0 stands for Config.Rate. Errors: ErrRunning, ErrUnsupported,
// those of Snapshotter, of begin and of send, and the context's.
func (b *Backups) Stream(ctx context.Context, rate int64, begin func(Header) error, send func(piece []byte) error) (Made, error) {
	return b.make(ctx, func(ctx context.Context) (Made, error) { return b.stream(ctx, rate, begin, send) })
}

// Save copies the store into a file in a folder, which gets the name NameOf the copy, and checks the
// file. Errors: those of Stream, of the file system, and that of Config.Check.
func (b *Backups) Save(ctx context.Context, folder string) (Made, error) {
	return b.make(ctx, func(ctx context.Context) (made Made, err error) {
		file, err := Create(folder, scheduledPrefix)
		if err != nil {
			return Made{}, err
		}
		defer func() { err = errors.Join(err, file.Discard()) }()
		if made, err = b.stream(ctx, 0, func(Header) error { return nil }, file.write); err != nil {
			return Made{}, err
		}
		made.Path = filepath.Join(folder, NameOf(made.Header))
		err = file.Finish(made.Path, false, func(path string) error { return b.config.Check(ctx, path) })
		return made, err
	})
}

// make runs one backup and notes its outcome.
func (b *Backups) make(ctx context.Context, run func(context.Context) (Made, error)) (Made, error) {
	if b.config.Store == nil {
		return Made{}, ErrUnsupported
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	default:
		return Made{}, ErrRunning
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	made, err := run(bounded)
	if err != nil {
		b.Fail(err)
		return Made{}, err
	}
	made.Took = time.Since(began)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = State{Last: made}
	return made, nil
}

// Found notes a complete backup that an earlier process has made, if no newer one is known.
func (b *Backups) Found(made Made) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if made.Time.After(b.state.Last.Time) {
		b.state.Last = made
	}
}

// Fail notes that a backup has failed.
func (b *Backups) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.Failures++
	b.state.Failed, b.state.Error = b.config.Now(), err
}

func (b *Backups) stream(ctx context.Context, rate int64, begin func(Header) error, send func([]byte) error) (made Made, err error) {
	// 1. Copy the store at the speed of its disk. From then on nothing that is read slowly holds it up.
	if b.config.Urgent != nil {
		ctx = giveway.NewContext(ctx, b.config.Urgent)
	}
	began, header := time.Now(), Header{Time: b.config.Now()}
	snapshot, err := b.config.Store.Snapshot(ctx)
	if err != nil {
		return Made{}, err
	}
	defer func() { err = errors.Join(err, snapshot.Content.Close()) }()
	header.Size, header.Epoch, header.Revision = snapshot.Size, snapshot.Epoch, snapshot.Position.Revision
	made = Made{Header: header, Copying: time.Since(began)}
	if err := begin(header); err != nil {
		return Made{}, err
	}
	// 2. Pass it on, no faster than allowed.
	if rate == 0 {
		rate = b.config.Rate
	}
	digest, pieces, limit := sha256.New(), make([]byte, ChunkBytes), newPace(rate)
	for {
		read, err := io.ReadFull(snapshot.Content, pieces)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !(errors.Is(err, io.ErrUnexpectedEOF) && read > 0) {
			return Made{}, fmt.Errorf("reading the copy: %w", err)
		}
		digest.Write(pieces[:read])
		if err := limit.wait(ctx, read); err != nil {
			return Made{}, err
		}
		if err := send(pieces[:read]); err != nil {
			return Made{}, err
		}
		header.Size -= int64(read)
	}
	if header.Size != 0 {
		return Made{}, fmt.Errorf("reading the copy: %w", io.ErrUnexpectedEOF)
	}
	digest.Sum(made.SHA256[:0])
	return made, nil
}

// scheduledPrefix begins the names of the files of Save that are not complete.
const scheduledPrefix = ".keysvc-scheduled-"

// File is a file that appears complete under its name, or not at all.
type File struct {
	file *os.File
	done bool
}

// Create makes a temporary file of mode 0600 in a folder. Its name begins with a prefix.
func Create(folder, prefix string) (*File, error) {
	file, err := os.CreateTemp(folder, prefix+"*")
	if err != nil {
		return nil, err
	}
	return &File{file: file}, nil
}

// Write implements io.Writer.
func (f *File) Write(piece []byte) (int, error) { return f.file.Write(piece) }

func (f *File) write(piece []byte) error {
	_, err := f.file.Write(piece)
	return err
}

// Finish makes the file durable, calls check with its path, and gives it its name. If force is not
// set, a file that has the name already is an error, and stays. After an error Discard removes the
// temporary file.
func (f *File) Finish(path string, force bool, check func(path string) error) error {
	// 1. Durable first: what the check reads is what stays.
	if err := errors.Join(f.file.Sync(), f.file.Close()); err != nil {
		return err
	}
	temporary := f.file.Name()
	if err := check(temporary); err != nil {
		return err
	}
	// 2. A link fails if there is a file; a rename replaces it. Some file systems have no links.
	err := os.Link(temporary, path)
	if _, there := os.Lstat(path); err != nil && (force || errors.Is(there, fs.ErrNotExist)) {
		err = os.Rename(temporary, path)
		f.done = err == nil
	}
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Discard removes the temporary file, if there still is one.
func (f *File) Discard() error {
	_ = f.file.Close() // Finish may have closed it
	if f.done {
		return nil
	}
	f.done = true
	return os.Remove(f.file.Name())
}
