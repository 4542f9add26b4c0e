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
	effects := effects{after: roles, known: make(map[combination]effect)}
	if p.state.policy != nil {
		effects.before = p.state.policy.roles
	}
	nanoseconds := now.UnixNano()
	for _, entry := range inPieces(p, p.state.keys, giveway.From(ctx)) {
		workspace := entry.workspace
		if entry.problem() != nil || workspace.current == nil || workspace.current.Removed ||
			!workspace.isLive(&entry.key, nanoseconds) {
			continue
		}
		found := effects.of(entry.key.Scopes, workspace.members[entry.key.Member].Role)
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
