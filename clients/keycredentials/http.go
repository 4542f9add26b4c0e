package keycredentials

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// RoundTripper sends the token with requests to the named hosts, and refuses all other
// requests. Use it as http.Client.Transport.
type RoundTripper struct {
	source  Source
	hosts   []string
	base    http.RoundTripper
	options options
}

// HTTP returns a RoundTripper over another one; nil means http.DefaultTransport. hosts are the
// hosts that may get the token, written as in URLs: "api.example.com", or with a port that is
// not the scheme's default, "127.0.0.1:8080". At least one is required, because a redirect
// could otherwise carry the token to any host.
//
// These requests fail, and nothing is sent: a request to another host, a request over plain
// http (see AllowPlaintextLoopback), and a request that has an Authorization header already.
func HTTP(base http.RoundTripper, source Source, hosts []string, given ...Option) (*RoundTripper, error) {
	if source == nil {
		return nil, errNoSource
	}
	if len(hosts) == 0 {
		return nil, errors.New("keycredentials: hosts: are empty; at least one host that may get the token is required")
	}
	if base == nil {
		base = http.DefaultTransport
	}
	tripper := &RoundTripper{source: source, base: base, options: optionsOf(given)}
	for _, host := range hosts {
		name, ok := parseHost(host)
		if !ok {
			return nil, fmt.Errorf("keycredentials: hosts: %q is not a host; the form is example.com or example.com:8443, in ASCII, without wildcards", host)
		}
		tripper.hosts = append(tripper.hosts, name)
	}
	return tripper, nil
}

// parseHost returns a host, and its port if it has one, in the form in which hosts are
// compared. ok is false if text is not the host part of a URL.
func parseHost(text string) (host string, ok bool) {
	parsed, err := url.Parse("https://" + text)
	if err != nil || parsed.Host != text || parsed.Hostname() == "" || strings.HasSuffix(text, ":") {
		return "", false
	}
	for _, char := range []byte(text) {
		if char <= ' ' || char > '~' || char == '*' || char == '%' {
			return "", false
		}
	}
	return strings.ToLower(text), true
}

// CloseIdleConnections closes the idle connections of the RoundTripper below, if it can; see
// http.Client.
func (t *RoundTripper) CloseIdleConnections() {
	if closer, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper. The request is not changed.
func (t *RoundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	authorized, err := t.authorize(request)
	if err != nil {
		if request.Body != nil {
			request.Body.Close() //nolint:errcheck // nobody could be told
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
	if request.URL.Scheme != "https" && (request.URL.Scheme != "http" || !t.options.plaintextLoopback || !isLoopbackHost(request.URL.Hostname())) {
		return nil, fmt.Errorf("keycredentials: %s://%s has no TLS; use https, or AllowPlaintextLoopback and a loopback address such as 127.0.0.1; nothing was sent",
			request.URL.Scheme, host)
	}
	if hasAuthorization(request.Header) || request.URL.User != nil {
		return nil, errors.New("keycredentials: the request has an authorization already; nothing was sent")
	}
	value, err := authorization(request.Context(), t.source)
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

// hasAuthorization reports whether there is an Authorization header, however its name is
// written.
func hasAuthorization(header http.Header) bool {
	for name := range header {
		if strings.EqualFold(name, "Authorization") {
			return true
		}
	}
	return false
}

// isLoopbackHost reports whether a host is a loopback address. A name is not one; even
// localhost does not mean this machine everywhere.
func isLoopbackHost(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}
