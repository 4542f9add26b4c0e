package config

import (
	"fmt"
	"slices"
	"strings"
)

// Purpose says which services a listener serves. The health service is served for every
// purpose, and CallerService for every purpose but PurposeHealth.
type Purpose string

// The purposes.
const (
	// PurposeAll serves everything.
	PurposeAll Purpose = "all"
	// PurposeValidation serves what downstream services call: ValidationService and
	// SyncService.
	PurposeValidation Purpose = "validation"
	// PurposeManagement serves what people and backends of the product call: KeyService,
	// MemberService and PolicyService, and reflection.
	PurposeManagement Purpose = "management"
	// PurposeHealth serves the health service alone, for probes.
	PurposeHealth Purpose = "health"
)

// Purposes returns every purpose.
func Purposes() []Purpose {
	return []Purpose{PurposeAll, PurposeValidation, PurposeManagement, PurposeHealth}
}

// maxListeners is the largest number of listeners of one process.
const maxListeners = 16

// Listener is an address that a server listens on, and what it serves there.
type Listener struct {
	// Address is what ParseAddress reads. Until there is TLS it must be local.
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

// Validate returns an error if the purpose is unknown, or the address is malformed or can
// be reached from other machines.
func (l Listener) Validate() error {
	if !slices.Contains(Purposes(), l.Purpose) {
		return fmt.Errorf("%q is not a purpose, allowed are all, validation, management and health", l.Purpose)
	}
	address, err := ParseAddress(l.Address)
	switch {
	case err != nil:
		return err
	case !address.Local():
		return fmt.Errorf("%s can be reached from other machines, and this version of keysvc has no TLS yet; allowed are loopback (%s) and unix:///path",
			address, DefaultAddress)
	}
	return nil
}

// AllListeners returns every listener of the process: Listen, which serves everything,
// comes first if it is set, and Listeners follow.
func (s Settings) AllListeners() []Listener {
	var all []Listener
	if s.Listen != "" {
		all = append(all, Listener{Address: s.Listen, Purpose: PurposeAll})
	}
	return append(all, s.Listeners...)
}

// validateListeners returns nil, or a *FieldError for the first listener that is not
// allowed.
func (s Settings) validateListeners() error {
	if s.Listen == "" && len(s.Listeners) == 0 {
		return &FieldError{Field: "listen", Problem: "is empty, and there is no listener; one of the two is needed"}
	}
	if s.Listen != "" {
		if err := (Listener{Address: s.Listen, Purpose: PurposeAll}).Validate(); err != nil {
			return &FieldError{Field: "listen", Problem: err.Error()}
		}
	}
	if len(s.Listeners) > maxListeners {
		return &FieldError{Field: "listener", Problem: fmt.Sprintf("is given %d times, allowed are up to %d", len(s.Listeners), maxListeners)}
	}
	taken := make(map[string]bool)
	for _, listener := range s.AllListeners() {
		if err := listener.Validate(); err != nil {
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
