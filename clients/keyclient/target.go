package keyclient

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// parseTarget returns a target of grpc, with DefaultPort added if it has no port, and reports
// whether the target is certainly on this machine. The name localhost is (RFC 6761 section
// 6.3). A malformed target is returned unchanged, for grpc to refuse.
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
	if complete := withPort(endpoint); complete != endpoint {
		endpoint = complete
		if scheme == "" {
			scheme = "dns:///" // without a scheme, grpc would take a host named unix for the scheme unix
		}
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return target, false
	}
	address, err := netip.ParseAddr(host)
	loopback := err == nil && address.Zone() == "" && address.Unmap().IsLoopback()
	return scheme + endpoint, loopback || strings.EqualFold(host, "localhost")
}

// withPort adds DefaultPort to a host without a port.
func withPort(endpoint string) string {
	if _, _, err := net.SplitHostPort(endpoint); err == nil {
		return endpoint
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(endpoint, "["), "]")
	if address, err := netip.ParseAddr(bare); err == nil && address.Zone() == "" {
		return net.JoinHostPort(address.String(), DefaultPort)
	}
	if endpoint == "" || strings.ContainsAny(endpoint, ":/[]") {
		return endpoint
	}
	return net.JoinHostPort(endpoint, DefaultPort)
}
