package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSocketPath is the max. length, in bytes, of the path of a unix socket on every system.
const maxSocketPath = 103

// Address is where a server listens, or where a client connects to it.
type Address struct {
	// Network is "tcp" or "unix", as in net.Dial and net.Listen.
	Network string
	// Target is "host:port" or, on a unix socket, an absolute path.
	Target string
}

// ParseAddress reads "host:port" or "unix:///path". The port is a number. Port 0 is for
// listening only, and means any free port.
func ParseAddress(text string) (Address, error) {
	if path, isUnix := strings.CutPrefix(text, "unix://"); isUnix {
		switch {
		case !filepath.IsAbs(path):
			return Address{}, fmt.Errorf("%q needs an absolute path, as in unix:///run/keysvc.sock", text)
		case len(path) > maxSocketPath:
			return Address{}, fmt.Errorf("the path of the unix socket has %d bytes, allowed are up to %d", len(path), maxSocketPath)
		}
		return Address{Network: "unix", Target: path}, nil
	}
	_, port, err := net.SplitHostPort(text)
	if err != nil || strings.HasPrefix(text, "unix:") {
		return Address{}, fmt.Errorf("%q is not an address, allowed are host:port and unix:///path", text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Address{}, fmt.Errorf("%q has the port %q, allowed are 0 to 65535", text, port)
	}
	return Address{Network: "tcp", Target: text}, nil
}

// String returns the form that ParseAddress reads.
func (a Address) String() string {
	if a.Network == "unix" {
		return "unix://" + a.Target
	}
	return a.Target
}

// Local reports whether the address cannot be reached from other machines, so that plaintext
// is allowed: a unix socket, a loopback address, or the name localhost. Local does not look
// the name up; check the address that it stands for with IsLoopback.
func (a Address) Local() bool {
	if a.Network == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(a.Target)
	return err == nil && (strings.EqualFold(host, "localhost") || isLoopback(host))
}

// IsLoopback reports whether hostPort is on the loopback interface. It must be numeric, as
// net.Addr.String returns it.
func IsLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	return err == nil && isLoopback(host)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
