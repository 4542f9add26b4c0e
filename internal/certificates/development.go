package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"
)

// developmentUnit marks the certificates of `keysvc certs dev`, as organizational unit.
const developmentUnit = "keysvc certs dev: for loopback only"

// DevelopmentDomain is the trust domain of the certificates of `keysvc certs dev`. Names below
// localhost belong to nobody (RFC 6761, 6.3).
const DevelopmentDomain = "keysvc-dev.localhost"

// DevelopmentLife is how long these certificates last.
const DevelopmentLife = 24 * time.Hour

var errDevelopment = errors.New("the certificate was made by keysvc certs dev, and a listener can be reached from other machines")

// Development reports whether a certificate was made by `keysvc certs dev`. Such certificates are
// refused where other machines can connect.
func Development(certificate *x509.Certificate) bool {
	return slices.Contains(certificate.Subject.OrganizationalUnit, developmentUnit)
}

// Pair is a certificate and its key, in PEM.
type Pair struct{ Certificate, Key []byte }

// DevelopmentSet has the certificates of `keysvc certs dev`.
type DevelopmentSet struct {
	// Authority is the certificate of the authority, in PEM. Its key is nowhere.
	Authority []byte
	// Server is for localhost, 127.0.0.1, ::1 and the SPIFFE id with the path "/server".
	Server Pair
	// Clients has a certificate for each name, for the SPIFFE id with the name as its path.
	Clients map[string]Pair
	// NotAfter is when all of them end.
	NotAfter time.Time
}

// NewDevelopment makes an authority, a server's certificate, and one for each client. They are
// valid for a day. The authority can only vouch for names of this machine and of
// DevelopmentDomain, and its key is forgotten.
func NewDevelopment(now time.Time, clients ...string) (*DevelopmentSet, error) {
	// A minute for a clock that was just set.
	d := &development{notBefore: now.Add(-time.Minute), notAfter: now.Add(DevelopmentLife)}
	if err := d.makeAuthority(); err != nil {
		return nil, err
	}
	set := &DevelopmentSet{Authority: encodePEM("CERTIFICATE", d.authority.Raw), Clients: map[string]Pair{}, NotAfter: d.notAfter}
	var err error
	set.Server, err = d.issue("server", func(template *x509.Certificate) {
		template.DNSNames = []string{"localhost"}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	if err != nil {
		return nil, err
	}
	for _, client := range clients {
		set.Clients[client], err = d.issue(client, func(template *x509.Certificate) {
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})
		if err != nil {
			return nil, err
		}
	}
	return set, nil
}

// DevelopmentID returns the SPIFFE id of the server, or of a client, of a DevelopmentSet.
func DevelopmentID(name string) string { return developmentURI(name).String() }

func developmentURI(name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: DevelopmentDomain, Path: "/" + name}
}

// development is an authority while it signs.
type development struct {
	notBefore, notAfter time.Time
	authority           *x509.Certificate
	key                 *ecdsa.PrivateKey
}

func (d *development) makeAuthority() error {
	template, err := d.template("keysvc development authority")
	if err != nil {
		return err
	}
	template.IsCA = true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign
	// RFC 5280, 4.2.1.10. Each kind of name is constrained that a server or client could have.
	template.PermittedDNSDomainsCritical = true
	template.PermittedDNSDomains = []string{"localhost"}
	template.PermittedIPRanges = []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
	template.PermittedURIDomains = []string{DevelopmentDomain}
	template.ExcludedEmailAddresses = []string{""}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	d.key = key
	d.authority, err = x509.ParseCertificate(raw)
	return err
}

func (d *development) issue(name string, change func(*x509.Certificate)) (Pair, error) {
	template, err := d.template(name)
	if err != nil {
		return Pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.URIs = []*url.URL{developmentURI(name)}
	change(template)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, d.authority, key.Public(), d.key)
	if err != nil {
		return Pair{}, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Certificate: encodePEM("CERTIFICATE", raw), Key: encodePEM("PRIVATE KEY", encoded)}, nil
}

func (d *development) template(name string) (*x509.Certificate, error) {
	// RFC 5280, 4.1.2.2: at most 20 bytes, not negative, not zero.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: name, OrganizationalUnit: []string{developmentUnit}},
		NotBefore:             d.notBefore,
		NotAfter:              d.notAfter,
		BasicConstraintsValid: true,
	}, nil
}

func encodePEM(kind string, raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw})
}
