package callers

import (
	"context"
	"crypto/x509"
	"errors"
	"time"
)

// Verified is what a client certificate proves, once it has been verified. A certificate proves
// either a SPIFFE id or DNS names, never both.
type Verified struct {
	// SPIFFEID is the id of an X.509-SVID, as in "spiffe://prod.example/mailer"; "" for a
	// certificate without a SPIFFE id.
	SPIFFEID string
	// TrustDomain is the trust domain of the id, as in "prod.example".
	TrustDomain string
	// DNSNames are the DNS names of a certificate without a SPIFFE id, in lower case, without
	// wildcards. The common name is never among them.
	DNSNames []string
	// Serial is the serial number of the certificate, in hexadecimal.
	Serial string
	// NotAfter is when the first certificate of the chain ends.
	NotAfter time.Time
}

// CertificateVerifier says what client certificates prove. Its methods may be called from many
// goroutines.
type CertificateVerifier interface {
	// VerifyCertificate returns what a chain proves with what is trusted now; the leaf comes
	// first. The error says why the chain is refused, for the log and never for the peer.
	VerifyCertificate(chain []*x509.Certificate) (Verified, error)
}

// VerifiedBearer is what a token of an OIDC issuer proves, once it has been verified.
type VerifiedBearer struct {
	// Issuer is the issuer's name in keysvc's configuration.
	Issuer string
	// Subject is the token's "sub", as in "system:serviceaccount:mail:worker".
	Subject string
	// ID is the token's "jti", or when the token was issued. It is no secret.
	ID string
	// NotAfter is when the token ends.
	NotAfter time.Time
}

// BearerVerifier says what the tokens of OIDC issuers prove. Its methods may be called from many
// goroutines.
type BearerVerifier interface {
	// VerifyBearer returns what a token proves. It can wait, for a turn or for the issuer's keys,
	// until ctx ends. from is the address of the peer, without its port: peers share turns. The
	// error says why the token is refused, for the log and never for the peer, and never contains
	// the token. It matches ErrBusy if nothing was decided.
	VerifyBearer(ctx context.Context, from, bearer string) (VerifiedBearer, error)
}

// ErrBusy is what the error of a judge or a verifier matches if it could not decide: too many
// tokens wait, or the issuer's keys are not known yet. Such a call may be tried again.
var ErrBusy = errors.New("callers: cannot be decided now")
