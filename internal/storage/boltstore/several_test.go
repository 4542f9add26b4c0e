package boltstore_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

var (
	severalSeed = flag.Uint64("several.seed", 0, "first seed of the test with several managers; 0 draws one")
	severalRuns = flag.Int("several.runs", race.Rounds(10, 3), "simulations with several managers")
)

// failing is a fleet whose commits fail like those of a bad disk: the handle is closed, and
// the next Load opens the file again.
type failing struct {
	keystest.BoltFleet

	mutex            sync.Mutex
	armed, unwritten bool
}

var errDisk = errors.New("the disk is broken")

func newFailing() *failing {
	f := &failing{}
	f.Config = boltstore.Config{Create: boltstore.CreateIfAbsent}.WithFault(func(written bool) error {
		f.mutex.Lock()
		defer f.mutex.Unlock()
		if !f.armed || written == f.unwritten {
			return nil
		}
		f.armed = false
		return errDisk
	})
	return f
}

// Fail implements keystest.FailingFleet.
func (f *failing) Fail(written bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.armed, f.unwritten = true, !written
}

// TestSeveralManagersOfFailingFile closes and reopens the file again and again under
// several managers. What each of them answers reflects what any of them acknowledged.
func TestSeveralManagersOfFailingFile(t *testing.T) {
	first := *severalSeed
	if first == 0 {
		first = rand.Uint64()>>32 | 1
	}
	t.Logf("seeds from %d", first)
	for run := range uint64(*severalRuns) {
		seed := first + run
		random := rand.New(rand.NewPCG(seed, 3))
		result := keystest.SimulateSeveral(t, newFailing(), keystest.Campaign{
			Seed: seed, Managers: 1 + random.IntN(3), Callers: 2 + random.IntN(5), Calls: 200, Workspaces: 1 + random.IntN(3),
			LocalBarriers: random.IntN(3) > 0,
			Faults:        keystest.Faults{Lost: 15, Dropped: 30, Down: 1},
		})
		if len(result.Violations) > 0 {
			t.Fatalf("%s\nseed %d; again: go test ./internal/storage/boltstore -run '^%s$' -several.runs 1 -several.seed %d",
				result.Summary(), seed, t.Name(), seed)
		}
	}
}
