package connection

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// credentialsOf returns user and group of the process that has connected a unix socket, as they
// were when it connected (SO_PEERCRED, unix(7)).
func credentialsOf(socket *net.UnixConn) (userID, groupID uint32, err error) {
	var found *unix.Ucred
	err = control(socket, func(descriptor int) (err error) {
		found, err = unix.GetsockoptUcred(descriptor, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return found.Uid, found.Gid, nil
}

// boundSilence makes the kernel end a connection if the peer confirms nothing of what was sent for
// the time (TCP_USER_TIMEOUT, tcp(7)). gRPC does the same, but only if it has the socket itself.
func boundSilence(raw net.Conn, silence time.Duration) {
	if socket, isTCP := raw.(*net.TCPConn); isTCP {
		_ = control(socket, func(descriptor int) error { // without it, the end comes later
			return unix.SetsockoptInt(descriptor, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
		})
	}
}

// hasLeft reports whether the peer has closed its end of a connection, even if there is something to
// read before that end.
func hasLeft(raw net.Conn) bool {
	socket, is := raw.(syscall.Conn)
	if !is {
		return false
	}
	left := false
	_ = control(socket, func(descriptor int) error { // a closed socket is noticed by the next read
		polled := []unix.PollFd{{Fd: int32(descriptor), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor is small
		n, err := unix.Poll(polled, 0)
		left = n > 0
		return err
	})
	return left
}

// control calls a function with the descriptor of a socket.
func control(socket syscall.Conn, call func(descriptor int) error) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(descriptor uintptr) { failed = call(int(descriptor)) }); err != nil {
		return err
	}
	return failed
}
