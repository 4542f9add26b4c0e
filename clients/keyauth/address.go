package keyauth

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// clientAddress returns the address of the presenter; the zero Addr behind a unix socket that
// is not trusted, and if the address cannot be read.
func (g *Guard) clientAddress(request *Request) netip.Addr {
	switch {
	case !request.UnixSocket, request.Peer.IsValid():
		return clientAddress(request.Peer, request.Forwarded, g.trusted)
	case g.trustSockets:
		return forwardedAddress(request.Forwarded, g.trusted)
	}
	return netip.Addr{}
}

// clientAddress returns the presenter's address: the peer's, or, if the peer is a trusted
// proxy, the last address in X-Forwarded-For that is not a trusted proxy's. Proxies append to
// that header, so everything to the left of that address may have been written by anybody. If
// all addresses are those of trusted proxies, it is the first. An element that cannot be read, or
// a missing header, makes the address unknown, and a key that is limited to addresses is refused.
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
			var element string
			comma := strings.LastIndexByte(rest, ',')
			last = comma < 0
			if last {
				element = rest
			} else {
				rest, element = rest[:comma], rest[comma+1:]
			}
			if address = parseForwarded(strings.Trim(element, " \t")); !contains(trusted, address) {
				return address
			}
		}
	}
	return address
}

// parseForwarded reads one element of X-Forwarded-For: an address, which some proxies write
// with a port or in brackets. It returns the zero Addr for text that cannot be read.
func parseForwarded(element string) netip.Addr {
	if address, err := netip.ParseAddr(element); err == nil {
		return address.Unmap().WithZone("")
	}
	if withPort, err := netip.ParseAddrPort(element); err == nil {
		return withPort.Addr().Unmap().WithZone("")
	}
	if inner, ok := strings.CutPrefix(element, "["); ok {
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

// addressOf returns the IP address in a network address; the zero Addr for an address without
// one, such as that of a unix socket.
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
