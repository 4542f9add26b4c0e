package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

func TestServePassesFlagsToTheServer(t *testing.T) {
	var got config.Settings
	var answer error
	c := command{hooks: cli.Hooks{Serve: func(_ context.Context, settings config.Settings, _ server.Reload, stdout, stderr io.Writer) error {
		got = settings
		_, err := io.WriteString(stdout, "for people\n")
		_, err2 := io.WriteString(stderr, "a log line\n")
		return errors.Join(answer, err, err2)
	}}}
	c.run(t, "serve").want(t, 0, "for people\n", "a log line\n")
	if !reflect.DeepEqual(got, config.Defaults()) {
		t.Errorf("settings %+v, want the defaults", got)
	}

	r := c.run(
		t, "serve", "--listen", "unix:///run/k.sock", "--data", "/d", "--policy", "p.yaml", "--init", "--dev", "--log-level", "debug",
		"--log-format", "text", "--drain-timeout", "3s", "--max-in-flight", "5", "--max-streams", "6",
		"--max-message-bytes", "70000", "--max-header-bytes", "8000", "--usage-interval", "5s", "--sweep-interval", "2h",
		"--anchor", "/a", "--audit-sink", "/s", "--store", "bbolt", "--listener", "health=127.0.0.1:1", "--listener", "validation=unix:///v",
		"--staleness", "300ms", "--max-sessions", "7", "--session-age", "3h", "--allow-clock-behind", "--allow-clock-ahead", "--channelz",
		"--allow-plaintext", "--callers", "/c", "--socket-mode", "0660", "--socket-group", "mail",
	)
	want := config.Defaults()
	want.Listen, want.Data, want.Policy, want.Anchor, want.AuditSink, want.Callers = "unix:///run/k.sock", "/d", "p.yaml", "/a", "/s", "/c"
	want.Init, want.Dev, want.AllowClockBehind, want.AllowClockAhead, want.Channelz, want.AllowPlaintext = true, true, true, true, true, true
	want.LogLevel, want.LogFormat, want.SocketMode, want.SocketGroup = slog.LevelDebug, config.LogText, 0o660, "mail"
	want.MaxInFlight, want.MaxStreams, want.MaxMessageBytes, want.MaxHeaderBytes, want.MaxSessions = 5, 6, 70000, 8000, 7
	want.DrainTimeout, want.UsageInterval, want.SweepInterval = 3*time.Second, 5*time.Second, 2*time.Hour
	want.Staleness, want.SessionAge = 300*time.Millisecond, 3*time.Hour
	want.Listeners = []config.Listener{{Address: "127.0.0.1:1", Purpose: config.PurposeHealth}, {Address: "unix:///v", Purpose: config.PurposeValidation}}
	if r.status != 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, settings %+v", r, got)
	}

	answer = errors.New("listen 127.0.0.1:7480: address already in use")
	c.run(t, "serve").want(t, 1, "for people\n", "a log line\nerror: listen 127.0.0.1:7480: address already in use\n")

	for _, args := range [][]string{
		{"--listen", "0.0.0.0:7480"},
		{"--listen", ":7480"},
		{"--max-streams", "0"},
		{"--log-level", "loud"},
		{"--log-format", "xml"},
		{"extra"},
	} {
		got = config.Settings{}
		r := c.run(t, append([]string{"serve"}, args...)...)
		if r.status != 1 && r.status != cli.ExitUsage || !strings.HasPrefix(r.stderr, "error: ") || strings.Count(r.stderr, "\n") != 1 || !reflect.DeepEqual(got, config.Settings{}) {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestServeHasAnExitStatusForAStopThatHangs: the error is written, but the exit does not
// wait for a reader.
func TestServeHasAnExitStatusForAStopThatHangs(t *testing.T) {
	hooks := cli.Hooks{Serve: func(context.Context, config.Settings, server.Reload, io.Writer, io.Writer) error {
		return fmt.Errorf("stopping: %w", server.ErrStopTimeout)
	}}
	command{hooks: hooks}.run(t, "serve").want(t, cli.ExitStopTimeout, "", "error: stopping: "+server.ErrStopTimeout.Error()+"\n")

	reader, stderr := io.Pipe() // has no buffer
	status := make(chan int, 1)
	go func() {
		status <- cli.Main(t.Context(), cli.Process{Args: []string{"serve"}, Stdout: io.Discard, Stderr: stderr}, hooks)
	}()
	select {
	case got := <-status:
		if got != cli.ExitStopTimeout {
			t.Errorf("exit status %d", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("the exit waits for a reader of standard error")
	}
	_ = reader.Close()
}

func TestFileCommandsCallTheirHooks(t *testing.T) {
	c := command{hooks: cli.Hooks{Check: func(_ context.Context, file string, outside server.Outside, out io.Writer) error {
		if _, err := fmt.Fprintln(out, "looked at", file+outside.Anchor+outside.Sink); err != nil || file != "bad.db" {
			return err
		}
		return errors.New("bad.db is damaged")
	}}}
	c.run(t, "check", "good.db").want(t, 0, "looked at good.db\n", "")
	c.run(t, "check", "bad.db").want(t, 1, "looked at bad.db\n", "error: bad.db is damaged\n")
	c.run(t, "check", "good.db", "--anchor", ".anchor", "--audit-sink", ".sink").want(t, 0, "looked at good.db.anchor.sink\n", "")
	c = command{hooks: cli.Hooks{RepairClock: func(_ context.Context, file string, outside server.Outside, apply bool, out io.Writer) error {
		_, err := fmt.Fprintln(out, "looked at", file+outside.Anchor, apply)
		return err
	}}}
	c.run(t, "repair-clock", "a.db").want(t, 0, "looked at a.db false\n", "")
	c.run(t, "repair-clock", "a.db", "--yes", "--anchor", ".anchor").want(t, 0, "looked at a.db.anchor true\n", "")
	command{}.run(t, "repair-clock", "a.db").want(t, 1, "", "error: this build of keysvc does not have the command\n")
	command{}.run(t, "check", "good.db").want(t, 1, "", "error: this build of keysvc does not have the command\n")
	command{}.run(t, "serve").want(t, 1, "", "error: this build of keysvc does not have the command\n")
}
