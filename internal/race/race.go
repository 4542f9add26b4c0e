// Package race knows whether the race detector is on. Random tests run fewer rounds then:
// `make test` runs all of them, and the race detector looks at how goroutines share memory,
// which the first rounds show as well as the last.
package race

// Enabled reports whether the race detector is on.
func Enabled() bool { return enabled }

// Rounds returns the default number of rounds of a random test: full, or slice if the race
// detector is on.
func Rounds(full, slice int) int {
	if enabled {
		return slice
	}
	return full
}
