package projection

import (
	"context"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
)

// Census counts the keys that are not purged. Each key is in one state.
type Census struct {
	// Active keys can be used. Suspended keys would be active if their member was. Held keys wait for
	// a person. Expired keys were not revoked. Revoked are also the keys whose member or workspace was
	// removed.
	Active, Suspended, Held, Expired, Revoked int64
	// Damaged keys cannot be read.
	Damaged int64
	// Within7Days and Within30Days are the active keys that expire so soon.
	Within7Days, Within30Days int64
	// Members are those that have a record, removed ones included, and Workspaces all that were ever
	// changed.
	Members, Workspaces int64
}

// standing is what a key counts as, apart from the time.
type standing uint32

const (
	uncounted standing = iota // there is no key, or it is damaged
	standingActive
	standingSuspended
	standingRevoked
	standingHeld
)

// A census keeps the counts up with each change, so that reading them visits no key. It has four bits
// for each key, its standing, and for each hour in which a key expires the number of keys that do.
//
// A change of a member or workspace may concern all keys of the workspace. They are counted anew
// afterwards, by Recount, so that the change need not wait: until then they count as before. The
// standing that a key was counted with is kept, so each key is moved once, whatever happens meanwhile.
//
// Lock: whoever holds Projection.mutex for writing needs nothing else; whoever holds it for reading
// takes mutex as well.
type census struct {
	mutex sync.Mutex
	// standings has the standings of standingsInWord keys in a word.
	standings flat.Chunks[uint32]
	days      map[int64]*censusDay
	// near is the day nearNumber, which was used last; nil if there is no such day.
	near       *censusDay
	nearNumber int64
	revoked    int64
	members    int64
	// stale are the workspaces whose keys are to be counted anew.
	stale map[*workspace]struct{}
}

const (
	standingBits    = 4
	standingsInWord = 32 / standingBits
	hoursOfDay      = 24
)

// censusDay counts the keys that expire in each hour of a day, active, suspended and held ones.
type censusDay struct {
	active, suspended, held [hoursOfDay]uint32
	keys                    int
}

// hourOf returns the hour of a time in Unix nanoseconds, as a number that counts from 1970 on.
func hourOf(nanoseconds int64) int64 { return floor(nanoseconds, int64(time.Hour)) }

func floor(value, by int64) int64 {
	result := value / by
	if value%by < 0 {
		result--
	}
	return result
}

// standing returns what a key is counted with.
func (c *census) standing(number uint32) standing {
	at := number / standingsInWord
	if !c.standings.Has(at) {
		return uncounted
	}
	return standing(*c.standings.At(at)>>(number%standingsInWord*standingBits)) & (1<<standingBits - 1)
}

// count counts a key with a standing, and no longer with the one before. expire is when the key
// expires, in Unix nanoseconds.
func (c *census) count(number uint32, as standing, expire int64) {
	c.add(c.standing(number), expire, -1)
	c.add(as, expire, 1)
	c.standings.Grow(number / standingsInWord)
	word, shift := c.standings.At(number/standingsInWord), number%standingsInWord*standingBits
	*word = *word&^((1<<standingBits-1)<<shift) | uint32(as)<<shift
}

// add adds one key to a count, or takes it away.
func (c *census) add(as standing, expire int64, change int) {
	hour := hourOf(expire)
	switch as {
	case uncounted:
	case standingRevoked:
		c.revoked += int64(change)
	case standingActive:
		day := c.day(floor(hour, hoursOfDay), change)
		day.active[hour-floor(hour, hoursOfDay)*hoursOfDay] += uint32(change) //nolint:gosec // modulo 2^32
	case standingSuspended:
		day := c.day(floor(hour, hoursOfDay), change)
		day.suspended[hour-floor(hour, hoursOfDay)*hoursOfDay] += uint32(change) //nolint:gosec // modulo 2^32
	case standingHeld:
		day := c.day(floor(hour, hoursOfDay), change)
		day.held[hour-floor(hour, hoursOfDay)*hoursOfDay] += uint32(change) //nolint:gosec // modulo 2^32
	}
}

// day returns a day, whose number of keys changes. A day without keys is forgotten.
func (c *census) day(number int64, change int) *censusDay {
	if c.near == nil || c.nearNumber != number {
		if c.days == nil {
			c.days = make(map[int64]*censusDay)
		}
		day := c.days[number]
		if day == nil {
			day = new(censusDay)
			c.days[number] = day
		}
		c.near, c.nearNumber = day, number
	}
	day := c.near
	if day.keys += change; day.keys == 0 {
		delete(c.days, number)
		c.near = nil
	}
	return day
}

// countKey counts a key that is not damaged, as it is now.
func (s *state) countKey(number uint32, key *record) {
	s.census.count(number, s.standingOf(key), s.expireOf(key))
}

// uncountKey ends that a key counts. It comes before anything that the key's record refers to is given
// back.
func (s *state) uncountKey(number uint32, key *record) {
	if s.census.standing(number) != uncounted {
		s.census.count(number, uncounted, s.expireOf(key))
	}
}

// standingOf returns what a key that is not damaged counts as. What is damaged besides counts as
// suspended.
func (s *state) standingOf(key *record) standing {
	during := s.terms.get(s.lives.At(key.life).term)
	current := during.workspace.current
	switch {
	case key.ends&flagRevoked != 0:
		return standingRevoked
	case current == nil:
		return standingSuspended
	case current.Removed, current.Incarnation != during.incarnation:
		return standingRevoked
	}
	present := s.presentLife(key.life)
	if present == 0 {
		return standingRevoked
	}
	switch flags := s.lives.At(present).standing; {
	case flags&lifeDamaged != 0:
		return standingSuspended
	case flags&lifeRemoved != 0, !s.isSameMember(key.life, present):
		return standingRevoked
	case s.isHeld(key):
		return standingHeld
	case flags&lifeActive != 0:
		return standingActive
	}
	return standingSuspended
}

// memberStanding is what the standing of keys depends on in a member's record: the number of the
// present life, and its flags.
type memberStanding struct{ life, flags uint32 }

// memberStandingOf returns the standing of a member in a workspace that has keys; zero if the
// workspace has none, or no such member.
func (s *state) memberStandingOf(of *workspace, memberID string) memberStanding {
	if of.keys.Len() == 0 {
		return memberStanding{}
	}
	number := s.currentLife(of, memberID)
	if number == 0 {
		return memberStanding{}
	}
	return memberStanding{number, s.lives.At(number).standing & (lifeActive | lifeRemoved | lifeDamaged)}
}

// memberChanged has the keys of a workspace counted anew, if a member's standing has changed and the
// member has keys.
func (s *state) memberChanged(of *workspace, memberID string, before memberStanding) {
	if s.memberStandingOf(of, memberID) != before && s.hasKeys(of, memberID) {
		s.recountLater(of)
	}
}

// hasKeys reports whether a life of a member has keys.
func (s *state) hasKeys(of *workspace, memberID string) bool {
	found := s.members.Find(s.memberHash(of.number, memberID), func(number uint32) bool {
		life := s.lives.At(number)
		if life.keys == 0 || s.terms.get(life.term).workspace != of {
			return false
		}
		id, _ := s.textsOf(life)
		return id == memberID
	})
	return found != 0
}

// recountLater has the keys of a workspace counted anew.
func (s *state) recountLater(of *workspace) {
	if of.keys.Len() == 0 {
		return
	}
	if s.census.stale == nil {
		s.census.stale = make(map[*workspace]struct{})
	}
	s.census.stale[of] = struct{}{}
	s.projection.signalRecount()
}

func (p *Projection) signalRecount() {
	select {
	case p.recount <- struct{}{}:
	default:
	}
}

// Recount counts keys anew after changes of their members and workspaces, until the context ends. It
// gives way to changes and validations. Until it has run, Census counts those keys as before.
func (p *Projection) Recount(ctx context.Context) {
	for {
		select {
		case <-p.recount:
			for ctx.Err() == nil && p.recountNext() {
			}
		case <-ctx.Done():
			return
		}
	}
}

// recountNext counts the keys of one workspace anew. It returns false if there was nothing to do.
func (p *Projection) recountNext() bool {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	of := s.census.nextStale()
	if of == nil {
		return false
	}
	for number := range p.inOrder(s, &of.keys) {
		s.recount(number)
	}
	return true
}

// nextStale takes a workspace out of stale; nil if no workspace waits. Projection.mutex is held for reading.
func (c *census) nextStale() *workspace {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for of := range c.stale {
		delete(c.stale, of)
		return of
	}
	return nil
}

// recount counts one key anew. Projection.mutex is held for reading.
func (s *state) recount(number uint32) {
	c := &s.census
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !s.has(number) || c.standing(number) == uncounted {
		return
	}
	key := s.records.At(number)
	if now := s.standingOf(key); now != c.standing(number) {
		c.count(number, now, s.expireOf(key))
	}
}

// Census counts the keys at now. A key counts as expired from the end of the hour on in which it
// expires. Census visits no key: it adds up the hours in which keys expire.
func (p *Projection) Census(now time.Time) Census {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	s.census.mutex.Lock()
	defer s.census.mutex.Unlock()
	counted := Census{
		Revoked: s.census.revoked, Damaged: int64(len(s.damagedKeys)),
		Members: s.census.members, Workspaces: int64(len(s.workspaces)),
	}
	if s.workspaces[""] != nil { // the policy's
		counted.Workspaces--
	}
	present := hourOf(now.UnixNano())
	for number, day := range s.census.days {
		for index := range day.active {
			active, suspended, held := int64(day.active[index]), int64(day.suspended[index]), int64(day.held[index])
			left := number*hoursOfDay + int64(index) - present
			if left < 0 {
				counted.Expired += active + suspended + held
				continue
			}
			counted.Active += active
			counted.Suspended += suspended
			counted.Held += held
			if left <= 7*hoursOfDay {
				counted.Within7Days += active
			}
			if left <= 30*hoursOfDay {
				counted.Within30Days += active
			}
		}
	}
	return counted
}
