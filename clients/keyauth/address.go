package keyauth

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// clientAddress returns the presenter's address: the peer's, or, if the peer is a trusted proxy, the one
// that the proxy names in the header that is believed. In X-Forwarded-For it is the last address that is not
// a trusted proxy's. Proxies append to that header, so everything to the left of that address may have been
// written by anybody. If all addresses are those of trusted proxies, it is the first. It is the zero Addr
// behind a unix socket that is not trusted, and if the header is missing or cannot be read; a key that is
// limited to addresses is then refused.
func (g *Guard) clientAddress(request *Request) netip.Addr {
	if request.UnixSocket && !request.Peer.IsValid() {
		if g.trustSockets {
			return g.presenter(request.Forwarded)
		}
		return netip.Addr{}
	}
	address := request.Peer.Unmap().WithZone("")
	if !contains(g.trusted, address) {
		return address
	}
	return g.presenter(request.Forwarded)
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
