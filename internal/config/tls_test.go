package config_test

import (
	"errors"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
)

func TestSettingsForTLSMustFitEachOther(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*config.Settings)
		field  string
	}{
		"certificate, key, callers": {func(s *config.Settings) { s.TLSServerCert, s.TLSServerKey, s.Callers = "c", "k", "f" }, ""},
		"Workload API and callers":  {func(s *config.Settings) { s.SPIFFESocket, s.Callers = "unix:///s", "f" }, ""},
		"off loopback": {func(s *config.Settings) {
			s.TLSServerCert, s.TLSServerKey, s.Callers, s.Listen = "c", "k", "f", "0.0.0.0:7443"
		}, ""},
		"no key":                     {func(s *config.Settings) { s.TLSServerCert, s.Callers = "c", "f" }, "tls-server-key"},
		"no certificate":             {func(s *config.Settings) { s.TLSServerKey, s.Callers = "k", "f" }, "tls-server-cert"},
		"no callers":                 {func(s *config.Settings) { s.TLSServerCert, s.TLSServerKey = "c", "k" }, "callers"},
		"tokens in the clear":        {func(s *config.Settings) { s.TLSBearers, s.Callers = true, "f" }, "tls-bearers"},
		"Workload API over TCP":      {func(s *config.Settings) { s.SPIFFESocket, s.Callers = "10.0.0.1:80", "f" }, "spiffe-socket"},
		"plaintext for others still": {func(s *config.Settings) { s.Listen = "0.0.0.0:7443" }, "listen"},
	} {
		settings := config.Defaults()
		test.change(&settings)
		err := settings.Validate()
		var wrong *config.FieldError
		if test.field == "" && err != nil || test.field != "" && (!errors.As(err, &wrong) || wrong.Field != test.field) {
			t.Errorf("%s: %v, want a mistake in %q", name, err, test.field)
		}
	}
}
