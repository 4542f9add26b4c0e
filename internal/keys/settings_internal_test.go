package keys

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/projection"
)

// Rule R9 of docs/replication.md: a server that starts counts with the larger one of the record's two
// values, so the second one must be every larger bound under which leases may still hold.
func TestPreviousStalenessIsTheLargestThatMayStillCount(t *testing.T) {
	changed := time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)
	const s = time.Second
	for name, test := range map[string]struct {
		before, previous, wanted time.Duration
		after                    time.Duration // since the change before
		want                     time.Duration
	}{
		"lowered":                          {before: 4 * s, wanted: s, want: 4 * s},
		"raised":                           {before: s, wanted: 4 * s, want: 0},
		"lowered twice, at once":           {before: 4 * s, previous: 60 * s, wanted: s, want: 60 * s},
		"lowered twice, and clocks differ": {before: 4 * s, previous: 60 * s, wanted: s, after: 5 * time.Minute, want: 60 * s},
		"lowered twice, an hour later":     {before: 4 * s, previous: 60 * s, wanted: s, after: time.Hour, want: 4 * s},
		"lowered twice, the clock is back": {before: 4 * s, previous: 60 * s, wanted: s, after: -time.Hour, want: 60 * s},
		"lowered and raised":               {before: 4 * s, previous: 60 * s, wanted: 10 * s, want: 60 * s},
		"lowered and raised again":         {before: 4 * s, previous: 60 * s, wanted: 60 * s, want: 0},
		"lowered, raised an hour later":    {before: 4 * s, previous: 60 * s, wanted: 10 * s, after: time.Hour, want: 0},
	} {
		before := &projection.Settings{Staleness: test.before, Previous: test.previous, Changed: changed}
		if got := previousStaleness(before, test.wanted, changed.Add(test.after)); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}
