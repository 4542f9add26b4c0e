package keyclient

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// parseTarget returns a target of grpc with the port added where it has none, and whether
// what it names cannot be on another machine. The name localhost is taken at its word
// (RFC 6761 section 6.3). What is malformed comes back as it is, for grpc to refuse.
func parseTarget(target string) (full string, local bool) {
	if path, ok := strings.CutPrefix(target, "unix://"); ok {
		return target, filepath.IsAbs(path)
	}
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		return target, path != ""
	}
	endpoint, scheme := target, ""
	for _, known := range []string{"dns:///", "passthrough:///"} {
		if rest, ok := strings.CutPrefix(target, known); ok {
			endpoint, scheme = rest, known
		}
	}
	endpoint = withPort(endpoint)
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return target, false
	}
	address, err := netip.ParseAddr(host)
	return scheme + endpoint, strings.EqualFold(host, "localhost") || err == nil && address.Unmap().IsLoopback()
}

// withPort adds DefaultPort to a host that stands alone.
func withPort(endpoint string) string {
	bare := strings.TrimSuffix(strings.TrimPrefix(endpoint, "["), "]")
	if address, err := netip.ParseAddr(bare); err == nil {
		return net.JoinHostPort(address.String(), DefaultPort)
	}
	if endpoint == "" || strings.ContainsAny(endpoint, ":/[]") {
		return endpoint
	}
	return net.JoinHostPort(endpoint, DefaultPort)
}
