package nearcache

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/lease"
)

// counterCount is how many counters share the counting of hits.
const counterBits, counterCount = 6, 1 << counterBits

// The smallest stack of a goroutine has 2 KiB. spread brings neighbours far from each other (2^64
// divided by the golden ratio).
const stackBits, spread = 11, 0x9E3779B97F4A7C15

// entry is a grant that was kept. Only its atomic fields change.
type entry struct {
	identity  identity
	principal keyauth.Principal
	// detailed is the principal with details; nil if the question did not ask for them. Questions
	// without details get principal, so that both are answered as keysvc answers them.
	detailed *keyauth.Principal
	grant    decide.Grant
	// expire is keyauth.Answer.ExpireTime, in Unix nanoseconds; 0 if it is not known.
	expire int64
	filled time.Time
	// revision is the revision that the answer was read at.
	revision int64
	life     lease.Lease
	// secretTag is the ValidateKeyResponse.secret_tag; 0 if the server is older.
	secretTag uint32
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
	// sibling is another entry of the same key, as while a rotation overlaps.
	sibling *entry
}

// buckets are the lists of a hash table: a power of two, and more than maxEntries. mask is their number
// less one.
type buckets struct {
	first []atomic.Pointer[entry]
	mask  uint64
}

// entries are the kept grants, in a hash table of linked lists. Find takes no lock. Changes are
// made with the Core's mutex held, because one lock must cover dropping for an event and
// storing an answer (C4); that leaves a cache library little to do. A goroutine that is
// searching while an entry is removed may still find the entry. That is safe: the goroutine has
// read its lease before, so it does not use a lease from after the event (C2).
type entries struct {
	// maxEntries and maxBytes bound the table.
	maxEntries, maxBytes int
	// table is nil before open. A server that gives a lease before its Welcome breaks the protocol,
	// and must find no entry.
	table atomic.Pointer[buckets]
	hits  [counterCount]counter
	// workspaces holds every entry by workspace and key id, so that an event visits only what it
	// concerns: 1,000 revokes a second would otherwise be 1,000 walks over 100,000 entries.
	workspaces  map[string]map[string]*entry
	size, bytes int
}

// counter is one part of a count, on a cache line of its own.
type counter struct {
	count atomic.Int64
	_     [56]byte
}

func (e *entries) init(maxEntries, maxBytes int) {
	e.maxEntries, e.maxBytes = max(1, maxEntries), maxBytes
	e.workspaces = make(map[string]map[string]*entry)
}

// open makes the table. The first Welcome calls it, before there is a lease, so a Client that never
// asks has none.
func (e *entries) open() {
	if e.table.Load() == nil {
		size := uint64(1) << bits.Len(uint(e.maxEntries))
		e.table.Store(&buckets{make([]atomic.Pointer[entry], size), size - 1})
	}
}

// bucket returns the list of an identity. Digests are evenly spread.
func (b *buckets) bucket(known *identity) *atomic.Pointer[entry] {
	return &b.first[binary.LittleEndian.Uint64(known.digest[:])&b.mask]
}

// find returns the entry of an identity; nil if it is not in the table.
func (e *entries) find(known *identity) *entry {
	table := e.table.Load()
	if table == nil {
		return nil
	}
	found := table.bucket(known).Load()
	for found != nil && found.identity != *known {
		found = found.next.Load()
	}
	return found
}

// put stores an entry, in place of an entry with the same identity, and evicts others to make
// room. It reports whether the entry was stored: an entry larger than maxBytes is not stored, nor any
// entry before open.
func (e *entries) put(added *entry) bool {
	table := e.table.Load()
	if table == nil {
		return false
	}
	if before := e.find(&added.identity); before != nil {
		e.remove(before)
	}
	if added.bytes > e.maxBytes {
		return false
	}
	for e.size >= e.maxEntries || e.bytes+added.bytes > e.maxBytes {
		e.evict()
	}
	first := table.bucket(&added.identity)
	added.next.Store(first.Load())
	first.Store(added)
	of := e.workspaces[added.principal.WorkspaceID]
	if of == nil {
		of = make(map[string]*entry)
		e.workspaces[added.principal.WorkspaceID] = of
	}
	added.sibling = of[added.principal.KeyID]
	of[added.principal.KeyID] = added
	e.size++
	e.bytes += added.bytes
	return true
}

// remove removes an entry.
func (e *entries) remove(gone *entry) {
	at := e.table.Load().bucket(&gone.identity)
	for at.Load() != gone {
		at = &at.Load().next
	}
	at.Store(gone.next.Load())
	of := e.workspaces[gone.principal.WorkspaceID]
	first := of[gone.principal.KeyID]
	if first = without(first, gone); first != nil {
		of[gone.principal.KeyID] = first
	} else {
		delete(of, gone.principal.KeyID)
	}
	if len(of) == 0 {
		delete(e.workspaces, gone.principal.WorkspaceID)
	}
	e.size--
	e.bytes -= gone.bytes
}

// without returns the entries of a key, which begin with first, without one of them.
func without(first, gone *entry) *entry {
	if first == gone {
		return gone.sibling
	}
	for each := first; each != nil; each = each.sibling {
		if each.sibling == gone {
			each.sibling = gone.sibling
		}
	}
	return first
}

// evict removes one of up to eight entries, and prefers an entry without a recent hit. The
// iteration order of a map is random enough.
func (e *entries) evict() {
	var victim *entry
	looked := 0
	for _, of := range e.workspaces {
		for _, candidate := range of {
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

// all yields the entries of one workspace or, if workspace is empty, of all. The entry that was
// yielded may be removed.
func (e *entries) all(workspace string) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		from := e.workspaces
		if workspace != "" {
			from = map[string]map[string]*entry{workspace: e.workspaces[workspace]}
		}
		for _, of := range from {
			for _, each := range of {
				for next := each; next != nil; {
					each, next = next, next.sibling
					if !yield(each) {
						return
					}
				}
			}
		}
	}
}

// drop removes the entries that concerns reports true for, of one workspace or, if workspace is
// empty, of all. It returns their number.
func (e *entries) drop(workspace string, concerns func(principal *keyauth.Principal) bool) (dropped int) {
	for candidate := range e.all(workspace) {
		if concerns(&candidate.principal) {
			e.remove(candidate)
			dropped++
		}
	}
	return dropped
}

// dropKey removes the entries of a key, and returns their number.
func (e *entries) dropKey(workspace, keyID string) (dropped int) {
	for {
		candidate := e.workspaces[workspace][keyID]
		if candidate == nil {
			return dropped
		}
		e.remove(candidate)
		dropped++
	}
}

// dropAfter removes the entries that were read at a later revision, and returns their number.
func (e *entries) dropAfter(revision int64) (dropped int) {
	for candidate := range e.all("") {
		if candidate.revision > revision {
			e.remove(candidate)
			dropped++
		}
	}
	return dropped
}

// hit counts a hit, in a counter that other goroutines are unlikely to use: where its stack lies chooses
// it. A random counter would be in the cache of another processor most of the time.
func (e *entries) hit() {
	var here byte
	place := uint64(uintptr(unsafe.Pointer(&here))) >> stackBits //nolint:gosec // G103: the address is a number, and nothing is read there
	e.hits[place*spread>>(64-counterBits)].count.Add(1)
}

// hitCount returns the number of hits.
func (e *entries) hitCount() (hits int64) {
	for index := range e.hits {
		hits += e.hits[index].count.Load()
	}
	return hits
}
