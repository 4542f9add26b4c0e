package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
)

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
		return nil, fmt.Errorf("%w; --listen chooses another address", err)
	}
	if at.Network == "tcp" && !config.IsLoopback(listener.Addr().String()) {
		return nil, errors.Join(fmt.Errorf("%s is not a loopback address", text), listener.Close())
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

// How long a persistentListener waits after a failure, and after those that follow on
// it without a success between.
const (
	shortestAcceptPause = 5 * time.Millisecond
	longestAcceptPause  = time.Second
)

// persistentListener is a listener whose Accept fails only once it was closed. gRPC
// ends to serve on most errors of accept(2), and tries again without a word on others;
// but neither a lack of file descriptors nor a firewall's rule may end the service for
// those who are connected, and both are worth a line.
type persistentListener struct {
	net.Listener
	log       *slog.Logger
	closed    chan struct{}
	closeOnce sync.Once
}

func newPersistentListener(listener net.Listener, log *slog.Logger) *persistentListener {
	return &persistentListener{Listener: listener, log: log, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *persistentListener) Accept() (net.Conn, error) {
	for pause := shortestAcceptPause; ; pause = min(2*pause, longestAcceptPause) {
		connection, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return connection, err
		}
		l.log.Warn("a connection cannot be accepted; those that are open go on, and new ones wait", "error", err)
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-l.closed:
			wait.Stop()
			return nil, net.ErrClosed
		}
	}
}

// Close implements net.Listener.
func (l *persistentListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}
