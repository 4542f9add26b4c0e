package projection

import (
	"iter"
	"runtime"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/giveway"
)

// stride is how many records a walk visits before it gives way. A validation can wait behind a
// change that waits behind a walk, so a stride must take far less than a millisecond.
const stride = 256

// giveWay releases the lock for a moment, so that changes and validations that wait for it come
// first. The lock is held for reading before and after. What the caller has read of state may be
// outdated afterwards.
func (p *Projection) giveWay() { p.giveWayAs(nil) }

// giveWayAs is giveWay for work that may pause.
func (p *Projection) giveWayAs(work *giveway.Work) {
	p.mutex.RUnlock()
	if p.gaveWay != nil {
		p.gaveWay()
	}
	// A walk is never urgent, so goroutines that wait for a processor come first, too.
	work.GiveWay()
	runtime.Gosched()
	p.mutex.RLock()
}

// inOrder visits the numbers of a list of a state, in their order, and gives way after every
// stride. The lock is held for reading. A number that stays in the list during the walk is visited
// once; one that comes or goes meanwhile may be visited or not.
func (p *Projection) inOrder(s *state, l *flat.List) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		s.walks.Add(1)
		defer s.walks.Add(-1)
		here := s.begin(l)
		defer s.end(here)
		for visited := 1; ; visited++ {
			number := s.next(here)
			if number == 0 || !yield(number) {
				return
			}
			if visited%stride == 0 {
				p.giveWay()
			}
		}
	}
}

// HasRoom reports whether a workspace has fewer than limit live keys at now. A live key is
// neither revoked nor expired, and does not count as revoked with its member or workspace. A
// change that relies on the result must expect the workspace's head as read before the call.
func (p *Projection) HasRoom(workspaceID string, now time.Time, limit int) bool {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return limit > 0
	}
	// Most workspaces are so far from their limit that nothing has to be counted.
	return entry.keys.Len()-entry.revoked < limit || p.live(p.state, entry, now, limit) < limit
}

// LiveKeys counts the live keys of a workspace at now, as HasRoom defines them. It stops counting
// at enough.
func (p *Projection) LiveKeys(workspaceID string, now time.Time, enough int) int {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return 0
	}
	return p.live(p.state, entry, now, enough)
}

// live counts live keys, up to enough. mutex is held for reading, and released between strides.
func (p *Projection) live(s *state, of *workspace, now time.Time, enough int) int {
	nanoseconds, count := now.UnixNano(), 0
	for number := range p.inOrder(s, &of.keys) {
		if count >= enough {
			break
		}
		if of.current == nil || of.current.Removed {
			return 0
		}
		// A damaged key counts: it may be live, and refusing a new key is the safer mistake.
		if key := s.records.At(number); key.ends&flagDamaged != 0 || s.isLive(key, nanoseconds) {
			count++
		}
	}
	return count
}

// Workspaces returns the ids of all workspaces that were ever changed.
func (p *Projection) Workspaces() []string {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	ids := make([]string, 0, len(s.numbered))
	for number := 1; number < len(s.numbered); number++ { // workspaces are only ever added
		if id := s.numbered[number].id; id != "" {
			ids = append(ids, id)
		}
		if number%stride == 0 {
			p.giveWay()
		}
	}
	return ids
}

// Dead is what a sweep may delete.
type Dead struct {
	// KeyIDs are keys that were revoked or expired, or began to count as revoked, long enough ago.
	KeyIDs []string
	// MemberIDs are members that were removed long enough ago and have no key left.
	MemberIDs []string
}

// Dead returns at most limit records of a workspace that died before a time, the oldest keys
// first. It returns members only if no key is left to delete. A change that relies on the result
// must expect the workspace's head as read before the call.
func (p *Projection) Dead(workspaceID string, before time.Time, limit int) Dead {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	var dead Dead
	s := p.state
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return dead
	}
	nanoseconds := before.UnixNano()
	for number := range p.inOrder(s, &entry.keys) {
		if len(dead.KeyIDs) == limit {
			return dead
		}
		if key := s.records.At(number); key.ends&flagDamaged == 0 && s.diedBefore(key, nanoseconds) {
			dead.KeyIDs = append(dead.KeyIDs, s.ids.ID(number))
		}
	}
	if len(dead.KeyIDs) == 0 {
		dead.MemberIDs = p.deadMembers(s, entry, nanoseconds, limit)
	}
	return dead
}

// deadMembers returns members that were removed before a time, in Unix nanoseconds, by
// themselves or with their workspace, and have no keys. mutex is held for reading, and released
// between strides.
func (p *Projection) deadMembers(s *state, of *workspace, before int64, limit int) []string {
	var owners map[string]bool
	var dead []string
	for number := range p.inOrder(s, &of.members) {
		if len(dead) == limit {
			break
		}
		member := s.lives.At(number)
		if member.standing&lifeDamaged != 0 || !s.isGone(of, member, before) {
			continue
		}
		id, _ := s.textsOf(member)
		if owners == nil {
			owners = p.owners(s, of)
		}
		if !owners[id] {
			dead = append(dead, id)
		}
	}
	slices.Sort(dead)
	return dead
}

// owners returns the ids of all members that have keys. mutex is held for reading, and released
// between strides.
func (p *Projection) owners(s *state, of *workspace) map[string]bool {
	owners := make(map[string]bool)
	for number := range p.inOrder(s, &of.keys) {
		id, _ := s.textsOf(s.lives.At(s.records.At(number).life))
		owners[id] = true
	}
	return owners
}

// isGone reports whether a member was removed before a time, in Unix nanoseconds.
func (s *state) isGone(of *workspace, member *life, before int64) bool {
	if member.standing&lifeRemoved != 0 && member.updated < before {
		return true
	}
	return of.current != nil && (of.current.Removed || of.current.Incarnation != s.terms.get(member.term).incarnation) &&
		of.current.since < before && member.updated < before
}
