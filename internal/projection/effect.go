package projection

import (
	"context"
	"time"

	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/giveway"
)

// Effect counts the live keys whose effective scopes would shrink, and those whose effective
// scopes would grow, if the roles had these scopes instead of the active policy's. A key can
// count as both. A key that changes during the count counts as it was before or after. The work of the
// context gives way.
func (p *Projection) Effect(ctx context.Context, roles map[string]decide.Scopes, now time.Time) (narrowed, widened int64) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	s.walks.Add(1)
	defer s.walks.Add(-1)
	effects := effects{after: roles, known: make(map[combination]effect)}
	if s.policy != nil {
		effects.before = s.policy.roles
	}
	nanoseconds, work := now.UnixNano(), giveway.From(ctx)
	for number := uint32(1); number <= s.highest; number++ {
		if number%stride == 0 {
			p.giveWayAs(work)
		}
		if !s.has(number) || s.problem(number) != nil {
			continue
		}
		key := s.records.At(number)
		if current := s.workspaceOf(key).current; current == nil || current.Removed || !s.isLive(key, nanoseconds) {
			continue
		}
		role := *s.names.get(s.lives.At(s.presentLife(key.life)).role())
		found := effects.of(*s.scopes.get(s.limits.get(s.rareOf(key).limits).scopes), role)
		if found.narrows {
			narrowed++
		}
		if found.widens {
			widened++
		}
	}
	return narrowed, widened
}

// effect is what other roles do to the effective scopes of a key.
type effect struct{ narrows, widens bool }

// combination is what the effect on a key depends on. Most keys share a few combinations: state
// keeps each set of scopes once, so the address of a set identifies it.
type combination struct {
	scopes *string
	count  int
	role   string
}

// effects remembers the effects that were computed.
type effects struct {
	before, after map[string]decide.Scopes
	known         map[combination]effect
}

func (e *effects) of(scopes decide.Scopes, role string) effect {
	which := combination{count: len(scopes), role: role}
	if len(scopes) > 0 {
		which.scopes = &scopes[0]
	}
	found, seen := e.known[which]
	if !seen {
		before, after := scopes.Intersect(e.before[role]), scopes.Intersect(e.after[role])
		found = effect{narrows: len(before.Without(after)) > 0, widens: len(after.Without(before)) > 0}
		e.known[which] = found
	}
	return found
}
