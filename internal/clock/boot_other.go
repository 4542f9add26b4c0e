//go:build !linux

package clock

import "time"

// Booted returns a function that says how long the machine has been up, sleep included.
// It is nil where the system does not tell.
func Booted() func() time.Duration { return nil }
