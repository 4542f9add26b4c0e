//go:build !linux && !darwin

package connection

import (
	"errors"
	"net"
	"time"
)

// credentialsOf returns an error: who the peer is, is not known here.
func credentialsOf(*net.UnixConn) (userID, groupID uint32, err error) {
	return 0, 0, errors.New("this system does not tell the user of a unix socket's peer")
}

// boundSilence does nothing: only Linux can.
func boundSilence(net.Conn, time.Duration) {}

// hasLeft returns false: only Linux tells before everything else is read.
func hasLeft(net.Conn) bool { return false }
