package usage

import (
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Word is when one key was last used, in 8 bytes. The zero Word belongs to no key.
//
//	bit 63      waiting: the time has to be written by the next flush
//	bit 62      used: the key was used
//	bits 52–61  generation: how many keys the place of the word has had, modulo 1024
//	bits 0–51   the time of the last use, or of the creation if there was none, in Unix microseconds
//
// Before its first use, a key's word has the time of its creation, because no use can be before it.
type Word struct{ bits atomic.Uint64 }

const (
	waiting = 1 << 63
	used    = 1 << 62

	timeBits       = 52
	timeMask       = 1<<timeBits - 1
	generationMask = 1<<10 - 1
)

// generation is that of a value of a Word.
func generation(bits uint64) uint16 { return uint16(bits >> timeBits & generationMask) }

// microseconds returns a time as a Word has it: a time before 1970 as 1970, one after 2112 as 2112.
func microseconds(at time.Time) uint64 {
	return uint64(min(max(at.UnixMicro(), 0), timeMask))
}

// Begin makes the word that of a new key, which was never used. A Last of the key that had the
// word before has no effect any more.
func (w *Word) Begin(created time.Time) {
	next := uint64(generation(w.bits.Load())+1) & generationMask
	w.bits.Store(next<<timeBits | creation(created))
}

// SetCreated sets when the key was created, if it was never used.
func (w *Word) SetCreated(created time.Time) {
	for {
		before := w.bits.Load()
		if before&used != 0 || w.bits.CompareAndSwap(before, before&^timeMask|creation(created)) {
			return
		}
	}
}

// creation is microseconds, rounded up: no use is before the creation.
func creation(created time.Time) uint64 { return microseconds(created.Add(time.Microsecond - 1)) }

// Raise moves the time forward to at, never back, and reports whether it moved. The first use is
// never before the creation.
func (w *Word) Raise(at time.Time) bool {
	moved, _ := w.raise(at, generation(w.bits.Load()), 0)
	return moved
}

// raise is Raise if the word has that generation, and sets flags if the time moved. waits reports
// whether waiting was set before.
func (w *Word) raise(at time.Time, wanted uint16, flags uint64) (moved, waits bool) {
	to := microseconds(at)
	for {
		before := w.bits.Load()
		present := before & timeMask
		if generation(before) != wanted || before&used != 0 && to <= present {
			return false, false
		}
		after := before&^timeMask | max(to, present) | used | flags
		if w.bits.CompareAndSwap(before, after) {
			return true, before&waiting != 0
		}
	}
}

// Time returns the time when the key was last used; zero if it never was.
func (w *Word) Time() time.Time {
	bits := w.bits.Load()
	if bits&used == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(bits & timeMask)).UTC()
}

// Follow takes over what an older word of the same key has: the last use, or else the creation.
func (w *Word) Follow(older *Word) {
	if at := older.Time(); !at.IsZero() {
		w.Raise(at)
		return
	}
	w.SetCreated(time.UnixMicro(int64(older.bits.Load() & timeMask)))
}

// Take returns Time for a write, and ends that the word waits for one. A use after Take is noted
// for the next write.
func (w *Word) Take() time.Time {
	w.bits.And(^uint64(waiting)) // before the time is read: a use in between is then noted again
	return w.Time()
}

// Wait makes the word wait for a write, and reports whether it did not.
func (w *Word) Wait() bool { return w.bits.Or(waiting)&waiting == 0 }

// Last names the last use of one key, as it was found. Once the key was purged, it names nothing.
// The zero Last names nothing.
type Last struct {
	table      Table
	word       *Word
	id         flat.ID
	generation uint16
	secrets    bool
}

// LastOf returns the Last of a key whose word is in a table. secrets is set if the table has the last use
// of each of the key's secrets.
func LastOf(table Table, word *Word, id flat.ID, secrets bool) Last {
	return Last{table: table, word: word, id: id, generation: generation(word.bits.Load()), secrets: secrets}
}

// CountsSecrets reports whether the last use of each secret is kept. Otherwise it follows from the last use
// of the key.
func (l Last) CountsSecrets() bool { return l.secrets }

// Table is where words are kept. Its methods may be called from many goroutines.
type Table interface {
	// Replaced reports whether another table has taken this one's place. Uses must be noted there
	// as well then.
	Replaced() bool
	// Find returns the Last of a key in the table that is valid now; zero if there is no such key.
	Find(id flat.ID) Last
	// RaiseSecret moves the last use of one secret of a key forward to at, never back, in the table that
	// is valid now, and reports whether it moved. tag is the token.ShortHash.Tag of the secret.
	RaiseSecret(id flat.ID, tag uint32, at time.Time) bool
	// Words calls visit with the words of these keys in the table that is valid now, and with the last
	// uses of their secrets, if it has them. Keys that do not exist are left out.
	Words(ids []flat.ID, visit func(id flat.ID, word *Word, secrets [2]storage.SecretUse))
}

// IsZero reports whether there is no such key.
func (l Last) IsZero() bool { return l.word == nil }

// Time returns the time when the key was last used; zero if it never was, or was purged.
func (l Last) Time() time.Time {
	if l.word == nil || generation(l.word.bits.Load()) != l.generation {
		return time.Time{}
	}
	return l.word.Time()
}

// Raise moves the time forward to at, never back, and reports whether it moved.
func (l Last) Raise(at time.Time) bool {
	moved, _ := l.raise(at, 0)
	return moved
}

// raise is Raise, and sets flags if the time moved. waits reports whether waiting was set before.
func (l Last) raise(at time.Time, flags uint64) (moved, waits bool) {
	if l.word == nil {
		return false, false
	}
	moved, waits = l.word.raise(at, l.generation, flags)
	// The word is raised before Replaced is asked. The other way around, a table that is replaced in
	// between might have been copied without this use.
	if l.table.Replaced() {
		if now := l.table.Find(l.id); now.word != nil && now.word != l.word {
			return now.word.raise(at, now.generation, flags)
		}
	}
	return moved, waits
}
