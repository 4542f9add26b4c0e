package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/logging"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/systemd"
)

// stopGrace is the longest time that a stop may take besides the drain. Together with the last
// writes to the log and to standard output, a stop takes at most the drain timeout and 5 s.
const stopGrace = 4 * time.Second

// ErrStopTimeout is returned by Run if the stop did not end in time, usually because the disk
// hangs. The goroutines that hang stay until the process ends, which should be soon. No
// acknowledged change is lost; last-used times may be.
var ErrStopTimeout = errors.New("the stop hangs: gave up waiting for the disk or for calls in flight")

// Reload reads the settings again and returns them as the next start would have them. It is called
// on SIGHUP.
type Reload func() (config.Settings, error)

// Run is RunWithReload without a Reload: SIGHUP is ignored.
func Run(ctx context.Context, settings config.Settings, stdout, stderr io.Writer) error {
	return RunWithReload(ctx, settings, nil, stdout, stderr)
}

// RunWithReload serves until the context ends; then it drains, closes, and returns nil. It returns
// at most the drain timeout and 5 s after the context ended. If something hangs, the error is
// ErrStopTimeout. The same holds for a stop during the start, and for a stop that a failure
// caused. The text of an error is one line that makes sense alone.
//
// reload is called on each SIGHUP, and the settings that can change while the process runs are
// applied. If the settings are wrong, the mistakes are logged and nothing changes. If reload is
// nil, SIGHUP is ignored. stdout is for the person who started the process, and stderr for the
// log. The process does not wait for the readers of either. RunWithReload makes SIGHUP, SIGPIPE
// and SIGTTOU neither end nor stop the process, also after it has returned. Likewise the process goes on
// to collect garbage less often than by Go's default, if GOGC is not set.
func RunWithReload(ctx context.Context, settings config.Settings, reload Reload, stdout, stderr io.Writer) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	collectLess()
	person := logging.NewWriter(stdout, logging.Config{})
	defer person.Close()
	lines := logging.NewWriter(stderr, logging.Config{Notice: droppedNotice(settings)})
	defer lines.Close()
	log, level, repeats := newProcessLog(settings, lines)
	defer repeats.Flush()

	// ending ends when ctx ends, and also when the process stops by itself.
	ending, end := context.WithCancel(ctx)
	defer end()
	p := newProcess(settings, log, person, end)
	p.level, p.reload = level, reload
	return p.runBounded(ending, p.components())
}

// process is one run of the server, from the start to the end.
type process struct {
	settings config.Settings
	log      *slog.Logger
	stdout   io.Writer
	server   *Server
	// openStore opens the store that is served.
	openStore backend
	// sockets are the listeners that systemd passed; nil before the start.
	sockets *systemd.Sockets
	// end ends the context of run, which starts the stop.
	end func()
	// opened is the store, once it is open.
	opened atomic.Pointer[storage.Store]
	// level is the level of the log, and reload reads the settings again; either may be nil.
	level  *slog.LevelVar
	reload Reload
}

// newProcess returns a process with valid settings, in which nothing runs yet.
func newProcess(settings config.Settings, log *slog.Logger, stdout io.Writer, end func()) *process {
	return &process{
		settings: settings, log: log, stdout: stdout, end: end, openStore: backends[settings.Store],
		server: newServer(Config{Settings: settings, Log: log}),
	}
}

// components returns everything that the process runs, in the order of the start.
func (p *process) components() []component {
	list := []component{p.signals(), p.policyFile(), p.server.callersFile(), p.server.noticeSecret(), p.receivedSockets()}
	var within []component
	for _, each := range p.settings.AllListeners() {
		if p.inDataFolder(each) {
			within = append(within, p.listener(each))
		} else {
			list = append(list, p.listener(each))
		}
	}
	list = append(list, p.store())
	// The store makes the data folder.
	list = append(list, within...)
	list = append(list, p.noSocketsLeft())
	list = append(list, p.server.components()...)
	return append(list, p.greeting(), p.serviceManager())
}

// runBounded runs a list of components. It gives up on a stop that hangs when the context
// has ended for the drain timeout and stopGrace.
func (p *process) runBounded(ctx context.Context, list []component) error {
	finished := make(chan error, 1)
	go func() { finished <- p.run(ctx, list) }()
	select {
	case err := <-finished:
		return err
	case <-ctx.Done():
	}
	bound := time.NewTimer(p.settings.DrainTimeout + stopGrace)
	defer bound.Stop()
	select {
	case err := <-finished:
		return err
	case <-bound.C:
		p.log.ErrorContext(ctx, "the stop hangs; the process ends without it")
		return ErrStopTimeout
	}
}

// run starts the components, waits until the context ends or one of them fails, and stops
// those that were started.
func (p *process) run(ctx context.Context, list []component) (err error) {
	parts := newComponents()
	defer func() {
		p.end() // from here on runBounded counts the time
		drain, cancel := context.WithTimeout(context.Background(), p.settings.DrainTimeout)
		defer cancel()
		err = joinErrors(err, parts.stop(drain))
	}()
	if err := parts.start(ctx, list); err != nil {
		return err
	}
	select {
	case err := <-parts.failure():
		return err
	case <-ctx.Done():
		p.log.InfoContext(ctx, "stopping", "drain_timeout", p.settings.DrainTimeout.String())
		return nil
	}
}

// policyFile reads the policy that fills an empty store.
func (p *process) policyFile() component {
	return component{name: "policy file", start: func(context.Context) (err error) {
		p.server.config.Policy, err = readPolicy(p.settings.Policy)
		return err
	}}
}

// listener opens a listener. Calls are answered on it once everything else has started.
func (p *process) listener(wanted config.Listener) component {
	var opened *persistentListener
	return component{
		name: "listener " + wanted.String(),
		start: func(ctx context.Context) error {
			listener, err := listen(ctx, wanted, p.settings, p.sockets)
			if err != nil {
				return err
			}
			opened = newPersistentListener(listener, p.server.hooks.AcceptFailed)
			p.server.listeners = append(p.server.listeners, servedListener{
				Listener: opened, purpose: wanted.Purpose, connections: p.server.connectionsOf(opened, wanted.Purpose),
			})
			return nil
		},
		stop: func(context.Context) error {
			_ = opened.Close() // the stop of the calls has closed it; this is for starts that fail
			return nil
		},
	}
}

// inDataFolder reports whether a listener is a socket in the data folder.
func (p *process) inDataFolder(wanted config.Listener) bool {
	address, err := config.ParseAddress(wanted.Address)
	if err != nil || address.Network != "unix" {
		return false
	}
	folder, err := filepath.Abs(p.settings.Data)
	return err == nil && filepath.Dir(address.Target) == folder
}

// store opens the store.
func (p *process) store() component {
	var opened storage.Store
	return component{
		name: "store",
		start: func(ctx context.Context) (err error) {
			if opened, err = p.openStore(ctx, p.settings, p.log); err == nil {
				p.server.config.Store = opened
				p.opened.Store(&opened)
			}
			return err
		},
		stop: func(context.Context) error { return opened.Close() },
	}
}

// greeting tells the person who started the process where it serves. With --dev it seeds
// the demonstration workspace first.
func (p *process) greeting() component {
	return component{name: "greeting", start: func(ctx context.Context) error {
		seed := p.settings.Dev
		for _, each := range p.server.listeners {
			switch {
			case seed && each.purpose == config.PurposeAll:
				seed = false
				if err := p.server.seedDemo(ctx, p.settings, address(each), p.stdout); err != nil {
					return fmt.Errorf("seeding the demo workspace: %w", err)
				}
			case each.purpose == config.PurposeAll:
				_, _ = fmt.Fprintf(p.stdout, "keysvc serves on %s\n", address(each))
			default:
				_, _ = fmt.Fprintf(p.stdout, "keysvc serves %s on %s\n", each.purpose, address(each))
			}
		}
		return nil
	}}
}

// readPolicy reads the policy in a file; the built-in one if the name is empty.
func readPolicy(file string) (*policy.Policy, error) {
	if file == "" {
		return policy.Default(), nil
	}
	document, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return policy.Parse(file, document)
}
