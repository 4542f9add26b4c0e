package connection_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	made := a.issue(t, "authority")
	a.certificate, a.key = made.Leaf, made.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.certificate)
	return a
}

// issue issues a certificate for a name; the authority's own if it has none yet.
func (a *authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.certificate, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		parent, signer = template, key
	}
	encoded, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{encoded}, PrivateKey: key, Leaf: leaf}
}

// server returns the configuration of a server.
func (a *authority) server(t testing.TB, auth tls.ClientAuthType) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{a.issue(t, "server")}, ClientCAs: a.pool, ClientAuth: auth}
}

// client returns the credentials of a client, with certificates if it has any.
func (a *authority) client(certificates ...tls.Certificate) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{RootCAs: a.pool, ServerName: "server", Certificates: certificates})
}

// byName knows the clients whose certificate has a name in names.
func byName(names ...string) func(*callers.Peer) (*callers.Identity, error) {
	return func(peer *callers.Peer) (*callers.Identity, error) {
		if peer.Source != callers.SourceSPIFFE || len(peer.Certificates) == 0 {
			return nil, errors.New("no certificate")
		}
		for _, name := range names {
			if peer.Certificates[0].DNSNames[0] == name {
				return named(name, time.Time{}), nil
			}
		}
		return nil, errors.New("in no line")
	}
}

func TestCertificatesProveTheCaller(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	var used atomic.Pointer[tls.Config]
	used.Store(a.server(t, tls.RequireAndVerifyClientCert))
	r := serve(t, listen(t), &connection.Listener{Kind: connection.TLS, TLS: func() (*tls.Config, error) { return used.Load(), nil }}, nil)
	r.judge.set(byName("ann"))
	ann := a.issue(t, "ann")
	if name, err := ask(t, r.dial(t, a.client(ann)), "/t/who", ""); err != nil || name != "ann" {
		t.Errorf("got %q, %v", name, err)
	}
	r.expectNothingClosed(t)

	refused := func(what string, with credentials.TransportCredentials, reason connection.Reason, says string) {
		t.Helper()
		dialled := r.dial(t, with)
		_, err := ask(t, dialled, "/t/who", "")
		_ = dialled.Close() // it would try again
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want UNAVAILABLE with %q", what, err, says)
		}
		if closed := r.expectClosed(t, reason); closed.Detail == "" || !strings.HasPrefix(closed.Peer, "127.0.0.1:") {
			t.Errorf("%s: %+v", what, closed)
		}
		r.clock.pass(2 * time.Second) // a reason is reported once a second
	}
	// Who is not known gets an alert, and not only the end of the connection.
	refused("a stranger of the authority", a.client(a.issue(t, "bob")), connection.ClosedUnknown, "bad certificate")
	refused("a certificate of another authority", a.client(stranger.issue(t, "ann")), connection.ClosedHandshake, "")
	refused("no certificate", a.client(), connection.ClosedHandshake, "certificate required")
	refused("plaintext", nil, connection.ClosedHandshake, "")

	// A new configuration counts for the next handshake, and the judge again for live connections.
	used.Store(stranger.server(t, tls.RequireAndVerifyClientCert))
	if _, err := ask(t, r.dial(t, stranger.client(stranger.issue(t, "ann"))), "/t/who", ""); err != nil {
		t.Errorf("after a reload: %v", err)
	}
	r.judge.set(byName("bob"))
	r.set.Rejudge()
	waitUntil(t, "no connection", func() bool { return r.set.Counts().Open == 0 })
}

func TestConnectionsWithoutCertificateNeedABearer(t *testing.T) {
	a := newAuthority(t)
	used := a.server(t, tls.VerifyClientCertIfGiven)
	configured := func() (*tls.Config, error) { return used, nil }
	with := serve(t, listen(t), &connection.Listener{Kind: connection.TLS, TLS: configured, Bearers: true}, nil)
	with.judge.set(byName("ann"))
	if name, err := ask(t, with.dial(t, a.client()), "/t/who", ""); err != nil || name != "" {
		t.Errorf("where bearers are allowed: %q, %v", name, err)
	}
	without := serve(t, listen(t), &connection.Listener{Kind: connection.TLS, TLS: configured}, nil)
	without.judge.set(byName("ann"))
	if _, err := ask(t, without.dial(t, a.client()), "/t/who", ""); status.Code(err) != codes.Unavailable {
		t.Errorf("where bearers are not allowed: %v", err)
	}
	without.expectClosed(t, connection.ClosedUnknown)
}

func TestUnverifiedCertificatesProveNothing(t *testing.T) {
	a := newAuthority(t)
	used := a.server(t, tls.RequireAnyClientCert)
	r := serve(t, listen(t), &connection.Listener{Kind: connection.TLS, TLS: func() (*tls.Config, error) { return used, nil }}, nil)
	r.judge.set(byName("ann"))
	if _, err := ask(t, r.dial(t, a.client(newAuthority(t).issue(t, "ann"))), "/t/who", ""); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	if closed := r.expectClosed(t, connection.ClosedHandshake); !strings.Contains(closed.Detail, "verified") {
		t.Errorf("got %+v", closed)
	}
}

func TestTLS12AndOtherProtocolsAreRefused(t *testing.T) {
	a := newAuthority(t)
	used := a.server(t, tls.RequireAndVerifyClientCert)
	used.MinVersion = tls.VersionTLS12
	r := serve(t, listen(t), &connection.Listener{Kind: connection.TLS, TLS: func() (*tls.Config, error) { return used, nil }}, nil)
	for what, config := range map[string]*tls.Config{
		"TLS 1.2": {MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}},
		"no ALPN": {},
	} {
		config.RootCAs, config.ServerName, config.Certificates = a.pool, "server", []tls.Certificate{a.issue(t, "ann")}
		socket, err := tls.Dial("tcp", r.address.String(), config)
		if err == nil {
			if _, err = socket.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s: let in", what)
			}
			_ = socket.Close()
		}
		r.expectClosed(t, connection.ClosedHandshake)
		r.clock.pass(2 * time.Second)
	}
}
