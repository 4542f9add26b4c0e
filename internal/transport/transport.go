// Package transport is how clients reach keysvc: in plaintext on this machine, or with TLS 1.3.
// It checks who answers, reads certificates and tokens from files that may change, and says in
// a sentence why a connection failed.
package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
)

// Config is how a client connects.
type Config struct {
	// TLS secures the connection. If it is nil, the connection is in plaintext, and fails if it
	// would leave the machine.
	TLS *TLS
	// SocketOwner is the user, by name or number, whom a unix socket and the process behind it
	// must belong to. If it is empty, that is this process's own user or the super-user.
	SocketOwner string
	// Report is called for each attempt to connect, with nil once the server has answered, else
	// with a *Error. It is called from many goroutines. It may be nil.
	Report func(error)
	// Stale is called when a changed file cannot be used, so that its last good content stays in
	// use. It may be nil.
	Stale func(error)
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

// Credentials are credentials.TransportCredentials for the connections of a Config. Every error
// of a handshake is a *Error.
type Credentials struct {
	secured *secured // nil for plaintext
	owner   owner
	report  func(error)
}

var _ credentials.TransportCredentials = (*Credentials)(nil)

// New returns the Credentials. It reads the files once; the error names a field of Config that
// is wrong, or the file.
func New(config Config) (*Credentials, error) {
	owner, err := parseOwner(config.SocketOwner)
	if err != nil {
		return nil, err
	}
	c := &Credentials{owner: owner, report: config.Report}
	if c.report == nil {
		c.report = func(error) {}
	}
	if config.TLS == nil {
		return c, nil
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if c.secured, err = newSecured(*config.TLS, config.Stale, config.Now); err != nil {
		return nil, err
	}
	return c, nil
}

// Report hands an error of dialling to the function Report of the Config, as a *Error.
func (c *Credentials) Report(err error) { c.report(explained(err, nil)) }

// ClientHandshake implements credentials.TransportCredentials.
func (c *Credentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.handshake(ctx, authority, raw)
	if err != nil {
		_ = raw.Close() // the handshake's error is the one that tells
		failure := explained(err, nil)
		c.report(failure)
		return nil, nil, failure
	}
	return conn, info, nil
}

func (c *Credentials) handshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	local := plainInfo{}
	switch address := raw.RemoteAddr().(type) {
	case *net.UnixAddr:
		if err := c.owner.check(raw, address.Name); err != nil {
			return nil, nil, err
		}
		local.SecurityLevel = credentials.PrivacyAndIntegrity // no other user can read or write it
	case *net.TCPAddr:
		if c.secured == nil && !address.IP.IsLoopback() {
			return nil, nil, ErrNotLoopback
		}
		local.SecurityLevel = credentials.NoSecurity
	default: // of a dialler of the program's own
		local.SecurityLevel = credentials.NoSecurity
	}
	if c.secured == nil {
		return &observed{Conn: raw, raw: raw, report: c.report}, local, nil
	}
	conn, used, err := c.secured.handshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, explained(err, used)
	}
	info := credentials.TLSInfo{
		State: conn.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	return &observed{Conn: conn, raw: raw, report: c.report, used: used}, info, nil
}

// ServerHandshake implements credentials.TransportCredentials. It fails: these Credentials are
// a client's.
func (*Credentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("transport: these credentials are for clients")
}

// Info implements credentials.TransportCredentials.
func (c *Credentials) Info() credentials.ProtocolInfo {
	if c.secured == nil {
		return credentials.ProtocolInfo{SecurityProtocol: "local"}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c *Credentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName implements credentials.TransportCredentials. It fails: TLS.ServerName is for
// that.
func (*Credentials) OverrideServerName(string) error {
	return errors.New("transport: the server's name is set in the Config")
}

// plainInfo describes a connection without TLS.
type plainInfo struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (plainInfo) AuthType() string { return "local" }

// observed is a connection whose first bytes, or whose end before any, show whether the server
// speaks with this client. With TLS 1.3 a server refuses a client's certificate only after the
// client's handshake is done (RFC 8446 section 4.4.2.4), so the alert arrives here.
type observed struct {
	net.Conn
	raw    net.Conn
	report func(error)
	// used is what the handshake used; nil for plaintext.
	used *handshakeUse
	// reading is held during the first read.
	reading sync.Mutex
	// answered is set once the first read is done.
	answered atomic.Bool
	failure  error // of the first read
}

// Read implements net.Conn.
func (o *observed) Read(into []byte) (int, error) {
	if o.answered.Load() {
		return o.Conn.Read(into)
	}
	o.reading.Lock()
	defer o.reading.Unlock()
	return o.first(into)
}

func (o *observed) first(into []byte) (int, error) {
	count, err := o.Conn.Read(into)
	if !o.answered.Load() {
		o.failure = o.judge(into[:count], err)
		o.answered.Store(true)
		o.report(o.failure)
	}
	if o.failure != nil {
		return count, o.failure
	}
	return count, err
}

// Write implements net.Conn. A server that refuses the client may be gone before the client has
// written anything. Its reason can still be read then.
func (o *observed) Write(data []byte) (int, error) {
	count, err := o.Conn.Write(data)
	if err == nil {
		return count, nil
	}
	o.reading.Lock()
	defer o.reading.Unlock()
	if o.answered.Load() {
		if o.failure != nil {
			err = o.failure
		}
		return count, err
	}
	const wait = time.Second
	_ = o.Conn.SetReadDeadline(time.Now().Add(wait)) // the connection is broken: nobody reads it later
	if _, failure := o.first(make([]byte, 1)); failure != nil {
		err = failure
	}
	return count, err
}

// judge returns what is wrong with a first read.
func (o *observed) judge(got []byte, err error) error {
	switch {
	case len(got) > 0 && o.used == nil && looksLikeTLS(got):
		return &Error{sentence: sentenceServerSpeaksTLS, cause: errServerSpeaksTLS}
	case len(got) > 0 && looksLikeHTTP1(got):
		return &Error{sentence: sentenceSpeaksHTTP1, cause: errSpeaksHTTP1}
	case len(got) > 0:
		return nil
	case err == nil:
		return nil
	case o.used == nil:
		return &Error{sentence: sentenceClosedPlaintext, cause: err}
	}
	return explainedAfter(err, o.used)
}

// SyscallConn gives grpc the socket, for TCP_USER_TIMEOUT.
func (o *observed) SyscallConn() (syscall.RawConn, error) {
	if conn, can := o.raw.(syscall.Conn); can {
		return conn.SyscallConn()
	}
	return nil, errors.New("transport: not a socket")
}

// looksLikeTLS reports whether bytes begin like an alert of TLS (RFC 8446 section 5.1), which a
// server of TLS answers to plaintext.
func looksLikeTLS(got []byte) bool {
	const alert, major = 0x15, 0x03
	return got[0] == alert && (len(got) < 2 || got[1] == major)
}

func looksLikeHTTP1(got []byte) bool {
	const begin = "HTTP/1"
	return len(got) >= len(begin) && string(got[:len(begin)]) == begin
}

var _ interface {
	net.Conn
	syscall.Conn
} = (*observed)(nil)

// secure returns the config of one handshake.
func (s *secured) config(authority string, material *material, used *handshakeUse) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		RootCAs:    material.roots,
		ServerName: cmp.Or(s.name, hostOf(authority)),
		Time:       s.now,
		// Unlike Certificates, the function offers the certificate to every server. One that does
		// not trust its issuer then says so. It would otherwise ask for a certificate.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			used.asked = true
			return &material.certificate, nil
		},
	}
	if s.spiffeID != "" {
		// A SPIFFE id stands in the place of the name, so the name is not verified. The chain and
		// the id are.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error { return s.verifySPIFFE(state, material.roots) }
	}
	return config
}

// hostOf returns the host of "host:port", or the whole text.
func hostOf(authority string) string {
	if host, _, err := net.SplitHostPort(authority); err == nil {
		return host
	}
	return authority
}
