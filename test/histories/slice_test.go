//go:build linux

package main

import (
	"os"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/test/trio"
)

func TestMain(m *testing.M) { os.Exit(trio.Main(m.Run)) }

// TestHistoriesKeepThePromises makes a slice of the campaign: 20 short histories, ten of which are of a store that was put back.
func TestHistoriesKeepThePromises(t *testing.T) {
	if race.Enabled() {
		t.Skip("the processes are built without the race detector")
	}
	p := plan{
		histories: 20, operations: 40, together: 10, seed: uint64(time.Now().UnixNano()) % 1_000_000,
		faults: faultNames(), pause: 100 * time.Millisecond, restores: 100, keep: t.TempDir(),
	}
	if err := campaign(t.Context(), p, t.Logf); err != nil {
		t.Error(err)
	}
}
