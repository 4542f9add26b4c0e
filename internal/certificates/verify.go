// Package certificates has what a server needs for TLS: its own certificate, what it trusts, both
// read again when the files change, and the rules by which a client's certificate proves a SPIFFE
// id or DNS names.
package certificates

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Trust says which authorities are trusted, and for what. It is not changed once it is made. The
// zero Trust trusts nobody.
type Trust struct {
	// Domains has the authorities of each SPIFFE trust domain.
	Domains map[string]*x509.CertPool
	// DNS has the authorities of clients without a SPIFFE id; nil for none.
	DNS *x509.CertPool
}

// maxChain is how many certificates a client may present: the leaf and its intermediates.
const maxChain = 8

// Verify returns what a chain of certificates proves, the leaf first. With a URI in it, a leaf is
// an X.509-SVID: the URI must be its only one, a SPIFFE id with a path, and the chain must end at
// an authority of the id's own trust domain. The names of a leaf without a URI count if the chain
// ends at an authority for DNS.
//
// In both cases the leaf must be for digital signatures and client authentication by name (RFC
// 5280, 4.2.1.3 and 4.2.1.12), and no authority. The error says what is wrong, and contains
// nothing secret.
func Verify(chain []*x509.Certificate, trust *Trust, now time.Time) (callers.Verified, error) {
	if len(chain) == 0 {
		return callers.Verified{}, errors.New("no certificate was presented")
	}
	if len(chain) > maxChain {
		return callers.Verified{}, fmt.Errorf("%d certificates were presented, allowed are at most %d", len(chain), maxChain)
	}
	leaf := chain[0]
	if err := checkLeaf(leaf); err != nil {
		return callers.Verified{}, err
	}
	verified := callers.Verified{Serial: fmt.Sprintf("%x", leaf.SerialNumber)}
	var roots *x509.CertPool
	if len(leaf.URIs) > 0 {
		id, domain, err := spiffeID(leaf.URIs)
		if err != nil {
			return callers.Verified{}, err
		}
		verified.SPIFFEID, verified.TrustDomain = id, domain
		if roots = trust.Domains[domain]; roots == nil {
			return callers.Verified{}, fmt.Errorf("trust domain %q is not configured", domain)
		}
	} else {
		verified.DNSNames = dnsNames(leaf)
		if len(verified.DNSNames) == 0 {
			return callers.Verified{}, errors.New("the certificate has neither a SPIFFE id nor a DNS name without a wildcard")
		}
		if roots = trust.DNS; roots == nil {
			return callers.Verified{}, errors.New("the certificate has no SPIFFE id, and no authority for DNS names is configured")
		}
	}
	var err error
	verified.NotAfter, err = verifyChain(chain, roots, now)
	if err != nil {
		return callers.Verified{}, err
	}
	return verified, nil
}

// checkLeaf applies the rules for a leaf that do not depend on who has signed it.
func checkLeaf(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA:
		return errors.New("the certificate is that of an authority")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("the certificate is not for digital signatures: its key usage lacks digitalSignature")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the certificate may sign certificates or revocation lists")
	}
	if slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil
	}
	return errors.New("the certificate is not for clients: its extended key usage lacks clientAuth")
}

// verifyChain returns when the first certificate of the chain ends. Of several chains it takes
// the one that lasts longest.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) (time.Time, error) {
	intermediates := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return time.Time{}, err
	}
	var latest time.Time
	for _, chain := range chains {
		ends := chain[0].NotAfter
		for _, certificate := range chain[1:] {
			if certificate.NotAfter.Before(ends) {
				ends = certificate.NotAfter
			}
		}
		if ends.After(latest) {
			latest = ends
		}
	}
	return latest, nil
}

// dnsNames returns the names that can be matched, in lower case. A wildcard names more than one
// caller, so it names none.
func dnsNames(leaf *x509.Certificate) []string {
	var names []string
	for _, name := range leaf.DNSNames {
		if name != "" && !strings.Contains(name, "*") {
			names = append(names, strings.ToLower(name))
		}
	}
	return names
}

func spiffeID(uris []*url.URL) (id, domain string, err error) {
	if len(uris) > 1 {
		return "", "", fmt.Errorf("the certificate has %d URIs, a SPIFFE id must be the only one", len(uris))
	}
	return ParseSPIFFEID(uris[0].String())
}

// The bounds of the SPIFFE ID specification, 2.1 and 2.3.
const (
	maxSPIFFEID    = 2048
	maxTrustDomain = 255
)

// ParseSPIFFEID returns the SPIFFE id in text and its trust domain. The path must not be empty,
// because an id without a path names a trust domain and no workload.
func ParseSPIFFEID(text string) (id, domain string, err error) {
	rest, has := strings.CutPrefix(text, "spiffe://")
	if !has {
		return "", "", errors.New("the URI is no SPIFFE id: it must start with spiffe://")
	}
	if len(text) > maxSPIFFEID {
		return "", "", fmt.Errorf("the SPIFFE id has %d bytes, allowed are at most %d", len(text), maxSPIFFEID)
	}
	domain, path, has := strings.Cut(rest, "/")
	if err := CheckTrustDomain(domain); err != nil {
		return "", "", err
	}
	if !has {
		return "", "", errors.New("the SPIFFE id has no path, so it names a trust domain and no workload")
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", "", errors.New("the path of the SPIFFE id has a segment that is empty, \".\" or \"..\"")
		}
		for _, char := range []byte(segment) {
			if !isTrustDomainChar(char) && (char < 'A' || char > 'Z') {
				return "", "", errors.New("the path of the SPIFFE id has a character that is not allowed; allowed are letters, digits, \"-\", \".\" and \"_\"")
			}
		}
	}
	return text, domain, nil
}

// CheckTrustDomain returns an error if a name is not that of a SPIFFE trust domain: 1 to 255
// lower-case letters, digits, "-", "." and "_".
func CheckTrustDomain(name string) error {
	if name == "" || len(name) > maxTrustDomain {
		return fmt.Errorf("a trust domain has 1 to %d characters, this one has %d", maxTrustDomain, len(name))
	}
	for _, char := range []byte(name) {
		if !isTrustDomainChar(char) {
			return errors.New("the trust domain has a character that is not allowed; allowed are lower-case letters, digits, \"-\", \".\" and \"_\"")
		}
	}
	return nil
}

func isTrustDomainChar(char byte) bool {
	return 'a' <= char && char <= 'z' || '0' <= char && char <= '9' || char == '-' || char == '.' || char == '_'
}
