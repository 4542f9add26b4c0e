//go:build !linux

package clock

import "time"

// Booted returns a function that returns how long the machine has been up, sleep included.
// It returns nil on systems that do not measure this.
func Booted() func() time.Duration { return nil }
