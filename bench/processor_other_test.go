//go:build !linux

package bench

import (
	"testing"
	"time"
)

// processorTime skips the test, because the code to read another process's time is for Linux
// only.
func processorTime(t *testing.T, _ int) time.Duration {
	t.Helper()
	t.Skip("measures processor time, on Linux only")
	return 0
}

func runWhenIdle(*testing.T, int) {}

func sleepExactly(duration time.Duration) { time.Sleep(duration) }
