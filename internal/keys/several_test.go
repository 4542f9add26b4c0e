package keys_test

import (
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
)

// The flags of the tests with several managers. The full campaigns are
// `go test ./internal/keys -run TestSeveralManagersReflectEachOthersChanges -several.runs 5000` and
// `go test ./internal/keys -run TestManyCallersSeeOneHistory -several.calls 100000`.
var (
	severalSeed  = flag.Uint64("several.seed", 0, "seed of the tests with several managers, the first of several; 0 draws one")
	severalRuns  = flag.Int("several.runs", 50, "simulations with several managers")
	severalCalls = flag.Int("several.calls", 5000, "calls of the test with many callers")
)

// drawSeed returns the seed of a run, or the first of several.
func drawSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *severalSeed
	if seed == 0 {
		seed = rand.Uint64()>>32 | 1
	}
	t.Logf("seed %d", seed)
	return seed
}

// judge fails the test if promises were not kept, and logs the command that repeats the run.
func judge(t *testing.T, seed uint64, result keystest.Result) {
	t.Helper()
	if len(result.Violations) > 0 {
		t.Fatalf("%s\nseed %d; again: go test ./internal/keys -run '^%s$' -several.runs 1 -several.calls %d -several.seed %d",
			result.Summary(), seed, t.Name(), *severalCalls, seed)
	}
}

// TestSeveralManagersReflectEachOthersChanges: with delays and faults between several managers
// and their store, every answer of each manager reflects what any of them has acknowledged.
func TestSeveralManagersReflectEachOthersChanges(t *testing.T) {
	first := drawSeed(t)
	answers := make(map[string]int)
	for run := range uint64(*severalRuns) {
		seed := first + run
		result := keystest.SimulateSeveral(t, &keystest.BoltFleet{}, keystest.RandomCampaign(seed))
		judge(t, seed, result)
		for answer, count := range result.Answers {
			answers[answer] += count
		}
	}
	for _, answer := range slices.Sorted(maps.Keys(answers)) {
		t.Logf("%6d %s", answers[answer], answer)
	}
	if *severalRuns >= 50 {
		wantAnswers(t, answers)
	}
}

// wantAnswers fails the test if an answer that the promises are about was never given.
func wantAnswers(t *testing.T, answers map[string]int) {
	t.Helper()
	for _, answer := range []string{
		"ApplyPolicy OK", "ApplyPolicy nothing to change", "ApplyPolicy POLICY_CHANGED",
		"CreateKey OK", "CreateKey REQUEST_ID_USED", "CreateKey MEMBER_NOT_FOUND", "CreateKey MEMBER_SUSPENDED",
		"CreateKey SCOPE_BEYOND_ROLE", "CreateKey LIMIT_REACHED", "CreateKey UNKNOWN",
		"PutMember OK", "PutMember nothing to change", "PutMember SOURCE_VERSION_OUTDATED",
		"RevokeKey OK", "RevokeKey nothing to change", "RevokeKey UNKNOWN", "RevokeKey UNAVAILABLE",
		"RevokeToken OK", "RevokeToken KEY_NOT_FOUND", "RotateKey OK", "RotateKey REQUEST_ID_USED",
		"UpdateKey OK", "UpdateKey KEY_REVOKED", "GetKey KEY_NOT_FOUND", "ListKeys OK",
		"validate UNSPECIFIED", "validate KEY_REVOKED", "validate SCOPE_BEYOND_ROLE", "validate MEMBER_INACTIVE",
	} {
		if answers[answer] == 0 {
			t.Errorf("no call was answered with %q", answer)
		}
	}
}

// TestManyCallersSeeOneHistory: three managers share one file, and 64 callers call them at the same
// time. Without faults, no error is excused.
func TestManyCallersSeeOneHistory(t *testing.T) {
	seed := drawSeed(t)
	judge(t, seed, keystest.RunSeveral(t, &keystest.BoltFleet{}, keystest.Campaign{
		Seed: seed, Managers: 3, Callers: 64, Calls: *severalCalls, Workspaces: 16, LocalBarriers: seed%2 == 0,
	}))
}
