package certificates

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Source has what a server proves itself with and what it trusts, as of now. Its methods may be
// called from many goroutines.
type Source interface {
	// Own returns the server's certificate and its key; nil if the source has none.
	Own() *tls.Certificate
	// Trust returns what is trusted; nil for nothing.
	Trust() *Trust
}

// Join returns a source of several: its certificate is the first that any of them has. Each trust
// domain has the authorities of the first source that knows the domain, never those of two.
func Join(sources ...Source) Source { return joined(sources) }

type joined []Source

// Own returns the certificate of the first source that has one.
func (j joined) Own() *tls.Certificate {
	for _, source := range j {
		if own := source.Own(); own != nil {
			return own
		}
	}
	return nil
}

// Trust returns what all sources trust.
func (j joined) Trust() *Trust {
	all := &Trust{Domains: map[string]*x509.CertPool{}}
	// The first source is the last to write.
	for _, source := range slices.Backward(j) {
		trust := source.Trust()
		if trust == nil {
			continue
		}
		maps.Copy(all.Domains, trust.Domains)
		if trust.DNS != nil {
			all.DNS = trust.DNS
		}
	}
	return all
}

// Verifier verifies client certificates with what a source trusts at the time of the question.
type Verifier struct {
	// Source has what is trusted.
	Source Source
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

var _ callers.CertificateVerifier = Verifier{}

// VerifyCertificate is Verify with what is trusted now.
func (v Verifier) VerifyCertificate(chain []*x509.Certificate) (callers.Verified, error) {
	trust := v.Source.Trust()
	if trust == nil {
		trust = &Trust{}
	}
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	return Verify(chain, trust, now())
}

// Config returns the TLS configuration of a listener: TLS 1.3 and HTTP/2 only, with the newest
// certificate, and clients verified with what is trusted at the time of their handshake. If
// withoutCertificate is set, a client may present none, because its calls bring a token. A
// certificate that is presented must hold in any case.
//
// There are no session tickets: a connection of gRPC lives long, so a resumption saves little,
// and without them every connection is verified in full.
func Config(verifier Verifier, withoutCertificate bool) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		Time:                   verifier.Now,
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if own := verifier.Source.Own(); own != nil {
				return own, nil
			}
			return nil, errors.New("there is no server certificate yet")
		},
		// Go runs VerifyConnection on a resumption as well, and VerifyPeerCertificate not.
		VerifyConnection: func(state tls.ConnectionState) error {
			// Go lets clients of HTTP/1.1 through to a server of HTTP/2, for one of its own.
			if state.NegotiatedProtocol != "h2" {
				return errors.New("the client does not speak HTTP/2 (ALPN h2)")
			}
			if len(state.PeerCertificates) == 0 && withoutCertificate {
				return nil
			}
			_, err := verifier.VerifyCertificate(state.PeerCertificates)
			return err
		},
	}
	if withoutCertificate {
		config.ClientAuth = tls.RequestClientCert
	}
	return config
}
