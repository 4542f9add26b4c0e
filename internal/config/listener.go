package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Purpose says what a listener serves. The health service is served for every purpose but
// PurposeMetrics, and CallerService for every purpose but these two.
type Purpose string

// The purposes.
const (
	// PurposeAll serves everything.
	PurposeAll Purpose = "all"
	// PurposeValidation serves what downstream services call: ValidationService and
	// SyncService.
	PurposeValidation Purpose = "validation"
	// PurposeManagement serves what people and backends of the product call: KeyService,
	// MemberService, PolicyService, SettingsService, AuditService and BackupService, and reflection.
	PurposeManagement Purpose = "management"
	// PurposeHealth serves the health service alone, for probes.
	PurposeHealth Purpose = "health"
	// PurposeMetrics serves metrics for Prometheus over HTTP, and nothing else.
	PurposeMetrics Purpose = "metrics"
)

// Purposes returns every purpose.
func Purposes() []Purpose {
	return []Purpose{PurposeAll, PurposeValidation, PurposeManagement, PurposeHealth, PurposeMetrics}
}

// IsOpen reports whether a listener serves anybody, in plaintext: probes and Prometheus prove no
// identity, and what they read names nobody.
func (p Purpose) IsOpen() bool { return p == PurposeHealth || p == PurposeMetrics }

// maxListeners is the largest number of listeners of one process.
const maxListeners = 16

// Listener is an address that a server listens on, and what it serves there.
type Listener struct {
	// Address is what ParseAddress reads.
	Address string
	// Purpose says which services are served.
	Purpose Purpose
}

// ParseListener reads "purpose=address", as in "validation=unix:///run/keysvc/v.sock" or
// "health=127.0.0.1:7481". The error names what is allowed.
func ParseListener(text string) (Listener, error) {
	purpose, address, found := strings.Cut(text, "=")
	if !found {
		return Listener{}, fmt.Errorf("%q is not purpose=address, as in validation=unix:///run/keysvc/v.sock", text)
	}
	listener := Listener{Address: address, Purpose: Purpose(purpose)}
	if err := listener.Validate(); err != nil {
		return Listener{}, err
	}
	return listener, nil
}

// String returns the form that ParseListener reads.
func (l Listener) String() string { return string(l.Purpose) + "=" + l.Address }

// Validate returns an error if the purpose is unknown or the address is malformed. Whether the
// address may be served is a matter of the other settings.
func (l Listener) Validate() error {
	if !slices.Contains(Purposes(), l.Purpose) {
		return fmt.Errorf("%q is not a purpose, allowed are all, validation, management, health and metrics", l.Purpose)
	}
	_, err := ParseAddress(l.Address)
	return err
}

// NoListener is the value of Settings.Listen for no such listener.
const NoListener = "none"

// socketName is the name of the default unix socket, in the data folder.
const socketName = "keysvc.sock"

// listen returns the address of the listener that serves everything; "" for none.
func (s Settings) listen() (string, error) {
	switch {
	case s.Listen == NoListener:
		return "", nil
	case s.Listen != "":
		return s.Listen, nil
	case s.Dev:
		return DefaultAddress, nil
	}
	folder, err := filepath.Abs(s.Data)
	if err != nil {
		return "", fmt.Errorf("the data folder %s has no absolute path: %w", s.Data, err)
	}
	return "unix://" + filepath.Join(folder, socketName), nil
}

// AllListeners returns every listener of the process: the one of Listen, which serves everything,
// comes first if there is one, and Listeners follow. The settings must be valid.
func (s Settings) AllListeners() []Listener {
	var all []Listener
	if address, err := s.listen(); err == nil && address != "" {
		all = append(all, Listener{Address: address, Purpose: PurposeAll})
	}
	return append(all, s.Listeners...)
}

// Plaintext reports whether a listener serves plaintext over TCP. Listeners of health and of metrics always do:
// the probes of Kubernetes speak no TLS.
func (s Settings) Plaintext(listener Listener) bool {
	address, err := ParseAddress(listener.Address)
	return err == nil && address.Network == "tcp" && (listener.Purpose.IsOpen() || !s.TLS())
}

// validateServed returns an error if a listener would serve plaintext to whom it must not.
func (s Settings) validateServed(listener Listener) error {
	if err := listener.Validate(); err != nil {
		return err
	}
	address, err := ParseAddress(listener.Address)
	switch {
	case err != nil:
		return err
	case !s.Plaintext(listener) || listener.Purpose.IsOpen():
		return nil
	case !address.Local():
		return fmt.Errorf("%s can be reached from other machines, and needs TLS; without it, allowed are unix:///path, health=%s, and loopback with --allow-plaintext",
			address, address)
	case !s.Dev && !s.AllowPlaintext:
		return fmt.Errorf("%s would serve plaintext to every user of this machine; allowed are unix:///path, TLS, and plaintext with --allow-plaintext or --dev", address)
	}
	return nil
}

// Metrics reports whether a listener serves metrics.
func (s Settings) Metrics() bool {
	return slices.ContainsFunc(s.Listeners, func(listener Listener) bool { return listener.Purpose == PurposeMetrics })
}

// validateListeners returns nil, or a *FieldError for the first listener that is not
// allowed.
func (s Settings) validateListeners() error {
	first, err := s.listen()
	switch {
	case err != nil:
		return &FieldError{Field: "listen", Problem: err.Error()}
	case first == "" && len(s.Listeners) == 0:
		return &FieldError{Field: "listen", Problem: "is none, and there is no listener; one of the two is needed"}
	case first != "":
		if err := s.validateServed(Listener{Address: first, Purpose: PurposeAll}); err != nil {
			return &FieldError{Field: "listen", Problem: err.Error()}
		}
	}
	if len(s.Listeners) > maxListeners {
		return &FieldError{Field: "listener", Problem: fmt.Sprintf("is given %d times, allowed are up to %d", len(s.Listeners), maxListeners)}
	}
	taken := make(map[string]bool)
	for _, listener := range s.AllListeners() {
		if err := s.validateServed(listener); err != nil {
			return &FieldError{Field: "listener", Problem: err.Error()}
		}
		// Port 0 is another free port each time.
		if taken[listener.Address] && !strings.HasSuffix(listener.Address, ":0") {
			return &FieldError{Field: "listener", Problem: fmt.Sprintf("names %s twice; each address is listened on once", listener.Address)}
		}
		taken[listener.Address] = true
	}
	return nil
}
