// Package projection is the index that deciding reads: every key not yet purged,
// every member, every workspace and the policy, in memory, as of one revision. It
// starts from the store's Load and follows its Watch, so what it shows is durable
// and in revision order.
package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// Projection is the index. Reads may come from many goroutines; Load and Follow are
// called by one.
type Projection struct {
	store storage.Store
	log   *slog.Logger
	// publisher is told of every change before it shows; nil if nobody wants to be.
	publisher Publisher

	mutex sync.RWMutex
	state *state
	// advanced is closed and replaced whenever state changes.
	advanced chan struct{}
}

// Publisher passes on what has changed. What it was told stands before everything that a
// reader of the projection learns from it: whoever sees a revision, or waited for one,
// can rely on the publisher having had it. Its methods are called by one goroutine.
type Publisher interface {
	// Publish is called with each change, in revision order, before the projection shows
	// it, and Announce once it does: what takes long is better done there, as whoever made
	// the change is waiting until then.
	Publish(change *storage.Committed)
	Announce()
	// Restart is called before the projection shows what was loaded anew at a revision:
	// changes up to it may never have been published.
	Restart(revision int64)
}

// New returns an empty projection of a store. Load fills it.
func New(store storage.Store, log *slog.Logger) *Projection {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Projection{store: store, log: log, state: newState(), advanced: make(chan struct{})}
}

// PublishTo sets the publisher. It is called after the first Load, of which the publisher
// hears nothing, and before Follow.
func (p *Projection) PublishTo(publisher Publisher) { p.publisher = publisher }

// Load fills the projection with what the store holds now and returns how far the
// store had come. A damaged policy is an error: nothing could be decided. Other
// damaged records are kept as such, and answered with their error.
func (p *Projection) Load(ctx context.Context) (storage.Position, error) {
	fresh := newState()
	position, err := p.store.Load(ctx, fresh.add)
	if err != nil {
		return storage.Position{}, err
	}
	fresh.revision = position.Revision
	if before := p.Revision(); position.Revision < before {
		return storage.Position{}, fmt.Errorf("%w: revision %d after %d", storage.ErrHistoryChanged, position.Revision, before)
	}
	if p.publisher != nil {
		p.publisher.Restart(position.Revision)
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	fresh.keepUses(p.state)
	p.state = fresh
	p.signal()
	return position, nil
}

// Follow applies every change after what was loaded until the context ends, and
// returns the context's error or storage.ErrHistoryChanged,
// with which the process must not go on. When the store is down, Follow
// loads it anew as soon as it can; meanwhile the projection shows the last durable
// state.
func (p *Projection) Follow(ctx context.Context) error {
	const shortest, longest = 10 * time.Millisecond, 2 * time.Second
	wait := shortest
	for {
		before := p.Revision()
		brief := time.AfterFunc(longest, func() {})
		err := p.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if lasted := !brief.Stop(); lasted || p.Revision() > before {
			wait = shortest
		} else {
			// Loading helps, but not for long: do not load all the time.
			if !pause(ctx, rand.N(wait)) { //nolint:gosec // jitter, no secret
				return ctx.Err()
			}
			wait = min(2*wait, longest)
		}
		p.log.WarnContext(ctx, "the change log broke off; loading anew", "error", err)
		for {
			_, err = p.Load(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				break
			}
			if errors.Is(err, storage.ErrHistoryChanged) {
				return err
			}
			p.log.ErrorContext(ctx, "loading anew failed; trying again", "error", err, "after", wait)
			if !pause(ctx, rand.N(wait)) { //nolint:gosec // jitter, no secret
				return ctx.Err()
			}
			wait = min(2*wait, longest)
		}
	}
}

// watch applies changes until the watch ends.
func (p *Projection) watch(ctx context.Context) error {
	for change, err := range p.store.Watch(ctx, p.Revision()) {
		if err != nil {
			return err
		}
		if p.publisher != nil {
			p.publisher.Publish(change)
		}
		p.mutex.Lock()
		p.state.apply(change)
		p.signal()
		p.mutex.Unlock()
		if p.publisher != nil {
			p.publisher.Announce()
		}
	}
	return storage.ErrUnavailable
}

// signal wakes everybody who waits for a revision. mutex is held.
func (p *Projection) signal() {
	close(p.advanced)
	p.advanced = make(chan struct{})
}

// Epoch returns the identity of the history that the revisions belong to.
func (p *Projection) Epoch() string { return p.store.Epoch() }

// Revision returns how far the projection has come.
func (p *Projection) Revision() int64 {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	return p.state.revision
}

// WaitFor returns once the projection has come to revision, or with the context's
// error.
func (p *Projection) WaitFor(ctx context.Context, revision int64) error {
	for {
		p.mutex.RLock()
		reached, advanced := p.state.revision >= revision, p.advanced
		p.mutex.RUnlock()
		if reached {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Found is what the projection knows about one key id, all as of one revision.
type Found struct {
	// Subject is what deciding needs; empty if there is no such key.
	Subject decide.Subject
	// Policy is the active policy, nil only in a store without one.
	Policy *Policy
	// Revision that this holds at.
	Revision int64
	// Last is when the key was last used; nil if there is no such key.
	Last *usage.Last
	// Created is when the key was created, in Unix nanoseconds; 0 if there is no such key.
	Created int64
	// Damaged is set if a record that the answer depends on cannot be read. Nothing
	// may be decided then.
	Damaged error
}

// Find returns what is known about a key id. It reads memory alone, also for ids
// that do not exist, and allocates nothing.
func (p *Projection) Find(keyID string) Found {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	found := Found{Policy: p.state.policy, Revision: p.state.revision}
	entry := p.state.keys[keyID]
	if entry == nil {
		return found
	}
	if found.Damaged = entry.problem(); found.Damaged != nil {
		return found
	}
	found.Subject.Key, found.Last, found.Created = &entry.key, entry.last, entry.created
	if entry.workspace.current != nil {
		found.Subject.Workspace = &entry.workspace.current.Workspace
	}
	if member := entry.workspace.members[entry.key.Member]; member != nil {
		found.Subject.Member = &member.Member
		if p.state.policy != nil {
			found.Subject.RoleScopes = p.state.policy.roles[member.Role]
		}
	}
	return found
}

// Policy returns the active policy and the revision at which it was active; nil if
// the store has none.
func (p *Projection) Policy() (*Policy, int64) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	return p.state.policy, p.state.revision
}

// Workspace is what a change of a workspace is checked against.
type Workspace struct {
	// Head is the workspace's; the change must expect it.
	Head storage.Head
	// Current is the workspace, nil if there is none.
	Current *Current
	// Policy is the active policy.
	Policy *Policy
	// Revision that this holds at.
	Revision int64
	// Damaged is set if the workspace's head or record cannot be read: it cannot be
	// changed.
	Damaged error
}

// Workspace returns what is known about a workspace; the empty one is the policy's.
func (p *Projection) Workspace(workspaceID string) Workspace {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	result := Workspace{Policy: p.state.policy, Revision: p.state.revision}
	if entry := p.state.workspaces[workspaceID]; entry != nil {
		result.Head, result.Current = entry.head, entry.current
		result.Damaged = errors.Join(entry.damaged, entry.damagedHead)
	}
	return result
}

// Has says whether a member, as Member returned it, belongs to the workspace as it is
// now.
func (w Workspace) Has(member *Member) bool {
	return w.Current != nil && !w.Current.Removed &&
		member != nil && !member.Removed && member.WorkspaceIncarnation == w.Current.Incarnation
}

// Member returns one member as deciding sees it, nil if no record is
// there. The error is set if the record is damaged.
func (p *Projection) Member(workspaceID, memberID string) (*Member, error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return nil, nil //nolint:nilnil // documented: nil is "none"
	}
	member := entry.members[memberID]
	if member == nil {
		return nil, nil //nolint:nilnil // documented: nil is "none"
	}
	return member, member.damaged
}

// NewestSourceVersion returns the highest version that the product's directory gave to a
// member of a workspace, removed ones included; 0 if it gave none.
func (p *Projection) NewestSourceVersion(workspaceID string) int64 {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	var newest int64
	if entry := p.state.workspaces[workspaceID]; entry != nil {
		for _, member := range entry.members {
			newest = max(newest, member.SourceVersion)
		}
	}
	return newest
}

// HasRoom says whether a workspace has fewer than most live keys at now: keys that are
// neither revoked nor expired, nor count as revoked with their member or workspace.
func (p *Projection) HasRoom(workspaceID string, now time.Time, most int) bool {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return most > 0
	}
	// Most workspaces are so far from their limit that nothing need be counted.
	return len(entry.keys)-entry.revoked < most || entry.live(now, most) < most
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
	return entry.live(now, enough)
}

// Effect counts the live keys whose effective scopes would shrink, and those whose
// would grow, if the roles had these scopes. A key can count as both.
func (p *Projection) Effect(roles map[string]decide.Scopes, now time.Time) (narrowed, widened int64) {
	type effect struct{ narrows, widens bool }
	// Most keys share a few sets of scopes and a few roles.
	type combination struct{ scopes, role string }
	known := make(map[combination]effect)
	nanoseconds := now.UnixNano()
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	for _, entry := range p.state.keys {
		workspace := entry.workspace
		if entry.problem() != nil || workspace.current == nil || workspace.current.Removed ||
			!workspace.isLive(&entry.key, nanoseconds) {
			continue
		}
		role := workspace.members[entry.key.Member].Role
		which := combination{strings.Join(entry.key.Scopes, " "), role}
		found, seen := known[which]
		if !seen {
			before, after := entry.key.Scopes.Intersect(p.state.policy.roles[role]), entry.key.Scopes.Intersect(roles[role])
			found = effect{narrows: len(before.Without(after)) > 0, widens: len(after.Without(before)) > 0}
			known[which] = found
		}
		if found.narrows {
			narrowed++
		}
		if found.widens {
			widened++
		}
	}
	return narrowed, widened
}

// LastUsed returns when a key was last used; zero if it never was.
func (p *Projection) LastUsed(keyID string) time.Time {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	if entry := p.state.keys[keyID]; entry != nil {
		return entry.last.Time()
	}
	return time.Time{}
}

// Workspaces returns the ids of all workspaces that were ever changed.
func (p *Projection) Workspaces() []string {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	ids := make([]string, 0, len(p.state.workspaces))
	for id := range p.state.workspaces {
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
// number of records. Members come once no key is left to delete.
func (p *Projection) Dead(workspaceID string, before time.Time, most int) Dead {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	var dead Dead
	entry := p.state.workspaces[workspaceID]
	if entry == nil {
		return dead
	}
	nanoseconds := before.UnixNano()
	for _, key := range entry.keys {
		if len(dead.KeyIDs) == most {
			return dead
		}
		if key.damaged == nil && entry.diedBefore(key, nanoseconds) {
			dead.KeyIDs = append(dead.KeyIDs, key.key.ID)
		}
	}
	if len(dead.KeyIDs) == 0 {
		dead.MemberIDs = entry.deadMembers(nanoseconds, most)
	}
	return dead
}

// pause waits; it says whether the context is still good.
func pause(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
