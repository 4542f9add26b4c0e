package callers

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/token"
)

// TableJudge is a Judge that follows a Table, which can be replaced. Without a Table the owner of
// the process alone may call, on the unix socket, and whoever reaches a plaintext listener on
// loopback.
type TableJudge struct {
	owner uint32
	now   func() time.Time
	table atomic.Pointer[Table]
	trust atomic.Pointer[trust]
	// known are tokens that were decided on, and verified certificates. What they hold is dropped
	// when it might be decided otherwise.
	known    memory[*Identity]
	verified memory[Verified]
}

// trust is what certificates and tokens are verified with.
type trust struct {
	certificates CertificateVerifier
	bearers      BearerVerifier
}

var _ Judge = (*TableJudge)(nil)

// NewTableJudge returns a judge without a Table, for which certificates and the tokens of OIDC
// issuers prove nothing. owner is the user id of the process. now is the clock.
func NewTableJudge(owner uint32, now func() time.Time) *TableJudge {
	j := &TableJudge{owner: owner, now: now}
	j.trust.Store(&trust{})
	return j
}

// SetTable replaces the Table. Decisions that were made before stay with connections and streams,
// until these are judged again.
func (j *TableJudge) SetTable(table *Table) {
	j.table.Store(table)
	j.known.clear()
}

// SetTrust replaces what says what client certificates and tokens of OIDC issuers prove; each may be
// nil, for nothing. Call it also when what they trust has changed.
func (j *TableJudge) SetTrust(certificates CertificateVerifier, bearers BearerVerifier) {
	j.trust.Store(&trust{certificates, bearers})
	j.verified.clear()
	j.known.clear()
}

// Table returns the table that is in force; nil if there is none.
func (j *TableJudge) Table() *Table { return j.table.Load() }

// Connection implements Judge.
func (j *TableJudge) Connection(peer *Peer) (*Identity, error) {
	table := j.table.Load()
	switch peer.Source {
	case SourceLoopback:
		return j.loopback(table, peer)
	case SourceUnix:
		return j.user(table, peer.UserID)
	case SourceSPIFFE, SourceDNS:
		return j.certificate(table, peer)
	case SourceOIDC, SourceToken:
	}
	return nil, fmt.Errorf("a connection cannot have the source %q", peer.Source)
}

// loopback judges a plaintext connection over TCP.
func (j *TableJudge) loopback(table *Table, peer *Peer) (*Identity, error) {
	// 1. A listener for health may be reached from other machines. Nobody is known there.
	if !onThisMachine(peer.Address) {
		return nil, errors.New("a plaintext connection from another machine proves nothing")
	}
	// 2. With a callers file, plaintext has the rights that the file gives it.
	if table == nil {
		return Local(), nil
	}
	identity, err := table.loopback()
	if err != nil {
		return nil, fmt.Errorf("plaintext from this machine: %w", err)
	}
	return identity, nil
}

// onThisMachine reports whether the address of a peer is loopback, or none: then the connection does
// not leave the process.
func onThisMachine(address string) bool {
	if address == "" {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// user judges a connection on a unix socket.
func (j *TableJudge) user(table *Table, id uint32) (*Identity, error) {
	switch {
	case id == unmappedUser() || id == noUser:
		// In a user namespace this is any user of the machine that has no number here.
		return nil, fmt.Errorf("the user id %d stands for users that cannot be told apart", id)
	case id == j.owner:
		// A mistake in the callers file must not lock the operator out.
		return owner(id, table != nil), nil
	}
	identity, err := table.user(id)
	if err != nil {
		return nil, fmt.Errorf("uid %d: %w", id, err)
	}
	return identity, nil
}

// owner returns the identity of the owner of the process. It may do everything. past is set if there
// is a callers file.
func owner(id uint32, past bool) *Identity {
	return &Identity{
		breaksGlass: past,
		Name:        OwnerName, Source: SourceUnix, Credential: Credential{Source: SourceUnix, UserID: id}.String(),
		Rule: "built in: the owner of the process on the unix socket", Grants: access.Everything(),
	}
}

// OwnerName is the name of the owner of the process, who may do everything on the unix socket.
const OwnerName = "owner"

// certificate judges a connection with TLS.
func (j *TableJudge) certificate(table *Table, peer *Peer) (*Identity, error) {
	if len(peer.Certificates) == 0 {
		return nil, errors.New("it has presented no certificate")
	}
	serial := fmt.Sprintf("the certificate %x", peer.Certificates[0].SerialNumber)
	if err := table.deniesCertificate(peer.Certificates); err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	verified, err := j.verify(peer.Certificates)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	identity, err := table.certificate(verified, j.now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	return identity, nil
}

// verify returns what a chain of certificates proves. It remembers that, because all connections are
// judged again, under a lock, when the callers file changes.
func (j *TableJudge) verify(chain []*x509.Certificate) (Verified, error) {
	hash := sha256.New()
	for _, each := range chain {
		_, _ = hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(each.Raw))))
		_, _ = hash.Write(each.Raw)
	}
	key := [sha256.Size]byte(hash.Sum(nil))
	if verified, known := j.verified.get(key); known && !ended(verified.NotAfter, j.now()) {
		return verified, nil
	}
	generation := j.verified.generation()
	trust := j.trust.Load()
	if trust.certificates == nil {
		return Verified{}, errors.New("no authority is configured")
	}
	verified, err := trust.certificates.VerifyCertificate(chain)
	if err == nil {
		j.verified.put(key, verified, generation)
	}
	return verified, err
}

// certificate returns the identity of a certificate that has been verified, until it ends.
func (t *Table) certificate(verified Verified, now time.Time) (*Identity, error) {
	if verified.NotAfter.IsZero() || ended(verified.NotAfter, now) {
		return nil, errExpired
	}
	// 1. A certificate with a SPIFFE id is matched by that and nothing else.
	if id := verified.SPIFFEID; id != "" {
		if domain, is := trustDomainOf(id); !is || domain != verified.TrustDomain {
			return nil, fmt.Errorf("its SPIFFE id %q is malformed", id)
		}
		if err := t.denies(Denial{Source: SourceSPIFFE, ID: id}); err != nil {
			return nil, fmt.Errorf("%s: %w", id, err)
		}
		found := t.find(credentialKey{source: SourceSPIFFE, id: id})
		if found == nil {
			return nil, fmt.Errorf("%s: %w", id, errNoCaller)
		}
		return found.until("certificate "+verified.Serial+" of "+id, verified.NotAfter), nil
	}
	// 2. Of its DNS names, none may be denied, and those that are known must be of one caller.
	var match *entry
	for _, name := range verified.DNSNames {
		if err := t.denies(Denial{Source: SourceDNS, ID: name}); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found := t.find(credentialKey{source: SourceDNS, id: name})
		switch {
		case found == nil || strings.Contains(name, "*"):
		case match == nil:
			match = found
		case match.identity.Name != found.identity.Name:
			return nil, fmt.Errorf("it names two callers: %s and %s", match.identity.Name, found.identity.Name)
		}
	}
	if match == nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(verified.DNSNames, ", "), errNoCaller)
	}
	return match.until("certificate "+verified.Serial+" of "+match.credential.ID, verified.NotAfter), nil
}

// maxBearer is the max. length, in bytes, of a token. Headers have a bound, too.
const maxBearer = 16 << 10

// Bearer implements Judge. An error that matches ErrBusy says that nothing was decided.
func (j *TableJudge) Bearer(ctx context.Context, peer *Peer, bearer string) (*Identity, error) {
	switch {
	case !peer.BearerAllowed:
		return nil, errors.New("a token is not taken on this listener")
	case token.In(bearer):
		return nil, errors.New("the token of a key was sent in place of a caller's; keys do not call keysvc")
	case len(bearer) > maxBearer:
		return nil, errors.New("the token is too long")
	}
	now, key := j.now(), hashBearer(bearer)
	if known, has := j.known.get(key); has && !known.Ended(now) {
		return known, nil
	}
	// What is decided by an older table or trust is not remembered.
	generation := j.known.generation()
	identity, err := j.bearer(ctx, peer, bearer, now)
	if err != nil {
		return nil, err
	}
	j.known.put(key, identity, generation)
	return identity, nil
}

// bearer decides on a token that is not remembered.
func (j *TableJudge) bearer(ctx context.Context, peer *Peer, bearer string, now time.Time) (*Identity, error) {
	if token.CallerIn(bearer) {
		parsed, err := token.ParseCaller(bearer)
		if err != nil {
			return nil, errors.New("the caller token is malformed")
		}
		return j.table.Load().token(strings.Clone(parsed.ID()), parsed.Hash(), now)
	}
	bearers := j.trust.Load().bearers
	if bearers == nil || strings.Count(bearer, ".") != 2 {
		return nil, errors.New("the token is neither a caller token nor that of a configured issuer")
	}
	proven, err := bearers.VerifyBearer(ctx, hostOf(peer.Address), bearer)
	if err != nil {
		return nil, err
	}
	return j.table.Load().subject(proven, now)
}

// hostOf returns an address without its port.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// Again judges a stream again whose call has brought a token, by what the token had proved. The
// token itself is not needed.
func (j *TableJudge) Again(earlier *Identity) (*Identity, error) {
	return j.table.Load().again(earlier, j.now())
}
