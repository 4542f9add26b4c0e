package callers

import (
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Table finds the caller of a credential. It is made of one File, and is not changed afterwards. A
// nil Table has no callers.
type Table struct {
	file *File
	by   map[credentialKey]*entry
	// denied has the denials by what they name.
	denied map[Denial]Position
}

// entry is a credential of a caller.
type entry struct {
	credential Credential
	// identity is the caller's, as far as the file says it.
	identity *Identity
}

// NewTable returns the table of a file that Parse has made.
func NewTable(file *File) *Table {
	table := &Table{file: file, by: map[credentialKey]*entry{}, denied: map[Denial]Position{}}
	for i := range file.Callers {
		caller := &file.Callers[i]
		for _, credential := range caller.Credentials {
			found := &entry{credential: credential}
			found.identity = &Identity{
				Name: caller.Name, Source: credential.Source, Credential: credential.String(), Grants: caller.Grants,
				Rule:     fmt.Sprintf("%s:%d", file.Name, credential.Position.Line),
				NotAfter: credential.NotAfter, from: found,
			}
			table.by[credential.key()] = found
		}
	}
	for _, denial := range file.Deny {
		at := denial.Position
		denial.Position = Position{}
		if _, again := table.denied[denial]; !again {
			table.denied[denial] = at
		}
	}
	return table
}

// File returns the file that the table was made of; nil for a nil Table.
func (t *Table) File() *File {
	if t == nil {
		return nil
	}
	return t.file
}

// String returns what a credential is called in logs: "uid 1000", "token 9fQ2…", or the id.
func (c Credential) String() string {
	switch c.Source {
	case SourceUnix:
		return fmt.Sprintf("uid %d", c.UserID)
	case SourceToken:
		return "token " + c.ID
	case SourceOIDC:
		return c.Issuer + " " + c.ID
	case SourceLoopback:
		return "plaintext from this machine"
	case SourceSPIFFE, SourceDNS:
	}
	return c.ID
}

// find returns the entry of a credential; nil if no caller has it.
func (t *Table) find(key credentialKey) *entry {
	if t == nil {
		return nil
	}
	return t.by[key]
}

// denies returns an error with the line that denies a credential; nil if none does.
func (t *Table) denies(denial Denial) error {
	if t == nil {
		return nil
	}
	if at, denied := t.denied[denial]; denied {
		return fmt.Errorf("it is denied by %s:%d", t.file.Name, at.Line)
	}
	return nil
}

// deniesCertificate returns an error if one of the certificates of a chain is denied.
func (t *Table) deniesCertificate(chain []*x509.Certificate) error {
	for _, each := range chain {
		serial := strings.TrimLeft(fmt.Sprintf("%x", each.SerialNumber), "0")
		for _, issuer := range []string{"", each.Issuer.String()} {
			if err := t.denies(Denial{Serial: serial, Issuer: issuer}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Errors for the log. They do not say to a peer what it lacks.
var (
	errNoCaller  = errors.New("no caller has it")
	errExpired   = errors.New("it has expired")
	errWrongHash = errors.New("no caller has a token with this id and this secret")
)

// user returns the identity of a user of this machine.
func (t *Table) user(id uint32) (*Identity, error) {
	return t.known(credentialKey{source: SourceUnix, userID: id})
}

// loopback returns the identity of plaintext connections from this machine.
func (t *Table) loopback() (*Identity, error) {
	return t.known(credentialKey{source: SourceLoopback})
}

func (t *Table) known(key credentialKey) (*Identity, error) {
	if found := t.find(key); found != nil {
		return found.identity, nil
	}
	return nil, errNoCaller
}

// token returns the identity of a caller token with an id and a hash. It takes the same time for an
// unknown id as for a wrong secret.
func (t *Table) token(id string, hash [32]byte, now time.Time) (*Identity, error) {
	found, want := t.find(credentialKey{source: SourceToken, id: id}), decoy
	if found != nil {
		want = found.credential.Hash
	}
	same := subtle.ConstantTimeCompare(hash[:], want[:]) == 1
	switch {
	case found == nil || !same:
		return nil, errWrongHash
	case ended(found.identity.NotAfter, now):
		return nil, fmt.Errorf("the token %s: %w", found.credential.ID, errExpired)
	}
	if err := t.denies(Denial{Source: SourceToken, ID: found.credential.ID}); err != nil {
		return nil, fmt.Errorf("the token %s: %w", found.credential.ID, err)
	}
	return found.identity, nil
}

// decoy is compared with the hash of a token that no caller has. No token has this hash.
var decoy = [32]byte{1}

// subject returns the identity of a subject of an OIDC issuer, until its token ends.
func (t *Table) subject(proven VerifiedBearer, now time.Time) (*Identity, error) {
	key := credentialKey{source: SourceOIDC, issuer: proven.Issuer, id: proven.Subject}
	found := t.find(key)
	switch {
	case found == nil:
		return nil, fmt.Errorf("the subject %q of %s: %w", proven.Subject, proven.Issuer, errNoCaller)
	case proven.NotAfter.IsZero() || ended(proven.NotAfter, now):
		return nil, fmt.Errorf("the token of %q of %s: %w", proven.Subject, proven.Issuer, errExpired)
	}
	if err := t.denies(Denial{Source: SourceOIDC, Issuer: proven.Issuer, ID: proven.Subject}); err != nil {
		return nil, fmt.Errorf("the subject %q of %s: %w", proven.Subject, proven.Issuer, err)
	}
	return found.until(found.credential.String(), proven.NotAfter), nil
}

// until returns the identity of a caller with a credential that ends.
func (e *entry) until(credential string, notAfter time.Time) *Identity {
	identity := *e.identity
	identity.Credential, identity.NotAfter = credential, notAfter
	return &identity
}

// ended reports whether a credential has ended. The zero Time is no end.
func ended(notAfter, now time.Time) bool { return !notAfter.IsZero() && !now.Before(notAfter) }

// again returns the identity that the bearer of an earlier identity has by this table. The token is
// not needed: the table finds it by what it had proved.
func (t *Table) again(earlier *Identity, now time.Time) (*Identity, error) {
	if earlier == nil || earlier.from == nil { // nil: the caller was lost before, and the stream is ending
		return nil, errNoCaller
	}
	switch proven := earlier.from.credential; proven.Source {
	case SourceToken:
		return t.token(proven.ID, proven.Hash, now)
	case SourceOIDC:
		return t.subject(VerifiedBearer{Issuer: proven.Issuer, Subject: proven.ID, NotAfter: earlier.NotAfter}, now)
	case SourceLoopback, SourceUnix, SourceSPIFFE, SourceDNS:
	}
	return nil, errNoCaller
}
