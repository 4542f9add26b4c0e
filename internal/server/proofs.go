package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/issuers"
	"github.com/scribe-mail/keysvc/internal/reload"
	"github.com/scribe-mail/keysvc/internal/workload"
)

// workloadWait is how long a start waits until the SPIFFE Workload API has said who the process is.
const workloadWait = 30 * time.Second

// proofs are what the server proves itself with, and what the proofs of callers are verified with.
// The settings name the former, and the callers file the latter.
type proofs struct {
	server  *Server
	files   *certificates.Files
	issuers *issuers.Set
	// workload is nil without a Workload API.
	workload *workload.Source
	// workloadDomains are the trust domains whose bundles come from the Workload API.
	workloadDomains atomic.Pointer[[]string]
	// tls is the configuration of every listener with TLS. It never changes: what it calls does.
	tls *tls.Config
}

var _ certificates.Source = (*proofs)(nil)

func newProofs(s *Server) *proofs {
	p := &proofs{server: s, files: certificates.NewFiles(s.wallClock())}
	p.issuers = issuers.New(issuers.Options{Log: s.log, Now: s.wallClock(), Changed: s.proofsHaveChanged})
	p.workloadDomains.Store(&[]string{})
	p.files.SetPaths(p.paths(nil))
	p.tls = certificates.Config(p.verifier(), s.config.Settings.TLSBearers)
	return p
}

// wallClock is the clock that certificates are judged by before the server's own clock runs.
func (s *Server) wallClock() func() time.Time {
	if s.config.Now != nil {
		return s.config.Now
	}
	return time.Now
}

func (p *proofs) verifier() certificates.Verifier {
	return certificates.Verifier{Source: p, Now: p.server.wallClock()}
}

// Own implements certificates.Source.
func (p *proofs) Own() *tls.Certificate {
	if own := p.files.Own(); own != nil || p.workload == nil {
		return own
	}
	return p.workload.Own()
}

// Trust implements certificates.Source. A trust domain is trusted by the bundle that the callers file
// names for it, and by no other.
func (p *proofs) Trust() *certificates.Trust {
	trust := p.files.Trust()
	domains := *p.workloadDomains.Load()
	if p.workload == nil || len(domains) == 0 {
		return trust
	}
	both := &certificates.Trust{Domains: map[string]*x509.CertPool{}, DNS: trust.DNS}
	maps.Copy(both.Domains, trust.Domains)
	said := p.workload.Trust().Domains
	for _, domain := range domains {
		both.Domains[domain] = said[domain] // nil, for nobody, until the API knows the domain
	}
	return both
}

// start reads the certificates, and waits for the Workload API. It comes after the callers file.
func (p *proofs) start(ctx context.Context) error {
	settings := p.server.config.Settings
	if settings.SPIFFESocket != "" {
		wait, cancel := context.WithTimeout(ctx, workloadWait)
		defer cancel()
		opened, err := workload.Open(wait, settings.SPIFFESocket, workload.Options{Log: p.server.log, Changed: p.server.proofsHaveChanged})
		if err != nil {
			return err
		}
		p.workload = opened
	}
	if err := p.server.files.Add(ctx, reload.Item{Name: "certificates and bundles", Reload: p.reload}); err != nil {
		return err
	}
	p.server.judge.SetTrust(p.verifier(), p.issuers)
	if own := p.Own(); own != nil {
		p.server.log.InfoContext(ctx, "TLS", "subject", own.Leaf.Subject.String(), "names", own.Leaf.DNSNames,
			"serial", fmt.Sprintf("%x", own.Leaf.SerialNumber), "not_after", own.Leaf.NotAfter.UTC())
	}
	return nil
}

// reload reads the files again. One bad file does not keep the others from being used at once.
func (p *proofs) reload(ctx context.Context) (bool, error) {
	changed, err := p.files.Reload(ctx)
	if changed && err != nil {
		p.server.proofsHaveChanged()
	}
	return changed, err
}

func (p *proofs) close() {
	p.issuers.Close()
	if p.workload != nil {
		p.workload.Close()
	}
}

// use has proofs verified as a callers file says. If it returns an error, nothing has changed.
func (p *proofs) use(file *callers.File) error {
	var list []issuers.Issuer
	for _, issuer := range file.Issuers {
		list = append(list, issuers.Issuer{
			Name: issuer.Name, URL: issuer.URL, Audience: issuer.Audience, Algorithms: issuer.Algorithms,
			CA: issuer.CA, TokenFile: issuer.TokenFile, JWKS: issuer.JWKS,
		})
	}
	var domains []string
	for _, domain := range file.TrustDomains {
		if domain.Bundle == "" {
			domains = append(domains, domain.Name)
		}
	}
	if len(domains) > 0 && p.server.config.Settings.SPIFFESocket == "" {
		return fmt.Errorf("%s: the trust domain %q has workload_api, which needs the setting spiffe-socket", file.Name, domains[0])
	}
	if err := p.issuers.Use(list); err != nil {
		return fmt.Errorf("%s: %w", file.Name, err)
	}
	p.workloadDomains.Store(&domains)
	p.files.SetPaths(p.paths(file))
	return nil
}

// paths names the files: the server's of the settings, and those of a callers file.
func (p *proofs) paths(file *callers.File) certificates.Paths {
	settings := p.server.config.Settings
	paths := certificates.Paths{Certificate: settings.TLSServerCert, Key: settings.TLSServerKey, RefuseDevelopment: reachable(settings)}
	if file == nil {
		return paths
	}
	paths.DNS = file.ClientCA
	for _, domain := range file.TrustDomains {
		if domain.Bundle != "" {
			paths.Bundles = append(paths.Bundles, certificates.Bundle{TrustDomain: domain.Name, File: domain.Bundle})
		}
	}
	return paths
}

// reachable reports whether other machines can reach a listener with TLS.
func reachable(settings config.Settings) bool {
	for _, listener := range settings.AllListeners() {
		address, err := config.ParseAddress(listener.Address)
		if settings.TLS() && !listener.Purpose.IsOpen() && (err != nil || !address.Local()) {
			return true
		}
	}
	return false
}

// proofsHaveChanged has connections and streams judged again soon. It does not wait.
func (s *Server) proofsHaveChanged() {
	select {
	case s.reprove <- struct{}{}:
	default: // they are about to be
	}
}
