package nearcache

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/lease"
)

// counterCount is how many counters share the counting of hits, a power of two.
const counterCount = 64

// entry is a grant that was kept. Only its atomic fields change.
type entry struct {
	digest    digest
	principal keyauth.Principal
	grant     decide.Grant
	filled    time.Time
	// revision is the revision that the answer was read at.
	revision int64
	life     lease.Lease
	// bytes is about how much memory the entry takes.
	bytes int

	// used is the time of the last hit, in Unix seconds. waiting is set while that time is to
	// be reported with a ping. recent is set if there was a hit since evict last visited the
	// entry.
	used            atomic.Int64
	waiting, recent atomic.Bool

	// next is the next entry in the same bucket. It stays set when the entry is removed, for
	// goroutines that are searching the bucket.
	next atomic.Pointer[entry]
}

// entries are the kept grants, in a hash table of linked lists. Find takes no lock. Changes are
// made with the Core's mutex held, because one lock must cover dropping for an event and
// storing an answer (C4); that leaves a cache library little to do. A goroutine that is
// searching while an entry is removed may still find the entry. That is safe: the goroutine has
// read its lease before, so it does not use a lease from after the event (C2).
type entries struct {
	// maxEntries and maxBytes bound the table.
	maxEntries, maxBytes int
	// buckets are a power of two, and more than maxEntries. mask is their number less one.
	buckets []atomic.Pointer[entry]
	mask    uint64
	hits    [counterCount]counter
	// workspaces holds every entry, by workspace, so that an event of one workspace visits only
	// the entries of that workspace.
	workspaces  map[string]map[*entry]struct{}
	size, bytes int
}

// counter is one part of a count, on a cache line of its own.
type counter struct {
	count atomic.Int64
	_     [56]byte
}

func (e *entries) init(maxEntries, maxBytes int) {
	e.maxEntries, e.maxBytes = max(1, maxEntries), maxBytes
	e.workspaces = make(map[string]map[*entry]struct{})
	size := uint64(1) << bits.Len(uint(e.maxEntries))
	e.buckets, e.mask = make([]atomic.Pointer[entry], size), size-1
}

// bucket returns the list of a digest. Digests are evenly spread.
func (e *entries) bucket(known *digest) *atomic.Pointer[entry] {
	return &e.buckets[binary.LittleEndian.Uint64(known[:])&e.mask]
}

// find returns the entry of a digest; nil if it is not in the table.
func (e *entries) find(known *digest) *entry {
	found := e.bucket(known).Load()
	for found != nil && found.digest != *known {
		found = found.next.Load()
	}
	return found
}

// put stores an entry, in place of an entry with the same digest, and evicts others to make
// room. It reports whether the entry was stored: an entry larger than maxBytes is not stored.
func (e *entries) put(added *entry) bool {
	if before := e.find(&added.digest); before != nil {
		e.remove(before)
	}
	if added.bytes > e.maxBytes {
		return false
	}
	for e.size >= e.maxEntries || e.bytes+added.bytes > e.maxBytes {
		e.evict()
	}
	first := e.bucket(&added.digest)
	added.next.Store(first.Load())
	first.Store(added)
	of := e.workspaces[added.principal.WorkspaceID]
	if of == nil {
		of = make(map[*entry]struct{})
		e.workspaces[added.principal.WorkspaceID] = of
	}
	of[added] = struct{}{}
	e.size++
	e.bytes += added.bytes
	return true
}

// remove removes an entry.
func (e *entries) remove(gone *entry) {
	at := e.bucket(&gone.digest)
	for at.Load() != gone {
		at = &at.Load().next
	}
	at.Store(gone.next.Load())
	of := e.workspaces[gone.principal.WorkspaceID]
	delete(of, gone)
	if len(of) == 0 {
		delete(e.workspaces, gone.principal.WorkspaceID)
	}
	e.size--
	e.bytes -= gone.bytes
}

// evict removes one of up to eight entries, and prefers an entry without a recent hit. The
// iteration order of a map is random enough.
func (e *entries) evict() {
	var victim *entry
	looked := 0
	for _, of := range e.workspaces {
		for candidate := range of {
			victim = candidate
			looked++
			if !candidate.recent.Swap(false) || looked == 8 {
				e.remove(victim)
				return
			}
		}
	}
	if victim != nil {
		e.remove(victim)
	}
}

// drop removes the entries that concerns reports true for, of one workspace or, if workspace is
// empty, of all. It returns their number.
func (e *entries) drop(workspace string, concerns func(principal *keyauth.Principal) bool) (dropped int) {
	from := func(of map[*entry]struct{}) {
		for candidate := range of {
			if concerns(&candidate.principal) {
				e.remove(candidate)
				dropped++
			}
		}
	}
	if workspace != "" {
		from(e.workspaces[workspace])
		return dropped
	}
	for _, of := range e.workspaces {
		from(of)
	}
	return dropped
}

// dropAfter removes the entries that were read at a later revision, and returns their number.
func (e *entries) dropAfter(revision int64) (dropped int) {
	for _, of := range e.workspaces {
		for candidate := range of {
			if candidate.revision > revision {
				e.remove(candidate)
				dropped++
			}
		}
	}
	return dropped
}

// hit counts a hit, in a counter that another processor is unlikely to use at the same time.
func (e *entries) hit() {
	e.hits[rand.Uint32()%counterCount].count.Add(1) //nolint:gosec // G404: it chooses a counter, no secret
}

// hitCount returns the number of hits.
func (e *entries) hitCount() (hits int64) {
	for index := range e.hits {
		hits += e.hits[index].count.Load()
	}
	return hits
}
