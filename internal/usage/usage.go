// Package usage remembers when keys were last used, and writes the times in batches later.
// Noting a use takes a few atomic operations. The store gets one small write for each used key
// and interval. A crash may lose the uses of the last interval.
package usage

import (
	"context"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// batch is the largest number of keys in one write: large enough to share the cost of a
// commit, small enough that changes do not wait long behind it.
const batch = 4096

// Recorder collects uses and writes them. Its methods may be called from many
// goroutines.
type Recorder struct {
	store storage.UsageWriter
	// flushed is told how each Flush ended.
	flushed func(keys int, err error)

	mutex sync.Mutex
	// table is where the words of the keys are. A Recorder serves one projection.
	table Table
	// waiting are the keys whose words wait for a write.
	waiting []flat.ID
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

// Used notes that a key was used, with the secret that has a tag; 0 if it is not known which. The tag is
// needed only if last.CountsSecrets.
func (r *Recorder) Used(last Last, tag uint32, at time.Time) {
	// 1. The secret comes before the key: a flush in between is then repeated, because the key's word is
	// noted again.
	secretMoved := last.secrets && tag != 0 && last.table.RaiseSecret(last.id, tag, at)
	moved, waits := last.raise(at, waiting)
	if secretMoved && !moved { // a later use of the key is known, with its other secret
		moved, waits = true, !last.word.Wait()
	}
	if !moved || waits {
		return
	}
	// 2. Note the key for the next flush.
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.table = last.table
	r.waiting = append(r.waiting, last.id)
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
	ids, table := r.waiting, r.table
	r.waiting = nil
	r.mutex.Unlock()
	for len(ids) > 0 {
		next := ids[:min(batch, len(ids))]
		uses := make([]storage.Usage, 0, len(next))
		table.Words(next, func(id flat.ID, word *Word, secrets [2]storage.SecretUse) {
			if at := word.Take(); !at.IsZero() { // zero if the key was purged, and created again
				uses = append(uses, storage.Usage{KeyID: id.String(), Time: at, Secrets: secrets})
			}
		})
		if len(uses) > 0 {
			if err := r.store.PutUsage(ctx, uses); err != nil {
				r.keep(table, next, ids[len(next):])
				return written, err
			}
		}
		written += len(uses)
		ids = ids[len(next):]
	}
	return written, nil
}

// keep notes again the uses that could not be written. Those that were taken wait again, if no use
// has noted them since; the others still do.
func (r *Recorder) keep(table Table, taken, others []flat.ID) {
	var again []flat.ID
	table.Words(taken, func(id flat.ID, word *Word, _ [2]storage.SecretUse) {
		if word.Wait() {
			again = append(again, id)
		}
	})
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.waiting = append(append(r.waiting, again...), others...)
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
