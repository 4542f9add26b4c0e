package config_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := config.Defaults().Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	tests := []struct {
		field  string
		change func(*config.Settings)
	}{
		{"listen", func(s *config.Settings) { s.Listen = "none" }},
		{"listen", func(s *config.Settings) { s.Listen = "127.0.0.1:7480" }},
		{"socket-mode", func(s *config.Settings) { s.SocketMode = 0 }},
		{"socket-mode", func(s *config.Settings) { s.SocketMode = 0o700 }},
		{"socket-mode", func(s *config.Settings) { s.SocketMode = 0o060 }},
		{"listen", func(s *config.Settings) { s.Listen = ":7480" }},
		{"listen", func(s *config.Settings) { s.Listen = "0.0.0.0:7480" }},
		{"listen", func(s *config.Settings) { s.Listen = "keysvc.example.com:7480" }},
		{"listen", func(s *config.Settings) { s.Listen = "unix://relative.sock" }},
		{"data", func(s *config.Settings) { s.Data = "" }},
		{"log-format", func(s *config.Settings) { s.LogFormat = "xml" }},
		{"tokens", func(s *config.Settings) { s.Tokens = "maybe" }},
		{"tokens", func(s *config.Settings) { s.Tokens, s.Dev = config.TokensRefused, true }},
		{"drain-timeout", func(s *config.Settings) { s.DrainTimeout = -time.Second }},
		{"max-in-flight", func(s *config.Settings) { s.MaxInFlight = 0 }},
		{"max-streams", func(s *config.Settings) { s.MaxStreams = -1 }},
		{"max-message-bytes", func(s *config.Settings) { s.MaxMessageBytes = 1 << 40 }},
		{"max-buffered-bytes", func(s *config.Settings) { s.MaxBufferedBytes = 1 << 20 }},
		{"max-buffered-bytes", func(s *config.Settings) { s.MaxMessageBytes = 3 << 20 }},
		{"max-header-bytes", func(s *config.Settings) { s.MaxHeaderBytes = 1 }},
		{"staleness", func(s *config.Settings) { s.Staleness = -1 }},
		{"staleness", func(s *config.Settings) { s.Staleness = 99 * time.Millisecond }},
		{"staleness", func(s *config.Settings) { s.Staleness = time.Minute + 1 }},
		{"max-sessions", func(s *config.Settings) { s.MaxSessions = 0 }},
		{"session-age", func(s *config.Settings) { s.SessionAge = time.Second }},
		{"session-age", func(s *config.Settings) { s.SessionAge = 25 * time.Hour }},
	}
	for _, test := range tests {
		settings := config.Defaults()
		test.change(&settings)
		var wrong *config.FieldError
		if err := settings.Validate(); !errors.As(err, &wrong) || wrong.Field != test.field {
			t.Errorf("Validate = %v, want a FieldError for %s", err, test.field)
		}
	}
}

func TestParseAddressReadsHostPortAndSocket(t *testing.T) {
	tests := []struct {
		text    string
		network string // "" for an error
		target  string
		local   bool
	}{
		{"127.0.0.1:7480", "tcp", "127.0.0.1:7480", true},
		{"127.8.9.10:0", "tcp", "127.8.9.10:0", true},
		{"[::1]:7480", "tcp", "[::1]:7480", true},
		{"[::ffff:127.0.0.1]:1", "tcp", "[::ffff:127.0.0.1]:1", true},
		{"LocalHost:7480", "tcp", "LocalHost:7480", true},
		{"localhost.example.com:7480", "tcp", "localhost.example.com:7480", false},
		{"0.0.0.0:7480", "tcp", "0.0.0.0:7480", false},
		{"[::]:7480", "tcp", "[::]:7480", false},
		{":7480", "tcp", ":7480", false},
		{"192.168.0.1:7480", "tcp", "192.168.0.1:7480", false},
		{"unix:///run/keysvc.sock", "unix", "/run/keysvc.sock", true},
		{"unix://run/keysvc.sock", "", "", false},
		{"unix:///" + strings.Repeat("a", 103), "", "", false},
		{"127.0.0.1", "", "", false},
		{"127.0.0.1:http", "", "", false},
		{"127.0.0.1:65536", "", "", false},
		{"http://127.0.0.1:7480", "", "", false},
		{"", "", "", false},
	}
	for _, test := range tests {
		address, err := config.ParseAddress(test.text)
		if (err == nil) != (test.network != "") {
			t.Errorf("ParseAddress(%q) = %v", test.text, err)
			continue
		}
		if address.Network != test.network || address.Target != test.target || address.Local() != test.local {
			t.Errorf("ParseAddress(%q) = %+v, local %t", test.text, address, address.Local())
		}
		if err == nil && address.String() != test.text {
			t.Errorf("String = %q, want %q", address, test.text)
		}
	}
}

func TestIsLoopbackAcceptsLoopbackAddressesOnly(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "10.0.0.1:1": false, "localhost:1": false, "": false} {
		if config.IsLoopback(address) != want {
			t.Errorf("IsLoopback(%q) = %t", address, !want)
		}
	}
}
