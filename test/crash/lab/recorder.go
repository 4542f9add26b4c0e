package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// seam lets a function stand in for every call that changes a file. It is nil in a program
// that was built without the overlay.
var seam func(intercept func(its *call, do func() (int, error)) (int, error))

// call is a call of the product that changes a file, or may.
type call struct {
	name          string
	fd            int
	path, newPath string
	data          []byte
	offset, size  int64
	flags         int
}

// recorder sees every call on the files of one folder, in order, and can let calls fail.
type recorder struct {
	folder string
	// quiet recorders record nothing. They only skip the real syncs.
	quiet bool
	// fault, if set, is called before each call, with the number of the call, from 1. If it
	// returns an error, the call ends with that error. Of a write, the first part bytes are
	// written nevertheless.
	fault func(number int, its *call) (part int, err error)
	// syncing, if set, is called before each sync of the store's file takes effect. It is not
	// called for the anchor, because what is visible then is durable already.
	syncing func()

	mutex sync.Mutex
	disk  *disk.Disk // as it is now
	log   []disk.Op
	calls int
	seeds uint64 // what failing syncs draw from
	lost  error  // why the record is incomplete, if it is
}

// recorders are the recorders that are recording, by folder.
var recorders sync.Map

// handle is the file of a file descriptor.
type handle struct {
	recorder *recorder
	file     int // its number, -1 for the folder
}

// handles holds the open handles, by descriptor.
var handles [1 << 14]atomic.Pointer[handle]

// watch begins to record what happens in a folder whose content is base.
func watch(folder string, base *disk.Disk) *recorder {
	r := &recorder{folder: folder, disk: base.Clone()}
	recorders.Store(folder, r)
	return r
}

// end ends the recording. What is still open is no longer seen.
func (r *recorder) end() { recorders.Delete(r.folder) }

// at returns how many operations were recorded so far.
func (r *recorder) at() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return len(r.log)
}

// number returns the number of a file, -1 if no file has that name.
func (r *recorder) number(name string) int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.disk.Number(name)
}

// recorderOf returns the recorder of the folder that a path lies in, and the name in it,
// which is empty for the folder itself.
func recorderOf(path string) (*recorder, string) {
	if !filepath.IsAbs(path) {
		return nil, ""
	}
	if found, ok := recorders.Load(path); ok {
		return found.(*recorder), ""
	}
	folder, name := filepath.Split(path)
	if found, ok := recorders.Load(strings.TrimSuffix(folder, "/")); ok {
		return found.(*recorder), name
	}
	return nil, ""
}

// intercept makes a call and records it.
func intercept(its *call, do func() (int, error)) (int, error) {
	switch its.name {
	case "open":
		if r, name := recorderOf(its.path); r != nil {
			return r.open(its, name, do)
		}
		return do()
	case "link", "rename", "unlink", "truncate":
		if r, name := recorderOf(its.path); r != nil && name != "" {
			return r.named(its, name, do)
		}
		return do()
	}
	if its.fd < 0 || its.fd >= len(handles) {
		return do()
	}
	of := handles[its.fd].Load()
	if of == nil {
		return do()
	}
	if its.name == "close" {
		handles[its.fd].Store(nil)
		return do()
	}
	return of.recorder.opened(its, of, do)
}

// fails returns how a call ends if it has to fail. mutex is held.
func (r *recorder) fails(its *call) (int, error) {
	r.calls++
	if r.fault == nil {
		return 0, nil
	}
	return r.fault(r.calls, its)
}

func (r *recorder) apply(op disk.Op) {
	r.disk.Apply(op)
	r.log = append(r.log, op)
}

func (r *recorder) open(its *call, name string, do func() (int, error)) (int, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if _, err := r.fails(its); err != nil {
		return -1, err
	}
	fd, err := do()
	if err != nil || fd >= len(handles) {
		return fd, err
	}
	if r.quiet {
		handles[fd].Store(&handle{r, -1})
		return fd, nil
	}
	number := -1
	if name != "" {
		number = r.disk.Number(name)
		switch {
		case number < 0:
			// A file without a name (O_TMPFILE) would come here, too. Compare would notice that.
			r.apply(disk.Op{Kind: disk.Create, Name: name})
			number = r.disk.Number(name)
		case its.flags&os.O_TRUNC != 0:
			r.apply(disk.Op{Kind: disk.Resize, File: number})
		}
	}
	handles[fd].Store(&handle{r, number})
	return fd, nil
}

func (r *recorder) named(its *call, name string, do func() (int, error)) (int, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if _, err := r.fails(its); err != nil {
		return -1, err
	}
	result, err := do()
	if err != nil || r.quiet {
		return result, err
	}
	op := disk.Op{Name: name}
	switch its.name {
	case "unlink":
		op.Kind = disk.Unlink
	case "truncate":
		op.Kind, op.File, op.Size = disk.Resize, r.disk.Number(name), its.size
	default:
		if filepath.Dir(its.newPath) != r.folder {
			r.lost = fmt.Errorf("%s of %s to %s", its.name, its.path, its.newPath)
			return result, nil
		}
		op.Kind, op.NewName = disk.Link, filepath.Base(its.newPath)
		if its.name == "rename" {
			op.Kind = disk.Rename
		}
	}
	r.apply(op)
	return result, nil
}

// The modes of fallocate, as Linux numbers them.
const (
	keepSize  = 0x1
	punchHole = 0x2
	zeroRange = 0x10
)

func (r *recorder) opened(its *call, of *handle, do func() (int, error)) (int, error) {
	sync := its.name == "fsync" || its.name == "fdatasync"
	if sync && r.syncing != nil && of.file == r.number(storeFile) {
		r.syncing()
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	part, failure := r.fails(its)
	switch {
	case sync && of.file >= 0 && failure != nil:
		r.seeds++
		r.apply(disk.Op{Kind: disk.FailedSync, File: of.file, Seed: r.seeds})
		return -1, failure
	case failure != nil && len(its.data) > 0 && part > 0:
		its.data = its.data[:min(part, len(its.data))]
	case failure != nil:
		return -1, failure
	case sync:
		if !r.quiet {
			if of.file < 0 {
				r.apply(disk.Op{Kind: disk.SyncFolder})
			} else {
				r.apply(disk.Op{Kind: disk.Sync, File: of.file})
			}
		}
		return 0, nil // the real one would take its time
	}
	result, err := do()
	if err != nil || r.quiet {
		return result, err
	}
	switch its.name {
	case "read", "pread", "fstat", "flock":
		return result, nil
	}
	op := disk.Op{File: of.file, Offset: its.offset, Size: its.size}
	switch its.name {
	case "write", "pwrite":
		op.Kind, op.Data = disk.Write, append([]byte(nil), its.data[:result]...)
		if its.name == "write" {
			end, err := syscall.Seek(its.fd, 0, 1)
			if err != nil {
				r.lost = err
			}
			op.Offset = end - int64(result)
		}
	case "ftruncate":
		op.Kind = disk.Resize
	case "fallocate":
		switch {
		case its.flags&punchHole != 0, its.flags&zeroRange != 0:
			op.Kind = disk.Punch
		case its.flags&keepSize != 0:
			return result, nil
		case its.flags == 0:
			op.Kind = disk.Allocate
		default:
			r.lost = fmt.Errorf("fallocate with mode %#x", its.flags)
		}
	}
	if of.file < 0 {
		r.lost = fmt.Errorf("%s of a file without a name", its.name)
		return result, nil
	}
	r.apply(op)
	return result, nil
}
