// Package systemd speaks with the service manager that started the process: systemd, or another one
// with its protocols. The manager passes listeners (sd_listen_fds(3)), is told when the service is
// ready, reads its settings again, or stops (sd_notify(3)), and expects signs of life
// (sd_watchdog_enabled(3)). Without such a manager nothing here does anything.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Sockets are the listeners that the manager passed and that nobody has taken yet. Its methods are
// called by one goroutine.
type Sockets struct{ left []net.Listener }

// ReceiveSockets returns the listeners that the manager passed. It returns them once: the
// environment does not name them afterwards. A file that is no listening stream socket is an error.
func ReceiveSockets() (*Sockets, error) {
	sockets := &Sockets{}
	for _, file := range activation.Files(true) {
		listener, err := net.FileListener(file)
		// The listener has a descriptor of its own.
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, errors.Join(fmt.Errorf("what systemd passed as %s is no listening socket: %w", file.Name(), err), sockets.Close())
		}
		sockets.left = append(sockets.left, listener)
	}
	return sockets, nil
}

// Take returns the socket that listens at an address, which is as in net.Listen, and nil if the
// manager passed none, or s is nil. The caller closes it.
func (s *Sockets) Take(network, target string) net.Listener {
	if s == nil {
		return nil
	}
	for index, listener := range s.left {
		if listensAt(listener.Addr(), network, target) {
			s.left = append(s.left[:index:index], s.left[index+1:]...)
			return listener
		}
	}
	return nil
}

// listensAt reports whether a listener's address is the one that net.Listen would listen at.
func listensAt(address net.Addr, network, target string) bool {
	if network == "unix" {
		return address.Network() == "unix" && address.String() == target
	}
	at, isTCP := address.(*net.TCPAddr)
	wanted, err := net.ResolveTCPAddr(network, target)
	if !isTCP || err != nil || at.Port != wanted.Port {
		return false
	}
	return at.IP.Equal(wanted.IP) || at.IP.IsUnspecified() && (wanted.IP == nil || wanted.IP.IsUnspecified())
}

// Close closes the sockets that are left. The error names them, because a socket that nobody serves
// lets callers wait for ever.
func (s *Sockets) Close() error {
	var problems []error
	for _, listener := range s.left {
		problems = append(problems, fmt.Errorf("systemd passed a socket for %s, and no setting listens there", listener.Addr()),
			listener.Close())
	}
	s.left = nil
	return errors.Join(problems...)
}

// Ready tells the manager that the service is ready, or that it has read its settings again.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Reloading tells the manager that the service reads its settings again. Ready must follow.
func Reloading() error {
	return notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// Stopping tells the manager that the service has begun to stop.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

// Alive is a sign of life.
func Alive() error { return notify(daemon.SdNotifyWatchdog) }

// AliveEvery returns how often the manager must get a sign of life: twice in the time after which it
// ends the process. It is 0 if the manager does not ask for any.
func AliveEvery() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	return limit / 2, err
}

func notify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}
