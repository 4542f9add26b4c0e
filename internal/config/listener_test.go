package config_test

import (
	"errors"
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
		"=127.0.0.1:7480":           "allowed are all, validation, management and health",
		"Validation=127.0.0.1:7480": "allowed are all, validation, management and health",
		"metrics=127.0.0.1:7480":    "allowed are all, validation, management and health",
		"validation=":               "allowed are host:port and unix:///path",
		"validation=0.0.0.0:7480":   "no TLS yet",
		"health=:7480":              "no TLS yet",
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
		"no listener":                  {"", nil, "listen"},
		"Listen alone":                 {local, nil, ""},
		"Listeners alone":              {"", []config.Listener{{local, config.PurposeAll}}, ""},
		"one beside Listen":            {"127.0.0.1:7480", []config.Listener{{local, config.PurposeHealth}}, ""},
		"any port, twice":              {"127.0.0.1:0", []config.Listener{{"127.0.0.1:0", config.PurposeHealth}}, ""},
		"Listen from other machines":   {"0.0.0.0:1", []config.Listener{{local, config.PurposeHealth}}, "listen"},
		"listener from other machines": {"127.0.0.1:7480", []config.Listener{{"0.0.0.0:1", config.PurposeHealth}}, "listener"},
		"no purpose":                   {"127.0.0.1:7480", []config.Listener{{local, ""}}, "listener"},
		"the address of Listen":        {local, []config.Listener{{local, config.PurposeHealth}}, "listener"},
		"one address twice":            {"", []config.Listener{{local, config.PurposeValidation}, {local, config.PurposeHealth}}, "listener"},
		"too many":                     {"", make([]config.Listener, 17), "listener"},
	} {
		settings := config.Defaults()
		settings.Listen, settings.Listeners = test.listen, test.listeners
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
