package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// storeFile is the name of the store in the data folder.
const storeFile = "keysvc.db"

// Run serves until the context ends, which is the wish to stop; then it drains,
// closes, and returns nil. An error makes sense in one line. stdout is for the person
// who started the process, stderr for the log.
func Run(ctx context.Context, settings config.Settings, stdout, stderr io.Writer) (err error) {
	if err := settings.Validate(); err != nil {
		return err
	}
	log := newLog(settings, stderr)
	wanted, err := readPolicy(settings.Policy)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, settings.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // serving closes it; this is for starts that fail
	if err := os.MkdirAll(settings.Data, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	store, err := boltstore.Open(filepath.Join(settings.Data, storeFile), boltstore.Config{Log: log, Anchor: settings.Anchor})
	if errors.Is(err, storage.ErrAnchor) {
		return fmt.Errorf("%w; keysvc anchor accept makes it serve what there is", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	server, err := New(ctx, Config{Store: store, Settings: settings, Policy: wanted, Log: log})
	if err != nil {
		return err
	}
	defer stop(server, settings.DrainTimeout)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.InfoContext(ctx, "serving", "address", address(listener), "data", settings.Data)
	if settings.Dev {
		if err := server.seedDemo(ctx, settings, address(listener), stdout); err != nil {
			return fmt.Errorf("seeding the demo workspace: %w", err)
		}
	} else {
		_, _ = fmt.Fprintf(stdout, "keysvc serves on %s\n", address(listener))
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		log.InfoContext(ctx, "stopping", "drain_timeout", settings.DrainTimeout.String())
		return nil
	}
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

// listen opens the listener: on loopback, or on a unix socket of mode 0600.
func listen(ctx context.Context, text string) (net.Listener, error) {
	at, err := config.ParseAddress(text)
	if err != nil {
		return nil, err
	}
	var listener net.Listener
	if at.Network == "unix" {
		listener, err = listenUnix(ctx, at.Target)
	} else {
		listener, err = (&net.ListenConfig{}).Listen(ctx, at.Network, at.Target)
	}
	if err != nil {
		return nil, fmt.Errorf("listening: %w; --listen chooses another address", err)
	}
	if at.Network == "tcp" && !config.IsLoopback(listener.Addr().String()) {
		return nil, errors.Join(fmt.Errorf("listening: %s is not a loopback address", text), listener.Close())
	}
	return listener, nil
}

// listenUnix opens a socket that only this user reaches. A socket that a process left
// behind is replaced; one that is served is not.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		connection, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
		if err == nil {
			_ = connection.Close()
			return nil, fmt.Errorf("%s is served by another process", path)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	// The mode must be right from the start, not only after a chmod.
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return (&net.ListenConfig{}).Listen(ctx, "unix", path)
}

// address returns where a listener can be reached, in the form that commands take.
func address(listener net.Listener) string {
	if listener.Addr().Network() == "unix" {
		return "unix://" + listener.Addr().String()
	}
	return listener.Addr().String()
}
