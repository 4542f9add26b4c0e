package connection

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// handshaker is the credentials.TransportCredentials of a Set, for servers.
type handshaker struct{ set *Set }

// Credentials returns the handshake of the connections of the Set, for grpc.Creds. A connection
// that no listener of the Set has let in is refused.
func (s *Set) Credentials() credentials.TransportCredentials { return handshaker{s} }

var (
	errServersOnly = errors.New("connection: these credentials are for servers")
	errForeign     = errors.New("connection: the connection was not let in by a listener of the set")
	errUnverified  = errors.New("nobody has verified the certificate of the client")
	errNoHTTP2     = errors.New("the client does not offer HTTP/2 (ALPN h2)")
	errNobody      = errors.New("nobody knows the client")
)

// ServerHandshake implements credentials.TransportCredentials. The deadline of the connection
// bounds it. Its errors are io.EOF, if the client has left, and what was reported already.
func (h handshaker) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, is := raw.(*Conn)
	if !is || c.set != h.set {
		return nil, nil, errForeign
	}
	// 1. With TLS the client proves who it is. Without it, that is known already.
	level := credentials.NoSecurity
	if c.listener.Kind == TLS {
		over, err := c.handshakeTLS()
		if err != nil {
			return nil, nil, c.failed(err)
		}
		c.stream, level = over, credentials.PrivacyAndIntegrity
	} else {
		c.stream, c.ready = c.raw, newSocketReader(c.raw)
	}
	// 2. The judge says who that is.
	if err := h.set.admit(c); err != nil {
		c.End(ClosedUnknown, err.Error())
		return nil, nil, err
	}
	// 3. gRPC gets the connection, with the guard before it.
	return c, Info{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: level}, conn: c}, nil
}

// failed ends a connection whose handshake has failed. Probes that only connect are not reported.
func (c *Conn) failed(err error) error {
	unknown := (*unknownError)(nil)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		_ = c.Close()
		return io.EOF
	case errors.As(err, &unknown):
		c.linger()
		c.End(ClosedUnknown, unknown.Error())
	default:
		c.linger()
		c.End(ClosedHandshake, err.Error())
	}
	return err
}

// The bounds of linger.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// linger gives the client time to read the alert that TLS has sent. If the connection were closed
// at once, what the client has sent already would make the kernel reset it, and the client would
// not learn why.
func (c *Conn) linger() {
	socket, isTCP := c.raw.(*net.TCPConn)
	if !isTCP || socket.CloseWrite() != nil || socket.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, socket, lingerBytes)
}

// unknownError says why nobody knows a client that has presented a certificate.
type unknownError struct{ error }

// Unwrap returns the error of the judge.
func (e *unknownError) Unwrap() error { return e.error }

// handshakeTLS makes the TLS handshake, and fills in what the client has proved.
func (c *Conn) handshakeTLS() (*tls.Conn, error) {
	used, err := c.set.tlsConfig(c.listener)
	if err != nil {
		return nil, err
	}
	turn := &inTurn{Conn: c.raw, from: c.source, turns: c.set.handshakes}
	defer turn.finish()
	over := tls.Server(turn, used)
	if err := over.HandshakeContext(context.Background()); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	state := over.ConnectionState()
	if state.NegotiatedProtocol != alpn {
		return nil, errNoHTTP2
	}
	c.peer.Certificates, err = certificatesOf(used, &state)
	return over, err
}

// alpn is the name of HTTP/2 in TLS (RFC 9113, section 3.2).
const alpn = "h2"

// derivedTLS is a configuration of TLS as a listener has given it, and what handshakes use.
type derivedTLS struct{ given, used *tls.Config }

// tlsConfig returns the configuration of the next handshake of a listener.
func (s *Set) tlsConfig(listener *Listener) (*tls.Config, error) {
	if listener.TLS == nil {
		return nil, errNoKind
	}
	given, err := listener.TLS()
	if err != nil {
		return nil, err
	}
	// One clone serves until the next reload, because the clone has the keys of session tickets.
	if last := listener.derived.Load(); last != nil && last.given == given {
		return last.used, nil
	}
	used := given.Clone()
	used.MinVersion = max(used.MinVersion, tls.VersionTLS13)
	if !slices.Contains(used.NextProtos, alpn) {
		used.NextProtos = append(slices.Clone(used.NextProtos), alpn)
	}
	used.VerifyConnection = func(state tls.ConnectionState) error {
		if given.VerifyConnection != nil {
			if err := given.VerifyConnection(state); err != nil {
				return err
			}
		}
		// The connection is judged after the handshake. It is judged here too, because here a
		// client that nobody knows still gets an alert that says so (bad_certificate).
		certificates, err := certificatesOf(given, &state)
		if err != nil || listener.Bearers || listener.Anonymous {
			return err
		}
		if _, err := s.judge(&callers.Peer{Source: callers.SourceSPIFFE, Certificates: certificates}); err != nil {
			return &unknownError{err}
		}
		return nil
	}
	listener.derived.Store(&derivedTLS{given, used})
	return used, nil
}

// certificatesOf returns the chain that the client has presented, the leaf first; nil if it has
// presented none. The error says that nothing has verified the chain.
func certificatesOf(given *tls.Config, state *tls.ConnectionState) ([]*x509.Certificate, error) {
	switch {
	case len(state.PeerCertificates) == 0:
		return nil, nil
	case len(state.VerifiedChains) > 0:
		return state.VerifiedChains[0], nil
	case given.VerifyPeerCertificate != nil || given.VerifyConnection != nil:
		return state.PeerCertificates, nil
	}
	return nil, errUnverified
}

// ClientHandshake implements credentials.TransportCredentials.
func (handshaker) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServersOnly
}

// Info implements credentials.TransportCredentials.
func (handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "keysvc"}
}

// Clone implements credentials.TransportCredentials.
func (h handshaker) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshaker) OverrideServerName(string) error { return errServersOnly }
