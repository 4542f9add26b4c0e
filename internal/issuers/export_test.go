package issuers

import (
	"crypto/x509"
	"net/http"
	"os"
	"testing"
	"time"
)

// ParseKeys is parseKeys for tests.
func ParseKeys(text []byte) (int, error) {
	byID, err := parseKeys(text)
	return len(byID), err
}

// Refresh returns options that refresh keys so often.
func (o Options) Refresh(every time.Duration) Options {
	o.timing.refresh, o.timing.refreshFile = every, every
	return o
}

// The times and bounds of keys and tokens.
var (
	Again, Keep = func() (time.Duration, time.Duration) {
		var t timing
		t.setDefaults()
		return t.again, t.keep
	}()
)

// Bounds of waiting.
const (
	MaxPlaces      = maxPlaces
	MaxPlacesOfOne = maxPlacesOfOne
)

// Enter takes a place.
func (s *Set) Enter(from string) (func(), error) { return s.places.enter(from) }

// Client is what an issuer's keys are fetched with.
type Client struct{ *http.Client }

// Client returns the client for one fetch.
func (i Issuer) Client() (Client, error) {
	client, err := i.client()
	return Client{client}, err
}

// Trust makes the authorities of a file those of the client, whichever it had.
func (c Client) Trust(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	transport, _ := c.Transport.(*bounded)
	transport.base.TLSClientConfig.RootCAs = pool
	transport.base.DisableKeepAlives = true
}
