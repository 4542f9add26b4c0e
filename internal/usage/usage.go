// Package usage remembers when keys were last used, and writes the times in batches later.
// Noting a use takes a few atomic operations. The store gets one small write for each used key
// and interval. A crash may lose the uses of the last interval.
package usage

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// batch is the largest number of keys in one write: large enough to share the cost of a
// commit, small enough that changes do not wait long behind it.
const batch = 4096

// Last is the time when one key was last used. Changes of the key's record keep it.
type Last struct {
	keyID string
	// nanoseconds is the Unix time, 0 if the key was never used.
	nanoseconds atomic.Int64
	// waiting is set from Recorder.Used until a flush takes the time to write it.
	waiting atomic.Bool
}

// NewLast returns the Last of a key that was never used.
func NewLast(keyID string) *Last { return &Last{keyID: keyID} }

// Time returns the time when the key was last used; zero if it never was.
func (l *Last) Time() time.Time {
	if nanoseconds := l.nanoseconds.Load(); nanoseconds > 0 {
		return time.Unix(0, nanoseconds).UTC()
	}
	return time.Time{}
}

// Raise moves the time forward to at, never back, and reports whether it moved.
func (l *Last) Raise(at time.Time) bool {
	nanoseconds := at.UnixNano()
	for {
		last := l.nanoseconds.Load()
		if nanoseconds <= last {
			return false
		}
		if l.nanoseconds.CompareAndSwap(last, nanoseconds) {
			return true
		}
	}
}

// Recorder collects uses and writes them. Its methods may be called from many
// goroutines.
type Recorder struct {
	store storage.UsageWriter
	// flushed is told how each Flush ended.
	flushed func(keys int, err error)

	mutex   sync.Mutex
	waiting []*Last
	// flushing admits one Flush at a time.
	flushing sync.Mutex
}

// NewRecorder returns a Recorder that writes to store. flushed is called after each flush with
// the number of keys whose times were written, and the error if not all were. It may be nil.
func NewRecorder(store storage.UsageWriter, flushed func(keys int, err error)) *Recorder {
	if flushed == nil {
		flushed = func(int, error) {}
	}
	return &Recorder{store: store, flushed: flushed}
}

// Used notes that a key was used.
func (r *Recorder) Used(last *Last, at time.Time) {
	if !last.Raise(at) || last.waiting.Load() || last.waiting.Swap(true) {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.waiting = append(r.waiting, last)
}

// Flush writes the uses that were noted since the last flush. Uses that cannot be written are
// noted again for the next flush.
func (r *Recorder) Flush(ctx context.Context) error {
	written, err := r.flush(ctx)
	r.flushed(written, err)
	return err
}

// flush is Flush without the call of flushed. It returns the number of keys whose times it wrote.
func (r *Recorder) flush(ctx context.Context) (written int, err error) {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	r.mutex.Lock()
	waiting := r.waiting
	r.waiting = nil
	r.mutex.Unlock()
	for len(waiting) > 0 {
		next := waiting[:min(batch, len(waiting))]
		uses := make([]storage.Usage, 0, len(next))
		for _, last := range next {
			// The flag is cleared before the time is read: a use in between is then noted again
			// rather than lost.
			last.waiting.Store(false)
			uses = append(uses, storage.Usage{KeyID: last.keyID, Time: last.Time()})
		}
		if err := r.store.PutUsage(ctx, uses); err != nil {
			r.keep(waiting)
			return written, err
		}
		written += len(next)
		waiting = waiting[len(next):]
	}
	return written, nil
}

// keep notes again the uses that could not be written.
func (r *Recorder) keep(unwritten []*Last) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for _, last := range unwritten {
		if !last.waiting.Swap(true) {
			r.waiting = append(r.waiting, last)
		}
	}
}

// Run flushes at every interval until the context ends. The caller makes the last Flush, when the
// process stops.
func (r *Recorder) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// A flush that the end of the context cuts short has not failed.
			if written, err := r.flush(ctx); err == nil || ctx.Err() == nil {
				r.flushed(written, err)
			}
		case <-ctx.Done():
			return
		}
	}
}
