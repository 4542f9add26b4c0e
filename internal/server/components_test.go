package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// everything are settings of a process that runs all that a process can run.
func everything(t *testing.T) config.Settings {
	t.Helper()
	folder := shortFolder(t)
	settings := config.Defaults()
	settings.Listen = "unix://" + filepath.Join(folder, "a")
	for _, purpose := range config.Purposes() {
		settings.Listeners = append(settings.Listeners, config.Listener{Address: "unix://" + filepath.Join(folder, string(purpose)), Purpose: purpose})
	}
	settings.Data, settings.Dev = filepath.Join(folder, "data"), true
	settings.DrainTimeout = 5 * time.Second
	return settings
}

// recorded wraps the components of a list, so that events has their starts and stops in
// order: "+name" and "-name".
func recorded(list []component, events *[]string) []component {
	list = slices.Clone(list)
	for index := range list {
		each := list[index]
		list[index].start = func(ctx context.Context) error {
			if each.start != nil {
				if err := each.start(ctx); err != nil {
					return err
				}
			}
			*events = append(*events, "+"+each.name)
			return nil
		}
		list[index].stop = func(ctx context.Context) error {
			*events = append(*events, "-"+each.name)
			if each.stop != nil {
				return each.stop(ctx)
			}
			return nil
		}
	}
	return list
}

// startsAndStops returns what is recorded of a list whose first components were started
// and stopped in reverse.
func startsAndStops(list []component, count int) []string {
	var events []string
	for _, each := range list[:count] {
		events = append(events, "+"+each.name)
	}
	for _, each := range slices.Backward(list[:count]) {
		events = append(events, "-"+each.name)
	}
	return events
}

// expectReleased checks that nothing of a process is left: its addresses can be listened
// on, and its store opened. TestMain checks that no goroutine is.
func expectReleased(t *testing.T, settings config.Settings) {
	t.Helper()
	for _, each := range settings.AllListeners() {
		address, err := config.ParseAddress(each.Address)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), address.Network, address.Target)
		if err != nil {
			t.Errorf("the listener was left open: %v", err)
			continue
		}
		_ = listener.Close()
	}
	store, err := openBolt(t.Context(), settings, newLog(settings, &buffer{}))
	if err != nil {
		t.Errorf("the store was left open: %v", err)
		return
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

// forEachComponent calls test for each component of a process, in a process of its own.
// Components that are added to the list are tested without being named here.
func forEachComponent(t *testing.T, test func(t *testing.T, p *process, list []component, index int)) {
	t.Helper()
	count := 1
	for index := 0; index < count; index++ {
		settings := everything(t)
		p := newProcess(settings, newLog(settings, &buffer{}), &buffer{}, func() {})
		list := p.components()
		count = len(list)
		t.Run(list[index].name, func(t *testing.T) {
			test(t, p, list, index)
			expectReleased(t, settings)
		})
	}
	if count < 14 {
		t.Errorf("the list has %d components only", count)
	}
}

// expectOneLine checks that an error says in one line which component failed, and why.
func expectOneLine(t *testing.T, got error, name string, cause error) {
	t.Helper()
	if !errors.Is(got, cause) || !strings.HasPrefix(got.Error(), name+": ") || strings.Contains(got.Error(), "\n") {
		t.Errorf("got %v, want one line that says that %s failed: %v", got, name, cause)
	}
}

func TestFailedStartStopsInReverseWhatHasStarted(t *testing.T) {
	cause := errors.New("the injected fault")
	forEachComponent(t, func(t *testing.T, p *process, list []component, index int) {
		var events []string
		wrapped := recorded(list, &events)
		wrapped[index].start = func(context.Context) error { return cause }
		expectOneLine(t, p.runBounded(t.Context(), wrapped), list[index].name, cause)
		if want := startsAndStops(list, index); !slices.Equal(events, want) {
			t.Errorf("got  %q\nwant %q", events, want)
		}
	})
}

func TestFailureWhileRunningStopsEverythingInReverse(t *testing.T) {
	cause := errors.New("the injected fault")
	forEachComponent(t, func(t *testing.T, p *process, list []component, index int) {
		var events []string
		wrapped := recorded(list, &events)
		run, fail := wrapped[index].run, make(chan struct{})
		wrapped[index].run = func(ctx context.Context) error {
			within, cancel := context.WithCancel(ctx)
			defer cancel()
			if run != nil {
				go func() { <-fail; cancel() }()
				_ = run(within)
			}
			<-fail
			return cause
		}
		last := wrapped[len(wrapped)-1].start
		wrapped[len(wrapped)-1].start = func(ctx context.Context) error {
			defer close(fail)
			return last(ctx)
		}
		expectOneLine(t, p.runBounded(t.Context(), wrapped), list[index].name, cause)
		if want := startsAndStops(list, len(list)); !slices.Equal(events, want) {
			t.Errorf("got  %q\nwant %q", events, want)
		}
	})
}

func TestStopGoesOnWhenAComponentFailsToStop(t *testing.T) {
	cause := errors.New("the injected fault")
	forEachComponent(t, func(t *testing.T, p *process, list []component, index int) {
		var events []string
		wrapped := recorded(list, &events)
		stop := wrapped[index].stop
		wrapped[index].stop = func(ctx context.Context) error { return joinErrors(cause, stop(ctx)) }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		last := wrapped[len(wrapped)-1].start
		wrapped[len(wrapped)-1].start = func(ctx context.Context) error {
			defer cancel()
			return last(ctx)
		}
		expectOneLine(t, p.runBounded(ctx, wrapped), "stopping "+list[index].name, cause)
		if want := startsAndStops(list, len(list)); !slices.Equal(events, want) {
			t.Errorf("got  %q\nwant %q", events, want)
		}
	})
}

// TestStopDuringTheStartStopsWhatHasStarted ends the context in each component's start.
func TestStopDuringTheStartStopsWhatHasStarted(t *testing.T) {
	forEachComponent(t, func(t *testing.T, p *process, list []component, index int) {
		var events []string
		wrapped := recorded(list, &events)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := wrapped[index].start
		wrapped[index].start = func(ctx context.Context) error {
			cancel()
			return start(ctx)
		}
		err := p.runBounded(ctx, wrapped)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the start was cancelled, or nothing", err)
		}
		started := slices.IndexFunc(events, func(event string) bool { return event[0] == '-' })
		if want := startsAndStops(list, max(0, started)); !slices.Equal(events, want) {
			t.Errorf("got  %q\nwant %q", events, want)
		}
	})
}

func TestStoreIsOpenedByName(t *testing.T) {
	settings := everything(t)
	settings.Store = "paper"
	var wrong *config.FieldError
	err := Run(t.Context(), settings, &buffer{}, &buffer{})
	if !errors.As(err, &wrong) || wrong.Field != "store" || !strings.Contains(wrong.Problem, "allowed are bbolt and etcd") {
		t.Errorf("got %v, want a FieldError that names the stores", err)
	}
	for _, setting := range config.Table() {
		if names := slices.Sorted(maps.Keys(backends)); setting.Name == "store" && !slices.Equal(setting.Words(), names) {
			t.Errorf("the setting allows %q, the server has %q", setting.Words(), names)
		}
	}
	if _, err := boltstore.Open(filepath.Join(settings.Data, storeFile), boltstore.Config{}); err == nil {
		t.Error("a store was made")
	}
}

func TestDemonstrationNeedsAListenerThatServesEverything(t *testing.T) {
	settings := everything(t)
	settings.Listeners = []config.Listener{{Address: settings.Listen, Purpose: config.PurposeManagement}}
	settings.Listen = config.NoListener
	var wrong *config.FieldError
	if err := Run(t.Context(), settings, &buffer{}, &buffer{}); !errors.As(err, &wrong) || wrong.Field != "dev" {
		t.Errorf("got %v, want a FieldError for dev", err)
	}
}

func TestGreetingNamesEachListener(t *testing.T) {
	settings := everything(t)
	settings.Dev, settings.Init = false, true
	out := &buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := newProcess(settings, newLog(settings, &buffer{}), out, func() {})
	list := append(p.components(), component{name: "the end", start: func(context.Context) error { cancel(); return nil }})
	if err := p.runBounded(ctx, list); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("keysvc serves on %s\n", settings.Listen)
	for _, each := range settings.Listeners {
		if each.Purpose == config.PurposeAll {
			want += fmt.Sprintf("keysvc serves on %s\n", each.Address)
			continue
		}
		want += fmt.Sprintf("keysvc serves %s on %s\n", each.Purpose, each.Address)
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}
