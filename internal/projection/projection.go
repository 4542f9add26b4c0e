// Package projection is the index that decisions are made from: every key that is not purged,
// every member, every workspace and the policy, in memory, as of one revision. It begins with
// the store's Load and follows the store's Watch, so what it shows is durable and in revision
// order.
package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// Projection is the index. It may be read from many goroutines. One goroutine calls Load and
// Follow.
//
// Lock: mutex guards state and waiters. No other lock is taken and nothing that blocks is called
// with it held.
type Projection struct {
	store storage.Source
	log   *slog.Logger
	// publisher gets every change before the projection shows it; nil before PublishTo.
	publisher Publisher

	barriers *barriers

	mutex sync.RWMutex
	state *state
	// waiters are the calls of WaitFor that wait.
	waiters map[*waiter]struct{}
	// stopFollowing ends Follow; nil before Follow was called.
	stopFollowing context.CancelCauseFunc
	// loaded reports whether a Load has succeeded, and left are states that are no longer shown,
	// and may still be walked over. Only Load and Follow use them.
	loaded bool
	left   []*state

	// applied is the revision of state, and the hash of its newest change, for readers without
	// the lock. It is set after state.
	applied atomic.Pointer[storage.Barrier]

	// recount has a value if there are keys for Recount.
	recount chan struct{}

	// gaveWay is called in tests whenever a walk gives way.
	gaveWay func()
}

// Publisher passes changes on. The projection calls it before readers can see a change. So if a
// reader sees a revision, or has waited for it, the publisher has the changes up to it. One
// goroutine calls the methods.
type Publisher interface {
	// Publish is called with each change, in revision order, before the projection shows it.
	// Announce is called after that. The call that made the change waits for Publish and not for
	// Announce, so work that takes long belongs into Announce.
	Publish(change *storage.Committed)
	Announce()
	// Settings is called with the settings that all processes share before Publish of the change that
	// put them, and before Restart if there are any. They are nil if they cannot be read.
	Settings(settings *Settings)
	// Restart is called before the projection shows a state that was loaded anew at a revision.
	// Some changes up to that revision may never have been published.
	Restart(revision int64)
	// Renew is called when the watch of the store was opened anew, before another change is published.
	Renew()
}

// New returns an empty projection of a store. Load fills it.
func New(store storage.Source, log *slog.Logger) *Projection {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Projection{
		store: store, log: log, barriers: newBarriers(store), waiters: make(map[*waiter]struct{}),
		recount: make(chan struct{}, 1),
	}
	p.state = newState(p, storage.Expected{})
	p.applied.Store(&storage.Barrier{})
	return p
}

// PublishTo sets the publisher. Call it after the first Load, for which Restart is not called,
// and before Follow.
func (p *Projection) PublishTo(publisher Publisher) {
	p.publisher = publisher
	if resumer, is := storage.As[storage.Resumer](p.store); is {
		resumer.OnResume(publisher.Renew)
	}
}

// Load fills the projection with what the store holds now, and returns the position that
// the store had reached. A damaged record is kept as damaged: what depends on it is answered
// with its error. Errors: the store's; storage.ErrHistoryChanged if the store has fewer
// changes than were already shown, or another one at that revision; at the first Load, a damaged policy
// or damaged settings, because nothing could be decided.
func (p *Projection) Load(ctx context.Context) (storage.Position, error) {
	// 1. Read the store into a state that nobody sees yet.
	fresh, position, err := p.read(ctx)
	if err == nil {
		err = p.check(fresh, position)
	}
	if err != nil {
		fresh.giveUp(p.state)
		return storage.Position{}, err
	}
	// 2. Tell the publisher before the state is shown, as watch does with a change.
	if p.publisher != nil {
		if fresh.settings != nil || fresh.damagedSettings != nil {
			p.publisher.Settings(fresh.settings)
		}
		p.publisher.Restart(position.Revision)
	}
	// 3. Take over the last uses. This visits every key, so it comes before the lock; reading
	//    p.state needs no lock here, because this goroutine alone changes it.
	before := p.state
	fresh.keepUses(before, false)
	// 4. Show the state, then its revision, and wake the calls that wait for it.
	p.swap(ctx, fresh, position)
	// 5. Take over the uses that were noted since step 3. Uses after this note themselves in the
	//    new state as well, because they see that theirs was replaced (usage.Last).
	fresh.keepUses(before, true)
	p.left = append(p.left, before)
	p.tidy()
	return position, nil
}

// tidy gives up states that are no longer shown, once no walk goes over them.
func (p *Projection) tidy() {
	p.left = slices.DeleteFunc(p.left, func(before *state) bool {
		if before.walks.Load() > 0 {
			return false
		}
		before.giveUp(p.state)
		return true
	})
}

// read reads the store into a state. The state is not nil even if there is an error.
func (p *Projection) read(ctx context.Context) (fresh *state, position storage.Position, err error) {
	fresh = newState(p, storage.Expected{})
	if loader, is := storage.As[storage.ViewLoader](p.store); is {
		begin := func(expected storage.Expected) {
			fresh.giveUp(p.state) // of an attempt before
			fresh = newState(p, expected)
		}
		position, err = loader.LoadViews(ctx, begin, func(item storage.Item) error { return fresh.add(item) })
	} else {
		position, err = p.store.Load(ctx, fresh.add)
	}
	fresh.revision, fresh.loaded = position.Revision, position.Revision
	return fresh, position, err
}

// check checks a state before it is shown, because a state that was shown is never taken back.
func (p *Projection) check(fresh *state, position storage.Position) error {
	if !p.loaded && fresh.damagedPolicy != nil {
		return fresh.damagedPolicy
	}
	if fresh.settings != nil {
		if err := storage.CheckSchema(fresh.settings.Record); err != nil {
			return err
		}
	}
	if err := storage.CheckSettings(fresh.damagedSettings); err != nil {
		return err
	}
	if !p.loaded && fresh.damagedSettings != nil {
		return fresh.damagedSettings
	}
	if before := *p.applied.Load(); position.Revision < before.Revision || position.Barrier().Differs(before) {
		return fmt.Errorf("%w: revision %d after %d, or another change", storage.ErrHistoryChanged, position.Revision, before.Revision)
	}
	return nil
}

// swap shows a state in the place of the present one.
func (p *Projection) swap(ctx context.Context, fresh *state, position storage.Position) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.logDamagedPolicy(ctx, fresh)
	p.state.replaced.Store(true)
	p.state, p.loaded = fresh, true
	p.signalRecount()
	p.advance(position.Barrier())
}

// The waits between two attempts to follow the store.
const (
	firstRetry   = 10 * time.Millisecond
	longestRetry = 2 * time.Second
)

// Follow applies every change after what was loaded until the context ends. When the change
// log breaks off, Follow loads the store anew as soon as it can; until then the projection
// shows the last durable state. Errors: the context's, and storage.ErrHistoryChanged, after
// which the process must not go on.
func (p *Projection) Follow(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p.mutex.Lock()
	p.stopFollowing = stop
	p.mutex.Unlock()
	retries := backoff.New(firstRetry, longestRetry)
	for {
		// 1. Apply changes until the watch ends. A watch was useful if it yielded a change, or
		//    lasted longer than the longest wait.
		before := p.Revision()
		brief := time.AfterFunc(longestRetry, func() {})
		err := p.watch(ctx)
		lasted := !brief.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, storage.ErrHistoryChanged) {
			return err
		}
		// 2. Wait if the watch was not useful: a load reads the whole store, so watches that end
		//    at once must not make this process load all the time.
		if lasted || p.Revision() > before {
			retries.Reset()
		} else if !retries.Wait(ctx) {
			return context.Cause(ctx)
		}
		// 3. Load anew. The next watch then begins at a revision that the store still has.
		p.log.WarnContext(ctx, "the change log broke off; loading anew", "error", err)
		if err := p.reload(ctx, retries); err != nil {
			return err
		}
	}
}

// reload loads the store again and again until that succeeds. Errors: those of Follow.
func (p *Projection) reload(ctx context.Context, retries *backoff.Backoff) error {
	for {
		_, err := p.Load(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			return nil
		case errors.Is(err, storage.ErrHistoryChanged), errors.Is(err, storage.ErrNewer):
			return err
		}
		p.log.ErrorContext(ctx, "loading anew failed; trying again", "error", err)
		if !retries.Wait(ctx) {
			return context.Cause(ctx)
		}
	}
}

// watch applies changes until the watch ends, and returns why it ended.
func (p *Projection) watch(ctx context.Context) error {
	for change, err := range p.store.Watch(ctx, *p.applied.Load()) {
		if err != nil {
			return err
		}
		// A store that was raised to a schema that this version does not know is shown no longer: what comes
		// from here on may mean something else.
		if err := newerSchema(change); err != nil {
			p.endFollow(err)
			return err
		}
		// 1. Publish the change, because readers that see a revision rely on the publisher having
		//    it (S1 of docs/coherence.md).
		if p.publisher != nil {
			p.publishSettings(change)
			p.publisher.Publish(change)
		}
		// 2. Show the change. This wakes the call that made it.
		p.show(ctx, change)
		p.tidy()
		// 3. Announce the change. This comes last because it may take long, and the call does not
		//    wait for it.
		if p.publisher != nil {
			p.publisher.Announce()
		}
	}
	return storage.ErrUnavailable
}

// show applies one change.
func (p *Projection) show(ctx context.Context, change *storage.Committed) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.state.apply(change)
	if change.Head.WorkspaceID == "" {
		p.logDamagedPolicy(ctx, p.state)
	}
	p.advance(change.Barrier())
}

// logDamagedPolicy logs, if the policy is damaged, that nothing can be decided any more.
func (p *Projection) logDamagedPolicy(ctx context.Context, state *state) {
	if state.damagedPolicy != nil {
		p.log.ErrorContext(ctx, "the policy cannot be read: everything that depends on it is refused", "error", state.damagedPolicy)
	}
}

// Epoch returns the identity of the history that the revisions belong to.
func (p *Projection) Epoch() string { return p.store.Epoch() }

// Revision returns the revision that the projection shows.
func (p *Projection) Revision() int64 { return p.applied.Load().Revision }

// Found is what the projection knows about one key id, as of one revision. It is a copy, which no
// later change touches.
type Found struct {
	// Exists reports whether there is such a key.
	Exists bool
	// Policy is the active policy; nil if the store has none, or if it is damaged.
	Policy *Policy
	// Revision is the revision that all of this is as of.
	Revision int64
	// Last is when the key was last used; zero if there is no such key.
	Last usage.Last
	// Damaged is set if a record that the answer depends on cannot be read. Nothing may be
	// decided then. WorkspaceID is the workspace of the key in question; empty if that is not known,
	// or if Damaged is nil.
	Damaged     error
	WorkspaceID string

	key                     decide.Key
	member                  decide.Member
	workspace               decide.Workspace
	hasMember, hasWorkspace bool
	roleScopes              decide.Scopes
}

// Subject returns what decide needs; empty if there is no such key. It lies in f.
func (f *Found) Subject() decide.Subject {
	var subject decide.Subject
	if f.roleScopes != nil {
		subject.RoleScopes = &f.roleScopes
	}
	if f.Exists {
		subject.Key = &f.key
	}
	if f.hasMember {
		subject.Member = &f.member
	}
	if f.hasWorkspace {
		subject.Workspace = &f.workspace
	}
	return subject
}

// EffectiveScopes returns the scopes of the key that its member's role has, too.
func (f *Found) EffectiveScopes() decide.Scopes { return f.key.Scopes.Intersect(f.roleScopes) }

// Find returns what is known about a key id. It reads memory alone, even for an id that does
// not exist, and does not allocate. What it returns contains keyID.
func (p *Projection) Find(keyID string) (found Found) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	return p.find(keyID, p.state.find(keyID))
}

// find is Find for a key that has a number; 0 stands for no key. mutex is held.
func (p *Projection) find(keyID string, number uint32) (found Found) {
	s := p.state
	found.Policy, found.Revision, found.Damaged = s.policy, s.revision, s.damagedPolicy
	if found.Damaged != nil || number == 0 {
		return found
	}
	life := s.records.At(number).life
	of := s.terms.get(s.lives.At(life).term).workspace
	if found.Damaged = s.problem(number); found.Damaged != nil {
		found.WorkspaceID = of.id
		return found
	}
	found.Exists = true
	found.Last = s.lastOf(keyID, number)
	s.key(&found.key, keyID, number)
	if found.hasWorkspace = of.current != nil; found.hasWorkspace {
		found.workspace = of.current.Workspace
	}
	present := s.presentLife(life)
	if found.hasMember = present != 0; found.hasMember {
		if found.member = s.memberAs(s.lives.At(present), found.key.MemberIncarnation); present != life {
			found.member = s.member(s.lives.At(present))
		}
		if s.policy != nil {
			found.roleScopes = s.policy.roles[found.member.Role]
		}
	}
	return found
}

// Policy returns the active policy and the revision at which it was active. Errors:
// storage.ErrUnavailable in a store without a policy, a storage.DamagedError if it cannot
// be read.
func (p *Projection) Policy() (*Policy, int64, error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	view := Workspace{Policy: p.state.policy, DamagedPolicy: p.state.damagedPolicy}
	active, err := view.ActivePolicy()
	return active, p.state.revision, err
}

// Workspace is what a change of a workspace is checked against.
type Workspace struct {
	// Head is the workspace's head; the change must expect it.
	Head storage.Head
	// Current is the workspace; nil if there is no record.
	Current *Current
	// Policy is the active policy; nil if the store has none, or if it is damaged.
	Policy *Policy
	// DamagedPolicy is set if the policy cannot be read. A change that depends on the policy
	// must be refused then.
	DamagedPolicy error
	// Settings are those that all processes share; nil if the store has none, or if DamagedSettings says
	// why they cannot be read.
	Settings        *Settings
	DamagedSettings error
	// PolicyHead is the policy's head; the change must expect it.
	PolicyHead storage.Head
	// Changed is the revision of the workspace's newest change, or the revision of the newest
	// Load if that is later; 0 if the workspace is unknown.
	Changed int64
	// Revision is the revision that all of this is as of.
	Revision int64
	// Damaged is set if the workspace's head or record cannot be read. The workspace cannot be
	// changed then.
	Damaged error
}

// Workspace returns what is known about a workspace. The empty id is the policy's.
func (p *Projection) Workspace(workspaceID string) Workspace {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	result := Workspace{Policy: p.state.policy, DamagedPolicy: p.state.damagedPolicy, Revision: p.state.revision}
	result.Settings, result.DamagedSettings = p.state.settings, p.state.damagedSettings
	if entry := p.state.workspaces[""]; entry != nil {
		result.PolicyHead = entry.head
	}
	if entry := p.state.workspaces[workspaceID]; entry != nil {
		result.Head, result.Current = entry.head, entry.current
		result.Changed = max(entry.changed, p.state.loaded)
		result.Damaged = errors.Join(p.state.damagedWorkspaces[entry.number], p.state.damagedHeads[entry.number])
	}
	return result
}

// ActivePolicy returns the active policy. Errors: storage.ErrUnavailable in a store
// without a policy, a storage.DamagedError if it cannot be read.
func (w Workspace) ActivePolicy() (*Policy, error) {
	switch {
	case w.DamagedPolicy != nil:
		return nil, w.DamagedPolicy
	case w.Policy == nil:
		return nil, storage.ErrUnavailable
	}
	return w.Policy, nil
}

// StoredSettings returns the settings that all servers share. Errors: storage.ErrUnavailable if none are stored yet,
// because a server that starts is about to do so; a storage.DamagedError if they cannot be read.
func (w Workspace) StoredSettings() (*Settings, error) {
	switch {
	case w.DamagedSettings != nil:
		return nil, w.DamagedSettings
	case w.Settings == nil:
		return nil, storage.ErrUnavailable
	}
	return w.Settings, nil
}

// Has reports whether a member that Member returned belongs to the workspace as it is now.
func (w Workspace) Has(member *Member) bool {
	return w.Current != nil && !w.Current.Removed &&
		member != nil && !member.Removed && member.WorkspaceIncarnation == w.Current.Incarnation
}

// Member returns a member; nil if there is no record. The error is a storage.DamagedError if
// the record cannot be read.
func (p *Projection) Member(workspaceID, memberID string) (*Member, error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	entry := s.workspaces[workspaceID]
	if entry == nil {
		return nil, nil
	}
	number := s.currentLife(entry, memberID)
	if number == 0 {
		return nil, nil
	}
	life := s.lives.At(number)
	return &Member{Member: s.member(life), SourceVersion: life.sourceVersion}, s.damagedLives[number]
}

// NewestSourceVersion returns the highest source version of a workspace's members, removed
// members included; 0 for a workspace without members.
func (p *Projection) NewestSourceVersion(workspaceID string) int64 {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	var newest int64
	if entry := s.workspaces[workspaceID]; entry != nil {
		for number := range p.inOrder(s, &entry.members) {
			newest = max(newest, s.lives.At(number).sourceVersion)
		}
	}
	return newest
}

// LastUsed returns when a key was last used; zero if it never was.
func (p *Projection) LastUsed(keyID string) time.Time { return p.LastUses(keyID).Key() }
