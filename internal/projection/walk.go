package projection

import (
	"iter"
	"runtime"
	"slices"
	"time"
)

// stride is how many records a walk visits before it lets others in. Validations wait
// behind a change that waits behind a walk, so a stride takes far less than a
// millisecond.
const stride = 256

// giveWay lets changes and validations in that wait for the lock, which is held for
// reading before and after. What was read of state until then may no longer be so.
func (p *Projection) giveWay() {
	p.mutex.RUnlock()
	if p.gaveWay != nil {
		p.gaveWay()
	}
	// A walk is never urgent: those who wait for the processor go first, too.
	runtime.Gosched()
	p.mutex.RLock()
}

// inPieces visits a map of the state, and gives way now and then: with the lock held for
// reading, as it must be. Records that stay meanwhile are visited once; those that come
// or go may be.
func inPieces[Key comparable, Value any](p *Projection, records map[Key]Value) iter.Seq2[Key, Value] {
	return func(yield func(Key, Value) bool) {
		visited := 0
		for key, value := range records {
			if !yield(key, value) {
				return
			}
			if visited++; visited%stride == 0 {
				p.giveWay()
			}
		}
	}
}

// keysOf visits the keys of a workspace, the oldest first, as inPieces does.
func (p *Projection) keysOf(workspace *workspaceEntry) iter.Seq[*keyEntry] {
	return func(yield func(*keyEntry) bool) {
		for piece := workspace.first(); len(piece) > 0; {
			// Where the walk goes on is found by the key: its place may be another one then.
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

// first returns the first keys of the workspace, a stride of them at most.
func (w *workspaceEntry) first() []*keyEntry { return w.keys[:min(stride, len(w.keys))] }

// after returns the keys that follow on one, a stride of them at most.
func (w *workspaceEntry) after(last *keyEntry) []*keyEntry {
	index, found := slices.BinarySearchFunc(w.keys, last, compareKeys)
	if found {
		index++
	}
	return w.keys[index:min(index+stride, len(w.keys))]
}

// HasRoom reports whether a workspace has fewer than most live keys at now: keys that are
// neither revoked nor expired, nor count as revoked with their member or workspace. A
// change that relies on it expects the workspace's head, as read before.
func (p *Projection) HasRoom(workspaceID string, now time.Time, most int) bool {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return most > 0
	}
	// Most workspaces are so far from their limit that nothing need be counted.
	return len(entry.keys)-entry.revoked < most || p.live(entry, now, most) < most
}

// LiveKeys counts the keys of a workspace that are neither revoked nor expired at
// now, nor count as revoked with their member or workspace. It stops counting at
// enough, so that the usual question, whether there is room, costs little.
func (p *Projection) LiveKeys(workspaceID string, now time.Time, enough int) int {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return 0
	}
	return p.live(entry, now, enough)
}

// live counts live keys, up to enough. mutex is held for reading, and given away between
// pieces.
func (p *Projection) live(workspace *workspaceEntry, now time.Time, enough int) int {
	nanoseconds, count := now.UnixNano(), 0
	for entry := range p.keysOf(workspace) {
		if count >= enough {
			break
		}
		if workspace.current == nil || workspace.current.Removed {
			return 0
		}
		// A damaged key counts: it might be live, and refusing is the safer mistake.
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
	for id := range inPieces(p, p.state.workspaces) {
		if id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Dead is what a sweep may delete.
type Dead struct {
	// KeyIDs are revoked or expired, or count as revoked, since long enough.
	KeyIDs []string
	// MemberIDs were removed long enough ago, and no key is theirs any more.
	MemberIDs []string
}

// Dead returns what died before a time in a workspace, the oldest keys first, up to a
// number of records. Members come once no key is left to delete. A change that relies on
// it expects the workspace's head, as read before.
func (p *Projection) Dead(workspaceID string, before time.Time, most int) Dead {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	var dead Dead
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return dead
	}
	nanoseconds := before.UnixNano()
	for key := range p.keysOf(entry) {
		if len(dead.KeyIDs) == most {
			return dead
		}
		if key.damaged == nil && entry.diedBefore(key, nanoseconds) {
			dead.KeyIDs = append(dead.KeyIDs, key.key.ID)
		}
	}
	if len(dead.KeyIDs) == 0 {
		dead.MemberIDs = p.deadMembers(entry, nanoseconds, most)
	}
	return dead
}

// deadMembers returns members that were removed before a time, in Unix nanoseconds,
// themselves or with their workspace, and have no keys. mutex is held for reading, and
// given away between pieces.
func (p *Projection) deadMembers(workspace *workspaceEntry, before int64, most int) []string {
	var owners map[string]bool
	var dead []string
	for id, member := range inPieces(p, workspace.members) {
		if len(dead) == most {
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
