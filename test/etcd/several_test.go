package etcd_test

import (
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var (
	severalSeed  = flag.Uint64("several.seed", 0, "seed of the test with several managers; 0 draws one")
	severalCalls = flag.Int("several.calls", race.Rounds(1500, 500), "calls of the test with several managers")
)

// fleet is one store for several managers, with clients for each.
type fleet struct{ backend }

// Open implements keystest.Fleet.
func (f fleet) Open(t testing.TB, managers int) []storage.Store {
	t.Helper()
	stores := make([]storage.Store, managers)
	for number := range stores {
		stores[number] = f.backend.Open(t)
	}
	return stores
}

// TestSeveralManagersReflectEachOthersChanges: what each of several processes answers reflects
// what any of them acknowledged.
func TestSeveralManagersReflectEachOthersChanges(t *testing.T) {
	t.Parallel()
	seed := *severalSeed
	if seed == 0 {
		seed = rand.Uint64()>>32 | 1
	}
	t.Logf("seed %d", seed)
	result := keystest.RunSeveral(t, fleet{backend{newPrefix()}}, keystest.Campaign{
		Seed: seed, Managers: 3, Callers: 16, Calls: *severalCalls, Workspaces: 4,
		Faults:   keystest.Faults{Lost: 40, Dropped: 80, Unavailable: 200, Broken: 100},
		Restarts: 200,
	})
	if len(result.Violations) > 0 {
		t.Fatalf("%s\nseed %d; again: go -C test test ./etcd -run '^TestSeveralManagersReflectEachOthersChanges$' -several.calls %d -several.seed %d",
			result.Summary(), seed, *severalCalls, seed)
	}
}
