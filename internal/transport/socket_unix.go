//go:build unix

package transport

import (
	"fmt"
	"os"
	"syscall"
)

// fileOwner returns the user id of a socket's file.
func fileOwner(path string) (uint32, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("the owner of the socket is not known: %w", err)
	}
	status, can := info.Sys().(*syscall.Stat_t)
	if !can {
		return 0, errNoOwner
	}
	return status.Uid, nil
}
