package bench

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// processorTime returns how long a process has been running on any processor, in user and
// kernel mode, those of its threads that have ended included. Unlike the figures of /proc
// it is exact to far less than a clock tick.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	// clock_getcpuclockid(3): the complement of the process id, and CPUCLOCK_SCHED.
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &spent); err != nil { //nolint:gosec // a process id has at most 22 bits
		t.Fatal(err)
	}
	return time.Duration(spent.Nano())
}
