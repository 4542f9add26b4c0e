package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/systemd"
)

// listen opens a listener, or takes over the one that systemd passed for its address. What it may
// serve there is for the settings to say; they are valid.
func listen(ctx context.Context, wanted config.Listener, settings config.Settings, passed *systemd.Sockets) (net.Listener, error) {
	at, err := config.ParseAddress(wanted.Address)
	if err != nil {
		return nil, err
	}
	listener := passed.Take(at.Network, at.Target)
	switch {
	case listener != nil:
	case at.Network == "unix":
		listener, err = listenUnix(ctx, at.Target, settings)
	default:
		listener, err = (&net.ListenConfig{}).Listen(ctx, at.Network, at.Target)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; --listen chooses another address", err)
	}
	// A name such as localhost stands for what the system says.
	if at.Network == "tcp" && at.Local() && !wanted.Purpose.IsOpen() && !config.IsLoopback(listener.Addr().String()) {
		return nil, errors.Join(fmt.Errorf("%s is not a loopback address", wanted.Address), listener.Close())
	}
	return listener, nil
}

// listenUnix opens a socket with the mode and the group of the settings. It replaces a socket that a
// process left behind, and returns an error if another process serves the socket.
func listenUnix(ctx context.Context, path string, settings config.Settings) (net.Listener, error) {
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
	// The mode must be tight from the start, not only after a chmod.
	before := syscall.Umask(0o177)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	syscall.Umask(before)
	if err != nil {
		return nil, err
	}
	if err := openSocket(path, settings); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// openSocket gives a socket its group, and then its mode, which may let the group in.
func openSocket(path string, settings config.Settings) error {
	if settings.SocketGroup != "" {
		group, err := groupID(settings.SocketGroup)
		if err != nil {
			return fmt.Errorf("--socket-group: %w", err)
		}
		if err := os.Lchown(path, -1, group); err != nil {
			return fmt.Errorf("--socket-group: %w", err)
		}
	}
	return os.Chmod(path, settings.SocketMode)
}

// groupID returns the number of a group that is given by name or number.
func groupID(group string) (int, error) {
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(found.Gid)
}

// address returns where a listener can be reached, in the form that commands take.
func address(listener net.Listener) string {
	if listener.Addr().Network() == "unix" {
		return "unix://" + listener.Addr().String()
	}
	return listener.Addr().String()
}

// The pauses of a persistentListener after a failed accept: the first is the shortest, and
// each that follows without a success is twice as long, up to the longest.
const (
	shortestAcceptPause = 5 * time.Millisecond
	longestAcceptPause  = time.Second
)

// persistentListener is a listener whose Accept fails only once the listener was closed.
// gRPC stops serving on most errors of accept(2), and repeats the call silently on others.
// A lack of file descriptors or a firewall's rule must not end the service for clients that
// are connected, and operators need to know of it.
type persistentListener struct {
	net.Listener
	failed    func(error)
	closed    chan struct{}
	closeOnce sync.Once
}

func newPersistentListener(listener net.Listener, failed func(error)) *persistentListener {
	return &persistentListener{Listener: listener, failed: failed, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *persistentListener) Accept() (net.Conn, error) {
	pauses := backoff.New(shortestAcceptPause, longestAcceptPause)
	for {
		connection, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return connection, err
		}
		l.failed(err)
		wait := time.NewTimer(pauses.Next())
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
