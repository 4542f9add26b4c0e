//go:build linux

package main

import (
	"runtime"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/race"
)

// TestNothingComesBackInASliceOfTheCampaign plays one round, always the same one.
func TestNothingComesBackInASliceOfTheCampaign(t *testing.T) {
	if race.Enabled() {
		t.Skip("the server is built without the race detector")
	}
	// Children end with the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := campaign(t.Context(), plan{rounds: 1, lasts: time.Hour, seed: 6}, ""); err != nil {
		t.Error(err)
	}
}
