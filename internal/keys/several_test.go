package keys_test

import (
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
)

var (
	severalSeed  = flag.Uint64("several.seed", 0, "seed of the tests with several managers; 0 draws one")
	severalRuns  = flag.Int("several.runs", 20, "simulations with several managers")
	severalCalls = flag.Int("several.calls", 0, "calls of the scale test of several managers; 0 skips it")
)

// seeds returns the first seed of a test.
func seed() uint64 {
	if *severalSeed != 0 {
		return *severalSeed
	}
	return rand.Uint64()>>32 | 1
}

// report fails the test if promises were not kept, and says how to see it again.
func report(t *testing.T, seed uint64, violations []keystest.Violation) {
	t.Helper()
	if len(violations) > 0 {
		t.Fatalf("%s\nseed %d; again: go test ./internal/keys -run '^%s$' -several.runs 1 -several.seed %d",
			keystest.Summary(violations), seed, t.Name(), seed)
	}
}

// TestSeveralManagers: whatever happens between several managers and their store, what
// each of them says reflects what was acknowledged by any.
func TestSeveralManagers(t *testing.T) {
	first := seed()
	t.Logf("seeds from %d", first)
	for run := range uint64(*severalRuns) { //nolint:gosec // a count
		seed := first + run
		random := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // no secrets
		campaign := keystest.Campaign{
			Seed: seed, Managers: 1 + random.IntN(3), Callers: 2 + random.IntN(5), Calls: 200, Workspaces: 1 + random.IntN(3),
		}
		if random.IntN(4) > 0 {
			campaign.Faults = keystest.Faults{Lost: 20, Dropped: 40, Down: 2, Unavailable: 80, Broken: 60}
			campaign.Restarts = 60
		}
		report(t, seed, keystest.SimulateSeveral(t, &keystest.BoltFleet{}, campaign))
	}
}

// TestManyCallers: three managers over one file, 64 callers. The full campaign is
// `go test ./internal/keys -run TestManyCallers -several.calls 100000`.
func TestManyCallers(t *testing.T) {
	calls := *severalCalls
	if calls == 0 {
		calls = 3000
	}
	seed := seed()
	t.Logf("seed %d", seed)
	report(t, seed, keystest.RunSeveral(t, &keystest.BoltFleet{}, keystest.Campaign{
		Seed: seed, Managers: 3, Callers: 64, Calls: calls, Workspaces: 16,
	}))
}
