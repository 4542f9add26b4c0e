package keyclient

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/scribe-mail/keysvc/internal/spread"
)

// parseTargets returns the target of grpc for one target or a list with commas between, as parseTarget does for one.
// It reports whether all are certainly on this machine, and whether the target may be several servers.
func parseTargets(target string) (full string, local, several bool, err error) {
	if !strings.Contains(target, ",") {
		full, local = parseTarget(target)
		return full, local, maybeSeveral(full), nil
	}
	local = true
	var elements []string
	for each := range strings.SplitSeq(target, ",") {
		one, isLocal := parseTarget(strings.TrimSpace(each))
		one = strings.TrimPrefix(one, "dns:///")
		if path, ok := strings.CutPrefix(one, "unix:"); ok {
			one = "unix:" + strings.TrimPrefix(path, "//")
		} else if _, _, err := net.SplitHostPort(one); err != nil || strings.Contains(one, "/") {
			return "", false, false, fmt.Errorf("%q in a list is no server; allowed are host, host:port and unix:///path", each)
		}
		if len(elements) > 0 && isUnix(one) != isUnix(elements[0]) {
			return "", false, false, errors.New("a list has unix sockets or other servers, not both")
		}
		elements, local = append(elements, one), local && isLocal
	}
	return listTarget + strings.Join(elements, ","), local, true, nil
}

// listTarget is the beginning of a target that is a list.
const listTarget = spread.Scheme + ":///"

// maybeSeveral reports whether a target of grpc can have more than one address.
func maybeSeveral(full string) bool {
	rest := strings.TrimPrefix(full, "dns:///")
	if isUnix(full) || strings.HasPrefix(full, "passthrough:") {
		return false
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return true
	}
	_, err = netip.ParseAddr(host)
	return err != nil
}

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
