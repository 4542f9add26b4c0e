package config_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
)

// source returns a Source with a file "k.yaml" of the given text; "" means that no file is
// named.
func source(file string, variables map[string]string, flags map[string][]string) config.Source {
	all := map[string][]string{}
	if file != "" {
		all[config.FileFlag] = []string{"k.yaml"}
	}
	for name, texts := range flags {
		all[name] = texts
	}
	return config.Source{
		Defaults: config.Defaults(),
		Flags:    all,
		Getenv:   func(name string) string { return variables[name] },
		ReadFile: func(name string) ([]byte, error) {
			if name != "k.yaml" {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			return []byte(file), nil
		},
	}
}

func TestLoadPrefersFlagThenVariableThenFileThenDefault(t *testing.T) {
	const file = "# settings\nmax-streams: 11\nmax-sessions: 12\nmax-in-flight: 13\n"
	variables := map[string]string{"KEYSVC_MAX_SESSIONS": "22", "KEYSVC_MAX_IN_FLIGHT": "23"}
	flags := map[string][]string{"max-in-flight": {"33"}}
	loaded, err := source(file, variables, flags).Load()
	if err != nil {
		t.Fatal(err)
	}
	want := config.Defaults()
	want.MaxStreams, want.MaxSessions, want.MaxInFlight = 11, 22, 33
	if !reflect.DeepEqual(loaded.Settings, want) || loaded.File != "k.yaml" {
		t.Errorf("got %+v from %q", loaded.Settings, loaded.File)
	}
	for name, want := range map[string]string{
		"max-streams": "k.yaml:2", "max-sessions": "KEYSVC_MAX_SESSIONS", "max-in-flight": "--max-in-flight", "max-header-bytes": "default",
	} {
		if got := loaded.Origin(name).String(); got != want {
			t.Errorf("%s comes from %s, want %s", name, got, want)
		}
	}
}

// TestLoadReadsEachSettingFromEachSource: what a setting means does not depend on where it
// comes from.
func TestLoadReadsEachSettingFromEachSource(t *testing.T) {
	for _, setting := range config.Table() {
		sample := samples[setting.Name]
		others := companionsOf(setting.Name)
		given := maps.Clone(others)
		given[setting.Name] = []string{sample}
		want := load(t, given)
		text := sample
		switch setting.Type() {
		case "int", "bool":
		default:
			text = `"` + sample + `"`
		}
		if setting.Repeated() {
			text = "[" + text + "]"
		}
		for from, s := range map[string]config.Source{
			setting.Variable(): source("", map[string]string{setting.Variable(): sample}, others),
			"k.yaml:1":         source(setting.Name+": "+text+"\n", nil, others),
		} {
			loaded, err := s.Load()
			if err != nil || !reflect.DeepEqual(loaded.Settings, want) || loaded.Origin(setting.Name).String() != from {
				t.Errorf("%s from %s: %v, %+v from %s", setting.Name, from, err, loaded.Settings, loaded.Origin(setting.Name))
			}
		}
	}
}

func TestLoadReadsTypesOfTheFile(t *testing.T) {
	const file = `listen: ""
listener:
  - validation=unix:///run/v.sock
  - health=127.0.0.1:7481
init: true
log-level: warn
log-format: text
drain-timeout: 1m30s
`
	loaded, err := source(file, nil, nil).Load()
	want := config.Defaults()
	want.Listen, want.Init, want.LogLevel, want.LogFormat, want.DrainTimeout = "", true, slog.LevelWarn, config.LogText, 90*time.Second
	want.Listeners = []config.Listener{{Address: "unix:///run/v.sock", Purpose: "validation"}, {Address: "127.0.0.1:7481", Purpose: "health"}}
	if err != nil || !reflect.DeepEqual(loaded.Settings, want) {
		t.Errorf("got %+v, %v", loaded.Settings, err)
	}
}

func TestLoadReplacesAListOfAWeakerSource(t *testing.T) {
	const file = "allow-plaintext: true\nlistener: [health=127.0.0.1:1, health=127.0.0.1:2]\n"
	for name, test := range map[string]struct {
		variable string
		flags    []string
		want     []string
	}{
		"file":     {"", nil, []string{"127.0.0.1:1", "127.0.0.1:2"}},
		"variable": {"health=127.0.0.1:3, all=127.0.0.1:4", nil, []string{"127.0.0.1:3", "127.0.0.1:4"}},
		"flags":    {"health=127.0.0.1:3", []string{"all=127.0.0.1:5", "all=127.0.0.1:6"}, []string{"127.0.0.1:5", "127.0.0.1:6"}},
	} {
		flags := map[string][]string{}
		if test.flags != nil {
			flags["listener"] = test.flags
		}
		loaded, err := source(file, map[string]string{"KEYSVC_LISTENER": test.variable}, flags).Load()
		var got []string
		for _, listener := range loaded.Settings.Listeners {
			got = append(got, listener.Address)
		}
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestLoadNamesTheFileByFlagOrVariable(t *testing.T) {
	byVariable := source("max-streams: 5\n", map[string]string{config.FileVariable: "nowhere.yaml"}, nil)
	if loaded, err := byVariable.Load(); err != nil || loaded.Settings.MaxStreams != 5 {
		t.Errorf("the flag does not win: %v", err)
	}
	delete(byVariable.Flags, config.FileFlag)
	if _, err := byVariable.Load(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "reading the configuration file: open nowhere.yaml") {
		t.Errorf("got %v", err)
	}
	byVariable.Getenv = func(name string) string { return map[string]string{config.FileVariable: "k.yaml"}[name] }
	if loaded, err := byVariable.Load(); err != nil || loaded.Settings.MaxStreams != 5 || loaded.File != "k.yaml" {
		t.Errorf("got %+v, %v", loaded, err)
	}
}

func TestLoadIgnoresVariablesThatBelongToNoSetting(t *testing.T) {
	loaded, err := source("", map[string]string{
		"KEYSVC_PORT": "tcp://10.0.0.1:7480", "KEYSVC_SERVICE_HOST": "10.0.0.1", "KEYSVC_ADDR": "x", "KEYSVC_MAX_STREAM": "5",
		"KEYSVC_MAX_STREAMS": "", // set and empty: as if not set
	}, nil).Load()
	if err != nil || !reflect.DeepEqual(loaded.Settings, config.Defaults()) {
		t.Errorf("got %+v, %v", loaded.Settings, err)
	}
}

func TestLoadAllowsAFileWithoutSettings(t *testing.T) {
	for _, file := range []string{"# nothing\n", "---\n", "{}\n"} {
		if loaded, err := source(file, nil, nil).Load(); err != nil || !reflect.DeepEqual(loaded.Settings, config.Defaults()) {
			t.Errorf("%q: %v", file, err)
		}
	}
}

func TestLoadReportsEveryMistakeWithItsOrigin(t *testing.T) {
	const file = `max-stream: 5
max-streams: 0
log-level: loud
drain-timeout: 90
init: yes
listener:
  - health=0.0.0.0
max-sessions: 1
max-sessions: 2
staleness: 1h
`
	variables := map[string]string{"KEYSVC_MAX_IN_FLIGHT": "many", "KEYSVC_DEV": "maybe", "KEYSVC_LISTENER": "health=127.0.0.1:1,,"}
	flags := map[string][]string{"data": {""}, "log-format": {"xml"}, "max-streams": {"7"}, "session-age": {"3 hours"}}
	_, err := source(file, variables, flags).Load()
	const want = `k.yaml:1:1: document: has an unknown field "max-stream", allowed are NAMES
k.yaml:2:14: max-streams: is 0, allowed are 1 to 1048576
k.yaml:3:12: log-level: is "loud", allowed are debug, info, warn and error
k.yaml:4:16: drain-timeout: is the number "90", allowed is a time with its unit, as in 1m30s
k.yaml:5:7: init: is the text "yes", allowed is true or false
k.yaml:7:3: listener: "0.0.0.0" is not an address, allowed are host:port and unix:///path
k.yaml:9:1: document: has max-sessions twice, allowed is once
k.yaml:10:12: staleness: is 1h0m0s, allowed are 100ms to 1m
KEYSVC_LISTENER: "" is not purpose=address, as in validation=unix:///run/keysvc/v.sock
KEYSVC_MAX_IN_FLIGHT: is "many", allowed are 1 to 1048576, in decimal digits
KEYSVC_DEV: is "maybe", allowed are true and false
--data: is empty, it must name a folder
--log-format: is "xml", allowed are text and json
--session-age: is "3 hours", allowed are 1m to 24h, written as in 1m30s`
	var names []string
	for _, setting := range config.Table() {
		names = append(names, setting.Name)
	}
	if err == nil || err.Error() != strings.ReplaceAll(want, "NAMES", strings.Join(names, ", ")) {
		t.Errorf("got\n%v", err)
	}
	var list config.Errors
	var first *config.FieldError
	if !errors.As(err, &list) || len(list) != 14 || !errors.As(err, &first) || first != list[0] {
		t.Errorf("not a list of mistakes: %#v", err)
	}
}

// TestLoadChecksSettingsAgainstEachOther: the error has the origin of the setting that it names.
func TestLoadChecksSettingsAgainstEachOther(t *testing.T) {
	for want, s := range map[string]config.Source{
		"k.yaml:1:9: listen: is none, and there is no listener": source("listen: none\n", nil, nil),
		"k.yaml:1:9: listen: 0.0.0.0:1 can be reached":          source("listen: 0.0.0.0:1\n", nil, nil),
		"k.yaml:1:14: socket-mode: is the number \"600\"":       source("socket-mode: 600\n", nil, nil),
		"--store: is \"paper\", allowed are bbolt and etcd":     source("", nil, map[string][]string{"store": {"paper"}}),
		"--dev: needs a listener that serves everything":        source("listen: none\nlistener: [health=127.0.0.1:1]\n", nil, map[string][]string{"dev": {"true"}}),
		"KEYSVC_LISTENER: ":       source("dev: true\n", map[string]string{"KEYSVC_LISTENER": "health=127.0.0.1:7480"}, nil),
		"--listener: ":            source("", nil, map[string][]string{"listener": {"health=127.0.0.1:1", "all=127.0.0.1:1"}}),
		"k.yaml:2: document: is ": source("listen: x\n\tdata: y\n", nil, nil),
		"k.yaml:1: document: has": source(strings.Repeat("#", 1<<20+1), nil, nil),
	} {
		if _, err := s.Load(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
}

func TestLoadCanBeCalledAgain(t *testing.T) {
	file := "log-level: warn\nlistener: [health=127.0.0.1:1]\n"
	s := source(file, nil, nil)
	s.ReadFile = func(string) ([]byte, error) { return []byte(file), nil }
	before, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	file = "log-level: debug\nmax-streams: 5\n"
	after, err := s.Load()
	if err != nil || after.Settings.LogLevel != slog.LevelDebug || after.Settings.Listeners != nil || before.Settings.LogLevel != slog.LevelWarn {
		t.Errorf("before %+v, after %+v, %v", before.Settings, after.Settings, err)
	}
}

func TestReloadTakesOverWhatIsReloadable(t *testing.T) {
	now, next := config.Defaults(), config.Defaults()
	if merged, changed, restart := now.Reload(next); !reflect.DeepEqual(merged, now) || changed != nil || restart != nil {
		t.Errorf("of the same settings: %+v, %q, %q", merged, changed, restart)
	}
	next.LogLevel, next.MaxInFlight, next.MaxStreams, next.Listeners = slog.LevelDebug, 6, 5, []config.Listener{{Address: "127.0.0.1:1", Purpose: "all"}}
	merged, changed, restart := now.Reload(next)
	want := config.Defaults()
	want.LogLevel, want.MaxInFlight = slog.LevelDebug, 6
	if !reflect.DeepEqual(merged, want) || !reflect.DeepEqual(changed, []string{"log-level", "max-in-flight"}) || !reflect.DeepEqual(restart, []string{"listener", "max-streams"}) {
		t.Errorf("got %+v, %q, %q", merged, changed, restart)
	}
}

// FuzzLoad: whatever the file has, the settings are valid or every mistake has a position.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("listen: unix:///run/k.sock\nlistener: [health=127.0.0.1:1]\ninit: true\nlog-level: warn\nmax-streams: 5\nstaleness: 2s\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		s := source("x", nil, nil)
		s.ReadFile = func(string) ([]byte, error) { return file, nil }
		loaded, err := s.Load()
		if err == nil {
			if err := loaded.Settings.Validate(); err != nil {
				t.Fatalf("Load accepts what Validate refuses: %v", err)
			}
			return
		}
		var list config.Errors
		if !errors.As(err, &list) || len(list) == 0 {
			t.Fatalf("got %#v", err)
		}
		for _, mistake := range list {
			if mistake.Origin.Kind != config.FromFile || mistake.Origin.Line < 1 || strings.ContainsAny(mistake.Error(), "\n\r\x00") {
				t.Fatalf("not a good message: %+v", mistake)
			}
		}
	})
}
