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

// counterCount spreads the counting of hits over cache lines; a power of two.
const counterCount = 64

// entry is a grant that was kept. Nothing of it changes but the atomic fields.
type entry struct {
	digest    digest
	principal keyauth.Principal
	grant     decide.Grant
	filled    time.Time
	// revision is the one that the answer was read at.
	revision int64
	life     lease.Lease
	// bytes is what it takes in memory, about.
	bytes int

	// used is when it was last answered from, in Unix seconds; waiting says that this is to
	// be reported, recent that it has been used since the last look for room.
	used            atomic.Int64
	waiting, recent atomic.Bool

	// next is the next one in the same bucket. It stays when the entry is taken out, for
	// those who are looking at it.
	next atomic.Pointer[entry]
}

// entries are the kept grants. There is no cache library underneath: what is dropped by an
// event, and what may be put in after it, has to be decided under one lock with the
// events, and then little is left for a library to do.
//
// It is a hash table of lists. Finding takes no lock; changes are made by who holds the
// Core's mutex. Who is finding while an entry is taken out may still find it, and has read
// the lease before that (C2).
type entries struct {
	// most and mostBytes bound them.
	most, mostBytes int
	// buckets are at least as many as there may be entries, a power of two; mask is one less.
	buckets []atomic.Pointer[entry]
	mask    uint64
	hits    [counterCount]counter
	// workspaces says what to look at when a workspace changes, and all holds it together.
	workspaces  map[string]map[*entry]struct{}
	size, bytes int
}

// counter is a part of a count, on a cache line of its own.
type counter struct {
	count atomic.Int64
	_     [56]byte
}

func (e *entries) init(most, mostBytes int) {
	e.most, e.mostBytes = max(1, most), mostBytes
	e.workspaces = make(map[string]map[*entry]struct{})
	size := uint64(1) << bits.Len(uint(e.most)) //nolint:gosec // it is positive
	e.buckets, e.mask = make([]atomic.Pointer[entry], size), size-1
}

// bucket returns the list that an entry is in. A digest is as good as random.
func (e *entries) bucket(known *digest) *atomic.Pointer[entry] {
	return &e.buckets[binary.LittleEndian.Uint64(known[:])&e.mask]
}

// find returns an entry, nil if there is none.
func (e *entries) find(known *digest) *entry {
	found := e.bucket(known).Load()
	for found != nil && found.digest != *known {
		found = found.next.Load()
	}
	return found
}

// put puts an entry in, in place of the one with the same digest, and makes room for it. It
// says no if it is larger than all may be.
func (e *entries) put(added *entry) bool {
	if before := e.find(&added.digest); before != nil {
		e.remove(before)
	}
	if added.bytes > e.mostBytes {
		return false
	}
	for e.size >= e.most || e.bytes+added.bytes > e.mostBytes {
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

// remove takes an entry out.
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

// evict takes out one of a few entries, rather one that was not used of late. The order
// of a map is random enough.
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

// drop takes out what concerns says, of one workspace or, if that is empty, of all. It
// returns how many.
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

// dropAfter takes out what was read at a later revision, and returns how many.
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

// hit counts a hit, where no other processor is likely to count.
func (e *entries) hit() {
	e.hits[rand.Uint32()%counterCount].count.Add(1) //nolint:gosec // a place to count in, no secret
}

// hitCount returns how many hits were counted.
func (e *entries) hitCount() (hits int64) {
	for index := range e.hits {
		hits += e.hits[index].count.Load()
	}
	return hits
}
