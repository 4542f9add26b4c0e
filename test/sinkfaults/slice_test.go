//go:build linux

package main

import (
	"runtime"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/race"
)

// TestSinkSurvivesASliceOfTheCampaign plays a few short rounds, none of which needs a file system of
// its own.
func TestSinkSurvivesASliceOfTheCampaign(t *testing.T) {
	if race.Enabled() {
		t.Skip("the server is built without the race detector")
	}
	// Children end with the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := campaign(t.Context(), plan{lasts: time.Hour, rounds: 3, seed: 6, disks: []string{diskPlain}, quick: true}, ""); err != nil {
		t.Error(err)
	}
}
