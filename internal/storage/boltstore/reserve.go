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

// Revoking must work when the disk is full. bbolt grows its file by making it longer, which
// allocates no disk space: the missing space shows when a page is written, in the middle of
// a commit. So here bbolt never grows the file. The reserve grows it ahead of need, by
// allocating disk space, and DB.MaxSize makes bbolt refuse a transaction that does not fit
// before it writes a byte.
//
//	0 … used … the reserve … allocated
//
// Free pages are below used, and bbolt takes these first. Narrowing changes may use
// everything up to allocated, other changes everything except the reserve.
const (
	// minGrowth and maxGrowth bound how many bytes the file is grown ahead of need.
	minGrowth = 32 << 10
	maxGrowth = 16 << 20
	// roomInterval is the pause between attempts after the disk was full.
	roomInterval = 200 * time.Millisecond
)

// defaultReserve holds 10,000 narrowing changes of 6.5 KiB each. Tests, whose files are
// small and many, lower it.
var defaultReserve int64 = 64 << 20

// errNoRoom is the error of a transaction that does not fit. Nothing was written.
var errNoRoom = errors.New("no room left in the file")

// reserve keeps disk space for narrowing changes.
type reserve struct {
	bytes    int64
	allocate func(file *os.File, from, to int64) error
	log      *slog.Logger
	began    time.Time

	// full is set when a change does not fit. It is cleared when a change that does not narrow
	// has fitted and roomy is set.
	full atomic.Bool
	// refused counts the changes that were refused while full is set.
	refused atomic.Int64
	// probe is when the next change may be tried, in nanoseconds after began.
	probe atomic.Int64

	// Store.writing guards the group below.

	// failed reports whether the file was not grown as far as wanted, because the disk was full.
	// That was at failedAt.
	failed   bool
	failedAt time.Time
	// roomy reports whether the reserve is complete, or at least maxGrowth bytes of pages are
	// free.
	roomy bool
	// seen is the file at the newest transaction, for Stats.
	seen fileSizes
	// extra is added to the next estimate of what a transaction takes, in bytes, after an
	// estimate was too low.
	extra int64
}

func newReserve(config Config) *reserve {
	return &reserve{
		bytes: max(config.Reserve, 0), allocate: config.allocate, log: config.Log, began: time.Now(),
	}
}

// admit refuses changes that do not narrow while the disk is full, before they enter the
// queue. Every roomInterval it admits one of them, to find out whether there is space again.
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

// open takes over a file that was opened for writing, and allocates as much disk space as
// it needs and the disk has.
func (r *reserve) open(file *opened) error {
	var used int64
	if err := file.database.View(func(tx *bolt.Tx) error { used = tx.Size(); return nil }); err != nil {
		return err
	}
	defer func() { r.seen.set(used, file.allocated, freeBytes(file)) }()
	file.database.AllocSize = 0 // bbolt must not grow the file further than MaxSize
	file.allocated = used
	size := file.info.Size()
	switch stat, known := file.info.Sys().(*syscall.Stat_t); {
	case size <= used:
	case known && stat.Blocks*512 >= size:
		file.allocated = size
	default: // written by an earlier version, or copied with holes
		if err := r.grow(file, size); err != nil {
			return err
		}
	}
	if file.allocated >= used+r.bytes+minGrowth {
		return nil
	}
	return r.grow(file, used+r.bytes+growth(used))
}

// growth returns how many bytes a file is grown ahead of need, as bbolt does it.
func growth(used int64) int64 { return max(minGrowth, min(used, maxGrowth)) }

// prepare limits a write transaction to the space that it may use, before anything is written,
// and grows the file if little space is left. need is the estimate of how many bytes the
// transaction takes. writing is held.
func (r *reserve) prepare(file *opened, tx *bolt.Tx, narrows bool, need int64) error {
	used, free := tx.Size(), int64(file.database.Stats().FreePageN)
	need += 16*free + r.extra // the list of free pages is written to one run of new pages
	ahead := used + r.bytes + max(r.extra+16*free, need-free*int64(file.database.Info().PageSize))
	if file.allocated < ahead && (!r.failed || time.Since(r.failedAt) >= roomInterval) {
		if err := r.grow(file, ahead+growth(used)); err != nil {
			return err
		}
	}
	r.seen.set(used, file.allocated, freeBytes(file))
	r.roomy = file.allocated >= ahead || free*int64(file.database.Info().PageSize) >= maxGrowth
	limit := file.allocated
	if !narrows {
		limit -= r.bytes
	}
	file.database.MaxSize = int(max(limit, 1)) // 0 would be no limit
	return nil
}

// grow makes the file size bytes long, or as long as the disk has space. writing is held, or
// the file is not shared yet.
func (r *reserve) grow(file *opened, size int64) error {
	before := file.allocated
	r.failed = false
	for more := size - before; more >= minGrowth; more /= 2 {
		more -= more % minGrowth
		switch err := r.allocate(file.file, file.allocated, file.allocated+more); {
		case err == nil:
			file.allocated += more
		case isNoRoom(err):
			r.failed, r.failedAt = true, time.Now()
		default:
			return fmt.Errorf("growing the file: %w", err)
		}
		if file.allocated+minGrowth > size {
			break
		}
	}
	if file.allocated == before {
		return nil
	}
	// As in bbolt, the length must be durable before pages in it are.
	return file.file.Sync()
}

// isNoRoom reports whether an error says that the disk, a quota or a limit is used up.
func isNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// writeZeros allocates disk space by writing zeros, on systems without a call that allocates.
func writeZeros(file *os.File, from, to int64) error {
	zeros := make([]byte, min(1<<20, to-from))
	for at := from; at < to; at += int64(len(zeros)) {
		if _, err := file.WriteAt(zeros[:min(int64(len(zeros)), to-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// fitted notes whether a transaction fitted: err is nil, or the error of a transaction that did
// not fit.
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

// need estimates how many bytes a group takes: copies of the pages that it touches, and its
// values.
func need(writes []write) int64 {
	const page = 4096
	total := int64(32 * page) // roots, branches, the list of free pages
	for _, write := range writes {
		total += 2*page + 4*int64(len(write.value))
	}
	return total
}

// narrow reports whether all changes of a group narrow.
func narrow(group []*pendingChange) bool {
	for _, pending := range group {
		if !pending.change.Narrows {
			return false
		}
	}
	return true
}

// isNoRoomInFile reports whether bbolt refused a transaction for lack of space. Then bbolt
// has written nothing, and has rolled the transaction back.
func isNoRoomInFile(err error) bool { return errors.Is(err, berrors.ErrMaxSizeReached) }

// mayRetry reports whether a transaction that did not fit may fit when it is tried again:
// the disk is not known to be full, and only the estimate was too low.
func (s *Store) mayRetry() bool {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.room.failed || s.room.extra > 0 {
		s.room.extra = 0
		return false
	}
	s.room.extra = 4 * maxGrowth
	return true
}

// retryWithoutRoom handles a group that did not fit.
func (s *Store) retryWithoutRoom(group []*pendingChange) {
	// 1. Try the whole group again if it may fit now.
	if s.mayRetry() {
		s.commitGroup(group)
		return
	}
	// 2. Only now the disk is full. Before step 1 that would refuse changes of other callers, although
	// only an estimate was too low.
	s.writing.Lock()
	s.room.fitted(narrow(group), errNoRoom)
	s.writing.Unlock()
	// 3. Refuse the changes that do not narrow, because the others may fit without them. A group
	// that only narrows is refused as a whole.
	var rest []*pendingChange
	if !narrow(group) {
		for _, pending := range group {
			if pending.change.Narrows {
				rest = append(rest, pending)
			}
		}
	}
	for _, pending := range group {
		if rest == nil || !pending.change.Narrows {
			s.room.refused.Add(1)
			pending.finish(0, storage.ErrFull)
		}
	}
	// 4. Commit the narrowing changes.
	if len(rest) > 0 {
		s.commitGroup(rest)
	}
}
