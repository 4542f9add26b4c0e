package config

import (
	"errors"
	"net/url"
	"strings"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

// checkWebhook checks the URL of a receiver; "" is allowed. Signed messages name keys, members and
// workspaces, so they go over TLS, or stay on this machine.
func checkWebhook(text string) error {
	if text == "" {
		return nil
	}
	parsed, err := url.Parse(text)
	if err != nil {
		return errors.New("is not a URL") // whose text may hold a secret
	}
	switch {
	case parsed.User != nil:
		return errors.New("has a user or a password, which is not allowed")
	case parsed.Host == "" || parsed.Hostname() == "" || parsed.Opaque != "" || parsed.Fragment != "":
		return errors.New("is not a URL such as https://host/path")
	case parsed.Scheme == "https":
	case parsed.Scheme == "http" && (strings.EqualFold(parsed.Hostname(), "localhost") || isLoopback(parsed.Hostname())):
	default:
		return errors.New("has the scheme " + strictyaml.Quote(parsed.Scheme) + "; allowed are https, and http to loopback")
	}
	return nil
}
