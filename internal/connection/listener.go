package connection

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Kind is what a listener's connections are made of.
type Kind uint8

// The kinds. Connections of a listener with the zero Kind are refused.
const (
	// Loopback is plaintext from this machine.
	Loopback Kind = iota + 1
	// Unix is a unix socket: the kernel says which user is at the other end.
	Unix
	// TLS is TLS 1.3 over TCP.
	TLS
	// Plaintext is plaintext from anywhere, for listeners that need no identity.
	Plaintext
	// Memory is a listener in this process, such as grpc's bufconn. Its connections count as
	// Loopback. It is for tests.
	Memory
)

// Listener says what is expected of the connections of a listener. The zero Listener refuses all.
type Listener struct {
	Kind Kind
	// TLS returns the configuration of the next handshake; required for Kind TLS. It may return
	// another one at any time, and must return the same pointer as long as nothing has changed.
	// VerifyConnection of the configuration is called first, before the peer is judged. The
	// configuration must not be changed after it was returned.
	TLS func() (*tls.Config, error)
	// Bearers is set if a caller may prove who it is with a token in each call: a connection then
	// needs no identity of its own.
	Bearers bool
	// Anonymous is set if connections need no identity: the services of the listener are for
	// anyone, such as health.
	Anonymous bool

	// derived is what handshakes use for what TLS has returned last.
	derived atomic.Pointer[derivedTLS]
}

// source is where a connection comes from, as far as connections are counted by it: the address, or
// the user. The zero source is not counted.
type source struct {
	address netip.Addr
	unix    bool
	userID  uint32
}

// The ids that the kernel gives for a user that has no id in this user namespace: the overflow id,
// and -1.
const (
	overflowID = 65534
	noID       = 1<<32 - 1
)

var (
	errNoKind      = errors.New("the listener takes no connections")
	errNotLoopback = errors.New("the client is not on this machine, and the listener takes plaintext from this machine only")
	errNotUnix     = errors.New("the connection is not on a unix socket")
)

// peerOf returns what a connection proves before its handshake, and where it comes from.
func (l *Listener) peerOf(raw net.Conn) (callers.Peer, source, error) {
	switch l.Kind {
	case Unix:
		return unixPeer(raw)
	case Memory:
		if _, isTCP := raw.RemoteAddr().(*net.TCPAddr); isTCP {
			break // what a test serves over TCP proves what TCP proves
		}
		return callers.Peer{Source: callers.SourceLoopback, BearerAllowed: l.Bearers}, source{}, nil
	case Loopback, TLS, Plaintext:
	default:
		return callers.Peer{}, source{}, errNoKind
	}
	remote, err := netip.ParseAddrPort(raw.RemoteAddr().String())
	if err != nil {
		return callers.Peer{}, source{}, fmt.Errorf("the address of the client: %w", err)
	}
	address := remote.Addr().Unmap().WithZone("")
	peer := callers.Peer{Address: raw.RemoteAddr().String(), BearerAllowed: l.Bearers}
	switch {
	case l.Kind == TLS:
		peer.Source = callers.SourceSPIFFE
	case l.Kind == Plaintext: // proves nothing
	case address.IsLoopback():
		peer.Source = callers.SourceLoopback
	default:
		return callers.Peer{}, source{}, errNotLoopback
	}
	if address.Is6() {
		// Who has one address of a network has them all.
		const networkBits = 64
		address = netip.PrefixFrom(address, networkBits).Masked().Addr()
	}
	return peer, source{address: address}, nil
}

// unixPeer returns the user at the other end of a unix socket, as the kernel knows it.
func unixPeer(raw net.Conn) (callers.Peer, source, error) {
	socket, isUnix := raw.(*net.UnixConn)
	if !isUnix {
		return callers.Peer{}, source{}, errNotUnix
	}
	userID, groupID, err := credentialsOf(socket)
	if err == nil {
		err = isMapped(userID)
	}
	if err != nil {
		return callers.Peer{}, source{}, fmt.Errorf("the user of the client: %w", err)
	}
	return callers.Peer{Source: callers.SourceUnix, UserID: userID, GroupID: groupID}, source{unix: true, userID: userID}, nil
}

// isMapped returns an error if a user id stands for every user that has no id in this user namespace.
func isMapped(userID uint32) error {
	if userID == overflowID || userID == noID {
		return fmt.Errorf("it has no id here, only %d: is the client in another user namespace?", userID)
	}
	return nil
}
