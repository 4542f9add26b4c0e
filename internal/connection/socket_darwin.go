package connection

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// credentialsOf returns user and group of the process that has connected a unix socket, as they
// were when it connected (LOCAL_PEERCRED).
func credentialsOf(socket *net.UnixConn) (userID, groupID uint32, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var found *unix.Xucred
	var failed error
	if err := raw.Control(func(descriptor uintptr) {
		found, failed = unix.GetsockoptXucred(int(descriptor), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	}); err != nil {
		return 0, 0, err
	}
	if failed != nil {
		return 0, 0, failed
	}
	return found.Uid, found.Groups[0], nil
}

// boundSilence does nothing: only Linux can.
func boundSilence(net.Conn, time.Duration) {}

// hasLeft returns false: only Linux tells before everything else is read.
func hasLeft(net.Conn) bool { return false }
