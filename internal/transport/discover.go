package transport

import (
	"os"
	"path/filepath"
)

// maxSocketPath is the max. length, in bytes, of the path of a unix socket on every system.
const maxSocketPath = 103

// Discover returns where a server of this machine is likely to listen: the network "unix" and
// DefaultSocket if there is such a socket, otherwise "tcp" and DefaultAddress. The path of the
// socket is absolute if it is short enough.
func Discover() (network, address string) {
	info, err := os.Stat(DefaultSocket)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return "tcp", DefaultAddress
	}
	if absolute, err := filepath.Abs(DefaultSocket); err == nil && len(absolute) <= maxSocketPath {
		return "unix", absolute
	}
	return "unix", DefaultSocket
}
