package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Booted returns a function that says how long the machine has been up, sleep included.
// It is nil where the system does not tell.
func Booted() func() time.Duration {
	if _, err := booted(); err != nil {
		return nil
	}
	return func() time.Duration {
		up, _ := booted() // it does not begin to fail
		return up
	}
}

func booted() (time.Duration, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return 0, err
	}
	return time.Duration(up.Nano()), nil
}
