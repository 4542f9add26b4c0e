package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Booted returns a function that returns how long the machine has been up, sleep included.
// It returns nil on systems that do not measure this.
func Booted() func() time.Duration {
	if _, err := booted(); err != nil {
		return nil
	}
	return func() time.Duration {
		up, _ := booted() // it worked once, so it works
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
