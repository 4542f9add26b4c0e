package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
)

func TestParseListenerReadsPurposeAndAddress(t *testing.T) {
	for text, want := range map[string]config.Listener{
		"all=127.0.0.1:7480":            {Address: "127.0.0.1:7480", Purpose: config.PurposeAll},
		"validation=unix:///run/v.sock": {Address: "unix:///run/v.sock", Purpose: config.PurposeValidation},
		"management=localhost:0":        {Address: "localhost:0", Purpose: config.PurposeManagement},
		"health=[::1]:7481":             {Address: "[::1]:7481", Purpose: config.PurposeHealth},
		"health=unix:///run/a=b.sock":   {Address: "unix:///run/a=b.sock", Purpose: config.PurposeHealth},
	} {
		got, err := config.ParseListener(text)
		if err != nil || got != want {
			t.Errorf("ParseListener(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("String = %q, want %q", got, text)
		}
	}
}

func TestParseListenerNamesWhatIsAllowed(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "purpose=address",
		"127.0.0.1:7480":            "purpose=address",
		"=127.0.0.1:7480":           "allowed are all, validation, management, health and metrics",
		"Validation=127.0.0.1:7480": "allowed are all, validation, management, health and metrics",
		"metric=127.0.0.1:7480":     "allowed are all, validation, management, health and metrics",
		"validation=":               "allowed are host:port and unix:///path",
		"validation=0.0.0.0":        "allowed are host:port and unix:///path",
		"health=unix://run/v.sock":  "absolute path",
	} {
		if _, err := config.ParseListener(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseListener(%q) = %v, want an error with %q", text, err, want)
		}
	}
}

func TestValidateNamesTheListenerThatIsWrong(t *testing.T) {
	const local = "127.0.0.1:7481"
	for name, test := range map[string]struct {
		listen    string
		listeners []config.Listener
		field     string // "" for none
	}{
		"no listener":                  {"none", nil, "listen"},
		"Listen alone":                 {local, nil, ""},
		"default alone":                {"", nil, ""},
		"Listeners alone":              {"none", []config.Listener{{local, config.PurposeAll}}, ""},
		"one beside Listen":            {"127.0.0.1:7480", []config.Listener{{local, config.PurposeHealth}}, ""},
		"any port, twice":              {"127.0.0.1:0", []config.Listener{{"127.0.0.1:0", config.PurposeHealth}}, ""},
		"Listen from other machines":   {"0.0.0.0:1", []config.Listener{{local, config.PurposeHealth}}, "listen"},
		"listener from other machines": {local, []config.Listener{{"0.0.0.0:1", config.PurposeValidation}}, "listener"},
		"a name that may be anywhere":  {"keysvc.example.com:1", nil, "listen"},
		"health from other machines":   {local, []config.Listener{{"0.0.0.0:1", config.PurposeHealth}}, ""},
		"health of a name":             {local, []config.Listener{{"keysvc.example.com:1", config.PurposeHealth}}, ""},
		"no purpose":                   {"127.0.0.1:7480", []config.Listener{{local, ""}}, "listener"},
		"the address of Listen":        {local, []config.Listener{{local, config.PurposeHealth}}, "listener"},
		"one address twice":            {"none", []config.Listener{{local, config.PurposeValidation}, {local, config.PurposeHealth}}, "listener"},
		"too many":                     {local, make([]config.Listener, 17), "listener"},
	} {
		settings := config.Defaults()
		settings.Listen, settings.Listeners, settings.AllowPlaintext = test.listen, test.listeners, true
		err := settings.Validate()
		var wrong *config.FieldError
		switch {
		case test.field == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.field != "" && (!errors.As(err, &wrong) || wrong.Field != test.field):
			t.Errorf("%s: %v, want a FieldError for %s", name, err, test.field)
		}
	}
}

// TestPlaintextMustBeAskedFor: without a flag that says so, nothing but health is served in
// plaintext over TCP.
func TestPlaintextMustBeAskedFor(t *testing.T) {
	for _, test := range []struct {
		listener         config.Listener
		dev, allow, want bool
	}{
		{config.Listener{"127.0.0.1:1", config.PurposeAll}, false, false, false},
		{config.Listener{"127.0.0.1:1", config.PurposeValidation}, false, false, false},
		{config.Listener{"localhost:1", config.PurposeManagement}, false, false, false},
		{config.Listener{"127.0.0.1:1", config.PurposeAll}, true, false, true},
		{config.Listener{"127.0.0.1:1", config.PurposeAll}, false, true, true},
		{config.Listener{"10.0.0.1:1", config.PurposeAll}, true, true, false},
		{config.Listener{"[::]:1", config.PurposeManagement}, true, true, false},
		{config.Listener{"10.0.0.1:1", config.PurposeHealth}, false, false, true},
		{config.Listener{"10.0.0.1:1", config.PurposeMetrics}, false, false, true},
		{config.Listener{"unix:///run/k.sock", config.PurposeAll}, false, false, true},
	} {
		settings := config.Defaults()
		settings.Listeners, settings.Dev, settings.AllowPlaintext = []config.Listener{test.listener}, test.dev, test.allow
		if err := settings.Validate(); (err == nil) != test.want {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestTheDefaultListenerIsASocketInTheDataFolder(t *testing.T) {
	settings := config.Defaults()
	settings.Data = "/var/lib/keysvc/"
	if all := settings.AllListeners(); len(all) != 1 || all[0].String() != "all=unix:///var/lib/keysvc/keysvc.sock" {
		t.Errorf("got %v", all)
	}
	settings.Data = "relative"
	folder, err := os.Getwd()
	if all := settings.AllListeners(); err != nil || all[0].Address != "unix://"+folder+"/relative/keysvc.sock" {
		t.Errorf("got %v, %v", all, err)
	}
	settings.Dev = true
	if all := settings.AllListeners(); len(all) != 1 || all[0].Address != config.DefaultAddress {
		t.Errorf("with --dev %v", all)
	}
	settings.Dev, settings.Data = false, "/"+strings.Repeat("a", 100)
	var wrong *config.FieldError
	if err := settings.Validate(); !errors.As(err, &wrong) || wrong.Field != "listen" {
		t.Errorf("a path that is too long: %v", err)
	}
}

// FuzzParseListener: every listener that is parsed is valid, and its String is parsed as the same
// listener.
func FuzzParseListener(f *testing.F) {
	f.Add("all=127.0.0.1:7480")
	f.Fuzz(func(t *testing.T, text string) {
		listener, err := config.ParseListener(text)
		if err != nil {
			return
		}
		if err := listener.Validate(); err != nil {
			t.Errorf("ParseListener(%q) = %+v, which is not valid: %v", text, listener, err)
		}
		if again, err := config.ParseListener(listener.String()); err != nil || again != listener {
			t.Errorf("ParseListener(%q) = %+v, %v; want %+v", listener, again, err, listener)
		}
	})
}
