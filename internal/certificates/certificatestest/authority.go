// Package certificatestest makes authorities and certificates for tests.
package certificatestest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	// Certificate is the authority's own.
	Certificate *x509.Certificate
	// chain is what a leaf is presented with: intermediates, and no root.
	chain [][]byte
	key   *ecdsa.PrivateKey
}

// NewAuthority returns a root that is valid from an hour ago on, for a day.
func NewAuthority(tb testing.TB, name string) *Authority {
	tb.Helper()
	return newAuthority(tb, name, nil)
}

// Intermediate returns an authority that is signed by this one.
func (a *Authority) Intermediate(tb testing.TB, name string) *Authority {
	tb.Helper()
	return newAuthority(tb, name, a)
}

func newAuthority(tb testing.TB, name string, parent *Authority) *Authority {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber:          serial(tb),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &Authority{key: newKey(tb)}
	if parent == nil {
		a.Certificate = sign(tb, template, template, a.key, a.key)
		return a
	}
	a.Certificate = sign(tb, template, parent.Certificate, a.key, parent.key)
	a.chain = append([][]byte{a.Certificate.Raw}, parent.chain...)
	return a
}

// Self returns the authority's own certificate, for a client that presents it.
func (a *Authority) Self() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{a.Certificate.Raw}, PrivateKey: a.key, Leaf: a.Certificate}
}

// Pool returns a pool with the authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

// PEM returns the authority's certificate in PEM.
func (a *Authority) PEM() []byte { return encode(a.Certificate.Raw) }

// Option changes a certificate before it is signed.
type Option func(*x509.Certificate)

// URI adds a URI.
func URI(tb testing.TB, text string) Option {
	tb.Helper()
	uri, err := url.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return func(c *x509.Certificate) { c.URIs = append(c.URIs, uri) }
}

// DNS adds DNS names.
func DNS(names ...string) Option {
	return func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, names...) }
}

// Loopback makes a certificate one of a server on this machine.
func Loopback(c *x509.Certificate) {
	c.DNSNames = append(c.DNSNames, "localhost")
	c.IPAddresses = append(c.IPAddresses, net.IPv4(127, 0, 0, 1), net.IPv6loopback)
}

// Valid sets from when on and until when a certificate is valid.
func Valid(from, until time.Time) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, until }
}

// Issue returns a certificate for clients and servers, valid from a minute ago on, for an hour.
func (a *Authority) Issue(tb testing.TB, options ...Option) *tls.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(tb),
		Subject:      pkix.Name{CommonName: "common-name.test"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, option := range options {
		option(template)
	}
	key := newKey(tb)
	leaf := sign(tb, template, a.Certificate, key, a.key)
	return &tls.Certificate{Certificate: append([][]byte{leaf.Raw}, a.chain...), PrivateKey: key, Leaf: leaf}
}

// PEM returns a certificate with its intermediates, and its key.
func PEM(tb testing.TB, certificate *tls.Certificate) (chain, key []byte) {
	tb.Helper()
	for _, raw := range certificate.Certificate {
		chain = append(chain, encode(raw)...)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// Write writes a certificate and its key to name.crt and name.key in a folder.
func Write(tb testing.TB, folder, name string, certificate *tls.Certificate) (chainFile, keyFile string) {
	tb.Helper()
	chain, key := PEM(tb, certificate)
	chainFile, keyFile = filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")
	for file, text := range map[string][]byte{chainFile: chain, keyFile: key} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return chainFile, keyFile
}

func sign(tb testing.TB, template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		tb.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return certificate
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Fatal(err)
	}
	return number.Add(number, big.NewInt(1))
}

func encode(raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}
