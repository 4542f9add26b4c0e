package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

// settingsFile writes a configuration file, and makes its folder the working directory.
func settingsFile(t *testing.T, text string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("k.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConfigShowPrintsEachValueAndItsOrigin(t *testing.T) {
	file, err := filepath.Abs("testdata/config_show.txt")
	if err != nil {
		t.Fatal(err)
	}
	settingsFile(t, "# settings\nmax-streams: 11\nlistener:\n  - health=127.0.0.1:7481\n")
	c := command{env: map[string]string{"KEYSVC_CONFIG": "k.yaml", "KEYSVC_LOG_LEVEL": "warn", "KEYSVC_PORT": "tcp://10.0.0.1:7480"}}
	args := []string{"config", "show", "--max-sessions", "5", "--init", "--data", "/d\x1b[2J"}
	r := c.run(t, args...)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	goldenAt(t, file, r.stdout)

	r = c.run(t, append(args, "-o", "json")...)
	var rows []struct{ Name, Value, Origin string }
	if err := json.Unmarshal([]byte(r.stdout), &rows); err != nil || r.status != 0 || len(rows) != len(config.Table()) {
		t.Fatalf("%v: %+v", err, r)
	}
	for _, row := range rows {
		if row.Name == "max-streams" && (row.Value != "11" || row.Origin != "k.yaml:2") {
			t.Errorf("got %+v", row)
		}
	}
}

func TestConfigCheckReportsEveryMistake(t *testing.T) {
	settingsFile(t, "max-streams: 0\nlog-level: loud\n")
	c := command{env: map[string]string{"KEYSVC_STALENESS": "1h"}}
	c.run(t, "config", "check", "--config", "k.yaml", "--log-format", "xml").want(t, 1, "", `k.yaml:1:14: max-streams: is 0, allowed are 1 to 1048576
k.yaml:2:12: log-level: is "loud", allowed are debug, info, warn and error
KEYSVC_STALENESS: is 1h0m0s, allowed are 100ms to 1m
--log-format: is "xml", allowed are text and json
error: the settings are not valid
`)
	if r := c.run(t, "config", "show", "--config", "k.yaml"); r.status != 1 || r.stdout != "" || strings.Count(r.stderr, "\n") != 4 {
		t.Errorf("show: %+v", r)
	}
	command{}.run(t, "config", "check", "--init", "--max-streams=5").want(t, 0, fmt.Sprintf("The settings are valid: 2 are given, %d have their default\n", len(config.Table())-2), "")
	command{}.run(t, "config", "check", "--config", "absent.yaml").want(t, 1, "", "error: reading the configuration file: open absent.yaml: no such file or directory\n")
	command{}.run(t, "config", "check", "x").want(t, cli.ExitUsage, "", "error: takes flags only, no argument (see keysvc config check --help)\n")
}

func TestConfigShowsNoToken(t *testing.T) {
	// Nobody should put one there, but somebody will.
	settingsFile(t, "data: "+testToken+"\nlog-level: "+testToken+"\n")
	if r := (command{}).run(t, "config", "check", "--config", "k.yaml"); r.status != 1 || !strings.Contains(r.stderr, "[redacted token]") {
		t.Errorf("%+v", r)
	}
	settingsFile(t, "listen: none\nlistener: [all=unix:///k.sock]\ndata: "+testToken+"\n")
	for _, format := range []string{"table", "json"} {
		if r := (command{}).run(t, "config", "show", "--config", "k.yaml", "-o", format); r.status != 0 || strings.Contains(r.stdout, secretPart) {
			t.Errorf("%s: %+v", format, r)
		}
	}
}

func TestConfigPagePrintsSettingsMD(t *testing.T) {
	command{}.run(t, "config", "page").want(t, 0, string(config.Page()), "")
}

func TestServeReadsFileAndVariablesAndCanReadThemAgain(t *testing.T) {
	settingsFile(t, "max-streams: 11\nmax-sessions: 12\nmax-in-flight: 13\n")
	var got config.Settings
	var again server.Reload
	c := command{
		env: map[string]string{"KEYSVC_CONFIG": "k.yaml", "KEYSVC_MAX_SESSIONS": "22", "KEYSVC_MAX_IN_FLIGHT": "23"},
		hooks: cli.Hooks{Serve: func(_ context.Context, settings config.Settings, reload server.Reload, _, _ io.Writer) error {
			got, again = settings, reload
			return nil
		}},
	}
	if r := c.run(t, "serve", "--max-in-flight", "33"); r.status != 0 || got.MaxStreams != 11 || got.MaxSessions != 22 || got.MaxInFlight != 33 {
		t.Errorf("%+v, settings %+v", r, got)
	}
	settingsFile(t, "max-streams: 44\nmax-in-flight: 45\n")
	if next, err := again(); err != nil || next.MaxStreams != 44 || next.MaxInFlight != 33 {
		t.Errorf("read again: %+v, %v", next, err)
	}
	settingsFile(t, "max-streams: 0\nunknown: 1\n")
	if next, err := again(); err == nil || next.Store != "" {
		t.Errorf("read again: %+v, %v", next, err)
	}
	got = config.Settings{}
	r := c.run(t, "serve")
	if want := "error: k.yaml:1:14: max-streams: is 0, allowed are 1 to 1048576\n  k.yaml:2:1: document: has an unknown field \"unknown\", allowed are listen,"; r.status != 1 || !strings.HasPrefix(r.stderr, want) || got.Store != "" {
		t.Errorf("%+v", r)
	}
}

func TestSettingsAreCompletedFromTheTable(t *testing.T) {
	for flag, want := range map[string]string{
		"--log-format": "text\njson\n:4\n", "--log-level": "debug\ninfo\nwarn\nerror\n:4\n", "--max-streams": ":4\n",
		"--data": ":16\n", "--policy": ":0\n", "--config": "yaml\nyml\n:8\n",
	} {
		for _, command := range [][]string{{"serve"}, {"config", "show"}, {"config", "check"}} {
			r := runComplete(t, append(command, flag, "")...)
			if !strings.HasPrefix(r.stdout, want) {
				t.Errorf("%v %s: %q, want %q", command, flag, r.stdout, want)
			}
		}
	}
}

func runComplete(t *testing.T, args ...string) result {
	t.Helper()
	return command{}.run(t, append([]string{"__complete"}, args...)...)
}
