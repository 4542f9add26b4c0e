package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processorTime returns the processor time of a process in user and kernel mode, ended threads
// included. It is exact to far less than a clock tick, unlike the figures in /proc.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	// clock_getcpuclockid(3): the complement of the process id, and CPUCLOCK_SCHED.
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &spent); err != nil { // a process id has at most 22 bits
		t.Fatal(err)
	}
	return time.Duration(spent.Nano())
}

// runWhenIdle lets a process run only when nobody else wants the processor (SCHED_IDLE), as if it ran on
// another machine: a lower priority alone makes a thread that wakes up wait for milliseconds.
func runWhenIdle(t *testing.T, pid int) {
	t.Helper()
	// Threads inherit it from the first one.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		const size = unsafe.Sizeof(unix.SchedAttr{})
		if err := unix.SchedSetAttr(id, &unix.SchedAttr{Size: uint32(size), Policy: unix.SCHED_IDLE}, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

// sleepExactly sleeps, to some microseconds. The timers of Go are exact to a millisecond only. The caller
// has a thread of its own.
func sleepExactly(duration time.Duration) {
	pause := unix.NsecToTimespec(int64(duration))
	_ = unix.Nanosleep(&pause, nil)
}
