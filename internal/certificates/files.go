package certificates

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Bundle is a file with the authorities of a SPIFFE trust domain.
type Bundle struct {
	// TrustDomain is the trust domain, as in "prod.example".
	TrustDomain string
	// File is a file with certificates in PEM.
	File string
}

// Paths names the files of a Files.
type Paths struct {
	// Certificate and Key are the server's: the certificate with its intermediates after it, and
	// its key, in PEM. Both are set or neither is.
	Certificate, Key string
	// ForClient is set if the certificate is what this process shows a server, and not what it shows
	// clients.
	ForClient bool
	// Bundles are the authorities of SPIFFE trust domains, each domain once.
	Bundles []Bundle
	// DNS is a file with the authorities of clients without a SPIFFE id, in PEM; "" for none.
	DNS string
	// RefuseDevelopment is set if a listener can be reached from other machines. Certificates that
	// `keysvc certs dev` has made are then refused.
	RefuseDevelopment bool
}

// Files is a Source that reads files. Reload reads them again. Each file stands for itself, and the
// server's certificate with its key: a certificate that was written wrongly does not keep an
// authority trusted that was taken out of its bundle.
type Files struct {
	now     func() time.Time
	current atomic.Pointer[material]

	// mu guards paths, and lets one Reload run at a time.
	mu    sync.Mutex
	paths Paths
}

// material is what a set of files holds. It is not changed once it is made.
type material struct {
	own    *tls.Certificate
	ownSum checksum
	// pools has the authorities by the name of their file.
	pools map[string]pool
	trust *Trust
	// authorities are those of trust.
	authorities []Authorities
}

// Authorities are those that certificates of clients are verified with.
type Authorities struct {
	// TrustDomain is the SPIFFE trust domain; empty for those of clients without a SPIFFE id.
	TrustDomain string
	// Start and End are how long the one holds that ends last.
	Start, End time.Time
}

type pool struct {
	sum         checksum
	authorities *x509.CertPool
	// last is the authority that ends last.
	last *x509.Certificate
}

// checksum is that of the contents of a file, or of two.
type checksum [sha256.Size]byte

var _ Source = (*Files)(nil)

// NewFiles returns a source that knows no files yet; see SetPaths and Reload. now is the clock.
func NewFiles(now func() time.Time) *Files {
	f := &Files{now: now}
	f.current.Store(&material{trust: &Trust{}})
	return f
}

// OpenFiles reads files. The error has a line for each file that cannot be used, with what is
// wrong with it.
func OpenFiles(paths Paths, now func() time.Time) (*Files, error) {
	f := NewFiles(now)
	f.SetPaths(paths)
	if _, err := f.Reload(context.Background()); err != nil {
		return nil, err
	}
	return f, nil
}

// Own returns the server's certificate; nil if no file was named.
func (f *Files) Own() *tls.Certificate { return f.current.Load().own }

// Trust returns what is trusted.
func (f *Files) Trust() *Trust { return f.current.Load().trust }

// Authorities returns those that Trust has, by trust domain.
func (f *Files) Authorities() []Authorities { return f.current.Load().authorities }

// SetPaths names other files. What the old ones said, and the new ones do not name, is no longer
// trusted from the next Reload on.
func (f *Files) SetPaths(paths Paths) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paths = paths
}

// Reload reads the files again and reports whether what they say differs from what is in use. A
// file that is missing, half-written, has ended or does not belong to its key leaves in use what
// it said before; the error then has a line that says why.
func (f *Files) Reload(context.Context) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	current := f.current.Load()
	next, problems := f.paths.load(current, f.now())
	if next.same(current) {
		return false, errors.Join(problems...)
	}
	f.current.Store(next)
	return true, errors.Join(problems...)
}

// same reports whether two materials say the same.
func (m *material) same(other *material) bool {
	return m.own == other.own && m.trust.DNS == other.trust.DNS && maps.Equal(m.trust.Domains, other.trust.Domains)
}

// load reads the files. Those that did not change, or cannot be used, give what they gave before.
func (p Paths) load(before *material, now time.Time) (*material, []error) {
	next := &material{pools: map[string]pool{}, trust: &Trust{Domains: map[string]*x509.CertPool{}}}
	var problems []error
	if p.Certificate != "" {
		var err error
		if next.own, next.ownSum, err = p.loadOwn(before, now); err != nil {
			problems = append(problems, err)
		}
	}
	load := func(name, domain string) *x509.CertPool {
		loaded, again := next.pools[name]
		if !again {
			var err error
			if loaded, err = p.loadPool(name, before.pools[name]); err != nil {
				problems = append(problems, err)
			}
			next.pools[name] = loaded
		}
		if loaded.last != nil {
			next.authorities = append(next.authorities, Authorities{domain, loaded.last.NotBefore, loaded.last.NotAfter})
		}
		return loaded.authorities
	}
	if p.DNS != "" {
		next.trust.DNS = load(p.DNS, "")
	}
	for _, bundle := range p.Bundles {
		if authorities := load(bundle.File, bundle.TrustDomain); authorities != nil {
			next.trust.Domains[bundle.TrustDomain] = authorities
		}
	}
	return next, problems
}

func (p Paths) loadOwn(before *material, now time.Time) (*tls.Certificate, checksum, error) {
	own, sum := before.own, before.ownSum
	certificate, err := readFile(p.Certificate)
	if err != nil {
		return own, sum, err
	}
	key, err := readFile(p.Key)
	if err != nil {
		return own, sum, err
	}
	newSum := sumOf(certificate, key)
	if own != nil && newSum == sum {
		return own, sum, nil
	}
	parsed, err := p.parseOwn(certificate, key, now)
	if err != nil {
		return own, sum, err
	}
	return parsed, newSum, nil
}

func (p Paths) loadPool(name string, before pool) (pool, error) {
	text, err := readFile(name)
	if err != nil {
		return before, err
	}
	sum := sumOf(text)
	if before.authorities != nil && before.sum == sum {
		return before, nil
	}
	authorities, last, err := p.parseAuthorities(name, text)
	if err != nil {
		return before, err
	}
	return pool{sum, authorities, last}, nil
}

// sumOf covers the lengths too, so that bytes cannot move from one text to the next unseen.
func sumOf(texts ...[]byte) (sum checksum) {
	hash := sha256.New()
	for _, text := range texts {
		_, _ = fmt.Fprintf(hash, "%d:", len(text))
		_, _ = hash.Write(text)
	}
	hash.Sum(sum[:0])
	return sum
}

// maxFile is how large a file may be. The authorities of a browser take a quarter of it.
const maxFile = 1 << 20

func readFile(name string) ([]byte, error) {
	file, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: has more than %d bytes", name, maxFile)
	}
	return text, nil
}

// parseOwn parses the server's certificate and key. They must belong to each other.
func (p Paths) parseOwn(certificate, key []byte, now time.Time) (*tls.Certificate, error) {
	if _, err := parsePEM(p.Certificate, certificate); err != nil {
		return nil, err
	}
	own, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", p.Certificate, p.Key, err)
	}
	if err := checkOwn(own.Leaf, now, p.ForClient); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Certificate, err)
	}
	if p.RefuseDevelopment && Development(own.Leaf) {
		return nil, fmt.Errorf("%s: %w", p.Certificate, errDevelopment)
	}
	return &own, nil
}

// CheckOwn returns an error if clients would refuse a server's certificate whatever they trust.
func CheckOwn(leaf *x509.Certificate, now time.Time) error { return checkOwn(leaf, now, false) }

// checkOwn is CheckOwn, or the same for a client's certificate.
func checkOwn(leaf *x509.Certificate, now time.Time, forClient bool) error {
	usage, name, peers, owner := x509.ExtKeyUsageServerAuth, "serverAuth", "servers", "server's"
	if forClient {
		usage, name, peers, owner = x509.ExtKeyUsageClientAuth, "clientAuth", "clients", "client's"
	}
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is valid from %s on, now it is %s", stamp(leaf.NotBefore), stamp(now))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate has ended at %s, now it is %s", stamp(leaf.NotAfter), stamp(now))
	case leaf.IsCA:
		return fmt.Errorf("the first certificate is that of an authority; the %s own must come first", owner)
	case len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(leaf.ExtKeyUsage, usage) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return fmt.Errorf("the certificate is not for %s: its extended key usage lacks %s", peers, name)
	}
	return nil
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }

// parseAuthorities parses the authorities of clients. A certificate that is no authority would be
// trusted as itself, without a signature of anybody, so the file is refused. last is the one that ends
// last.
func (p Paths) parseAuthorities(name string, text []byte) (pool *x509.CertPool, last *x509.Certificate, err error) {
	certificates, err := parsePEM(name, text)
	if err != nil {
		return nil, nil, err
	}
	pool = x509.NewCertPool()
	for i, certificate := range certificates {
		switch {
		case !certificate.BasicConstraintsValid || !certificate.IsCA:
			return nil, nil, fmt.Errorf("%s: certificate %d is not that of an authority", name, i+1)
		case p.RefuseDevelopment && Development(certificate):
			return nil, nil, fmt.Errorf("%s: certificate %d: %w", name, i+1, errDevelopment)
		}
		pool.AddCert(certificate)
		if last == nil || certificate.NotAfter.After(last.NotAfter) {
			last = certificate
		}
	}
	return pool, last, nil
}

// parsePEM returns the certificates of a file, at least one. A file with anything else in PEM, or
// with a block that does not end, is refused as a whole.
func parsePEM(name string, text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if skipped := text[:len(text)-len(rest)]; bytes.Count(skipped, []byte("-----BEGIN ")) > 1 {
			return nil, fmt.Errorf("%s: a block before certificate %d is not whole", name, len(certificates)+1)
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: has a block that is no certificate", name)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", name, len(certificates)+1, err)
		}
		certificates = append(certificates, certificate)
	}
	if bytes.Contains(text, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("%s: the last block is not whole", name)
	}
	if len(certificates) == 0 {
		return nil, fmt.Errorf("%s: has no certificate in PEM", name)
	}
	return certificates, nil
}
