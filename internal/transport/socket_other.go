//go:build !unix

package transport

// fileOwner fails: this system has no user ids.
func fileOwner(string) (uint32, error) { return 0, errNoOwner }
