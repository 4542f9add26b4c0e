package certificates_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
)

func newDevelopment(t *testing.T) (*certificates.DevelopmentSet, *fixed) {
	t.Helper()
	set, err := certificates.NewDevelopment(time.Now(), "validator", "manager")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(set.Authority) {
		t.Fatal("the authority cannot be read")
	}
	return set, &fixed{own: pair(t, set.Server), trust: &certificates.Trust{Domains: map[string]*x509.CertPool{certificates.DevelopmentDomain: roots}}}
}

func pair(t *testing.T, pair certificates.Pair) *tls.Certificate {
	t.Helper()
	certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificate
}

func TestDevelopmentCertificatesWorkOnLoopbackForADay(t *testing.T) {
	t.Parallel()
	set, source := newDevelopment(t)
	roots := source.trust.Domains[certificates.DevelopmentDomain]
	server := certificates.Config(certificates.Verifier{Source: source}, false)
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		client := &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*pair(t, set.Clients["validator"])}}
		state, err := shake(t, server, client)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		verified, err := certificates.Verifier{Source: source}.VerifyCertificate(state.PeerCertificates)
		if err != nil || verified.SPIFFEID != "spiffe://keysvc-dev.localhost/validator" || verified.SPIFFEID != certificates.DevelopmentID("validator") {
			t.Errorf("proved is %+v (%v)", verified, err)
		}
	}
	client := pair(t, set.Clients["manager"])
	tomorrow := certificates.Verifier{Source: source, Now: func() time.Time { return time.Now().Add(certificates.DevelopmentLife + time.Minute) }}
	if _, err := tomorrow.VerifyCertificate([]*x509.Certificate{client.Leaf}); err == nil {
		t.Error("after a day it still works")
	}
	if _, err := shake(t, server, &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*source.own}}); err == nil {
		t.Error("the server's certificate works for a client")
	}
}

func TestTheDevelopmentAuthorityVouchesForNothingElse(t *testing.T) {
	t.Parallel()
	set, _ := newDevelopment(t)
	block, _ := pem.Decode(set.Authority)
	made, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	// The authority's key is nowhere, so its certificate is made again with another key.
	made.PublicKey = nil
	helper := certificatestest.NewAuthority(t, "helper")
	key := helper.Self().PrivateKey
	raw, err := x509.CreateCertificate(rand.Reader, made, made, helper.Certificate.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*x509.Certificate)
		good   bool
	}{
		"localhost":       {func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }, true},
		"another name":    {func(c *x509.Certificate) { c.DNSNames = []string{"keysvc.example.com"} }, false},
		"another address": {func(c *x509.Certificate) { c.IPAddresses = []net.IP{{10, 0, 0, 1}} }, false},
		"another domain":  {func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "prod.test", Path: "/a"}} }, false},
		"an e-mail":       {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@localhost"} }, false},
	} {
		template := &x509.Certificate{SerialNumber: made.SerialNumber, NotBefore: made.NotBefore, NotAfter: made.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
		test.change(template)
		raw, err := x509.CreateCertificate(rand.Reader, template, again, helper.Certificate.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(raw)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(again)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDevelopmentCertificatesAreMarkedAndTheAuthorityHasNoKey(t *testing.T) {
	t.Parallel()
	set, _ := newDevelopment(t)
	block, _ := pem.Decode(set.Authority)
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	all := []*x509.Certificate{authority, pair(t, set.Server).Leaf, pair(t, set.Clients["validator"]).Leaf, pair(t, set.Clients["manager"]).Leaf}
	serials := map[string]bool{}
	for _, certificate := range all {
		if !certificates.Development(certificate) {
			t.Errorf("%s is not marked", certificate.Subject)
		}
		serials[certificate.SerialNumber.String()] = true
	}
	if len(serials) != len(all) {
		t.Error("two certificates have the same serial number")
	}
	for _, pair := range []certificates.Pair{set.Server, set.Clients["validator"], set.Clients["manager"]} {
		if _, err := tls.X509KeyPair(set.Authority, pair.Key); err == nil {
			t.Error("the authority's key is among the keys")
		}
		if bytes.Contains(pair.Certificate, []byte("PRIVATE")) {
			t.Error("a key is beside a certificate")
		}
	}
	if certificates.Development(certificatestest.NewAuthority(t, "other").Certificate) {
		t.Error("another authority is taken for one of keysvc certs dev")
	}
}
