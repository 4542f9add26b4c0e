package config

import (
	"errors"
	"net/url"
)

// checkCollector accepts "", for none, and the URL of a collector without a path.
func checkCollector(text string) error {
	if text == "" {
		return nil
	}
	parsed, err := url.Parse(text)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Port() == "" || parsed.Hostname() == "" ||
		parsed.User != nil || parsed.Path != "" && parsed.Path != "/" || parsed.RawQuery != "" || parsed.Fragment != "" {
		// The text is not repeated: it may have a password.
		return errors.New("is not the address of a collector, allowed are http://host:port and https://host:port")
	}
	return nil
}
