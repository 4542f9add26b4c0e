package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// newReloading returns a process that runs nothing, reloads what reload returns, and
// writes its log to the buffer.
func newReloading(t *testing.T, reload Reload) (*process, *buffer) {
	t.Helper()
	settings, text := everything(t), &buffer{}
	log, level, repeats := newProcessLog(settings, text)
	t.Cleanup(repeats.Flush)
	p := newProcess(settings, log, &buffer{}, func() {})
	p.level, p.reload = level, reload
	return p, text
}

func TestReloadAppliesWhatCanChangeWhileRunning(t *testing.T) {
	var next config.Settings
	p, log := newReloading(t, func() (config.Settings, error) { return next, nil })
	next = p.settings
	next.LogLevel, next.MaxInFlight, next.ReadOnly = slog.LevelDebug, 8, true
	next.Staleness, next.Data = 3*time.Second, "/elsewhere"
	p.reloadSettings(t.Context())
	if !p.log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("the log's level stayed")
	}
	if most := p.server.slots.of(callers.Read).limit.Load(); most != 2 {
		t.Errorf("%d reads may be in flight, want 2", most)
	}
	if most := p.server.slots.of(callers.Session).limit.Load(); most != 2+int64(p.settings.MaxSessions) {
		t.Errorf("%d sessions may be in flight, want 2 beside those of the hub", most)
	}
	if !p.server.refusesChanges.Load() || !p.server.readOnly.Load() {
		t.Error("it is not read-only")
	}
	if text := log.String(); !strings.Contains(text, `at_next_start":"data, staleness"`) {
		t.Errorf("the log does not name the settings that wait for a start:\n%s", text)
	}
}

// TestReloadAppliesWhatTheTableMarks: whoever marks another setting as Reloadable must apply it in
// process.apply, and add it to the test above.
func TestReloadAppliesWhatTheTableMarks(t *testing.T) {
	var marked []string
	for _, setting := range config.Table() {
		if setting.Reloadable {
			marked = append(marked, setting.Name)
		}
	}
	if !slices.Equal(marked, []string{"read-only", "log-level", "max-in-flight"}) {
		t.Errorf("the table marks %q", marked)
	}
}

func TestReloadOfWrongSettingsKeepsThoseBefore(t *testing.T) {
	for name, change := range map[string]func(*config.Settings) error{
		"not valid":     func(s *config.Settings) error { s.MaxInFlight = 0; return nil },
		"unknown store": func(s *config.Settings) error { s.Store = "paper"; return nil },
		"not read":      func(*config.Settings) error { return errors.New("keysvc.yaml:3: unknown key") },
	} {
		t.Run(name, func(t *testing.T) {
			var next config.Settings
			p, log := newReloading(t, func() (config.Settings, error) { return next, change(&next) })
			next = p.settings
			next.LogLevel = slog.LevelDebug
			p.reloadSettings(t.Context())
			if p.log.Enabled(t.Context(), slog.LevelDebug) || p.server.slots.of(callers.Read).limit.Load() != int64(p.settings.MaxInFlight)/stayingShare {
				t.Error("something was applied")
			}
			if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `"level":"ERROR"`) || !strings.Contains(text, `"error":"`) {
				t.Errorf("want one line that says why, got\n%s", text)
			}
		})
	}
}

func TestSIGHUPWithoutReloadIsLogged(t *testing.T) {
	p, log := newReloading(t, nil)
	p.reloadSettings(t.Context())
	if !strings.Contains(log.String(), "SIGHUP is ignored") {
		t.Errorf("the log is %q", log)
	}
}

// TestLimitsCanBeLoweredBelowWhatIsInFlight: calls that have a slot keep it.
func TestLimitsCanBeLoweredBelowWhatIsInFlight(t *testing.T) {
	settings := config.Defaults()
	table := newSlotTable(settings)
	read := table.of(callers.Read)
	var share *atomic.Int64
	for range 3 {
		if share = read.acquire("local"); share == nil {
			t.Fatal("there is no slot")
		}
	}
	settings.MaxInFlight = 2 * stayingShare
	table.resize(settings)
	if read.acquire("local") != nil {
		t.Error("a fourth got in")
	}
	read.release(share)
	if read.acquire("local") != nil {
		t.Error("a third got in")
	}
	read.release(share)
	read.release(share)
	if read.acquire("local") == nil || read.taken.Load() != 1 {
		t.Error("there is no slot, though none is taken")
	}
}

// TestSIGHUPReloadsARunningProcess sends the signal to this process.
func TestSIGHUPReloadsARunningProcess(t *testing.T) {
	settings := everything(t)
	settings.Dev, settings.Init = false, true
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	reload := func() (config.Settings, error) { return settings, nil }
	out, log, ended := newNotice("keysvc serves on"), newNotice("the settings were read again"), make(chan error, 1)
	go func() { ended <- RunWithReload(ctx, settings, reload, out, log) }()
	<-out.seen
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-log.seen
	stop()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// notice is a writer that closes seen when a text was written to it.
type notice struct {
	text string
	seen chan struct{}
	once sync.Once
}

func newNotice(text string) *notice { return &notice{text: text, seen: make(chan struct{})} }

func (n *notice) Write(line []byte) (int, error) {
	if strings.Contains(string(line), n.text) {
		n.once.Do(func() { close(n.seen) })
	}
	return len(line), nil
}
