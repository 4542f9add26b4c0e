package projection

import (
	"iter"
	"runtime"
	"slices"
	"time"

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

// inPieces visits a map of the state, and gives way after every stride. The lock is held for
// reading. A record that stays during the walk is visited once; a record that comes or goes
// meanwhile may be visited or not.
func inPieces[Key comparable, Value any](p *Projection, records map[Key]Value, work *giveway.Work) iter.Seq2[Key, Value] {
	return func(yield func(Key, Value) bool) {
		visited := 0
		for key, value := range records {
			if !yield(key, value) {
				return
			}
			if visited++; visited%stride == 0 {
				p.giveWayAs(work)
			}
		}
	}
}

// keysOf visits the keys of a workspace, the oldest first, and gives way as inPieces does.
func (p *Projection) keysOf(workspace *workspaceEntry) iter.Seq[*keyEntry] {
	return func(yield func(*keyEntry) bool) {
		for piece := workspace.first(); len(piece) > 0; {
			// The walk goes on after this key. An index would be wrong after giving way.
			last := piece[len(piece)-1]
			for _, entry := range piece {
				if !yield(entry) {
					return
				}
			}
			if len(piece) < stride {
				return
			}
			p.giveWay()
			piece = workspace.after(last)
		}
	}
}

// first returns the first keys of the workspace, at most a stride.
func (w *workspaceEntry) first() []*keyEntry { return w.keys[:min(stride, len(w.keys))] }

// after returns the keys after a key, at most a stride.
func (w *workspaceEntry) after(last *keyEntry) []*keyEntry {
	index, found := slices.BinarySearchFunc(w.keys, last, compareKeys)
	if found {
		index++
	}
	return w.keys[index:min(index+stride, len(w.keys))]
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
	return len(entry.keys)-entry.revoked < limit || p.live(entry, now, limit) < limit
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
	return p.live(entry, now, enough)
}

// live counts live keys, up to enough. mutex is held for reading, and released between strides.
func (p *Projection) live(workspace *workspaceEntry, now time.Time, enough int) int {
	nanoseconds, count := now.UnixNano(), 0
	for entry := range p.keysOf(workspace) {
		if count >= enough {
			break
		}
		if workspace.current == nil || workspace.current.Removed {
			return 0
		}
		// A damaged key counts: it may be live, and refusing a new key is the safer mistake.
		if entry.damaged != nil || workspace.isLive(&entry.key, nanoseconds) {
			count++
		}
	}
	return count
}

// Workspaces returns the ids of all workspaces that were ever changed.
func (p *Projection) Workspaces() []string {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	ids := make([]string, 0, len(p.state.workspaces))
	for id := range inPieces(p, p.state.workspaces, nil) {
		if id != "" {
			ids = append(ids, id)
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
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return dead
	}
	nanoseconds := before.UnixNano()
	for key := range p.keysOf(entry) {
		if len(dead.KeyIDs) == limit {
			return dead
		}
		if key.damaged == nil && entry.diedBefore(key, nanoseconds) {
			dead.KeyIDs = append(dead.KeyIDs, key.key.ID)
		}
	}
	if len(dead.KeyIDs) == 0 {
		dead.MemberIDs = p.deadMembers(entry, nanoseconds, limit)
	}
	return dead
}

// deadMembers returns members that were removed before a time, in Unix nanoseconds, by
// themselves or with their workspace, and have no keys. mutex is held for reading, and released
// between strides.
func (p *Projection) deadMembers(workspace *workspaceEntry, before int64, limit int) []string {
	var owners map[string]bool
	var dead []string
	for id, member := range inPieces(p, workspace.members, nil) {
		if len(dead) == limit {
			break
		}
		if member.damaged != nil || !workspace.isGone(member, before) {
			continue
		}
		if owners == nil {
			owners = make(map[string]bool)
			for entry := range p.keysOf(workspace) {
				owners[entry.key.Member] = true
			}
		}
		if !owners[id] {
			dead = append(dead, id)
		}
	}
	slices.Sort(dead)
	return dead
}

// isGone reports whether a member was removed before a time, in Unix nanoseconds.
func (w *workspaceEntry) isGone(member *Member, before int64) bool {
	if member.Removed && member.updated < before {
		return true
	}
	return w.current != nil && (w.current.Removed || w.current.Incarnation != member.WorkspaceIncarnation) &&
		w.current.since < before && member.updated < before
}
