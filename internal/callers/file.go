package callers

import (
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
)

// File is a callers file: who may call, by which credential, and with which rights. It is not
// changed once it is made. Parse makes one that obeys every rule.
type File struct {
	// Name is the name of the file.
	Name string
	// TrustDomains are the SPIFFE trust domains whose members may call.
	TrustDomains []TrustDomain
	// ClientCA is a PEM file with the roots of client certificates that are matched by DNS name; ""
	// for none.
	ClientCA string
	// Issuers are the OIDC issuers whose tokens are taken.
	Issuers []Issuer
	// Callers are those who may call.
	Callers []Caller
	// Deny are credentials that are refused, whoever they would be.
	Deny []Denial
}

// Position is a line of a callers file.
type Position struct{ Line, Column int }

// TrustDomain is a SPIFFE trust domain.
type TrustDomain struct {
	// Name is the domain, as in "example.org".
	Name string
	// Bundle is the PEM file with the roots of this domain alone. If it is empty, the roots come
	// from the SPIFFE Workload API.
	Bundle string
	// Position is where it stands.
	Position Position
}

// Issuer is an OIDC issuer.
type Issuer struct {
	// Name is what callers and logs call it.
	Name string
	// URL is the issuer, as tokens have it in "iss".
	URL string
	// Audience is what tokens must have in "aud".
	Audience string
	// Algorithms are the signature algorithms that are taken, by the names of RFC 7518.
	Algorithms []string
	// CA is a PEM file with the roots for the connection to the issuer; "" for those of the system.
	CA string
	// TokenFile is a file with a token to fetch the issuer's keys with; "" for none.
	TokenFile string
	// JWKS is a file with the issuer's keys (RFC 7517). If it is set, nothing is fetched.
	JWKS string
	// Position is where it stands.
	Position Position
}

// Caller is one who may call.
type Caller struct {
	// Name is the caller's name, as audit events and logs have it. It is unique in the file.
	Name string
	// Credentials are what it proves that with. They are of one Source.
	Credentials []Credential
	// Grants are its rights.
	Grants *access.Grants
	// Position is where it stands.
	Position Position
}

// Credential is what a caller proves with who it is. Which of the fields are set depends on Source.
type Credential struct {
	// Source is the way in.
	Source Source
	// ID is the SPIFFE id, the DNS name in lower case, the id of a caller token, or the subject of
	// an OIDC token.
	ID string
	// Issuer is the name of an OIDC issuer.
	Issuer string
	// UserID is the user id of a peer of a unix socket.
	UserID uint32
	// Hash is that of a caller token; see token.Caller.
	Hash [32]byte
	// NotAfter is when a caller token ends; the zero Time if it does not.
	NotAfter time.Time
	// Position is where it stands.
	Position Position
}

// key returns what a credential is found by. No two credentials of a file have the same key.
func (c Credential) key() credentialKey {
	return credentialKey{c.Source, c.Issuer, c.ID, c.UserID}
}

// credentialKey is what a credential is found by.
type credentialKey struct {
	source     Source
	issuer, id string
	userID     uint32
}

// Denial is a credential that is refused.
type Denial struct {
	// Source is SourceSPIFFE, SourceDNS, SourceToken or SourceOIDC; "" for a certificate.
	Source Source
	// ID is a SPIFFE id, a DNS name, the id of a caller token or the subject of an OIDC token.
	ID string
	// Issuer is the name of an OIDC issuer, or the distinguished name of a certificate's issuer as
	// x509's pkix.Name prints it; "" for every issuer of certificates.
	Issuer string
	// Serial is the serial number of a certificate, in lower-case hexadecimal digits without
	// leading zeros.
	Serial string
	// Position is where it stands.
	Position Position
}
