package keycredentials

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// RoundTripper sends the token with requests to the named hosts and refuses all others. It
// is what http.Client.Transport takes.
type RoundTripper struct {
	source  Source
	hosts   []string
	base    http.RoundTripper
	options options
}

// HTTP returns a RoundTripper over another one; nil means http.DefaultTransport. hosts are
// those that may get the token, as they stand in URLs: "api.example.com", or with a port
// where it is not the scheme's, "127.0.0.1:8080". At least one is required: without them a
// redirect would carry the token to whoever the answer names.
//
// A request to another host fails, and so do plain http (see AllowPlaintextLoopback) and a
// request that has an Authorization header already; nothing is sent then.
func HTTP(base http.RoundTripper, source Source, hosts []string, given ...Option) (*RoundTripper, error) {
	if source == nil {
		return nil, errors.New("keycredentials: source: is nil; File, Environment or a SourceFunc is required")
	}
	if len(hosts) == 0 {
		return nil, errors.New("keycredentials: hosts: are empty; name those that may get the token")
	}
	if base == nil {
		base = http.DefaultTransport
	}
	tripper := &RoundTripper{source: source, base: base, options: optionsOf(given)}
	for _, host := range hosts {
		if host == "" || strings.ContainsAny(host, "/@* ") {
			return nil, fmt.Errorf("keycredentials: hosts: %q is none; the form is example.com or example.com:8443", host)
		}
		tripper.hosts = append(tripper.hosts, strings.ToLower(host))
	}
	return tripper, nil
}

// RoundTrip implements http.RoundTripper. The request is not changed.
func (t *RoundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	authorized, err := t.authorize(request)
	if err != nil {
		if request.Body != nil {
			request.Body.Close() //nolint:errcheck // nobody is left to tell
		}
		return nil, err
	}
	return t.base.RoundTrip(authorized)
}

func (t *RoundTripper) authorize(request *http.Request) (*http.Request, error) {
	if request.URL == nil {
		return nil, errors.New("keycredentials: the request has no URL")
	}
	host := strings.ToLower(request.URL.Host)
	if !slices.Contains(t.hosts, host) {
		return nil, fmt.Errorf("keycredentials: %s is not among the hosts that may get the token; nothing was sent", host)
	}
	if request.URL.Scheme != "https" && (!t.options.plaintextLoopback || !isLoopbackHost(request.URL.Hostname())) {
		return nil, fmt.Errorf("keycredentials: %s://%s has no TLS; use https, or AllowPlaintextLoopback on this machine; nothing was sent",
			request.URL.Scheme, host)
	}
	if len(request.Header.Values("Authorization")) > 0 || request.URL.User != nil {
		return nil, errors.New("keycredentials: the request has an authorization already; nothing was sent")
	}
	value, err := header(request.Context(), t.source)
	if err != nil {
		return nil, err
	}
	authorized := request.Clone(request.Context())
	if authorized.Header == nil {
		authorized.Header = make(http.Header)
	}
	authorized.Header.Set("Authorization", value)
	return authorized, nil
}

// isLoopbackHost says whether a host is an address of this machine. Names are not: not
// even localhost is one everywhere.
func isLoopbackHost(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}
