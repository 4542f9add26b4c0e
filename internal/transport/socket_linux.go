package transport

import (
	"fmt"
	"net"
	"syscall"
)

// peerOwner returns the user id that the listening process had when it began to listen
// (SO_PEERCRED, unix(7)), and reports whether it is known.
func peerOwner(conn net.Conn) (uid uint32, known bool, err error) {
	socket, can := conn.(syscall.Conn)
	if !can {
		return 0, false, nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var peer *syscall.Ucred
	var failed error
	if err := raw.Control(func(descriptor uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(descriptor), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, false, err
	}
	if failed != nil {
		return 0, false, fmt.Errorf("the process behind the socket is not known: %w", failed)
	}
	return peer.Uid, true, nil
}
