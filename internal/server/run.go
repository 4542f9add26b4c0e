package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/logging"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// storeFile is the name of the store in the data folder.
const storeFile = "keysvc.db"

// stopGrace is what a stop may take besides the drain. With what is then written to the
// log, and said to the person, a stop takes no more than the drain and 5 s.
const stopGrace = 4 * time.Second

// ErrStopTimeout is returned by Run if the stop did not end in time, usually because
// the disk hangs. What hangs is left to the end of the process, which should be soon.
// Nothing acknowledged is lost; last-used times may be.
var ErrStopTimeout = errors.New("the stop hangs: gave up waiting for the disk or for calls in flight")

// Run serves until the context ends, which is the wish to stop; then it drains,
// closes, and returns nil. Whatever hangs, it returns within the drain timeout and 5 s
// after that, with ErrStopTimeout if something did; the same holds for a stop during the
// start, and for one that a failure caused. An error makes sense in one line. stdout is
// for the person who started the process, stderr for the log; neither has to be read.
// For the rest of the process, signals other than those that end it are ignored.
func Run(ctx context.Context, settings config.Settings, stdout, stderr io.Writer) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	person := logging.NewWriter(stdout, logging.Config{})
	defer person.Close()
	lines := logging.NewWriter(stderr, logging.Config{Notice: droppedNotice(settings)})
	defer lines.Close()
	log, repeats := newProcessLog(settings, lines)
	defer repeats.Flush()
	defer ignoreSignals(log)()

	// ending begins when somebody wishes it, and also when the process goes by itself.
	ending, end := context.WithCancel(ctx)
	defer end()
	p := &process{settings: settings, log: log, stdout: person, end: end}
	p.openStore = p.openFile
	return p.runBounded(ending)
}

// process is one run of the server, from the start to the end.
type process struct {
	settings config.Settings
	log      *slog.Logger
	stdout   io.Writer
	// openStore opens the store that is served.
	openStore func() (closableStore, error)
	// end ends the context that run has, to say that the stop begins.
	end func()
	// cleanups undo, in reverse order, what the start has done.
	cleanups []func() error
}

// closableStore is a store that this package opens and closes.
type closableStore interface {
	storage.Store
	Close() error
}

// runBounded runs, and gives up on what hangs when the context has ended for long enough.
func (p *process) runBounded(ctx context.Context) error {
	finished := make(chan error, 1)
	go func() { finished <- p.run(ctx) }()
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

// run starts, serves until the context ends, and stops.
func (p *process) run(ctx context.Context) (err error) {
	defer func() {
		p.end()
		for _, cleanup := range slices.Backward(p.cleanups) {
			err = errors.Join(err, cleanup())
		}
	}()
	server, listener, err := p.start(ctx)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	p.log.InfoContext(ctx, "serving", "address", address(listener), "data", p.settings.Data)
	if p.settings.Dev {
		if err := server.seedDemo(ctx, p.settings, address(listener), p.stdout); err != nil {
			return fmt.Errorf("seeding the demo workspace: %w", err)
		}
	} else {
		_, _ = fmt.Fprintf(p.stdout, "keysvc serves on %s\n", address(listener))
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		p.log.InfoContext(ctx, "stopping", "drain_timeout", p.settings.DrainTimeout.String())
		return nil
	}
}

// start makes everything ready to serve.
func (p *process) start(ctx context.Context) (*Server, net.Listener, error) {
	wanted, err := readPolicy(p.settings.Policy)
	if err != nil {
		return nil, nil, err
	}
	listener, err := listen(ctx, p.settings.Listen)
	if err != nil {
		return nil, nil, err
	}
	listener = newPersistentListener(listener, p.log)
	p.cleanups = append(p.cleanups, func() error {
		_ = listener.Close() // serving has closed it; this is for starts that fail
		return nil
	})
	store, err := p.openStore()
	if err != nil {
		return nil, nil, err
	}
	p.cleanups = append(p.cleanups, func() error {
		if err := store.Close(); err != nil {
			return fmt.Errorf("closing the store: %w", err)
		}
		return nil
	})
	warnOfLooseModes(ctx, p.log, p.settings.Data, filepath.Join(p.settings.Data, storeFile))
	server, err := New(ctx, Config{Store: store, Settings: p.settings, Policy: wanted, Log: p.log})
	if err != nil {
		return nil, nil, err
	}
	p.cleanups = append(p.cleanups, func() error {
		stop(server, p.settings.DrainTimeout)
		return nil
	})
	return server, listener, nil
}

// openFile opens the store in the data folder, and makes it if the settings say so.
func (p *process) openFile() (closableStore, error) {
	create := boltstore.CreateNever
	switch {
	case p.settings.Init:
		create = boltstore.CreateNew
	case p.settings.Dev:
		create = boltstore.CreateIfAbsent
	}
	if create != boltstore.CreateNever {
		if err := makeFolder(p.settings.Data); err != nil {
			return nil, fmt.Errorf("making the data folder: %w", err)
		}
	}
	store, err := boltstore.Open(filepath.Join(p.settings.Data, storeFile), boltstore.Config{
		Log: p.log, Create: create, Anchor: p.settings.Anchor,
	})
	switch {
	case errors.Is(err, storage.ErrAbsent):
		return nil, fmt.Errorf("%w; --data names the folder of a store, and --init makes a new, empty one there", err)
	case errors.Is(err, storage.ErrAnchor):
		return nil, fmt.Errorf("%w; %s", err, p.anchorHint())
	case errors.Is(err, storage.ErrPresent):
		return nil, fmt.Errorf("%w; start without --init", err)
	case err != nil:
		return nil, err
	}
	return store, nil
}

// anchorHint says what to do about a store that does not agree with its anchor.
func (p *process) anchorHint() string {
	file := filepath.Join(p.settings.Data, storeFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return "put the file back; move the anchor away only if an empty store is really wanted"
	}
	accept := "keysvc anchor accept " + file
	if p.settings.Anchor != "" {
		accept += " --anchor " + p.settings.Anchor
	}
	return "put the newest file, or its anchor, in place; only if there is none, " + accept + " serves what there is, without what was revoked since"
}

// stop gives the calls in flight their time.
func stop(server *Server, drain time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	server.Stop(ctx)
}

// readPolicy reads the policy in a file; the built-in one if the name is empty.
func readPolicy(file string) (*policy.Policy, error) {
	if file == "" {
		return policy.Default(), nil
	}
	document, err := os.ReadFile(file) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	return policy.Parse(file, document)
}
