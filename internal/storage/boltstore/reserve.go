package boltstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// Revoking must work when the disk is full. bbolt grows its file by making it longer,
// which takes no room yet: that a page has none is found when it is written, in the
// middle of a commit. So bbolt never grows the file here. It is grown ahead of need,
// with room that the disk gives then, and Options.MaxSize makes bbolt refuse a
// transaction that does not fit before it has written a byte.
//
//	0 … used … the reserve … allocated
//
// Pages that are free lie below used; bbolt takes these first. What lies beyond, up to
// allocated, is for narrowing changes down to the last page, and for all others but
// the reserve.
const (
	// smallestGrowth and largestGrowth bound how far the file is grown ahead of need.
	smallestGrowth = 32 << 10
	largestGrowth  = 16 << 20
	// roomInterval is how long nothing is tried after the disk had no room.
	roomInterval = 200 * time.Millisecond
)

// defaultReserve is enough for 10,000 narrowing changes of 6.5 KiB each. Tests, whose
// files are small and many, set it to less.
var defaultReserve int64 = 64 << 20

// errNoRoom is the answer to a transaction that does not fit. Nothing was written.
var errNoRoom = errors.New("no room left in the file")

// reserve keeps room on the disk for narrowing changes.
type reserve struct {
	bytes    int64
	allocate func(file *os.File, from, to int64) error
	log      *slog.Logger
	began    time.Time

	// full is set from the first change that did not fit to the next that did.
	full atomic.Bool
	// refused counts the changes that were refused while full is set.
	refused atomic.Int64
	// probe is when the next change may try its luck, in nanoseconds after began.
	probe atomic.Int64
	// failed says that the disk had no room at the time failedAt. These and what
	// follows are owned by whoever holds Store.writing.
	failed   bool
	failedAt time.Time
	// roomy says that the reserve is whole, or much is free beside it.
	roomy bool
	// extra is how much further the file is grown once, when the estimate was too low.
	extra int64
}

func newReserve(config Config) *reserve {
	return &reserve{
		bytes: max(config.Reserve, 0), allocate: config.allocate, log: config.Log, began: time.Now(),
	}
}

// admit refuses, while the disk is full, what does not narrow, before it gets into
// anybody's way. Now and then one change is let through to see whether there is room.
func (r *reserve) admit(narrows bool) error {
	if narrows || !r.full.Load() {
		return nil
	}
	now, next := int64(time.Since(r.began)), r.probe.Load()
	if now >= next && r.probe.CompareAndSwap(next, now+int64(roomInterval)) {
		return nil
	}
	r.refused.Add(1)
	return storage.ErrFull
}

// open takes over a file that was opened for writing, and makes sure of its room as
// far as there is any.
func (r *reserve) open(file *opened) error {
	var used int64
	if err := file.database.View(func(tx *bolt.Tx) error { used = tx.Size(); return nil }); err != nil {
		return err
	}
	file.database.AllocSize = 0 // the file is as long as MaxSize says, not longer
	file.allocated = used
	size := file.info.Size()
	switch stat, known := file.info.Sys().(*syscall.Stat_t); {
	case size <= used:
	case known && stat.Blocks*512 >= size:
		file.allocated = size
	default: // left by an earlier version, or copied with holes
		if err := r.grow(file, size); err != nil {
			return err
		}
	}
	if file.allocated >= used+r.bytes+smallestGrowth {
		return nil
	}
	return r.grow(file, used+r.bytes+growth(used))
}

// growth returns how far a file is grown ahead of need, as bbolt does.
func growth(used int64) int64 { return max(smallestGrowth, min(used, largestGrowth)) }

// prepare gives a write transaction its room before anything was written, and grows
// the file if little is left. need is about how much the transaction may take. writing is
// held.
func (r *reserve) prepare(file *opened, tx *bolt.Tx, narrows bool, need int64) error {
	used, free := tx.Size(), int64(file.database.Stats().FreePageN)
	need += 16*free + r.extra // the list of free pages is one run of pages, and not a free one
	ahead := used + r.bytes + max(r.extra+16*free, need-free*int64(file.database.Info().PageSize))
	if file.allocated < ahead && (!r.failed || time.Since(r.failedAt) >= roomInterval) {
		if err := r.grow(file, ahead+growth(used)); err != nil {
			return err
		}
	}
	r.roomy = file.allocated >= ahead || free*int64(file.database.Info().PageSize) >= largestGrowth
	limit := file.allocated
	if !narrows {
		limit -= r.bytes
	}
	file.database.MaxSize = int(max(limit, 1)) // 0 would be no limit
	return nil
}

// grow makes the file longer, up to a size if there is room for it; it takes what there
// is. writing is held, or the file not yet shared.
func (r *reserve) grow(file *opened, size int64) error {
	before := file.allocated
	r.failed = false
	for more := size - before; more >= smallestGrowth; more /= 2 {
		more -= more % smallestGrowth
		switch err := r.allocate(file.file, file.allocated, file.allocated+more); {
		case err == nil:
			file.allocated += more
		case isNoRoom(err):
			r.failed, r.failedAt = true, time.Now()
		default:
			return fmt.Errorf("growing the file: %w", err)
		}
		if file.allocated+smallestGrowth > size {
			break
		}
	}
	if file.allocated == before {
		return nil
	}
	// As bbolt does it: the length must be durable before pages in it are.
	return file.file.Sync()
}

// isNoRoom reports whether an error says that the disk, a quota or a limit has no room.
func isNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// writeZeros allocates by writing, where the system has no call for it.
func writeZeros(file *os.File, from, to int64) error {
	zeros := make([]byte, min(1<<20, to-from))
	for at := from; at < to; at += int64(len(zeros)) {
		if _, err := file.WriteAt(zeros[:min(int64(len(zeros)), to-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// fitted notes the outcome of a transaction: err is nil, or errNoRoom.
func (r *reserve) fitted(narrows bool, err error) {
	switch {
	case err != nil && !r.full.Swap(true):
		r.log.Warn("the disk has no room: only changes that take something away are made", "kept_bytes", r.bytes)
	case err == nil && !narrows && r.roomy && r.full.Swap(false):
		r.log.Info("the disk has room again: all changes are made", "refused", r.refused.Swap(0))
	}
	if err != nil {
		r.probe.Store(int64(time.Since(r.began) + roomInterval))
	} else {
		r.extra = 0
	}
}

// need returns about how many bytes a group may take: copies of the pages that it
// touches, and what it adds.
func need(writes []write) int64 {
	const page = 4096
	total := int64(32 * page) // roots, branches, the list of free pages
	for _, write := range writes {
		total += 2*page + 4*int64(len(write.value))
	}
	return total
}

// narrow reports whether a group has nothing but narrowing changes.
func narrow(group []*request) bool {
	for _, entry := range group {
		if !entry.change.Narrows {
			return false
		}
	}
	return true
}

// isNoRoomInFile reports whether bbolt refused a transaction for want of room; then it has
// written nothing and rolled it back.
func isNoRoomInFile(err error) bool { return errors.Is(err, berrors.ErrMaxSizeReached) }

// again reports whether a transaction that did not fit may do so if it is tried again:
// the disk has room as far as is known, and only the estimate was too low.
func (s *Store) again() bool {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.room.failed || s.room.extra > 0 {
		s.room.extra = 0
		return false
	}
	s.room.extra = 4 * largestGrowth
	return true
}

// commitLess follows on a group that did not fit: without the changes that do not narrow,
// it may. Those are answered.
func (s *Store) commitLess(group []*request) {
	if s.again() {
		s.commitGroup(group)
		return
	}
	var rest []*request
	if !narrow(group) {
		for _, entry := range group {
			if entry.change.Narrows {
				rest = append(rest, entry)
			}
		}
	}
	for _, entry := range group {
		if rest == nil || !entry.change.Narrows {
			s.room.refused.Add(1)
			entry.finish(0, storage.ErrFull)
		}
	}
	if len(rest) > 0 {
		s.commitGroup(rest)
	}
}
