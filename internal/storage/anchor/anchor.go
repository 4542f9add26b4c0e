// Package anchor keeps in a small separate file how far a store had come. The store alone
// cannot show that its newest changes are lost: after the disk swallowed a write, or after an
// older copy was put in its place, the store looks sound.
//
// The file has two slots, each on a page of its own. They are written in turn, so that the
// previous slot survives an interrupted write. Their disk space is allocated from the
// beginning, so that a full disk does not stop a write.
//
//	slot     magic (16 bytes), number, revision (8 each, big-endian), hash (32),
//	         length of the epoch (1), epoch (up to 64), zeros, CRC-32C (4); 512 bytes
package anchor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	magic      = "keysvc anchor 1\n"
	slotSize   = 512
	slotStride = 4096
	slots      = 2
	maxEpoch   = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrDamaged is returned for a file without a readable slot.
	ErrDamaged = errors.New("anchor: damaged")
	// ErrReplaced is returned by Write if the path no longer names the file that was
	// opened.
	ErrReplaced = errors.New("anchor: the file was replaced")
)

// Mark is how far a store had come.
type Mark struct {
	// Epoch identifies the store's history; at most 64 bytes.
	Epoch string
	// Revision of the newest change, 0 in a new store.
	Revision int64
	// Hash of the change's audit event, zero at revision 0.
	Hash [32]byte
}

// File is an anchor that is open for writing. Only one method may be called at a time.
type File struct {
	path   string
	file   *os.File
	info   fs.FileInfo
	mark   Mark
	number uint64
}

// encode returns a slot.
func encode(mark Mark, number uint64) []byte {
	slot := make([]byte, slotSize)
	rest := slot[copy(slot, magic):]
	binary.BigEndian.PutUint64(rest, number)
	binary.BigEndian.PutUint64(rest[8:], uint64(mark.Revision)) //nolint:gosec // never negative
	rest = rest[16+copy(rest[16:], mark.Hash[:]):]
	rest[0] = byte(len(mark.Epoch)) //nolint:gosec // at most 64
	copy(rest[1:], mark.Epoch)
	binary.BigEndian.PutUint32(slot[slotSize-4:], crc32.Checksum(slot[:slotSize-4], castagnoli))
	return slot
}

// decode decodes a slot and reports whether it is valid.
func decode(slot []byte) (mark Mark, number uint64, ok bool) {
	if len(slot) != slotSize || string(slot[:len(magic)]) != magic ||
		binary.BigEndian.Uint32(slot[slotSize-4:]) != crc32.Checksum(slot[:slotSize-4], castagnoli) {
		return Mark{}, 0, false
	}
	rest := slot[len(magic):]
	number = binary.BigEndian.Uint64(rest)
	revision := binary.BigEndian.Uint64(rest[8:])
	copy(mark.Hash[:], rest[16:])
	length := int(rest[48])
	if length == 0 || length > maxEpoch || revision>>63 != 0 {
		return Mark{}, 0, false
	}
	mark.Revision = int64(revision) // the first bit is 0
	mark.Epoch = string(rest[49 : 49+length])
	return mark, number, true
}

// Read reads the anchor at path. Errors: ErrDamaged, and those of the file system.
func Read(path string) (Mark, error) {
	file, err := os.Open(path)
	if err != nil {
		return Mark{}, err
	}
	defer file.Close() //nolint:errcheck // only read
	mark, _, err := newest(file)
	return mark, err
}

// newest reads the newest valid slot.
func newest(file *os.File) (mark Mark, number uint64, err error) {
	info, err := file.Stat()
	if err != nil {
		return Mark{}, 0, err
	}
	if !info.Mode().IsRegular() {
		return Mark{}, 0, fmt.Errorf("%w: %s is not a regular file", ErrDamaged, file.Name())
	}
	found := false
	for index := range int64(slots) {
		slot := make([]byte, slotSize)
		if _, err := file.ReadAt(slot, index*slotStride); err != nil {
			if errors.Is(err, io.EOF) {
				continue
			}
			return Mark{}, 0, err
		}
		each, at, ok := decode(slot)
		if ok && (!found || at > number) {
			mark, number, found = each, at, true
		}
	}
	if !found {
		return Mark{}, 0, fmt.Errorf("%w: %s has no slot that can be read", ErrDamaged, file.Name())
	}
	return mark, number, nil
}

// Create makes an anchor at path, with mode 0600. The file appears complete or not at all. If
// it exists, the error is fs.ErrExist.
func Create(path string, mark Mark) error { return place(path, mark, os.Link) }

// Replace makes an anchor at path, as Create does, and replaces an existing one.
func Replace(path string, mark Mark) error { return place(path, mark, os.Rename) }

// checkEpoch returns an error if the epoch of a mark does not fit into a slot.
func (m Mark) checkEpoch() error {
	if m.Epoch == "" || len(m.Epoch) > maxEpoch {
		return fmt.Errorf("anchor: an epoch of %d bytes; 1 to %d are allowed", len(m.Epoch), maxEpoch)
	}
	return nil
}

// place writes an anchor under a temporary name and then moves it to path: name is os.Link or
// os.Rename.
func place(path string, mark Mark, name func(from, to string) error) error {
	if err := mark.checkEpoch(); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".keysvc-new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // a second name after a link, gone after a rename, else a leftover
	content := make([]byte, slots*slotStride)
	for index := range slots {
		copy(content[index*slotStride:], encode(mark, uint64(index)))
	}
	_, err = temporary.WriteAt(content, 0)
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err != nil {
		return err
	}
	if err := name(temporary.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Open opens the anchor at path for writing. Errors: ErrDamaged, and those of the file
// system.
func Open(path string) (*File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	opened := &File{path: path, file: file}
	opened.mark, opened.number, err = newest(file)
	if err == nil {
		opened.info, err = file.Stat()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return opened, nil
}

// Mark returns the mark that was read or written last.
func (f *File) Mark() Mark { return f.mark }

// Write makes a mark durable. After an error the file still has the previous mark, and the
// next Write writes the same slot again. Errors: ErrReplaced, and those of the file system.
func (f *File) Write(mark Mark) error {
	if err := mark.checkEpoch(); err != nil {
		return err
	}
	// 1. Write the slot that does not hold the current mark, and sync it.
	number := f.number + 1
	if _, err := f.file.WriteAt(encode(mark, number), int64(number%slots)*slotStride); err != nil {
		return err
	}
	if err := SyncData(f.file); err != nil {
		return err
	}
	// 2. Check that the path still names this file, before the mark counts as written: the next
	// start reads the file that the path names.
	named, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s is gone", ErrReplaced, f.path)
	case err != nil:
		return err
	case !os.SameFile(named, f.info):
		return fmt.Errorf("%w: %s is another file than the one that was opened", ErrReplaced, f.path)
	}
	f.mark, f.number = mark, number
	return nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
