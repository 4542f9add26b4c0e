package keyauth

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// clientAddress returns whose request it is. Behind a unix socket that is not trusted
// nobody's address is known.
func (g *Guard) clientAddress(request *Request) netip.Addr {
	switch {
	case !request.UnixSocket, request.Peer.IsValid():
		return clientAddress(request.Peer, request.Forwarded, g.trusted)
	case g.trustSockets:
		return forwardedAddress(request.Forwarded, g.trusted)
	}
	return netip.Addr{}
}

// clientAddress returns whose request it is: the peer's address, or, if that is a trusted
// proxy, the last address in X-Forwarded-For that is not one. Proxies append, so what
// stands to the left of it was written by somebody who is not trusted. If all are trusted,
// it is the first. What cannot be read, or no header at all, makes the address unknown,
// and keys that are limited to addresses are refused.
func clientAddress(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	address := peer.Unmap().WithZone("")
	if !contains(trusted, address) {
		return address
	}
	return forwardedAddress(forwarded, trusted)
}

// forwardedAddress returns the last address that is not a trusted proxy's.
func forwardedAddress(forwarded []string, trusted []netip.Prefix) (address netip.Addr) {
	for _, line := range slices.Backward(forwarded) {
		for rest, last := line, false; !last; {
			var entry string
			comma := strings.LastIndexByte(rest, ',')
			last = comma < 0
			if last {
				entry = rest
			} else {
				rest, entry = rest[:comma], rest[comma+1:]
			}
			if address = parseForwarded(strings.Trim(entry, " \t")); !contains(trusted, address) {
				return address
			}
		}
	}
	return address
}

// parseForwarded reads an entry of X-Forwarded-For: an address, which some proxies write
// with a port or in brackets. The zero Addr is one that cannot be read.
func parseForwarded(entry string) netip.Addr {
	if address, err := netip.ParseAddr(entry); err == nil {
		return address.Unmap().WithZone("")
	}
	if withPort, err := netip.ParseAddrPort(entry); err == nil {
		return withPort.Addr().Unmap().WithZone("")
	}
	if inner, ok := strings.CutPrefix(entry, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			if address, err := netip.ParseAddr(inner); err == nil && address.Is6() {
				return address.Unmap().WithZone("")
			}
		}
	}
	return netip.Addr{}
}

func contains(prefixes []netip.Prefix, address netip.Addr) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// addressOf returns the address of a network address; the zero Addr for a unix socket and
// all else that has none.
func addressOf(address net.Addr) netip.Addr {
	switch address := address.(type) {
	case nil:
		return netip.Addr{}
	case *net.TCPAddr:
		return address.AddrPort().Addr().Unmap().WithZone("")
	}
	withPort, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return netip.Addr{}
	}
	return withPort.Addr().Unmap().WithZone("")
}
