package nearcache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/lease"
)

// shardCount spreads the locks of hits; a power of two.
const shardCount = 64

// entry is a grant that was kept. Nothing of it changes but the atomic fields.
type entry struct {
	digest    digest
	principal keyauth.Principal
	grant     decide.Grant
	filled    time.Time
	// revision is the one that the answer was read at.
	revision int64
	life     lease.Lease

	// used is when it was last answered from, in Unix seconds; waiting says that this is to
	// be reported, recent that it has been used since the last look for room.
	used            atomic.Int64
	waiting, recent atomic.Bool
}

// entries are the kept grants. There is no cache library underneath: what is dropped by an
// event, and what may be put in after it, has to be decided under one lock with the
// events, and then little is left for a library to do. Finding takes the lock of a shard
// for reading; changes are made by who holds the Core's mutex.
type entries struct {
	most   int
	shards [shardCount]shard
	// workspaces says what to look at when a workspace changes, and all holds it together.
	workspaces map[string]map[*entry]struct{}
	size       int
}

type shard struct {
	mutex   sync.RWMutex
	entries map[digest]*entry
	hits    atomic.Int64
	_       [64]byte // a cache line for each
}

func (e *entries) init(most int) {
	e.most = max(1, most)
	e.workspaces = make(map[string]map[*entry]struct{})
	for index := range e.shards {
		e.shards[index].entries = make(map[digest]*entry)
	}
}

func (e *entries) shard(known *digest) *shard { return &e.shards[known[0]%shardCount] }

// find returns an entry, nil if there is none.
func (e *entries) find(known digest) *entry {
	shard := e.shard(&known)
	shard.mutex.RLock()
	found := shard.entries[known]
	shard.mutex.RUnlock()
	return found
}

// put puts an entry in, in place of the one with the same digest, and makes room for it.
func (e *entries) put(added *entry) {
	shard := e.shard(&added.digest)
	shard.mutex.RLock()
	before := shard.entries[added.digest]
	shard.mutex.RUnlock()
	if before != nil {
		e.remove(before)
	}
	if e.size >= e.most {
		e.evict()
	}
	shard.mutex.Lock()
	shard.entries[added.digest] = added
	shard.mutex.Unlock()
	of := e.workspaces[added.principal.WorkspaceID]
	if of == nil {
		of = make(map[*entry]struct{})
		e.workspaces[added.principal.WorkspaceID] = of
	}
	of[added] = struct{}{}
	e.size++
}

// remove takes an entry out.
func (e *entries) remove(gone *entry) {
	shard := e.shard(&gone.digest)
	shard.mutex.Lock()
	delete(shard.entries, gone.digest)
	shard.mutex.Unlock()
	of := e.workspaces[gone.principal.WorkspaceID]
	delete(of, gone)
	if len(of) == 0 {
		delete(e.workspaces, gone.principal.WorkspaceID)
	}
	e.size--
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

// count returns how many entries there are, and how many hits were counted.
func (e *entries) count() (size int, hits int64) {
	for index := range e.shards {
		hits += e.shards[index].hits.Load()
	}
	return e.size, hits
}
